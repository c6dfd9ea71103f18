//! In what order a replica ends, and why.
//!
//! It takes less than 10 s: whoever does not answer is waited for no longer than is said beside each step.
//!
//! 1. **No new leases** are granted, and agents are asked to return theirs (`RETURN_LEASES`): they ask other replicas then,
//!    while this one can still tell them of changes. At the same time
//! 2. **the leader's work** ends ([`Phases::leading`]): calls under way are finished (`FINISH`), new ones are not begun; and
//! 3. **the leadership** only after it ([`Phases::election`]): the next leader begins when the lease is free, and two must not
//!    write. Giving the lease back goes on beside what follows.
//! 4. **The markers' writers** ([`Phases::marking`]): a marker that is written while it is removed comes back.
//! 5. **The markers** are removed (`UNREGISTER`), if all leases are over: as long as one is in force others must know of it.
//! 6. **Everything else** ([`Phases::closing`]): the watch, the streams, the probes. It had to go on until here. Tasks that are not
//!    ended after `DRAIN` are dropped.
//!
//! If a task ends though nobody has asked for it, the replica is broken and nothing of this is tried: `closing` comes first, and
//! ends the other phases with it. Others hear nothing of this replica any more, and wait until its leases are over.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::marker;
use super::shared::Shared;
use crate::runtime::task_set::{TaskError, TaskSet};

/// How long agents are given to return their leases. Meanwhile the leader finishes what it has under way.
const RETURN_LEASES: Duration = Duration::from_secs(3);
/// How long the leader's calls under way may take to end. A status that hangs for longer is given up: it is for the object that was
/// read, so whatever it does later it does to no state of a successor's.
const FINISH: Duration = Duration::from_secs(3);
/// How long the removal of the markers may take. With the leases and what is left then it leaves room in the 10 s of a shutdown.
const UNREGISTER: Duration = Duration::from_secs(2);
/// How long the tasks may take to end when all that has an order has ended.
const DRAIN: Duration = Duration::from_millis(2500);

/// Tasks that end before others do.
pub struct Phase {
    asked: CancellationToken,
    tracker: TaskTracker,
    closing: CancellationToken,
}

impl Phase {
    fn new(closing: &CancellationToken) -> Self {
        Self { asked: closing.child_token(), tracker: TaskTracker::new(), closing: closing.clone() }
    }

    /// Starts a task of this phase, which ends when its token is cancelled. Of `tasks` it is one until everything ends: what was
    /// asked to end has not ended early.
    pub fn spawn<F: Future<Output = Result<(), Infallible>> + Send + 'static>(
        &self,
        tasks: &mut TaskSet,
        name: &'static str,
        task: impl FnOnce(CancellationToken) -> F,
    ) {
        let task = self.tracker.track_future(task(self.asked.clone()));
        let (asked, closing) = (self.asked.clone(), self.closing.clone());
        tasks.spawn(name, async move {
            let ended = task.await;
            if asked.is_cancelled() {
                closing.cancelled().await;
            }
            ended
        });
    }

    /// Asks the tasks to end.
    fn ask(&self) {
        self.asked.cancel();
        self.tracker.close();
    }

    /// Asks the tasks to end, and waits until they have.
    async fn end(&self) {
        self.ask();
        self.tracker.wait().await;
    }
}

/// What ends when: see the [module](self).
pub struct Phases {
    /// What the leader does.
    pub leading: Phase,
    /// Who leads.
    pub election: Phase,
    /// Who writes markers.
    pub marking: Phase,
    /// Everything that has no order, and whatever is left of the others.
    pub closing: CancellationToken,
}

impl Default for Phases {
    fn default() -> Self {
        let closing = CancellationToken::new();
        let phase = || Phase::new(&closing);
        Self { leading: phase(), election: phase(), marking: phase(), closing }
    }
}

impl Phases {
    /// Ends what the leader does, and then the leadership. Returns when the lease is being given back.
    async fn end_leading(&self) {
        if timeout(FINISH, self.leading.end()).await.is_err() {
            warn!("some of the leader's calls are still under way");
        }
        self.election.ask();
    }
}

/// Ends a replica.
pub struct Shutdown {
    /// The replica.
    pub shared: Arc<Shared>,
    /// The API server.
    pub client: kube::Client,
    /// Where the markers are.
    pub namespaces: Vec<String>,
    /// Name of the replica, and of the markers.
    pub name: String,
    /// What ends when.
    pub phases: Phases,
}

impl Shutdown {
    /// Runs the tasks until `asked`, and ends them in order; or at once if one has ended early, which is an error.
    pub async fn run(self, tasks: TaskSet, asked: &CancellationToken) -> Result<(), TaskError> {
        match tokio::join!(tasks.run(DRAIN), self.when(asked)).0 {
            // Everything that must end in order has ended. What is left waits for somebody who does not answer.
            Err(TaskError::Undrained { tasks, .. }) if asked.is_cancelled() => {
                warn!(tasks = tasks.join(", "), "not waited for any longer");
                Ok(())
            }
            ended => ended,
        }
    }

