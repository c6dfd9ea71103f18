//! The controller: thin layers around [`crate::core::replica`].
//!
//! * [`watch`]: lists and watches sessions; [`object`] is how they are read.
//! * [`marker`]: proves that the watch is complete, and registers the replica.
//! * [`serve`]: streams of agents ([`attach`]) and of other replicas ([`peer`]); [`certificates`] has what they are encrypted
//!   with, [`auth`] tells who they are by their token, [`connections`] and [`stream_limits`] bound what they may have.
//! * [`ledger`]: what is left to be done for each session, by whoever leads.
//! * [`injection`]: adds the agent to pods.
//! * [`leader`]: who leads; [`reconcile`] is what it does; [`peers`] are its streams to the others.
//! * [`status`], [`events`]: bounded queues of what is written; [`metrics`]: what Prometheus is told, and [`scrape`] to whom.
//! * [`release`]: what is done when no controller will be there any more.
//! * [`shared`]: the replica's state, where all of these meet.
//! * [`shutdown`]: in what order they end.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kube::api::Api;
use parking_lot::Mutex;
use rand::Rng;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::api::{LABEL_REPLICA, MARKER_PREFIX};
use crate::core::replica::{Config, Replica, ScopeId};
use crate::proto::v1;
use crate::runtime::admin::{AdminError, BoundAdmin};
use crate::runtime::backoff::Backoff;
use crate::runtime::environment::pod_name;
use crate::runtime::failing::Failing;
use crate::runtime::health::{Health, Heartbeat};
use crate::runtime::kube_client::{KubeConfigError, Timeouts};
use crate::runtime::task_set::{TaskError, TaskSet};
use crate::runtime::tls::{self, IdentityError, ServingCertificate};
use crate::runtime::transport::Transport;

pub mod attach;
pub mod auth;
pub mod certificates;
pub mod clock;
pub mod config;
pub mod connections;
pub mod events;
pub mod injection;
pub mod leader;
pub mod ledger;
pub mod marker;
pub mod metrics;
pub mod object;
mod paging;
pub mod peer;
pub mod peers;
mod pump;
pub mod reconcile;
pub mod release;
mod remedy;
pub mod scrape;
pub mod serve;
pub mod shared;
pub mod shutdown;
pub mod status;
pub mod stream_limits;
pub mod watch;

use certificates::CertificateError;
pub use config::ControllerArgs;
use events::{EventWriter, REPORTING_CONTROLLER};
use injection::InjectionError;
use leader::Elector;
use reconcile::Leader;
use reconcile::herald::Herald;
use shared::Shared;
use shutdown::{Phases, Shutdown};

/// The process is started anew if a loop that goes round many times in a lease has not for so long, and for four leases.
const STUCK: Duration = Duration::from_mins(1);
/// How often it is looked whether something that was remembered is over.
const POLL: Duration = Duration::from_millis(50);

