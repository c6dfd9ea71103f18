//! Puts a replica together: what its parts share, and how each of them is started. [`super::run`] has the order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::api::Api;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rand::Rng;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::attach::Attach;
use super::auth::Authenticator;
use super::certificates::Keeper;
use super::certificates::bundle::Publications;
use super::config::{ConfigError, ControllerArgs};
use super::election::{Elector, LeadershipGuard};
use super::events::{EventWriter, REPORTING_CONTROLLER};
use super::injection::webhook::BoundWebhook;
use super::ledger::Ledger;
use super::marker::Marker;
use super::metrics;
use super::object::Reader;
use super::peer::Peer;
use super::poll::poll;
use super::reconcile::LeaderTasks;
use super::reconcile::herald::{Herald, Measured, StormTeller};
use super::serve::Service;
use super::shared::Shared;
use super::shutdown::{Phases, Shutdown};
use super::watch::{PAGES_AT_ONCE, Watch};
use super::{ControllerError, scrape, serve};
use crate::api::{LABEL_REPLICA, MARKER_PREFIX};
use crate::core::replica::{Config, Replica, ScopeId};
use crate::proto::v1;
use crate::runtime::admin::{BoundAdmin, Metrics};
use crate::runtime::environment::pod_name;
use crate::runtime::health::{Health, Readiness};
use crate::runtime::kube_client::Timeouts;
use crate::runtime::task_set::TaskSet;
use crate::runtime::tls::trust::Trust;
use crate::runtime::tls::{self, ServingCertificate};
use crate::runtime::transport::Transport;

/// The process is started anew if a loop that goes round many times in a lease has not for so long, and for four leases.
const STUCK: Duration = Duration::from_mins(1);

/// Where a replica listens.
pub(super) struct Ports {
    pub admin: BoundAdmin,
    pub streams: serve::Bound,
    pub metrics: Option<scrape::Bound>,
    pub webhook: Option<BoundWebhook>,
}

impl Ports {
    /// Before anything else, so that a bad address is an error at the start.
    pub(super) async fn bind(args: &ControllerArgs) -> Result<Self, ControllerError> {
        Ok(Self {
            admin: BoundAdmin::bind(args.admin.admin_listen).await?,
            streams: serve::Bound::bind(args.listen).await?,
            metrics: match args.metrics_listen {
                Some(address) => Some(scrape::Bound::bind(address).await?),
                None => None,
            },
            webhook: args.injection.bind().await?,
        })
    }
}

/// What there is before anybody has to be asked.
pub(super) struct Process {
    health: Health,
    tasks: TaskSet,
    phases: Phases,
}

impl Default for Process {
    fn default() -> Self {
        let phases = Phases::default();
        Self { health: Health::default(), tasks: TaskSet::new(phases.closing.clone()), phases }
    }
}

impl Process {
    /// Whoever probes is answered while the API server is away: to be killed for that helps nobody. Metrics are shown beside it if
    /// they have no port of their own. Returned are the check that the API server is there, and the metrics' place.
    pub(super) fn answer_probes(&mut self, admin: BoundAdmin, with_metrics: bool) -> (Readiness, Metrics) {
        // Before anybody can ask: nothing to wait for would mean that it is ready.
        let api_server = self.health.readiness("api-server");
        let metrics = Metrics::default();
        let open = with_metrics.then(|| metrics.clone());
        self.tasks.spawn("admin", admin.serve(self.health.clone(), open, self.phases.closing.clone()));
        (api_server, metrics)
    }
}

/// One watched collection.
struct Scope {
    id: ScopeId,
    /// Its namespace; `None` for all.
    namespace: Option<Arc<str>>,
    /// Where its markers are.
    markers: String,
}

/// What only the leader needs.
pub(super) struct Leading {
    elector: Elector,
    events: EventWriter,
    storms: StormTeller,
    measured: Measured,
}

/// A replica whose parts are being started.
pub(super) struct Assembly {
    args: ControllerArgs,
    client: Client,
    name: String,
    address: String,
    lease: Duration,
    renewal: Duration,
    /// After how long a loop is taken for stuck.
    stuck: Duration,
    scopes: Vec<Scope>,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    guard: LeadershipGuard,
    certificate: Arc<ServingCertificate>,
    publications: Arc<Publications>,
    health: Health,
    tasks: TaskSet,
    phases: Phases,
}

