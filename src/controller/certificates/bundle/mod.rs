//! Tells whom to believe: keeps the bundle of authorities in all [`Place`]s from which somebody takes it.
//!
//! * [`config_map`]: a `ConfigMap` in each namespace whose pods connect.
//! * [`trust_bundle`]: one `ClusterTrustBundle`, where the cluster has these.
//! * [`webhook`]: the configuration of the webhook that adds agents to pods, for the API server.
//!
//! A place that cannot be written is no reason not to write the others: it is tried again, less and less often.

pub mod config_map;
pub mod trust_bundle;
pub mod webhook;

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::controller::clock::now;
use crate::controller::election::LeadershipGuard;
use crate::core::time::Time;
use crate::runtime::api_error::ApiError;
use crate::runtime::failing::Failing;
use crate::runtime::tls::trust::Trust;

const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// What writes are signed with.
const FIELD_MANAGER: &str = "vmcp-session-controller";
/// Places that are written at once.
const AT_ONCE: usize = 8;
/// After how long a place is tried again that could not be written: twice as long after each failure, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// How often it is looked whether a file has changed, or somebody has changed a place.
const LOOK: Duration = Duration::from_secs(10);

/// Why a place does not hold the bundle.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The API server did not do it.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// There can be no such place in this cluster.
    #[error("the API server does not serve {0}")]
    NotServed(&'static str),
}

/// Where the bundle is published. It is named as people know it, as in `ConfigMap a in namespace b`.
pub trait Place: Display + Send + Sync {
    /// Makes it hold `pem`. Says whether it had to be written for that.
    fn publish<'a>(&'a self, pem: &'a str) -> BoxFuture<'a, Result<bool, PlaceError>>;
}

/// What became of it, for metrics.
#[derive(Debug, Default)]
pub struct Publications {
    written: AtomicU64,
    failed: AtomicU64,
    behind: AtomicUsize,
}

impl Publications {
    /// Bundles that were written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Attempts that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Places that do not hold the bundle, as far as this replica knows: none, if another one leads.
    pub fn behind(&self) -> usize {
        self.behind.load(Ordering::Relaxed)
    }
}

/// Keeps all places true, while this replica leads.
pub struct Publisher {
    places: Vec<Kept>,
    pem: String,
    guard: LeadershipGuard,
    publications: Arc<Publications>,
}

/// A place, and how it goes.
struct Kept {
    place: Box<dyn Place>,
    again: Option<Again>,
    failing: Failing,
}

/// When it is tried again.
struct Again {
    pause: Duration,
    at: Time,
}

impl Publisher {
    /// Publishes to these places while `guard` says so.
    pub fn new(places: Vec<Box<dyn Place>>, guard: LeadershipGuard, publications: Arc<Publications>) -> Self {
        let places = places.into_iter().map(|place| Kept { place, again: None, failing: Failing::default() }).collect();
        Self { places, pem: String::new(), guard, publications }
    }

    /// Makes every place hold `pem`. Those that could not be written are passed over until their time has come, unless the
    /// bundle is another one. Says whether all hold it.
    pub async fn publish(&mut self, pem: &str) -> bool {
        if self.pem != pem {
            pem.clone_into(&mut self.pem);
            self.places.iter_mut().filter_map(|kept| kept.again.as_mut()).for_each(|again| again.at = now());
        }
        let (guard, publications) = (&self.guard, &self.publications);
        let places = stream::iter(&mut self.places);
        places.for_each_concurrent(AT_ONCE, |kept| kept.publish(pem, guard, publications)).await;
        let behind = self.places.iter().filter(|kept| kept.again.is_some()).count();
        self.publications.behind.store(behind, Ordering::Relaxed);
        behind == 0 && self.guard.is_leader()
    }

