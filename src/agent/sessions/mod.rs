//! Sessions as keys: which object a key means, what its value is, when it ends; reads and writes through the cache.
//!
//! * [`key`]: keys and names of objects.
//! * [`value`]: a session as a string.
//! * [`ttl`]: timeouts, and when a session ends.
//! * [`local`]: metadata keys that are true only in this pod.
//! * `read`, `write`, `expire`: what commands are made of.

mod config;
mod entry;
mod expire;
mod failure;
mod ids;
pub mod key;
pub mod local;
mod plan;
mod read;
mod timers;
pub mod ttl;
pub mod value;
mod write;

use std::fmt;
use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};

pub use config::{NameError, SessionsConfig, SetupError};
pub use entry::{ANNOTATION_FORM, Entry, Form};
pub use expire::TimeoutOutcome;
pub use failure::Failure;
pub use ttl::Ttl;
pub use value::{check_limits, parse_value};
pub use write::{Condition, Exact};

use crate::cache::{Cache, CacheConfig, Visibility};
use ids::Ids;
use key::Keys;
pub use key::MAX_PREFIX;
use local::LocalKeys;
use timers::Timers;

/// The keys of sessions whose names do not tell them may take this part of the cache's memory more.
const IDS: usize = 4;

/// The sessions that clients of this pod use. Clones share them; when the last one is dropped, the cache's streams end.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
    _alive: Arc<DropGuard>,
}

struct Inner {
    cache: Cache,
    keys: Keys,
    local: LocalKeys,
    visibility: Visibility,
    ids: Ids,
    timers: Arc<Timers>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("keys", &self.inner.keys)
            .field("local", &self.inner.local)
            .finish_non_exhaustive()
    }
}

/// Milliseconds since 1970, now: the clock of [`Ttl::At`] and [`Entry::deadline`].
pub fn now_millis() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

impl Sessions {
    /// Connects a cache that is set up as this module needs it (uses renew nothing; its own annotations are kept). Must be
    /// called within a tokio runtime.
    pub fn connect(client: kube::Client, cache: CacheConfig, config: &SessionsConfig) -> Result<Self, SetupError> {
        let (keys, local) = config.read()?;
        let cache = config::for_clients(cache);
        let ids = Ids::new(cache.entries.saturating_mul(2), cache.bytes / IDS);
        let inner = Arc::new(Inner {
            cache: Cache::connect(client, cache)?,
            keys,
            local,
            visibility: config.visibility,
            ids,
            timers: Arc::default(),
        });
        let ended = CancellationToken::new();
        tokio::spawn(end_in_time(Arc::downgrade(&inner), inner.timers.clone(), ended.clone()));
        Ok(Self { inner, _alive: Arc::new(ended.drop_guard()) })
    }

    /// The cache, for its state, its evictions and its shutdown.
    pub fn cache(&self) -> &Cache {
        &self.inner.cache
    }

    /// The name of the object that `key` means; `None` if no session can have this key. Evictions speak of it.
    pub fn name(&self, key: &[u8]) -> Option<String> {
        self.inner.keys.name(key).ok().map(|name| name.as_str().to_owned())
    }

    /// Whether a session can have this key.
    pub fn is_possible(&self, key: &[u8]) -> bool {
        self.inner.keys.name(key).is_ok()
    }

    /// Whether there are fields, and all of them are true only in this pod.
    pub fn are_local(&self, fields: &[&[u8]]) -> bool {
        let is_local = |field: &[u8]| std::str::from_utf8(field).is_ok_and(|field| self.inner.local.has(field));
        !fields.is_empty() && fields.iter().all(|field| is_local(field))
    }

    /// The key of the session whose object has this name; `None` if it cannot be told: an id that was hashed is known only
    /// to an agent whose clients have used it lately.
    pub fn key(&self, name: &str) -> Option<Vec<u8>> {
        self.inner.keys.key(name, None).or_else(|| self.inner.ids.key(name))
    }
}

/// Deletes sessions at the instants at which they end.
async fn end_in_time(inner: std::sync::Weak<Inner>, timers: Arc<Timers>, ended: CancellationToken) {
    let end = |name: Arc<str>| {
        let inner = inner.upgrade();
        async move {
            if let Some(inner) = inner {
                // Who reads a session that has ended deletes it. One that is there may have been given more time; or the clock of
                // this machine is ahead, and it ends a little later.
                let is_over = |entry: Entry| entry.ends().is_some_and(|end| end.is_over(now_millis()));
                if inner.fresh(&name).await.map_or(true, |entry| entry.is_some_and(is_over)) {
                    inner.timers.again(&name, now_millis());
                }
            }
        }
    };
    timers.run(now_millis, end, ended).await;
}
