//! Liveness and readiness: named checks that are ready or say why not.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

/// Why a check fails. It is shown to whoever asks the endpoint, so it holds no metadata value.
pub type Reason = Cow<'static, str>;

type Probe = Box<dyn Fn() -> Result<(), Reason> + Send + Sync>;

struct Named {
    name: &'static str,
    probe: Probe,
}

/// The checks of one process. Clones share them.
#[derive(Clone, Default)]
pub struct Health {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    readiness: RwLock<Vec<Named>>,
    liveness: RwLock<Vec<Named>>,
}

impl Health {
    /// Adds a readiness check that is switched by its handle. It is not ready at first.
    pub fn readiness(&self, name: &'static str) -> Readiness {
        let state = Arc::new(Mutex::new(Some(Reason::Borrowed("starting"))));
        let seen = Arc::clone(&state);
        self.readiness_fn(name, move || seen.lock().clone().map_or(Ok(()), Err));
        Readiness { state }
    }

    /// Adds a readiness check that is worked out when somebody asks.
    pub fn readiness_fn(&self, name: &'static str, probe: impl Fn() -> Result<(), Reason> + Send + Sync + 'static) {
        self.shared.readiness.write().push(Named { name, probe: Box::new(probe) });
    }

    /// Adds a liveness check that is worked out when somebody asks.
    pub fn liveness_fn(&self, name: &'static str, probe: impl Fn() -> Result<(), Reason> + Send + Sync + 'static) {
        self.shared.liveness.write().push(Named { name, probe: Box::new(probe) });
    }

    /// Adds a liveness check for a loop: it fails when the loop has not beaten for `longest`.
    pub fn heartbeat(&self, name: &'static str, longest: Duration) -> Heartbeat {
        let last = Arc::new(Mutex::new(Instant::now()));
        let seen = Arc::clone(&last);
        self.liveness_fn(name, move || {
            let silent = seen.lock().elapsed();
            if silent > longest {
                return Err(format!("no beat for {} s", silent.as_secs()).into());
            }
            Ok(())
        });
        Heartbeat { last }
    }

    /// Whether every readiness check passes.
    pub fn is_ready(&self) -> bool {
        self.shared.readiness.read().iter().all(|c| (c.probe)().is_ok())
    }

    /// The answer of `/readyz`.
    pub fn readyz(&self) -> Report {
        Report::of("readyz", &self.shared.readiness.read())
    }

    /// The answer of `/livez`.
    pub fn livez(&self) -> Report {
        Report::of("livez", &self.shared.liveness.read())
    }
}

/// Switches one readiness check. Clones switch the same check.
#[derive(Clone)]
pub struct Readiness {
    state: Arc<Mutex<Option<Reason>>>,
}

impl Readiness {
    /// The check passes from now on.
    pub fn ready(&self) {
        *self.state.lock() = None;
    }

    /// The check fails from now on, and says why.
    pub fn not_ready(&self, why: impl Into<Reason>) {
        *self.state.lock() = Some(why.into());
    }
}

/// Tells a liveness check that a loop goes round.
#[derive(Clone)]
pub struct Heartbeat {
    last: Arc<Mutex<Instant>>,
}

impl Heartbeat {
    /// The loop went round just now.
    pub fn beat(&self) {
        *self.last.lock() = Instant::now();
    }
}

/// The outcome of all checks of a kind, in the form that Kubernetes' own components use.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether every check passed.
    pub passed: bool,
    /// One line per check and one for the whole.
    pub text: String,
}

impl Report {
    fn of(kind: &str, checks: &[Named]) -> Self {
        let (mut passed, mut text) = (true, String::new());
        for Named { name, probe } in checks {
            // Writing to a String does not fail.
            let _ = match probe() {
                Ok(()) => writeln!(text, "[+]{name} ok"),
                Err(why) => {
                    passed = false;
                    writeln!(text, "[-]{name} failed: {why}")
                }
            };
        }
        let verdict = if passed { "passed" } else { "failed" };
        let _ = writeln!(text, "{kind} check {verdict}");
        Self { passed, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_checks_all_is_well() {
        let health = Health::default();
        assert!(health.is_ready());
        assert_eq!(health.livez(), Report { passed: true, text: "livez check passed\n".to_owned() });
    }

    #[test]
    fn ready_means_that_every_check_is() {
        let health = Health::default();
        let store = health.readiness("store");
        let peers = health.readiness("peers");
        store.ready();
        assert!(!health.is_ready());
        assert_eq!(health.readyz().text, "[+]store ok\n[-]peers failed: starting\nreadyz check failed\n");
        peers.ready();
        assert!(health.is_ready() && health.readyz().passed);
        store.not_ready("the watch is behind");
        assert_eq!(health.readyz().text, "[-]store failed: the watch is behind\n[+]peers ok\nreadyz check failed\n");
    }

    #[test]
    fn readiness_and_liveness_are_apart() {
        let health = Health::default();
        let _starting = health.readiness("store");
        assert!(health.livez().passed);
        health.liveness_fn("loop", || Err("stuck".into()));
        assert!(!health.livez().passed);
        assert!(!health.readyz().text.contains("loop"));
    }

    #[test]
    fn a_heartbeat_that_stops_fails_and_one_that_goes_on_passes() {
        let health = Health::default();
        let beat = health.heartbeat("loop", Duration::ZERO);
        while Instant::now() == *beat.last.lock() {}
        assert_eq!(health.livez().text, "[-]loop failed: no beat for 0 s\nlivez check failed\n");
        let before = *beat.last.lock();
        beat.beat();
        assert!(*beat.last.lock() > before);
        let health = Health::default();
        let _beat = health.heartbeat("loop", Duration::from_hours(1));
        assert!(health.livez().passed);
    }
}