impl Assembly {
    /// A replica that serves streams at `bound`. Nothing goes on in it yet.
    pub(super) fn new(
        args: ControllerArgs,
        client: Client,
        bound: SocketAddr,
        process: Process,
    ) -> Result<(Self, Leading), ControllerError> {
        let (lease, renewal) = (args.lease()?, args.renewal()?);
        let name = replica_name(args.replica_name.as_deref());
        let address = args.advertise.map_or(bound, |at| at.with_port(bound.port())).to_string();
        info!(replica = %name, %address, lease_seconds = lease.as_secs_f64(), "starting");

        let namespaces: Vec<Arc<str>> = args.chosen_namespaces().iter().map(|n| n.as_str().into()).collect();
        let config = Config { lease, holdings: args.copies()?, ..Config::default() };
        let replica = Replica::with_registry(config, &namespaces, &args.operator_namespace.as_str().into());
        let scopes = replica.scopes().map(|(id, namespace)| Scope {
            id,
            namespace: namespace.cloned(),
            markers: namespace.map_or_else(|| args.operator_namespace.clone(), ToString::to_string),
        });
        let scopes = scopes.collect();

        let leases = Api::namespaced(client.clone(), &args.operator_namespace);
        let timings = args.leader.timings().map_err(ConfigError::from)?;
        let elector = Elector::new(leases, args.leader.lease_name.clone(), name.clone(), timings);
        let guard = elector.guard();
        let events = EventWriter::new(client.clone(), REPORTING_CONTROLLER, &name, guard.clone());
        let (herald, storms) = Herald::new(client.clone(), events.clone(), guard.clone());
        let measured = herald.measured();
        let ledger = Arc::new(Ledger::new(&name, lease, renewal, Box::new(herald)));
        let shared = Arc::new(Shared::new(replica, ledger.clone()));
        let Process { health, tasks, phases } = process;
        let assembly = Self {
            args,
            client,
            name,
            address,
            lease,
            renewal,
            stuck: STUCK.max(lease * 4),
            scopes,
            shared,
            ledger,
            guard,
            certificate: Arc::default(),
            publications: Arc::default(),
            health,
            tasks,
            phases,
        };
        Ok((assembly, Leading { elector, events, storms, measured }))
    }

    /// Watches each collection, and proves that the watch is complete.
    pub(super) async fn watch(&mut self) -> Result<(), ControllerError> {
        let (shared, lease) = (self.shared.clone(), self.lease);
        self.health.readiness_fn("watch", move || match shared.with(|replica, now| replica.age(now)) {
            None => Err("the watch was not yet proven to be complete".into()),
            Some(age) if age >= lease => {
                Err("the watch has not been proven to be complete for longer than a lease".into())
            }
            Some(_) => Ok(()),
        });
        let room = Arc::new(Semaphore::new(PAGES_AT_ONCE));
        for scope in &self.scopes {
            let distrust = Arc::new(Notify::new());
            let has_sessions = self.shared.with(|replica, _| replica.has_sessions(scope.id));
            let watch = Watch {
                client: self.args.kube.client(Timeouts::default()).await?,
                scope: scope.id,
                namespace: scope.namespace.clone(),
                labels: if has_sessions { "" } else { LABEL_REPLICA },
                shared: self.shared.clone(),
                ledger: self.ledger.clone(),
                reader: Arc::new(Mutex::new(Reader::new(&scope.markers, &self.args.operator_namespace))),
                distrust: distrust.clone(),
                patience: self.lease / 2,
                room: room.clone(),
            };
            let marker = Marker {
                client: self.client.clone(),
                scope: scope.id,
                namespace: scope.markers.clone(),
                name: self.name.clone(),
                address: self.address.clone(),
                lease: self.lease,
                shared: self.shared.clone(),
                ledger: self.ledger.clone(),
                distrust,
                heartbeat: self.health.heartbeat("marker", self.stuck),
            };
            self.tasks.spawn("watch", watch.run(self.phases.closing.clone()));
            self.phases.marking.spawn(&mut self.tasks, "marker", |asked| marker.run(asked));
        }
        Ok(())
    }

    /// Keeps the certificate of the streams. Whom to believe when other replicas show theirs is returned.
    pub(super) async fn keep_certificate(&mut self) -> Result<Trust, ControllerError> {
        let shown = self.certificate.clone();
        self.health.readiness_fn("certificate", move || {
            if shown.is_set() { Ok(()) } else { Err("there is no certificate for the streams yet".into()) }
        });
        let Self { args, client, guard, ledger, publications, certificate, tasks, phases, .. } = self;
        let keeper = Keeper { client, operator_namespace: &args.operator_namespace, guard, ledger, publications };
        Ok(keeper.start(&args.tls, &args.injection, certificate, tasks, &phases.closing).await?)
    }

