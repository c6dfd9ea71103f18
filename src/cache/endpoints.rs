//! Which replicas there are: a stream to each.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::join_all;
use rand::Rng;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::lookup::{Resolver, System, lookup};
use super::shared::Shared;
use super::stream::{self, Want};
use crate::runtime::failing::Failing;

/// Streams at once. [`MAX_LEASES`](crate::core::lease::MAX_LEASES) of them give cover, the others help to confirm writes.
const MOST: usize = 16;

/// Keeps a stream to each replica until the cache ends. No lease is left then.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut streams = Streams {
        shared: shared.clone(),
        wants: BTreeMap::new(),
        tasks: JoinSet::new(),
        addresses: HashMap::new(),
        crowded: Failing::default(),
    };
    let mut names = Names::default();
    loop {
        let round = async {
            streams.want(&names.resolve(&System, &shared.config.controllers).await);
            let jitter = rand::rng().random_range(0.9..1.0);
            let pause = sleep(shared.config.resolve_every.mul_f64(jitter));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => return,
                    Some(ended) = streams.tasks.join_next_with_id() => streams.ended(ended),
                }
            }
        };
        tokio::select! {
            () = shared.ended.cancelled() => break,
            () = round => {}
        }
    }
    shared.store.revoke_all();
    streams.leave().await;
}

/// The streams that are run.
struct Streams {
    shared: Arc<Shared>,
    wants: BTreeMap<SocketAddr, watch::Sender<Want>>,
    tasks: JoinSet<()>,
    addresses: HashMap<Id, SocketAddr>,
    /// There are more replicas than are connected to.
    crowded: Failing,
}

impl Streams {
    /// There are replicas at these addresses, as far as is known.
    fn want(&mut self, addresses: &BTreeSet<SocketAddr>) {
        if addresses.len() <= MOST {
            self.crowded.over();
        } else if self.crowded.failed("", Instant::now()) {
            warn!(replicas = addresses.len(), "only {MOST} replicas are connected to");
        }
        let wanted: BTreeSet<SocketAddr> = addresses.iter().take(MOST).copied().collect();
        let mut room = MOST - wanted.len();
        for (address, want) in &self.wants {
            // A name server that forgets a replica for a moment must not cost its lease.
            let now = if wanted.contains(address) {
                Want::Always
            } else if room > 0 {
                room -= 1;
                Want::WhileItLasts
            } else {
                Want::Never
            };
            want.send_if_modified(|want| std::mem::replace(want, now) != now);
        }
        for address in wanted {
            if let Entry::Vacant(entry) = self.wants.entry(address) {
                let receiver = entry.insert(watch::Sender::new(Want::Always)).subscribe();
                self.shared.streams.wanted(address);
                let task = self.tasks.spawn(stream::run(self.shared.clone(), address, receiver));
                self.addresses.insert(task.id(), address);
            }
        }
    }

    /// Ends all streams.
    async fn leave(&mut self) {
        for want in self.wants.values() {
            want.send_replace(Want::Never);
        }
        while self.tasks.join_next().await.is_some() {}
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        if let Some(address) = self.addresses.remove(&id) {
            self.wants.remove(&address);
            self.shared.streams.forgotten(address);
        }
    }
}

/// What names were resolved to last.
#[derive(Default)]
struct Names {
    known: HashMap<String, Vec<SocketAddr>>,
    failing: HashMap<String, Failing>,
}

impl Names {
    async fn resolve(&mut self, resolver: &impl Resolver, controllers: &[String]) -> BTreeSet<SocketAddr> {
        let lookups = join_all(controllers.iter().map(|name| lookup(resolver, name))).await;
        for (name, addresses) in controllers.iter().zip(lookups) {
            let failing = self.failing.entry(name.clone()).or_default();
            match addresses {
                Ok(addresses) => {
                    if failing.over() {
                        info!(controller = %name, "the controller's name is resolved again");
                    }
                    self.known.insert(name.clone(), addresses);
                }
                // What was known is kept: a name server that fails is no reason to let go of the replicas.
                Err(error) => {
                    let reason = error.kind();
                    if failing.failed(&reason.to_string(), Instant::now()) {
                        warn!(controller = %name, %reason, "cannot resolve the controller's name; trying again");
                    } else {
                        debug!(controller = %name, %reason, "cannot resolve the controller's name");
                    }
                }
            }
        }
        self.known.values().flatten().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::lookup::tests::{Scripted, address};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn addresses_need_no_name_server_and_what_was_known_is_kept() {
        let mut names = Names::default();
        let controllers = ["127.0.0.1:7070".into(), "controller:1".into()];
        let found = names.resolve(&Scripted::default(), &controllers).await;
        assert_eq!(found, BTreeSet::from(["127.0.0.1:7070".parse().unwrap()]));
        let told = |names: &mut Names| names.failing.get_mut("controller:1").unwrap().over();
        assert!(told(&mut names));
        let found = names.resolve(&Scripted::new("", &["controller:1"], &[]), &controllers).await;
        assert!(found.len() == 2 && found.contains(&address()), "{found:?}");
        let kept = names.resolve(&Scripted::default(), &controllers).await;
        assert_eq!(kept, found);
        assert!(!told(&mut names), "whoever reads the log knows it");
        tokio::time::advance(Duration::from_mins(1)).await;
        names.resolve(&Scripted::default(), &controllers).await;
        assert!(told(&mut names), "it still fails");
    }

    #[tokio::test(start_paused = true)]
    async fn that_a_name_is_resolved_again_is_said_once_if_it_was_said_that_it_is_not() {
        let (mut names, controllers) = (Names::default(), ["controller:1".into()]);
        names.resolve(&Scripted::default(), &controllers).await;
        names.resolve(&Scripted::new("", &["controller:1"], &[]), &controllers).await;
        assert!(!names.failing.get_mut("controller:1").unwrap().over(), "it was said");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_hangs_takes_no_other_with_it() {
        let resolver = Scripted::new("", &["controller:1"], &["hangs:1"]);
        let found = Names::default().resolve(&resolver, &["hangs:1".into(), "controller:1".into()]).await;
        assert_eq!(found, BTreeSet::from([address()]));
    }
}