    async fn when(self, asked: &CancellationToken) {
        let Self { shared, client, namespaces, name, phases } = self;
        tokio::select! {
            () = asked.cancelled() => {}
            // A task has ended early.
            () = phases.closing.cancelled() => return,
        }
        shared.with(|replica, _| replica.stop());
        let over = || shared.with(|replica, now| replica.all_leases_over(now));
        let returned = async {
            let deadline = Instant::now() + RETURN_LEASES;
            while !over() && Instant::now() < deadline {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::join!(returned, phases.end_leading());
        phases.marking.end().await;
        if over() {
            unregister(&client, namespaces, &name).await;
        } else {
            info!("some agents have not returned their leases: the registration stays until these have ended");
        }
        phases.closing.cancel();
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
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use parking_lot::Mutex;

    use super::*;
    use crate::controller::ledger::Ledger;
    use crate::controller::tests::{Nobody, unanswered};
    use crate::core::replica::{Config, Replica};

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_does_not_answer_is_waited_for_once_at_the_end() {
        let (client, _listener) = unanswered().await;
        let begun = Instant::now();
        let namespaces = (0..20).map(|n| format!("ns-{n}")).collect();
        unregister(&client, namespaces, "replica").await;
        assert_eq!(begun.elapsed(), UNREGISTER);
    }

    fn of(client: kube::Client, phases: Phases) -> Shutdown {
        let second = Duration::from_secs(1);
        let ledger = Arc::new(Ledger::new("own", second, second, Box::new(Nobody)));
        let shared = Arc::new(Shared::new(Replica::new(Config::default(), &[]), ledger));
        Shutdown { shared, client, namespaces: vec!["ns".into()], name: "replica-a".into(), phases }
    }

    #[derive(Clone, Default)]
    struct Ends(Arc<Mutex<Vec<(&'static str, Duration)>>>);

    impl Ends {
        /// A task that takes so long to end when it is asked to.
        fn when_asked(
            &self,
            name: &'static str,
            takes: Duration,
        ) -> impl FnOnce(CancellationToken) -> BoxFuture<'static, Result<(), Infallible>> {
            let (ends, begun) = (self.clone(), Instant::now());
            move |asked| {
                async move {
                    asked.cancelled().await;
                    sleep(takes).await;
                    ends.0.lock().push((name, begun.elapsed()));
                    Ok(())
                }
                .boxed()
            }
        }
    }

    /// The next leader begins when the lease is free, and a marker that is written while it is removed comes back.
    #[tokio::test(start_paused = true)]
    async fn each_phase_ends_when_the_one_before_has_ended() {
        let (client, _listener) = unanswered().await;
        let (phases, ends, second) = (Phases::default(), Ends::default(), Duration::from_secs(1));
        let mut tasks = TaskSet::new(phases.closing.clone());
        phases.marking.spawn(&mut tasks, "marker", ends.when_asked("marking", second));
        phases.election.spawn(&mut tasks, "election", ends.when_asked("election", second * 2));
        phases.leading.spawn(&mut tasks, "status", ends.when_asked("leading", second));
        tasks.spawn("watch", ends.when_asked("closing", Duration::ZERO)(phases.closing.clone()));
        let asked = CancellationToken::new();
        asked.cancel();
        of(client, phases).run(tasks, &asked).await.unwrap();
        // The removal of the marker, which is not answered, comes before the end.
        let closing = second * 2 + UNREGISTER;
        let expected = [("leading", second), ("marking", second * 2), ("election", second * 3), ("closing", closing)];
        assert_eq!(*ends.0.lock(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_does_not_end_keeps_the_lease_for_a_while_only() {
        let (client, _listener) = unanswered().await;
        let (phases, ends) = (Phases::default(), Ends::default());
        let mut tasks = TaskSet::new(phases.closing.clone());
        phases.election.spawn(&mut tasks, "election", ends.when_asked("election", Duration::ZERO));
        phases.leading.spawn(&mut tasks, "status", |_| std::future::pending());
        let asked = CancellationToken::new();
        asked.cancel();
        of(client, phases).run(tasks, &asked).await.unwrap();
        assert_eq!(*ends.0.lock(), [("election", FINISH)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_though_nobody_has_asked_ends_the_others_at_once() {
        let (client, _listener) = unanswered().await;
        let (phases, ends, begun) = (Phases::default(), Ends::default(), Instant::now());
        let mut tasks = TaskSet::new(phases.closing.clone());
        phases.leading.spawn(&mut tasks, "status", ends.when_asked("leading", Duration::ZERO));
        phases.marking.spawn(&mut tasks, "marker", |_| std::future::ready(Ok(())));
        let error = of(client, phases).run(tasks, &CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "task 'marker' ended early");
        assert_eq!((&ends.0.lock()[..], begun.elapsed()), (&[("leading", Duration::ZERO)][..], Duration::ZERO));
    }
}
