//! The sidecar: serves the pod's cache of sessions in the Redis protocol.
//!
//! * [`server`]: connections; [`command`]: what is done for each request; [`sessions`]: keys and values as sessions.
//! * [`tracking`]: what clients keep of their own; [`pubsub`]: what they listen to; [`events`] tells both what happens.
//! * [`config`]: the command line; [`metrics`]: what Prometheus is told; [`debug`]: a look into a running agent.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::field::display;
use tracing::{info, warn};

pub mod command;
pub mod config;
pub mod debug;
pub mod events;
pub mod metrics;
pub mod pubsub;
mod ready;
pub mod server;
pub mod sessions;
#[cfg(test)]
mod testing;
pub mod tracking;

pub use config::AgentArgs;

use crate::core::lease::with_drift;
use crate::core::time::Time;
use crate::resp::Request;
use crate::runtime::admin::{AdminError, BoundAdmin};
use crate::runtime::health::Health;
use crate::runtime::kube_client::{KubeConfigError, Timeouts};
use crate::runtime::task_set::{TaskError, TaskSet};
use command::{Client, ServerSettings};
use pubsub::PubSub;
use server::{ClientHandle, ClientId, Clients, Flow, Handler, Limits, Room, ServerConfig};
use sessions::Sessions;
use tracking::Tracking;

/// How long a request that runs may wait for the API server: for its turn, and for one answer. What is sent again, as a
/// deletion is that is not answered, takes longer if the API server hangs: it is cut off then, and its client does not
/// know the outcome. More would be longer than pods are given by default.
const API_SERVER: Duration = Duration::from_secs(10);
/// How long it may wait until its write is visible everywhere, at most: what orchestrators grant is bounded too.
const VISIBLE: Duration = Duration::from_mins(1);
/// How long everything else may take to end, when no request runs any more.
const DRAIN: Duration = Duration::from_secs(2);

/// All that the parts of an agent share.
#[derive(Debug)]
pub struct Agent {
    /// The sessions.
    pub sessions: Sessions,
    /// What commands know of the agent as a whole.
    pub commands: command::Server,
    /// Those who are connected.
    pub clients: Arc<Clients>,
    /// What clients keep of their own.
    pub tracking: Tracking,
    /// What clients listen to.
    pub pubsub: PubSub,
}

