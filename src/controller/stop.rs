//! How a replica ends: in order, and in time, whoever does not answer.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::marker;
use super::reconcile::Ending;
use super::shared::Shared;

/// How long agents are given to return their leases. Meanwhile the leader finishes what it has under way.
const RETURN_LEASES: Duration = Duration::from_secs(3);
/// How long the removal of the markers may take. With the leases and what is left then it leaves room in the 10 s of a shutdown.
const UNREGISTER: Duration = Duration::from_secs(2);

/// Ends the replica in order: no new leases, those in force are returned, the registration goes, then everything else.
/// Meanwhile it stops to lead.
pub(super) struct Stop {
    pub shared: Arc<Shared>,
    pub client: kube::Client,
    /// Where the markers are.
    pub namespaces: Vec<String>,
    pub name: String,
    /// Ends those who write them.
    pub marking: CancellationToken,
    pub markers: TaskTracker,
    pub ending: Ending,
}

impl Stop {
    /// Waits for the shutdown, and then ends. What is left ends with `closing`.
    pub async fn when(self, shutdown: &CancellationToken, closing: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            // A task has ended early.
            () = closing.cancelled() => return,
        }
        self.shared.with(|replica, _| replica.stop());
        let over = || self.shared.with(|replica, now| replica.all_leases_over(now));
        let returned = async {
            let deadline = Instant::now() + RETURN_LEASES;
            while !over() && Instant::now() < deadline {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::join!(returned, self.ending.end());
        self.marking.cancel();
        self.markers.close();
        self.markers.wait().await;
        if over() {
            unregister(&self.client, self.namespaces, &self.name).await;
        } else {
            info!("some agents have not returned their leases: the registration stays until these have ended");
        }
        closing.cancel();
    }
}

/// Removes all markers of this replica, at once: an API server that does not answer must not be waited for again and again.
async fn unregister(client: &kube::Client, namespaces: Vec<String>, name: &str) {
    let removals = namespaces.iter().map(|namespace| async move {
        let removed = timeout(UNREGISTER, marker::remove(client, namespace, name, None)).await;
        let error = match removed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(late) => late.to_string(),
        };
        warn!(namespace, error, "the marker stays: whoever leads removes it when a lease has passed");
    });
    join_all(removals).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::ledger::{Ledger, Settlements};
    use crate::controller::tests::unanswered;
    use crate::core::replica::{Config, Replica, Settled};

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_does_not_answer_is_waited_for_once_at_the_end() {
        let (client, _listener) = unanswered().await;
        let begun = Instant::now();
        let namespaces = (0..20).map(|n| format!("ns-{n}")).collect();
        unregister(&client, namespaces, "replica").await;
        assert_eq!(begun.elapsed(), UNREGISTER);
    }

    struct Nobody;

    impl Settlements for Nobody {
        fn settled(&self, _settled: &Settled) {}
    }

    /// A marker that is written while it is removed comes back.
    #[tokio::test(start_paused = true)]
    async fn whoever_writes_a_marker_has_ended_before_it_is_removed() {
        let (client, _listener) = unanswered().await;
        let second = Duration::from_secs(1);
        let ledger = Arc::new(Ledger::new("own", second, second, Box::new(Nobody)));
        let (marking, markers) = (CancellationToken::new(), TaskTracker::new());
        let begun = Instant::now();
        let writing = markers.track_future(marking.clone().cancelled_owned());
        let writing = tokio::spawn(async move {
            writing.await;
            begun.elapsed()
        });
        let stop = Stop {
            shared: Arc::new(Shared::new(Replica::new(Config::default(), &[]), ledger)),
            client,
            namespaces: vec!["ns".into()],
            name: "replica-a".into(),
            marking,
            markers,
            ending: Ending::of_nothing(),
        };
        let (shutdown, closing) = (CancellationToken::new(), CancellationToken::new());
        shutdown.cancel();
        stop.when(&shutdown, closing.clone()).await;
        assert!(closing.is_cancelled());
        assert_eq!((writing.await.unwrap(), begun.elapsed()), (Duration::ZERO, UNREGISTER));
    }
}