/// The controller could not start, or could not go on.
#[derive(Debug, Error)]
pub enum ControllerError {
    /// A setting makes no sense.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The API client cannot be configured.
    #[error(transparent)]
    Kube(#[from] KubeConfigError),
    /// The admin endpoints cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The certificate in the files cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// No certificate can be used.
    #[error(transparent)]
    Tls(#[from] IdentityError),
    /// The streams cannot be served.
    #[error(transparent)]
    Serve(#[from] serve::ServeError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Scrape(#[from] scrape::ScrapeError),
    /// Agents cannot be added to pods.
    #[error(transparent)]
    Injection(#[from] InjectionError),
    /// A task ended.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Runs one replica until `shutdown`.
pub async fn run(args: ControllerArgs, shutdown: CancellationToken) -> Result<(), ControllerError> {
    args.validate()?;
    let (lease, renewal) = (args.lease()?, args.renewal()?);
    let admin = BoundAdmin::bind(args.admin.admin_listen).await?;
    let bound = serve::Bound::bind(args.listen).await?;
    let scrape = match args.metrics_listen {
        Some(address) => Some(scrape::Bound::bind(address).await?),
        None => None,
    };
    let webhook = args.injection.bind().await?;
    let client = args.kube.client(Timeouts::default()).await?;
    let phases = Phases::default();
    let closing = phases.closing.clone();
    let mut tasks = TaskSet::new(closing.clone());
    let (health, registry) = (Health::default(), Arc::<OnceLock<_>>::default());
    // One of the two has the metrics. Whoever probes is answered while the API server is away: to be killed for that helps nobody.
    let open = scrape.is_none().then(|| registry.clone());
    // Before anybody can ask: nothing to wait for would mean that it is ready.
    let known = health.readiness("api-server");
    tasks.spawn("admin", admin.serve(health.clone(), open, closing.clone()));
    let Some(authenticator) = authenticate(&client, &args.token_audience, &shutdown).await else {
        return Ok(());
    };
    known.ready();
    let name = replica_name(args.replica_name.as_deref());
    let address = args.advertise.map_or(bound.address, |at| at.with_port(bound.address.port())).to_string();
    info!(replica = %name, %address, lease_seconds = lease.as_secs_f64(), "starting");

    let namespaces: Vec<Arc<str>> = args.chosen_namespaces().iter().map(|n| n.as_str().into()).collect();
    let config = Config { lease, holdings: args.copies()?, ..Config::default() };
    let replica = Replica::with_registry(config, &namespaces, &args.operator_namespace.as_str().into());
    let scopes: Vec<(ScopeId, Option<Arc<str>>)> = replica.scopes().map(|(id, n)| (id, n.cloned())).collect();
    let leases = Api::namespaced(client.clone(), &args.operator_namespace);
    let timings = args.leader.timings().map_err(config::ConfigError::from)?;
    let elector = Elector::new(leases, args.leader.lease_name.clone(), name.clone(), timings);
    let guard = elector.guard();
    let events = EventWriter::new(client.clone(), REPORTING_CONTROLLER, &name, guard.clone());
    let (herald, storms) = Herald::new(client.clone(), events.clone(), guard.clone());
    let measured = herald.measured();
    let ledger = Arc::new(ledger::Ledger::new(&name, lease, renewal, Box::new(herald)));
    let shared = Arc::new(Shared::new(replica, ledger.clone()));

    let fresh = shared.clone();
    health.readiness_fn("watch", move || match fresh.with(|replica, now| replica.age(now)) {
        None => Err("the watch was not yet proven to be complete".into()),
        Some(age) if age >= lease => Err("the watch has not been proven to be complete for longer than a lease".into()),
        Some(_) => Ok(()),
    });

    let stuck = STUCK.max(lease * 4);
    let markers_in = |namespace: &Option<Arc<str>>| {
        namespace.as_ref().map_or_else(|| args.operator_namespace.clone(), ToString::to_string)
    };
    for (scope, namespace) in &scopes {
        let distrust = Arc::new(Notify::new());
        let reader = Arc::new(Mutex::new(object::Reader::new(&markers_in(namespace), &args.operator_namespace)));
        let has_sessions = shared.with(|replica, _| replica.has_sessions(*scope));
        let watch = watch::Watch {
            client: args.kube.client(Timeouts::default()).await?,
            scope: *scope,
            namespace: namespace.clone(),
            labels: if has_sessions { "" } else { LABEL_REPLICA },
            shared: shared.clone(),
            ledger: ledger.clone(),
            reader,
            distrust: distrust.clone(),
            patience: lease / 2,
        };
        let marker = marker::Marker {
            client: client.clone(),
            scope: *scope,
            namespace: markers_in(namespace),
            name: name.clone(),
            address: address.clone(),
            lease,
            shared: shared.clone(),
            ledger: ledger.clone(),
            distrust,
            heartbeat: health.heartbeat("marker", stuck),
        };
        tasks.spawn("watch", watch.run(closing.clone()));
        phases.marking.spawn(&mut tasks, "marker", |asked| marker.run(asked));
    }
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let settings = v1::Settings {
        replica: name.clone(),
        lease_millis: millis(lease),
        heartbeat_millis: millis(lease / 5),
        renewal_millis: millis(renewal),
        ..v1::Settings::default()
    };
    let attach = attach::Attach { shared: shared.clone(), ledger: ledger.clone(), settings, closing: closing.clone() };
    let peer = peer::Peer {
        shared: shared.clone(),
        ledger: ledger.clone(),
        name: name.clone(),
        renewal,
        closing: closing.clone(),
    };
    let service = serve::Service::new(attach, peer, authenticator);
    let serving = Arc::new(ServingCertificate::default());
    let publications = Arc::default();
    let certificate = certificates::Keeper {
        client: &client,
        operator_namespace: &args.operator_namespace,
        guard: &guard,
        ledger: &ledger,
        publications: &publications,
    };
    let trust = certificate.start(&args.tls, &args.injection, &serving, &mut tasks, &closing).await?;
    let shown = serving.clone();
    health.readiness_fn("certificate", move || {
        if shown.is_set() { Ok(()) } else { Err("there is no certificate for the streams yet".into()) }
    });
    if let Some(webhook) = webhook {
        let tls = tls::server_config(serving.clone(), tls::REQUESTS)?;
        tasks.spawn("webhook", webhook.serve(tls, closing.clone()));
    }
    tasks.spawn("serve", bound.serve(service, tls::server_config(serving.clone(), tls::STREAMS)?, closing.clone()));
    tasks.spawn("poll", poll(shared.clone(), health.heartbeat("poll", stuck), closing.clone()));

    let transport =
        Transport { trust, name: args.tls.name(&args.operator_namespace), token_file: args.peer_token_file.clone() };
    // It may come later, and until it leads this replica needs none; but nobody should learn of it only then.
    if let Err(error) = transport.authorize(&mut tonic::Request::new(())).await {
        warn!(%error, "as the leader, this replica could not connect to the others: see --peer-token-file");
    }
    let leader = Leader {
        name: name.as_str().into(),
        lease,
        client: client.clone(),
        shared: shared.clone(),
        ledger,
        events,
        storms,
        publications,
        certificate: serving.clone(),
        transport,
        scopes: scopes.iter().map(|(scope, namespace)| (*scope, markers_in(namespace))).collect(),
    };
    let sources = leader.start(elector, &mut tasks, &phases);
    let registry = registry.get_or_init(|| Arc::new(metrics::registry(sources, measured)));
    if let Some(scrape) = scrape {
        let tls = tls::server_config(serving, tls::REQUESTS)?;
        tasks.spawn("metrics", scrape.serve(registry.clone(), client.clone(), tls, closing.clone()));
    }

    let namespaces = scopes.iter().map(|(_, namespace)| markers_in(namespace)).collect();
    Ok(Shutdown { shared, client, namespaces, name, phases }.run(tasks, &shutdown).await?)
}

async fn poll(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    shutdown: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = ticks.tick() => {
                shared.with(Replica::poll);
                heartbeat.beat();
            }
        }
    }
}

/// Asks until the API server answers: a controller that starts before it must not fail for that. `None` if it was asked to end
/// before.
async fn authenticate(
    client: &kube::Client,
    audience: &str,
    shutdown: &CancellationToken,
) -> Option<auth::Authenticator> {
    let asking = async {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut failing = Failing::default();
        loop {
            match auth::Authenticator::new(client.clone(), audience.to_owned()).await {
                Ok(authenticator) => {
                    if failing.over() {
                        info!("the API server says who this controller is");
                    }
                    return authenticator;
                }
                Err(error) if failing.failed(&error.to_string(), Instant::now()) => {
                    warn!(%error, "the API server does not say who this controller is; trying again");
                }
                Err(error) => debug!(%error, "the API server does not say who this controller is"),
            }
            sleep(backoff.pause()).await;
        }
    };
    shutdown.run_until_cancelled(asking).await
}

/// A name that no other process has or had: a restarted replica does not know what the one before it granted, so it
/// must not be taken for it.
fn replica_name(pod: Option<&str>) -> String {
    let pod = pod_name(pod).unwrap_or_else(|| "vmcp-session-controller".to_owned());
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let pod: String = pod.chars().filter(|c| allowed(*c)).take(200).collect();
    format!("{MARKER_PREFIX}{pod}-{:08x}", rand::rng().random::<u32>())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A client of an API server that takes connections and never answers.
    pub(super) async fn unanswered() -> (kube::Client, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        (kube::Client::try_from(kube::Config::new(url)).unwrap(), listener)
    }

    struct Nobody;

    impl ledger::Settlements for Nobody {
        fn settled(&self, _settled: &crate::core::replica::Settled) {}
    }

    #[test]
    fn a_replica_that_nobody_can_lock_is_not_alive() {
        let second = Duration::from_secs(1);
        let ledger = Arc::new(ledger::Ledger::new("own", second, second, Box::new(Nobody)));
        let shared = Arc::new(Shared::new(Replica::new(Config::default(), &[]), ledger));
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        let heartbeat = health.heartbeat("poll", Duration::from_millis(300));
        // Threads of its own: the one that is stuck may be the one that wakes the others.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let polling = runtime.spawn(poll(shared.clone(), heartbeat, shutdown.clone()));
        let becomes = |alive: bool| {
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while health.livez().passed != alive {
                assert!(std::time::Instant::now() < deadline, "it stays {}", health.livez().text);
                std::thread::yield_now();
            }
        };
        let locked = shared.with(|_, _| {
            becomes(false);
            health.livez().text
        });
        assert!(locked.contains("poll"), "{locked}");
        becomes(true);
        shutdown.cancel();
        runtime.block_on(polling).unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_before_the_api_server_has_answered_is_no_failure() {
        let (client, _listener) = unanswered().await;
        let shutdown = CancellationToken::new();
        let end = async {
            sleep(Duration::from_mins(1)).await;
            shutdown.cancel();
        };
        let (authenticator, ()) = tokio::join!(authenticate(&client, "vmcp.dev", &shutdown), end);
        assert!(authenticator.is_none());
    }
}
