//! The tasks of a process: all of them run until the shutdown, or the process ends.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::future::Future;
use std::time::Duration;

use thiserror::Error;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// Error of a task.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why the tasks did not end as they should.
#[derive(Debug, Error)]
pub enum TaskError {
    /// A task ended though nobody had asked for it.
    #[error("task '{task}' ended early")]
    EndedEarly {
        /// Name of the task.
        task: &'static str,
    },
    /// A task failed.
    #[error("task '{task}' failed: {source}")]
    Failed {
        /// Name of the task.
        task: &'static str,
        /// What it said.
        source: BoxError,
    },
    /// A task panicked. What it said went to stderr.
    #[error("task '{task}' panicked")]
    Panicked {
        /// Name of the task.
        task: &'static str,
    },
    /// Tasks were still running at the deadline, and were dropped.
    #[error("not ended {} s after the shutdown began: {}", after.as_secs_f32(), tasks.join(", "))]
    Undrained {
        /// Names of the tasks.
        tasks: Vec<&'static str>,
        /// How long they were given.
        after: Duration,
    },
}

/// Named tasks that live and end together.
///
/// Each watches the set's token and ends when it is cancelled. If one ends before, for whatever reason, all the others
/// are asked to end and [`TaskSet::run`] returns an error that names it: half a process is worse than none.
#[derive(Debug)]
pub struct TaskSet {
    tasks: JoinSet<Result<(), BoxError>>,
    names: HashMap<Id, &'static str>,
    shutdown: CancellationToken,
}

impl TaskSet {
    /// An empty set that ends when `shutdown` is cancelled.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { tasks: JoinSet::new(), names: HashMap::new(), shutdown }
    }

    /// The token that each task watches.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Starts a task.
    pub fn spawn<E: Into<BoxError>>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(async move { task.await.map_err(Into::into) });
        self.names.insert(handle.id(), name);
    }

    /// Waits for the shutdown, then for the tasks, at most for `drain`. The first error is returned.
    pub async fn run(mut self, drain: Duration) -> Result<(), TaskError> {
        let first = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            Some(ended) = self.tasks.join_next_with_id() => self.judge(ended),
        };
        self.shutdown.cancel();
        let drained = self.drain(drain).await;
        first.map_or(drained, Err)
    }

    async fn drain(&mut self, limit: Duration) -> Result<(), TaskError> {
        let deadline = Instant::now() + limit;
        let mut first = None;
        loop {
            match timeout_at(deadline, self.tasks.join_next_with_id()).await {
                Ok(Some(ended)) => first = first.or(self.judge(ended)),
                Ok(None) => return first.map_or(Ok(()), Err),
                Err(_) => break,
            }
        }
        let mut tasks: Vec<_> = self.names.values().copied().collect();
        tasks.sort_unstable();
        self.tasks.abort_all();
        Err(first.unwrap_or(TaskError::Undrained { tasks, after: limit }))
    }

    /// What is wrong with a task's end. An end is wrong in itself while nobody has asked for it.
    fn judge(&mut self, ended: Result<(Id, Result<(), BoxError>), JoinError>) -> Option<TaskError> {
        let early = !self.shutdown.is_cancelled();
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let task = self.names.remove(&id).unwrap_or("unknown");
        match ended {
            Ok((_, Ok(()))) => early.then_some(TaskError::EndedEarly { task }),
            Ok((_, Err(source))) => Some(TaskError::Failed { task, source }),
            Err(_) => Some(TaskError::Panicked { task }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const DRAIN: Duration = Duration::from_secs(10);

    fn set() -> (TaskSet, CancellationToken) {
        let shutdown = CancellationToken::new();
        (TaskSet::new(shutdown.clone()), shutdown)
    }

    /// A task that ends as it should.
    fn obedient(tasks: &mut TaskSet, name: &'static str) {
        let shutdown = tasks.shutdown().clone();
        tasks.spawn(name, async move {
            shutdown.cancelled().await;
            Ok::<(), io::Error>(())
        });
    }

    #[tokio::test(start_paused = true)]
    async fn all_end_on_shutdown() {
        let (mut tasks, shutdown) = set();
        obedient(&mut tasks, "a");
        obedient(&mut tasks, "b");
        shutdown.cancel();
        tasks.run(DRAIN).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_early_ends_the_others_and_is_named() {
        let (mut tasks, shutdown) = set();
        obedient(&mut tasks, "a");
        tasks.spawn("watch", async { Ok::<(), io::Error>(()) });
        let error = tasks.run(DRAIN).await.unwrap_err();
        assert_eq!(error.to_string(), "task 'watch' ended early");
        assert!(shutdown.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_fails_is_named_with_its_error() {
        let (mut tasks, _shutdown) = set();
        obedient(&mut tasks, "a");
        tasks.spawn("watch", async { Err(io::Error::other("broken")) });
        assert_eq!(tasks.run(DRAIN).await.unwrap_err().to_string(), "task 'watch' failed: broken");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_named() {
        fn broken() -> Result<(), io::Error> {
            panic!("canary-4b1d")
        }
        let (mut tasks, _shutdown) = set();
        tasks.spawn("watch", async { broken() });
        let error = tasks.run(DRAIN).await.unwrap_err();
        assert_eq!(error.to_string(), "task 'watch' panicked");
        assert!(!format!("{error:?}").contains("canary"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_while_draining_is_told() {
        let (mut tasks, shutdown) = set();
        let token = shutdown.clone();
        tasks.spawn("agent", async move {
            token.cancelled().await;
            Err(io::Error::other("late"))
        });
        shutdown.cancel();
        assert_eq!(tasks.run(DRAIN).await.unwrap_err().to_string(), "task 'agent' failed: late");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_drain_is_dropped_at_the_deadline() {
        let (mut tasks, shutdown) = set();
        obedient(&mut tasks, "good");
        tasks.spawn("stuck", std::future::pending::<Result<(), io::Error>>());
        shutdown.cancel();
        let start = Instant::now();
        let error = tasks.run(DRAIN).await.unwrap_err();
        assert_eq!(start.elapsed(), DRAIN);
        assert_eq!(error.to_string(), "not ended 10 s after the shutdown began: stuck");
    }

    #[tokio::test(start_paused = true)]
    async fn the_early_end_is_told_even_if_the_rest_does_not_drain() {
        let (mut tasks, _shutdown) = set();
        tasks.spawn("stuck", std::future::pending::<Result<(), io::Error>>());
        tasks.spawn("watch", async { Ok::<(), io::Error>(()) });
        assert_eq!(tasks.run(DRAIN).await.unwrap_err().to_string(), "task 'watch' ended early");
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_set_waits_for_the_shutdown() {
        let (tasks, shutdown) = set();
        let run = tokio::spawn(tasks.run(DRAIN));
        tokio::task::yield_now().await;
        assert!(!run.is_finished());
        shutdown.cancel();
        run.await.unwrap().unwrap();
    }
}
