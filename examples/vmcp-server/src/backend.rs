//! A trivial MCP server: one tool, always the same answer.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use clap::ValueEnum;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData, JsonObject, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{RoleServer, ServerHandler};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::Failed;

/// What a backend is started with.
#[derive(clap::Args)]
pub struct Args {
    /// What it knows.
    #[arg(value_enum)]
    kind: Kind,

    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
}

/// What a backend knows.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// `forecast`: the weather of a city.
    Weather,
    /// `lookup`: what there is to be known about something.
    Search,
}

impl Kind {
    /// Name of its tool, what the tool does, and its argument.
    const fn tool(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Weather => ("forecast", "The weather of a city.", "city"),
            Self::Search => ("lookup", "What there is to be known about something.", "query"),
        }
    }

    fn answer(self, about: &str) -> String {
        match self {
            Self::Weather => format!("{about}: sunny, as always"),
            Self::Search => format!("{about}: nothing found, as always"),
        }
    }
}

/// Serves until `shutdown`.
pub async fn run(Args { kind, listen }: Args, shutdown: CancellationToken) -> Result<(), Failed> {
    let listener = TcpListener::bind(listen).await?;
    let config = StreamableHttpServerConfig::default()
        .with_allowed_hosts([listener.local_addr()?.ip().to_string()])
        .with_cancellation_token(shutdown.clone());
    let service = StreamableHttpService::new(move || Ok(Backend(kind)), Arc::<LocalSessionManager>::default(), config);
    println!("ready http://{}/mcp", listener.local_addr()?);
    let routes = Router::new().route_service("/mcp", service);
    axum::serve(listener, routes).with_graceful_shutdown(shutdown.cancelled_owned()).await?;
    Ok(())
}

struct Backend(Kind);

impl ServerHandler for Backend {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let (name, description, argument) = self.0.tool();
        let schema = json!({
            "type": "object",
            "properties": { argument: { "type": "string" } },
            "required": [argument],
        });
        let schema: JsonObject = schema.as_object().cloned().unwrap_or_default();
        Ok(ListToolsResult::with_all_items(vec![Tool::new(name, description, schema)]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let (name, _, argument) = self.0.tool();
        if request.name != name {
            return Err(ErrorData::invalid_params("no such tool", None));
        }
        let about = request.arguments.as_ref().and_then(|a| a.get(argument)).and_then(Value::as_str);
        let about = about.ok_or_else(|| ErrorData::invalid_params(format!("{argument} is missing"), None))?;
        Ok(CallToolResult::success(vec![ContentBlock::text(self.0.answer(about))]).into())
    }
}
