//! The pod's side: a cache of sessions that drops what changed, and serves only what is covered.
//!
//! A [`Cache`] keeps copies of the sessions of one namespace. While a replica of the controller vouches for them (a
//! lease, renewed all the time), a [`get`](Cache::get) takes a copy from memory without asking anyone; when a session
//! changes, the replicas say so and the copy is dropped. Without such cover each `get` asks the API server, and when that
//! cannot be reached either, it fails: nothing old is ever served on a guess.
//!
//! ```no_run
//! use std::collections::BTreeMap;
//! use vmcp_session::cache::{Cache, CacheConfig, CreateOptions, GetError, WriteOptions};
//! use vmcp_session::runtime::kube_client::{KubeArgs, Timeouts};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = KubeArgs::default().client(Timeouts::default()).await?;
//! let cache = Cache::connect(
//!     client,
//!     CacheConfig {
//!         controllers: vec!["vmcp-session-controller.vmcp-system.svc:7070".into()],
//!         token_file: Some("/var/run/secrets/vmcp.dev/token".into()),
//!         ca_file: Some("/var/run/secrets/vmcp.dev/ca.crt".into()),
//!         ..CacheConfig::new("team-a", "vmcp-0")
//!     },
//! )?;
//!
//! // What another pod wrote is read here, and kept.
//! let session = match cache.get("session-1").await {
//!     Ok(session) => session,
//!     Err(GetError::NotFound) => {
//!         let metadata = BTreeMap::from([("backends".into(), "weather".into())]);
//!         cache.create("session-1", metadata, CreateOptions::default()).await?
//!     }
//!     Err(error) => return Err(error.into()),
//! };
//!
//! // Only the keys that differ are sent, so pods that change different keys at once both win.
//! let mut metadata = session.metadata().to_map();
//! metadata.insert("backends".into(), "weather,search".into());
//! let session = cache.update(&session, metadata, WriteOptions::default()).await?;
//!
//! // What is true in this pod only stays beside the copy, and goes with it.
//! cache.set_local(&session, "connection", "17");
//!
//! // When this returns, no pod serves the session any more.
//! cache.delete(&session, WriteOptions::EVERYWHERE).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Every decision is made in [`crate::core::cache`]; this module does the I/O around it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

mod api_server;
mod beside;
mod config;
mod confirm;
mod date;
mod delete;
mod difference;
mod endpoints;
mod error;
mod events;
mod flight;
#[cfg(test)]
mod flight_tests;
mod leases;
mod link;
mod lookup;
mod options;
mod outbox;
mod refusals;
mod respite;
#[cfg(test)]
mod scripted_replica;
mod search_list;
mod session;
mod shared;
mod state;
mod store;
mod stream;
mod transport;
mod trouble;
mod unconfirmed;
mod unsettled;
mod write;

pub use crate::core::cache::{Annotations, DropReason, Facts, LocalChange, LocalValues, Renewal};
pub use crate::core::digest::{Digest, Metadata};
pub use crate::core::fields::{Fields, is_plain};
pub use crate::core::names::is_object_name;
pub use crate::core::session::{ResourceVersion, Uid};
pub use crate::core::time::Time;
pub use beside::{Beside, Deleting};
pub use config::{CacheConfig, ConfigError};
pub use error::{Cause, GetError, WriteError};
pub use events::{Event, Eviction, Subscription};
/// What [`Cache::connect`] takes a client of.
pub use kube;
pub use options::{Change, CreateOptions, IdleTimeout, Known, Visibility, WriteOptions};
pub use session::{Origin, Session};
pub use state::{CacheState, StreamState};

use shared::Shared;

/// A cache of the sessions of one namespace. Clones share it; when the last one is dropped, its streams end.
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
    alive: Arc<Alive>,
}

/// Ends the background tasks with the last handle.
struct Alive {
    ended: CancellationToken,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let namespace = &self.shared.config.namespace;
        f.debug_struct("Cache").field("namespace", namespace).finish_non_exhaustive()
    }
}