/// The agent could not start, or could not go on.
#[derive(Debug, Error)]
pub enum AgentError {
    /// A setting makes no sense.
    #[error(transparent)]
    Args(#[from] config::ArgsError),
    /// A setting of the sessions makes no sense.
    #[error(transparent)]
    Sessions(#[from] sessions::SetupError),
    /// The API client cannot be configured.
    #[error(transparent)]
    Kube(#[from] KubeConfigError),
    /// The admin endpoints cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Clients cannot connect.
    #[error(transparent)]
    Listen(#[from] server::ListenError),
    /// A task ended.
    #[error(transparent)]
    Task(#[from] TaskError),
}

impl Agent {
    /// A client has written the key. Whoever else keeps a copy of its own is told, the writer only if what is there now is
    /// not just what it wrote. `events` are Redis's words for what was done.
    pub fn written(&self, key: &[u8], by: ClientId, events: &[&'static str], by_others: bool) {
        if by_others {
            self.tracking.stale(key);
        } else if self.tracking.wrote(by, key) {
            self.has_read(by, key);
        }
        for event in events {
            self.pubsub.event(event, key);
        }
    }

    /// A client that tracks has read the key: [`Tracking::reading`] was called before.
    pub fn has_read(&self, client: ClientId, key: &[u8]) {
        self.tracking.read(client, key, self.covered_until(key));
    }

    /// A client that does not track has read the key. Who tracks by prefix on another connection is told, if no lease covers what was
    /// read.
    pub fn others_may_keep(&self, key: &[u8]) {
        self.tracking.read_by_others(key, self.covered_until(key));
    }

    /// Until when the copy of this key's session may be served, if nothing more is heard; `None` if it may not now.
    pub fn covered_until(&self, key: &[u8]) -> Option<Time> {
        self.sessions.cache().covered_until(&self.sessions.name(key)?)
    }
}

/// The agent as connections know it.
#[derive(Clone, Debug)]
struct Service(Arc<Agent>);

impl Handler for Service {
    type Client = Client;

    fn connect(&self, handle: Arc<ClientHandle>) -> Client {
        Client::new(handle, self.0.commands.needs_password())
    }

    async fn execute(&self, client: &mut Client, request: Request) -> Flow {
        command::execute(&self.0, client, request).await
    }

    fn trusts(&self, client: &Client) -> bool {
        client.is_authenticated()
    }

    fn disconnect(&self, mut client: Client) {
        command::disconnected(&self.0, &mut client);
    }
}

/// How long requests that run may take to end. A write that is to be visible everywhere waits for a lease to end, if somebody
/// cannot be reached: a client that is cut off before does not know what became of it.
fn finish(lease_upper_bound: Duration) -> Duration {
    API_SERVER + with_drift(lease_upper_bound).min(VISIBLE)
}

/// Runs an agent until `shutdown`.
pub async fn run(args: AgentArgs, shutdown: CancellationToken) -> Result<(), AgentError> {
    args.validate()?;
    let password = args.password()?;
    let admin = BoundAdmin::bind(args.admin.admin_listen).await?;
    let limits = Limits {
        output: args.client_output_limit,
        idle: Duration::from_secs(args.client_timeout),
        ..Limits::default()
    };
    let unix_mode = args.unix_socket_mode.0;
    let listen = ServerConfig { tcp: args.listen.0, unix: args.unix_socket.clone(), unix_mode, limits };
    let room = args.room();
    let max_clients = server::affordable(room.clients);
    let clients = Arc::new(Clients::new(Room { clients: max_clients, ..room }));
    let server = server::Server::bind(&listen, clients.clone())?;
    let address = server.local_addr();
    let client = args.kube.client(Timeouts::default()).await?;
    let sessions = Sessions::connect(client, args.cache(), &args.sessions())?;
    let events = sessions.cache().subscribe();

    let settings = ServerSettings {
        password,
        listen: address,
        unix_socket: args.unix_socket.clone(),
        max_clients,
        max_memory: args.cache_bytes,
        timeout: args.client_timeout,
        output_limit: args.client_output_limit,
        clients_memory: args.clients_memory,
        max_bulk: limits.request.frame,
        tracking_table_max_keys: args.tracking_table_max_keys,
    };
    let agent = Arc::new(Agent {
        sessions,
        commands: command::Server::new(settings),
        tracking: Tracking::new(args.tracking_table_max_keys, clients.clone()),
        clients,
        pubsub: PubSub::default(),
    });

    let weak = Arc::downgrade(&agent);
    agent.sessions.cache().observe(move |name| {
        if let Some(agent) = weak.upgrade().filter(|agent| !agent.tracking.is_idle()) {
            match agent.sessions.key(name) {
                Some(key) => agent.tracking.disturbed(&key),
                None => agent.tracking.flush(),
            }
        }
    });

    let health = Health::default();
    let mut tasks = TaskSet::new(shutdown.clone());
    let readiness = health.readiness("sessions");
    tasks.spawn("ready", ready::run(agent.clone(), readiness, shutdown.clone()));
    // While requests are finished, clients that keep copies of their own must hear what becomes of these.
    let served = CancellationToken::new();
    tasks.spawn("events", events::run(agent.clone(), events, served.clone()));
    tasks.spawn("cover", tracking::watch_cover(agent.clone(), served.clone()));
    let registry = Arc::new(metrics::registry(agent.clone()));
    tasks.spawn("admin", admin.serve(health, Some(Arc::new(OnceLock::from(registry))), shutdown.clone()));
    let (service, ending) = (Service(agent.clone()), shutdown.clone());
    let finish = finish(Duration::from_secs_f64(args.lease_upper_bound));
    tasks.spawn("serve", async move {
        let _served = served.drop_guard();
        server.run_apart(service, ending, finish).await
    });
    if args.confirms_by_waiting() {
        warn!(
            seconds = args.lease_upper_bound,
            "without --controllers, each read asks the API server, and each write takes --lease-upper-bound; name the \
             controllers, or if there are none, set --visibility committed"
        );
    }
    let (address, socket) = (address.map(display), args.unix_socket.as_deref().map(|path| display(path.display())));
    info!(namespace = %args.namespace, address, socket, "serving");
    let ended = tasks.run(finish + DRAIN).await;
    // Nobody is served any more: what is held is let go, so that no write elsewhere waits for this agent's leases.
    agent.sessions.cache().shutdown().await;
    Ok(ended?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_may_wait_for_a_lease_to_end_but_not_for_ever() {
        let lease = Duration::from_secs(15);
        assert!(finish(lease) >= with_drift(lease) + API_SERVER);
        // What Kubernetes grants by default is enough for the default.
        assert!(finish(lease) + DRAIN < Duration::from_secs(30));
        assert_eq!(finish(Duration::from_hours(1)), VISIBLE + API_SERVER);
    }
}
