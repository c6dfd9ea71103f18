//! Signals: the first asks for an orderly end, the second does not wait for it.

use std::future::Future;
use std::io;

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A second signal came while the process was still draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("stopped by a second {name} before everything had ended")]
pub struct Aborted {
    name: &'static str,
    number: u8,
}

impl Aborted {
    /// What the process exits with: 128 and the number of the signal, as shells have it.
    pub fn exit_code(&self) -> u8 {
        128 + self.number
    }
}

/// SIGTERM and SIGINT, caught from [`Signals::install`] on.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts to catch the signals. Install them before anything slow, so that an early signal is not lost.
    pub fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Runs `work` to its end. The first signal cancels `shutdown`; the second gives up on `work`, which is dropped.
    ///
    /// On [`Aborted`] the caller leaves without waiting for anything else (a runtime's `shutdown_background`).
    pub async fn run<T>(mut self, shutdown: &CancellationToken, work: impl Future<Output = T>) -> Result<T, Aborted> {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            done = &mut work => return Ok(done),
            Aborted { name, .. } = self.next() => {
                tracing::info!(signal = name, "shutting down");
                shutdown.cancel();
            }
        }
        tokio::select! {
            done = &mut work => Ok(done),
            second = self.next() => Err(second),
        }
    }

    async fn next(&mut self) -> Aborted {
        tokio::select! {
            _ = self.terminate.recv() => Aborted { name: "SIGTERM", number: 15 },
            _ = self.interrupt.recv() => Aborted { name: "SIGINT", number: 2 },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn send(signal: &str) {
        let sent = Command::new("kill").args([signal, &std::process::id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    #[tokio::test]
    async fn work_that_ends_by_itself_is_no_shutdown() {
        let shutdown = CancellationToken::new();
        let done = Signals::install().unwrap().run(&shutdown, async { 7 }).await;
        assert_eq!(done, Ok(7));
        assert!(!shutdown.is_cancelled());
    }

    // One test, as every listener in the process sees every signal.
    #[tokio::test]
    async fn the_first_signal_cancels_and_the_second_aborts() {
        let shutdown = CancellationToken::new();
        let signals = Signals::install().unwrap();
        send("-TERM");
        let ended = timeout(PATIENCE, signals.run(&shutdown, shutdown.cancelled())).await.unwrap();
        assert_eq!(ended, Ok(()));

        let shutdown = CancellationToken::new();
        let signals = Signals::install().unwrap();
        send("-TERM");
        let stuck = async {
            shutdown.cancelled().await;
            send("-INT");
            std::future::pending::<()>().await;
        };
        let aborted = timeout(PATIENCE, signals.run(&shutdown, stuck)).await.unwrap().unwrap_err();
        assert_eq!(aborted.exit_code(), 130);
        assert!(aborted.to_string().contains("SIGINT"));
    }
}
