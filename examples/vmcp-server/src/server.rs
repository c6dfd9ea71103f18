//! One pod of the server.

use std::mem;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::routing::get;
use axum::{Router, middleware};
use rmcp::transport::streamable_http_server::session::SessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use vmcp_session::cache::{Cache, CacheConfig};
use vmcp_session::runtime::kube_client::{KubeArgs, Timeouts};

use crate::Failed;
use crate::gate::gate;
use crate::gateway::{Gateway, Opened};
use crate::live::Addresses;
use crate::sessions::Sessions;
use crate::store::{Agent, Change, Store};

/// When a client whose stream was cut should ask for another one.
const STREAM_AGAIN: Duration = Duration::from_millis(200);
/// Sessions that are looked at at one time.
const LOOKS: usize = 64;
/// When to look again at what could not be looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a pod is started with.
#[derive(clap::Args)]
pub struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Hosts that clients may ask for, besides the address it listens on: that of a proxy in front. Separated by commas.
    #[arg(long, value_name = "HOSTS", value_delimiter = ',')]
    allowed_hosts: Vec<String>,

    /// A backend, as name=URL. Once for each; new sessions may use all of them.
    #[arg(long = "backend", value_name = "NAME=URL", required = true)]
    backends: Vec<Backend>,

    /// Name of this pod.
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "vmcp-server")]
    pod_name: String,

    /// How long sessions last that nobody uses, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1_800, value_parser = clap::value_parser!(u32).range(1..))]
    idle_timeout: u32,

    /// The session agent of this pod, as `redis://HOST:PORT` or `unix://PATH`. Without it the cache is in this process.
    #[arg(long, env = "VMCP_AGENT", value_name = "URL")]
    agent: Option<String>,

    /// What the agent's keys begin with, before the session id.
    #[arg(long, env = "VMCP_KEY_PREFIX", value_name = "PREFIX", default_value = "")]
    key_prefix: String,

    #[command(flatten)]
    library: LibraryArgs,
}

/// How the cache in this process reaches the rest.
#[derive(clap::Args)]
#[command(next_help_heading = "Cache library (without --agent)")]
struct LibraryArgs {
    /// Replicas of the controller, as host:port, separated by commas.
    #[arg(long, env = "VMCP_CONTROLLERS", value_name = "ADDRESSES", value_delimiter = ',')]
    controllers: Vec<String>,

    /// Namespace of the sessions.
    #[arg(long, env = "VMCP_NAMESPACE", value_name = "NAME", default_value = "default")]
    namespace: String,

    /// The vMCP server that this is a pod of: spec.server of new sessions.
    #[arg(long, env = "VMCP_SERVER", value_name = "NAME")]
    server: Option<String>,

    /// File with the token to show to the controller.
    #[arg(long, env = "VMCP_TOKEN_FILE", value_name = "PATH")]
    token_file: Option<PathBuf>,

    /// File with the authorities, as PEM, that the controller's certificate is signed by.
    #[arg(long, env = "VMCP_CA_FILE", value_name = "PATH")]
    ca_file: Option<PathBuf>,

    /// No replica of the controller grants longer leases, in seconds.
    #[arg(long, env = "VMCP_LEASE_UPPER_BOUND", value_name = "SECONDS", default_value_t = 15.0)]
    lease_upper_bound: f64,

    #[command(flatten)]
    kube: KubeArgs,
}

/// A backend: its name in front of its tools, and where it is.
#[derive(Clone)]
struct Backend {
    name: String,
    url: String,
}

impl FromStr for Backend {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, url) = text.split_once('=').ok_or("expected NAME=URL")?;
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(letters) {
            return Err("a backend's name has lower-case letters, digits and hyphens");
        }
        Ok(Self { name: name.to_owned(), url: url.to_owned() })
    }
}

/// What all requests of a pod share.
pub struct Shared {
    /// The pod's name, as answers have it.
    pub pod: HeaderValue,
    /// The sessions.
    pub store: Arc<Store>,
    sessions: Arc<Sessions>,
    opened: Arc<Opened>,
}

impl Shared {
    /// Drops everything that this pod has of a session; streams to its client end.
    pub async fn forget(&self, id: &Arc<str>) {
        if let Err(error) = self.sessions.close_session(id).await {
            warn!(%error, "a session cannot be closed");
        }
    }

    /// Tells the client that its tools may not be what they were.
    pub async fn tell(&self, id: &str) {
        if let Some(open) = self.opened.get(id) {
            // Fails when the session is being closed.
            let _ = open.peer.notify_tool_list_changed().await;
        }
    }