impl Cache {
    /// A cache that reads and writes through `client`, and connects to the controller in the background. Returns at once;
    /// until a replica has granted a lease, each `get` asks the API server. Must be called within a tokio runtime.
    ///
    /// `client` must not repeat requests by itself, as one of kube does by default: a write that is answered after it was sent
    /// twice unseen may be called refused though it was done, and `Nothing was written` of [`WriteError`] would not be true. That
    /// of [`KubeArgs`](crate::runtime::kube_client::KubeArgs) does not; for another one, set `config.default_retry = false` in the
    /// [`kube::Config`] that it is made of.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime. Writes that are to be visible everywhere wait with timers on the caller's executor:
    /// they panic where that is not one of tokio with its time driver.
    pub fn connect(client: kube::Client, config: CacheConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let shared = Shared::new(client, config);
        // Whatever ends the task, nobody waits for it in vain: subscribers hear that it is over, and the agent ends
        // with it.
        let (streams, left) = (endpoints::run(shared.clone()), shared.left.clone().drop_guard());
        tokio::spawn(async move {
            streams.await;
            drop(left);
        });
        tokio::spawn(leases::tell(shared.clone()));
        let alive = Alive { ended: shared.ended.clone() };
        Ok(Self { shared, alive: Arc::new(alive) })
    }

    /// The session, if it may be served without asking anyone. Never waits, and allocates nothing.
    #[inline]
    pub fn hit(&self, name: &str) -> Option<Session> {
        self.shared.store.hit(name)
    }

    /// The session: from the cache, confirmed by the API server, or read anew.
    pub async fn get(&self, name: &str) -> Result<Session, GetError> {
        if let Some(session) = self.hit(name) {
            return Ok(session);
        }
        let session = self.find(name).await?;
        self.given(&session);
        Ok(session)
    }

    /// Creates a session.
    pub async fn create(&self, name: &str, metadata: Metadata, options: CreateOptions) -> Result<Session, WriteError> {
        self.shared.create(name, metadata, options).await
    }

    /// Changes the metadata of a session from what `base` was to `metadata`, by sending the difference: other keys stay as
    /// somebody else may have left them meanwhile. Returns the session as it is then.
    pub async fn update(
        &self,
        base: &Session,
        metadata: Metadata,
        options: WriteOptions,
    ) -> Result<Session, WriteError> {
        self.shared.update(base, metadata, options.visibility).await
    }

    /// Deletes a session, but none that took its name since. If it is visible everywhere, no pod serves the session when
    /// this returns, also if it was gone before (`NotFound`, `Replaced`).
    pub async fn delete(&self, session: &Session, options: WriteOptions) -> Result<(), WriteError> {
        let alive = Some(session.resource_version());
        self.shared.delete(session.name(), session.uid(), alive, None, options.visibility).await
    }

    /// Deletes the session `name` if it has this uid.
    pub async fn delete_uid(&self, name: &str, uid: Uid, options: WriteOptions) -> Result<(), WriteError> {
        self.shared.delete(name, uid, None, None, options.visibility).await
    }

    /// There is no session `name`, as [`find`](Self::find) has just said. If a deletion of it went through this cache whose
    /// answer was lost, or has not been given yet, waits until no pod serves the session any more: only then has the deletion
    /// been repeated. Else returns at once.
    pub async fn confirm_gone(&self, name: &str, options: WriteOptions) {
        self.shared.confirm_unconfirmed(name, options.visibility).await;
    }

    /// Evictions from now on.
    pub fn subscribe(&self) -> Subscription {
        self.shared.store.events.subscribe(self.shared.left.clone())
    }

    /// Keeps a value that is true only in this pod beside the copy that `session` is. It goes when the copy does. False if
    /// that copy is not held any more.
    pub fn set_local(&self, session: &Session, key: &str, value: &str) -> bool {
        self.shared.store.set_local(session, key, value)
    }

    /// The pod-local values beside the copy that `session` is; `None` if there are none, or the copy is not held any more.
    pub fn local(&self, session: &Session) -> Option<Arc<LocalValues>> {
        self.shared.store.local(session)
    }

    /// All copies, each with whether it may be served at this instant without asking anyone. For diagnosis: it does not
    /// count as a use, and must not be served from.
    pub fn held(&self) -> Vec<(Session, bool)> {
        self.shared.store.held(usize::MAX)
    }

    /// What the cache is doing.
    pub fn state(&self) -> CacheState {
        self.shared.state()
    }

    /// Ends the streams, and with them all leases: from now on each `get` asks the API server. Returns when the replicas have
    /// heard it, or could have. It can be called any number of times, and given up: what has begun goes on, and each call waits
    /// for all of it.
    pub async fn shutdown(&self) {
        self.alive.ended.cancel();
        self.shared.store.revoke_all();
        self.shared.left.cancelled().await;
    }
}
