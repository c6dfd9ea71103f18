//! What clients see: the tools of all backends that their session may use.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use axum::http::request::Parts;
use parking_lot::Mutex;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData, Implementation,
    InitializeRequestParams, InitializeResult, ListToolsResult, PaginatedRequestParams, ProtocolVersion,
    ServerCapabilities, ServerConfig,
};
use rmcp::service::{RequestContext, ServiceError};
use rmcp::{Peer, RoleServer, ServerHandler};

use crate::live::{Addresses, Connected, Live};
use crate::store::Held;

/// The last revision of MCP in which the protocol has sessions.
const WITH_SESSIONS: ProtocolVersion = ProtocolVersion::V_2025_11_25;

/// The id of the session that an `initialize` request opens, or opens again in another pod.
#[derive(Clone)]
pub struct Opens(pub Arc<str>);

/// What this pod has of a session in memory.
#[derive(Clone)]
pub struct Open {
    /// The way to the client, as long as it has a stream to this pod.
    pub peer: Peer<RoleServer>,
    /// Its connections.
    pub live: Arc<Live>,
}

/// The sessions that are open in this pod.
#[derive(Default)]
pub struct Opened(Mutex<HashMap<Arc<str>, Open>>);

impl Opened {
    /// What this pod has of a session.
    pub fn get(&self, id: &str) -> Option<Open> {
        self.0.lock().get(id).cloned()
    }

    /// It has nothing of it any more.
    pub fn close(&self, id: &str) {
        self.0.lock().remove(id);
    }

    /// All of them.
    pub fn ids(&self) -> Vec<Arc<str>> {
        self.0.lock().keys().cloned().collect()
    }
}

/// One session in this pod, as rmcp serves it.
pub struct Gateway {
    addresses: Arc<Addresses>,
    opened: Arc<Opened>,
    live: Arc<Live>,
}

impl Gateway {
    /// A session that has not begun, nor been carried here.
    pub fn new(addresses: Arc<Addresses>, opened: Arc<Opened>) -> Self {
        Self { addresses, opened, live: Arc::default() }
    }

    /// The connections for the state of the session that the gate saw for this request.
    async fn connected(&self, context: &RequestContext<RoleServer>) -> Result<Arc<Connected>, ErrorData> {
        let session = context.extensions.get::<Parts>().and_then(|parts| parts.extensions.get::<Held>());
        let session = session.ok_or_else(|| ErrorData::invalid_request("this needs a session", None))?;
        Ok(self.live.connected(session, &self.addresses).await)
    }
}

impl ServerHandler for Gateway {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_tool_list_changed().build();
        let info = Implementation::new("vmcp-example-server", env!("CARGO_PKG_VERSION"));
        ServerConfig::new(capabilities).with_server_info(info)
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        ProtocolVersion::known_up_to(&WITH_SESSIONS).into()
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        context.peer.set_peer_info(request.clone());
        let result = self.negotiate_initialize(&request)?;
        if let Some(Opens(id)) = context.extensions.get() {
            let open = Open { peer: context.peer.clone(), live: self.live.clone() };
            self.opened.0.lock().insert(id.clone(), open);
        }
        Ok(result)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.connected(&context).await?.tools()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let unknown = || ErrorData::invalid_params("the session has no such tool", None);
        let called = self.connected(&context).await?.call(request).await.ok_or_else(unknown)?;
        match called {
            Ok(result) => Ok(result.into()),
            Err(ServiceError::McpError(error)) => Err(error),
            Err(_) => {
                // Maybe the backend was started again and knows this connection no more: the next call makes a new one.
                self.live.keep_only(None).await;
                Ok(CallToolResult::error(vec![ContentBlock::text("the backend cannot be reached now")]).into())
            }
        }
    }
}