    /// Keeps at all places what somebody else replaces, until `shutdown`. What is no bundle is published nowhere.
    pub async fn follow(mut self, authorities: Trust, shutdown: CancellationToken) -> Result<(), Infallible> {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unread = Failing::default();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            if !self.guard.is_leader() {
                self.rest();
                continue;
            }
            match authorities.pem().await {
                Ok(pem) => {
                    if unread.over() {
                        info!("there is a bundle of authorities to publish again");
                    }
                    self.publish(&pem).await;
                }
                Err(error) if unread.failed(&error.to_string(), Instant::now()) => {
                    warn!(%error, "there is no bundle of authorities to publish; trying again");
                }
                Err(error) => debug!(%error, "there is no bundle of authorities to publish"),
            }
        }
    }

    /// Another replica leads: what this one knows is no longer true.
    pub fn rest(&mut self) {
        for kept in &mut self.places {
            (kept.again, kept.failing) = (None, Failing::default());
        }
        self.publications.behind.store(0, Ordering::Relaxed);
    }
}

impl Kept {
    async fn publish(&mut self, pem: &str, guard: &LeadershipGuard, publications: &Publications) {
        let waits = self.again.as_ref().is_some_and(|again| now() < again.at);
        if waits || !guard.is_leader() {
            return;
        }
        let place = &self.place;
        match place.publish(pem).await {
            Ok(written) => {
                publications.written.fetch_add(u64::from(written), Ordering::Relaxed);
                self.again = None;
                if self.failing.over() {
                    info!(%place, "the bundle of authorities is published here again");
                }
            }
            Err(error) => {
                publications.failed.fetch_add(1, Ordering::Relaxed);
                if self.failing.failed(&error.to_string(), Instant::now()) {
                    warn!(%place, %error, "cannot publish the bundle of authorities here; trying again");
                } else {
                    debug!(%place, %error, "cannot publish the bundle of authorities here");
                }
                let pause = self.again.as_ref().map_or(RETRY.0, |again| (again.pause * 2).min(RETRY.1));
                self.again = Some(Again { pause, at: now().saturating_add(pause) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use futures::FutureExt;
    use parking_lot::Mutex;

    use super::*;

    /// A place that notes what it is told, and holds it if it is good.
    #[derive(Clone)]
    struct Noted(&'static str, Arc<Mutex<Vec<String>>>);

    impl fmt::Display for Noted {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Place for Noted {
        fn publish<'a>(&'a self, pem: &'a str) -> BoxFuture<'a, Result<bool, PlaceError>> {
            self.1.lock().push(pem.to_owned());
            std::future::ready(if self.0 == "good" { Ok(true) } else { Err(PlaceError::NotServed("this")) }).boxed()
        }
    }

    fn publisher(guard: LeadershipGuard) -> (Publisher, [Noted; 2], Arc<Publications>) {
        let places = ["bad", "good"].map(|name| Noted(name, Arc::default()));
        let publications = Arc::<Publications>::default();
        let boxed = places.iter().map(|place| Box::new(place.clone()) as Box<dyn Place>).collect();
        (Publisher::new(boxed, guard, publications.clone()), places, publications)
    }

    #[tokio::test]
    async fn a_place_that_fails_holds_up_no_other_and_is_not_tried_at_once() {
        let (mut publisher, [bad, good], publications) = publisher(LeadershipGuard::always());
        for _ in 0..3 {
            assert!(!publisher.publish("a").await, "one does not hold it");
        }
        assert_eq!((good.1.lock().len(), bad.1.lock().len()), (3, 1));
        assert_eq!((publications.written(), publications.failed(), publications.behind()), (3, 1, 1));
        // Another bundle is another matter.
        assert!(!publisher.publish("b").await);
        assert_eq!(*bad.1.lock(), ["a", "b"]);
        assert_eq!(publisher.places[0].again.as_ref().unwrap().pause, RETRY.0 * 2);
        // And so is another leader.
        publisher.rest();
        assert_eq!(publications.behind(), 0);
    }

    #[tokio::test]
    async fn who_does_not_lead_tells_nobody() {
        let (mut publisher, [bad, good], _) = publisher(LeadershipGuard::default());
        assert!(!publisher.publish("a").await);
        assert!(good.1.lock().is_empty() && bad.1.lock().is_empty());
    }
}