    /// Answers the API server what to add to pods, if it is to.
    pub(super) fn answer_webhook(&mut self, webhook: Option<BoundWebhook>) -> Result<(), ControllerError> {
        if let Some(webhook) = webhook {
            let tls = tls::server_config(self.certificate.clone(), tls::REQUESTS)?;
            self.tasks.spawn("webhook", webhook.serve(tls, self.phases.closing.clone()));
        }
        Ok(())
    }

    /// Serves agents and other replicas.
    pub(super) fn serve_streams(
        &mut self,
        bound: serve::Bound,
        authenticator: Authenticator,
    ) -> Result<(), ControllerError> {
        let (shared, ledger, closing) = (&self.shared, &self.ledger, &self.phases.closing);
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let settings = v1::Settings {
            replica: self.name.clone(),
            lease_millis: millis(self.lease),
            heartbeat_millis: millis(self.lease / 5),
            renewal_millis: millis(self.renewal),
            ..v1::Settings::default()
        };
        let attach = Attach { shared: shared.clone(), ledger: ledger.clone(), settings, closing: closing.clone() };
        let peer = Peer {
            shared: shared.clone(),
            ledger: ledger.clone(),
            name: self.name.clone(),
            renewal: self.renewal,
            closing: closing.clone(),
        };
        let tls = tls::server_config(self.certificate.clone(), tls::STREAMS)?;
        self.tasks.spawn("serve", bound.serve(Service::new(attach, peer, authenticator), tls, closing.clone()));
        Ok(())
    }

    /// Looks whether something that the replica remembers is over.
    pub(super) fn poll(&mut self) {
        let heartbeat = self.health.heartbeat("poll", self.stuck);
        self.tasks.spawn("poll", poll(self.shared.clone(), heartbeat, self.phases.closing.clone()));
    }

    /// Takes part in the election, and does what the leader does while it is the one. What there is to measure is returned.
    pub(super) async fn lead(&mut self, leading: Leading, trust: Trust) -> Registry {
        let Leading { elector, events, storms, measured } = leading;
        let transport = Transport {
            trust,
            name: self.args.tls.name(&self.args.operator_namespace),
            token_file: self.args.peer_token_file.clone(),
        };
        // It may come later, and until it leads this replica needs none; but nobody should learn of it only then.
        if let Err(error) = transport.authorize(&mut tonic::Request::new(())).await {
            warn!(%error, "as the leader, this replica could not connect to the others: see --peer-token-file");
        }
        let leader = LeaderTasks {
            name: self.name.as_str().into(),
            lease: self.lease,
            client: self.client.clone(),
            shared: self.shared.clone(),
            ledger: self.ledger.clone(),
            events,
            storms,
            publications: self.publications.clone(),
            certificate: self.certificate.clone(),
            transport,
            scopes: self.scopes.iter().map(|scope| (scope.id, scope.markers.clone())).collect(),
        };
        metrics::registry(leader.start(elector, &mut self.tasks, &self.phases), measured)
    }

    /// Shows what is measured: where probes are answered, or at a port of its own.
    pub(super) fn show_metrics(
        &mut self,
        registry: Registry,
        shown: &Metrics,
        bound: Option<scrape::Bound>,
    ) -> Result<(), ControllerError> {
        let registry = shown.get_or_init(|| Arc::new(registry)).clone();
        if let Some(bound) = bound {
            let tls = tls::server_config(self.certificate.clone(), tls::REQUESTS)?;
            let closing = self.phases.closing.clone();
            self.tasks.spawn("metrics", bound.serve(registry, self.client.clone(), tls, closing));
        }
        Ok(())
    }

    /// Goes on until it is `asked` to end.
    pub(super) async fn run(self, asked: &CancellationToken) -> Result<(), ControllerError> {
        let Self { shared, client, name, phases, tasks, .. } = self;
        let namespaces = self.scopes.into_iter().map(|scope| scope.markers).collect();
        Ok(Shutdown { shared, client, namespaces, name, phases }.run(tasks, asked).await?)
    }
}

/// A name that no other process has or had: a restarted replica does not know what the one before it granted, so it
/// must not be taken for it.
fn replica_name(pod: Option<&str>) -> String {
    let pod = pod_name(pod).unwrap_or_else(|| "vmcp-session-controller".to_owned());
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let pod: String = pod.chars().filter(|c| allowed(*c)).take(200).collect();
    format!("{MARKER_PREFIX}{pod}-{:08x}", rand::rng().random::<u32>())
}
