//! The reflector: list, then watch, for ever; everything that is shown is compared before the position moves.
//!
//! kube's watcher is not used, since it hides what is needed here: the resourceVersion of lists, so that one of a stale
//! API server can be discarded, and bookmarks. See docs/architecture.md.

use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, Stream, StreamExt};
use kube::api::{ListParams, WatchParams};
use kube::core::{ObjectList, Request, WatchEvent};
use kube::{Client, Resource};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::ledger::{Ledger, Listing};
use super::object::{NotASession, Read, Reader, Watched};
use super::paging::Paging;
use super::shared::Shared;
use crate::api::VmcpSession;
use crate::core::replica::{List, ScopeId, StaleList};
use crate::core::session::{InvalidResourceVersion, ResourceVersion, SessionKey};
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};
use crate::runtime::backoff::Backoff;
use crate::runtime::failing::Failing;

/// Pause before a smaller page is asked for.
const SMALLER_PAGE: Duration = Duration::from_millis(200);
/// How long the beginning of a watch may take.
const WATCH_DEADLINE: Duration = Duration::from_secs(10);
/// The API server ends a watch after this long, so that watches spread over API servers again.
const WATCH_SECONDS: u32 = 290;
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(10);

#[derive(Debug, Error)]
enum WatchError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Stale(#[from] StaleList),
    #[error(transparent)]
    Object(#[from] NotASession),
    #[error(transparent)]
    ResourceVersion(#[from] InvalidResourceVersion),
    #[error("an answer without resourceVersion")]
    NoResourceVersion,
    #[error("a page of a list is larger than is read")]
    TooLarge,
    #[error("it was found meanwhile that all must be listed: what was read before that does not count")]
    Doubted,
}

/// Pages that are read at once, of all collections together: chosen namespaces may be many, and all are listed at the start.
pub(super) const PAGES_AT_ONCE: usize = 4;

/// One page of a list, read to its end. `None`: it has more than `most` bytes.
async fn page(body: impl AsyncRead + Unpin, most: u64) -> Result<Option<ObjectList<Watched>>, kube::Error> {
    let mut read = Vec::new();
    body.take(most.saturating_add(1)).read_to_end(&mut read).await.map_err(kube::Error::ReadEvents)?;
    if u64::try_from(read.len()).is_ok_and(|bytes| bytes > most) {
        return Ok(None);
    }
    serde_json::from_slice(&read).map(Some).map_err(kube::Error::SerdeError)
}

/// How a watch went on until it ended.
enum Ended {
    /// The API server closed it, or it broke: watch on from the position.
    Resume,
    /// What was missed cannot be had any more: list again.
    Relist,
}

/// How it goes.
struct Course {
    backoff: Backoff,
    failing: Failing,
}

/// One watched collection.
pub struct Watch {
    /// A client of its own: its connections are not shared with what the watch is checked by.
    pub client: Client,
    /// The core's name for the collection.
    pub scope: ScopeId,
    /// Its namespace; `None` for all.
    pub namespace: Option<Arc<str>>,
    /// Chooses the objects; empty for all.
    pub labels: &'static str,
    /// Where the objects go.
    pub shared: Arc<Shared>,
    /// Where the rest of them goes.
    pub ledger: Arc<Ledger>,
    /// Reads them.
    pub reader: Arc<Mutex<Reader>>,
    /// Notified when the knowledge has become too old, or void: a watch that is older than `patience` is then begun anew,
    /// and one whose replica must list ends at once. Also when the first marker was acknowledged.
    pub distrust: Arc<Notify>,
    /// How long a watch may take to show anything, and a marker to be acknowledged before all is listed.
    pub patience: Duration,
    /// Room for pages that are read: see [`PAGES_AT_ONCE`].
    pub room: Arc<Semaphore>,
}

impl Watch {
    /// Lists and watches until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut course = self.course();
        let mut listed = false;
        let mut paging = Paging::default();
        while !shutdown.is_cancelled() {
            let begun = Instant::now();
            let result = tokio::select! {
                () = shutdown.cancelled() => break,
                result = self.once(&mut listed, &mut course, &mut paging) => result,
            };
            match result {
                // One that ends as soon as it has begun must not be begun again and again.
                Ok(Ended::Resume) if begun.elapsed() > *BACKOFF.end() => continue,
                Ok(Ended::Resume) => {}
                Ok(Ended::Relist) => listed = false,
                Err(error) => {
                    // A position cannot be resumed from an API server that says that it is too old.
                    let gone = matches!(&error, WatchError::Api(e) if e.kind() == ApiErrorKind::Gone);
                    if gone {
                        // Perhaps small pages took longer than a list may be continued.
                        paging.complete();
                    }
                    listed &= !gone;
                    if course.failing.failed(&error.to_string(), Instant::now()) {
                        warn!(scope = %self.name(), %error, "watching failed; trying again");
                    } else {
                        debug!(scope = %self.name(), %error, "watching failed");
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = sleep(course.backoff.pause()) => {}
            }
        }
        Ok(())
    }

    /// Leases end while the watch pauses: whatever is wrong, it is tried about as often as markers are written.
    fn backoff(&self) -> Backoff {
        Backoff::new(*BACKOFF.start(), (*BACKOFF.end()).min(self.patience / 3))
    }

    fn course(&self) -> Course {
        Course { backoff: self.backoff(), failing: Failing::default() }
    }

    async fn once(&self, listed: &mut bool, course: &mut Course, paging: &mut Paging) -> Result<Ended, WatchError> {
        if !*listed || self.shared.with(|replica, _| replica.must_list(self.scope)) {
            self.wait_for_marker().await;
            self.list(paging).await?;
            *listed = true;
            course.backoff.reset();
        }
        self.watch(course).await
    }

    /// What is listed before a marker was acknowledged is listed again. So a list waits for that, though not for ever: where no marker
    /// can be written there are no leases, but the leader has work to do all the same.
    async fn wait_for_marker(&self) {
        let marked = async {
            while !self.shared.with(|replica, _| replica.is_marked(self.scope) || replica.is_refused(self.scope)) {
                self.distrust.notified().await;
            }
        };
        if timeout(self.patience, marked).await.is_err()
            || !self.shared.with(|replica, _| replica.is_marked(self.scope))
        {
            info!(scope = %self.name(), "there is no marker: all is listed, and once more when there is one");
        }
    }

    /// Takes a whole, consistent list. While it runs the position stands still.
    async fn list(&self, paging: &mut Paging) -> Result<(), WatchError> {
        let doubts = self.shared.with(|replica, _| replica.doubts(self.scope));
        let mut params = ListParams::default().labels(self.labels);
        let mut reads: Vec<Read> = Vec::new();
        let (mut wanted, mut backoff) = (Instant::now(), self.backoff());
        let position = loop {
            params = params.limit(paging.limit());
            let page = self.page(&params, *paging);
            let (ObjectList { metadata, items, .. }, room) = match page.await {
                Err(error) if paging.failed(error.kind()) => {
                    info!(scope = %self.name(), %error, objects = paging.limit(), "asking for a smaller page");
                    // What fails at once may fail for a moment only, whatever is asked for.
                    sleep(SMALLER_PAGE).await;
                    continue;
                }
                Ok(None) if paging.failed(ApiErrorKind::TooLarge) => {
                    info!(scope = %self.name(), objects = paging.limit(), "objects are large: asking for a smaller page");
                    continue;
                }
                Err(error) if params.continue_token.is_some() && Paging::may_come(error.kind(), wanted.elapsed()) => {
                    info!(scope = %self.name(), %error, listed = reads.len(), "a page did not come: asking again");
                    sleep(backoff.pause()).await;
                    continue;
                }
                page => page?.ok_or(WatchError::TooLarge)?,
            };
            paging.came(items.len(), items.iter().map(Watched::bytes).sum());
            if self.shared.with(|replica, _| replica.doubts(self.scope)) != doubts {
                return Err(WatchError::Doubted);
            }
            {
                let mut reader = self.reader.lock();
                for item in items {
                    // What cannot be read is not among them, and so counts as absent.
                    reads.extend(readable(reader.read(item))?.ok());
                }
            }
            drop(room);
            match metadata.continue_.filter(|c| !c.is_empty()) {
                Some(next) => {
                    params = params.continue_token(&next);
                    wanted = Instant::now();
                    backoff.reset();
                }
                None => {
                    break metadata.resource_version.ok_or(WatchError::NoResourceVersion)?.parse()?;
                }
            }
        };
        paging.complete();
        let count = reads.len();
        let mut kept = Vec::with_capacity(count);
        let mut objects = Vec::with_capacity(count);
        for Read { object, terms, marker } in reads {
            kept.push((object.key.clone(), terms, marker));
            objects.push(object);
        }
        let (listing, list) = (Listing::from(kept), List::from(objects));
        self.shared.with(|replica, now| {
            if replica.doubts(self.scope) != doubts {
                return Err(WatchError::Doubted);
            }
            replica.relist(self.scope, list, position, now)?;
            // Before anybody takes the list for a proof of who is registered.
            self.ledger.relisted(self.namespace.as_deref(), listing);
            Ok(())
        })?;
        debug!(scope = %self.name(), objects = count, %position, "listed");
        Ok(())
    }

    /// Asks for a page, and reads it when there is room for it. That is not taken while an API server has not answered yet, which
    /// another collection's may have, and to wait for it is no fault of the API server.
    async fn page(
        &self,
        params: &ListParams,
        paging: Paging,
    ) -> Result<Option<(ObjectList<Watched>, Option<SemaphorePermit<'_>>)>, ApiError> {
        let (begun, within) = (Instant::now(), paging.answer_within(self.patience));
        let body = deadline(within, async {
            let request = Request::new(self.path()).list(params).map_err(kube::Error::BuildRequest)?;
            self.client.request_stream(request).await
        });
        let body = body.await?;
        let left = within.saturating_sub(begun.elapsed());
        // It is never closed.
        let room = self.room.acquire().await.ok();
        let page = deadline(left, page(body, paging.most_bytes())).await?;
        Ok(page.map(|page| (page, room)))
    }

    async fn watch(&self, course: &mut Course) -> Result<Ended, WatchError> {
        let position = self.shared.with(|replica, _| replica.position(self.scope));
        let params = WatchParams::default().timeout(WATCH_SECONDS).labels(self.labels);
        let begun = deadline(WATCH_DEADLINE, async {
            let request = Request::new(self.path()).watch(&params, &position.to_string());
            self.client.request_events::<Watched>(request.map_err(kube::Error::BuildRequest)?).await
        });
        let events = begun.await?;
        let mut events = std::pin::pin!(events);
        self.follow(&mut events, course).await
    }

    async fn follow(
        &self,
        events: &mut (impl Stream<Item = kube::Result<WatchEvent<Watched>>> + Unpin),
        course: &mut Course,
    ) -> Result<Ended, WatchError> {
        let begun = Instant::now();
        loop {
            if self.shared.with(|replica, _| replica.must_list(self.scope)) {
                return Ok(Ended::Relist);
            }
            let event = tokio::select! {
                event = events.next() => event,
                () = self.distrust.notified() => {
                    // A list may have taken long, and nothing of this watch be due yet.
                    if begun.elapsed() < self.patience {
                        continue;
                    }
                    // As long as no marker can be written, it is begun anew again and again.
                    if self.shared.with(|replica, _| replica.begins_to_be_unproven(self.scope)) {
                        info!(scope = %self.name(), "nothing has proven the watch for long: beginning it anew");
                    } else {
                        debug!(scope = %self.name(), "nothing has proven the watch yet: beginning it anew");
                    }
                    return Ok(Ended::Resume);
                }
            };
            let Some(event) = event else { return Ok(Ended::Resume) };
            match event.map_err(ApiError::from)? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let read = self.reader.lock().read(object);
                    match readable(read)? {
                        Ok(read) => {
                            self.ledger.observed(&read);
                            self.shared.with(|replica, now| replica.apply(self.scope, read.object, now));
                        }
                        Err((key, at)) => self.removed(&key, at),
                    }
                }
                WatchEvent::Deleted(object) => {
                    let read = self.reader.lock().read(object);
                    let (key, at) =
                        readable(read)?.map_or_else(|gone| gone, |r| (r.object.key, r.object.resource_version));
                    self.removed(&key, at);
                }
                WatchEvent::Bookmark(bookmark) => {
                    let position = bookmark.metadata.resource_version.parse()?;
                    self.shared.with(|replica, now| replica.bookmark(self.scope, position, now));
                }
                WatchEvent::Error(status) => {
                    let error = ApiError::from(kube::Error::Api(status));
                    if error.kind() == ApiErrorKind::Gone {
                        debug!(scope = %self.name(), "the watch is too old to be resumed");
                        return Ok(Ended::Relist);
                    }
                    return Err(error.into());
                }
            }
            course.backoff.reset();
            if course.failing.over() {
                info!(scope = %self.name(), "the watch shows changes again");
            }
        }
    }

    fn removed(&self, key: &SessionKey, at: ResourceVersion) {
        self.shared.with(|replica, now| replica.delete(self.scope, key, at, now));
        self.ledger.removed(key);
    }

    fn path(&self) -> String {
        VmcpSession::url_path(&(), self.namespace.as_deref())
    }

    fn name(&self) -> &str {
        self.namespace.as_deref().unwrap_or("all namespaces")
    }
}

/// An object that cannot be read costs only itself: it counts as absent at its version, so that no pod serves it. To leave it
/// out would be unsound, since copies of an older state of it would stay covered.
fn readable(read: Result<Read, NotASession>) -> Result<Result<Read, (SessionKey, ResourceVersion)>, NotASession> {
    match read {
        Err(NotASession::Unreadable { key, resource_version, why }) => {
            warn!(session = %key, %why, "an object cannot be read: it counts as absent");
            Ok(Err((key, resource_version)))
        }
        read => read.map(Ok),
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
