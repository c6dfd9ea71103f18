//! Moves work from a bounded queue to the API server, a few calls at a time.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::controller::clock;
use crate::controller::clock::now;
use crate::core::time::Time;

/// Where the work comes from.
pub(super) trait Source {
    /// One piece of it.
    type Work;

    /// The next piece that is ready.
    fn take(&self, now: Time) -> Option<Self::Work>;

    /// When the next piece may be ready; it may be past.
    fn next_ready(&self, now: Time) -> Option<Time>;

    /// Does one piece, within a deadline, and tells the queue how it went.
    fn perform(&self, work: Self::Work) -> impl Future<Output = ()> + Send;
}

/// Runs until `shutdown`, then finishes the calls under way and takes up no more. Whoever adds work calls
/// `wake.notify_one()` after it.
pub(super) async fn run(source: &impl Source, calls: usize, wake: &Notify, shutdown: &CancellationToken) {
    let mut under_way = FuturesUnordered::new();
    while !shutdown.is_cancelled() {
        let at = now();
        while under_way.len() < calls
            && let Some(work) = source.take(at)
        {
            under_way.push(source.perform(work));
        }
        let next = if under_way.len() < calls { source.next_ready(at) } else { None };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(()) = under_way.next() => {}
            () = wake.notified() => {}
            () = clock::sleep_until(next.unwrap_or_default()), if next.is_some() => {}
        }
    }
    while under_way.next().await.is_some() {}
}