    /// Looks at a session that has changed, if this pod has anything of it: what was made from the old state goes at
    /// once, not when somebody asks next. Returns the id if it could not be looked at.
    async fn look(&self, id: Arc<str>) -> Option<Arc<str>> {
        let open = self.opened.get(&id)?;
        match self.store.get(&id).await {
            Ok(Some(session)) => {
                if open.live.keep_only(Some(&session)).await {
                    self.tell(&id).await;
                }
                None
            }
            Ok(None) => {
                self.forget(&id).await;
                None
            }
            Err(_) => {
                open.live.keep_only(None).await;
                Some(id)
            }
        }
    }

    /// Follows what changes, as long as there is anything to follow. A session that cannot be looked at is looked at again:
    /// what is not asked for is not followed either.
    async fn follow(self: Arc<Self>) {
        let mut changes = self.store.changes();
        let mut looks = JoinSet::new();
        let mut unknown = Vec::new();
        let mut again = interval(LOOK_AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ids = tokio::select! {
                change = changes.next() => match change {
                    Some(Change::Of(id)) => vec![id],
                    Some(Change::OfAny) => self.opened.ids(),
                    None => return,
                },
                Some(looked) = looks.join_next() => {
                    unknown.extend(looked.ok().flatten());
                    continue;
                }
                _ = again.tick(), if !unknown.is_empty() => mem::take(&mut unknown),
            };
            for id in ids {
                if looks.len() >= LOOKS
                    && let Some(looked) = looks.join_next().await
                {
                    unknown.extend(looked.ok().flatten());
                }
                let shared = self.clone();
                looks.spawn(async move { shared.look(id).await });
            }
        }
    }
}

/// Serves until `shutdown`.
pub async fn run(args: Args, shutdown: CancellationToken) -> Result<(), Failed> {
    let listener = TcpListener::bind(args.listen).await?;
    let address = listener.local_addr()?;
    let store = Arc::new(store(&args).await?);
    let opened = Arc::<Opened>::default();
    let names: Vec<&str> = args.backends.iter().map(|b| b.name.as_str()).collect();
    let idle = Duration::from_secs(args.idle_timeout.into());
    let sessions = Arc::new(Sessions::new(store.clone(), opened.clone(), names.join(","), idle));
    let addresses: Addresses = args.backends.iter().map(|b| (b.name.clone(), b.url.as_str().into())).collect();
    let addresses = Arc::new(addresses);

    let mut hosts = args.allowed_hosts;
    hosts.push(address.ip().to_string());
    let mut config = StreamableHttpServerConfig::default()
        .with_allowed_hosts(hosts)
        .with_sse_retry(Some(STREAM_AGAIN))
        .with_cancellation_token(shutdown.clone());
    config.session_store = Some(sessions.clone());
    let gateways = opened.clone();
    let make = move || Ok(Gateway::new(addresses.clone(), gateways.clone()));
    let service = StreamableHttpService::new(make, sessions.clone(), config);

    let pod = HeaderValue::from_str(&args.pod_name)?;
    let shared = Arc::new(Shared { pod, store, sessions, opened });
    let following = tokio::spawn(shared.clone().follow());
    println!("ready http://{address}/mcp");
    let routes = Router::new()
        .route_service("/mcp", service)
        .layer(middleware::from_fn_with_state(shared.clone(), gate))
        .route("/readyz", get(ready).with_state(shared.clone()));
    axum::serve(listener, routes).with_graceful_shutdown(shutdown.cancelled_owned()).await?;
    following.abort();
    shared.store.shutdown().await;
    Ok(())
}

async fn store(args: &Args) -> Result<Store, Failed> {
    if let Some(url) = &args.agent {
        let idle = Duration::from_secs(args.idle_timeout.into());
        return Ok(Store::Agent(Agent::new(url, args.key_prefix.clone(), idle)?.into()));
    }
    let library = &args.library;
    let client = library.kube.client(Timeouts::default()).await?;
    let config = CacheConfig {
        controllers: library.controllers.clone(),
        token_file: library.token_file.clone(),
        ca_file: library.ca_file.clone(),
        server: library.server.clone(),
        lease_upper_bound: Duration::try_from_secs_f64(library.lease_upper_bound)?,
        ..CacheConfig::new(library.namespace.clone(), &args.pod_name)
    };
    Ok(Store::Library(Cache::connect(client, config)?))
}

async fn ready(State(shared): State<Arc<Shared>>) -> StatusCode {
    if shared.store.is_ready().await { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
