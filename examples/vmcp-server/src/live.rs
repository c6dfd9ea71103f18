//! Connections to the backends of one session: made from one state of it, and true only in this pod.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rmcp::model::{CallToolRequestParams, CallToolResult, ClientConfig, Tool};
use rmcp::service::{RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{RoleClient, ServiceExt};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::warn;

use crate::store::Held;

/// The metadata key with the backends that a session may use, separated by commas. Only this server knows it.
pub const BACKENDS: &str = "backends";
/// How long a backend may take until it is connected and has listed its tools.
const CONNECT: Duration = Duration::from_secs(5);

/// Where each backend is.
pub type Addresses = BTreeMap<String, Arc<str>>;

/// What a session is connected to, if it is.
#[derive(Default)]
pub struct Live(Mutex<Option<Arc<Connected>>>);

impl Live {
    /// The connections that `session` may use. Those that were made for another state of it are dropped first.
    pub async fn connected(&self, session: &Held, addresses: &Addresses) -> Arc<Connected> {
        // One request connects, those that come meanwhile wait for it.
        let mut live = self.0.lock().await;
        if let Some(connected) = live.as_ref().filter(|c| c.to.is_like(session)) {
            return connected.clone();
        }
        *live = None;
        let connected = Arc::new(Connected::open(session, addresses).await);
        if connected.complete {
            *live = Some(connected.clone());
        }
        connected
    }

    /// Drops the connections, unless they are those of `session`. Whether there are none now.
    pub async fn keep_only(&self, session: Option<&Held>) -> bool {
        let mut live = self.0.lock().await;
        live.take_if(|connected| session.is_none_or(|session| !connected.to.is_like(session)));
        live.is_none()
    }
}

/// Connections to backends.
pub struct Connected {
    to: Held,
    backends: BTreeMap<String, Backend>,
    /// Whether every backend was reached. Otherwise the next request tries again.
    complete: bool,
}

struct Backend {
    client: RunningService<RoleClient, ClientConfig>,
    tools: Vec<Tool>,
}

impl Connected {
    async fn open(session: &Held, addresses: &Addresses) -> Self {
        let wanted = session.metadata().get(BACKENDS).unwrap_or_default();
        // A name that is not configured gives no tools: which it was is a metadata value, and not for the log.
        let known = wanted.split(',').filter_map(|name| addresses.get_key_value(name.trim()));
        let opened = known.map(|(name, url)| async move {
            match timeout(CONNECT, Backend::open(url)).await {
                Ok(Ok(backend)) => return Some((name.clone(), backend)),
                Ok(Err(error)) => warn!(%error, backend = name, "cannot connect to a backend"),
                Err(_) => warn!(backend = name, "a backend does not answer"),
            }
            None
        });
        let opened = join_all(opened).await;
        let complete = opened.iter().all(Option::is_some);
        Self { to: session.clone(), backends: opened.into_iter().flatten().collect(), complete }
    }

    /// All tools, each with the name of its backend in front.
    pub fn tools(&self) -> Vec<Tool> {
        let of = |(name, backend): (&String, &Backend)| {
            let renamed = |mut tool: Tool| {
                tool.name = format!("{name}_{}", tool.name).into();
                tool
            };
            backend.tools.iter().cloned().map(renamed).collect::<Vec<_>>()
        };
        self.backends.iter().flat_map(of).collect()
    }

    /// Calls a tool by the name that [`tools`](Self::tools) gives it; none if there is no such tool.
    pub async fn call(&self, mut request: CallToolRequestParams) -> Option<Result<CallToolResult, ServiceError>> {
        let (backend, tool) = request.name.split_once('_')?;
        let backend = self.backends.get(backend)?;
        let tool = backend.tools.iter().find(|t| t.name == tool)?.name.clone();
        request.name = tool;
        Some(backend.client.peer().call_tool(request).await)
    }
}

impl Backend {
    async fn open(url: &Arc<str>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        // Backends are reached as they are named: a proxy that the environment knows is not for them.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT).build()?;
        let config = StreamableHttpClientTransportConfig::with_uri(url.clone());
        let transport = StreamableHttpClientTransport::with_client(http, config);
        let client = ClientConfig::default().serve(transport).await?;
        let tools = client.list_all_tools().await?;
        Ok(Self { client, tools })
    }
}
