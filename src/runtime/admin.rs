//! The admin endpoints: `/livez`, `/readyz` and `/metrics`, on a port of their own.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Args;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::bounded::{self, BoundedListener};
use super::health::{Health, Report};
use super::listen::Listen;

/// Where to serve the admin endpoints.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Admin endpoints")]
pub struct AdminArgs {
    /// Address of /livez, /readyz and /metrics; :PORT for all addresses.
    #[arg(long, env = "VMCP_ADMIN_LISTEN", value_name = "ADDRESS", default_value = ":8081")]
    pub admin_listen: Listen,
}

/// What Prometheus asks for, and what the encoder writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Of more connections than this, the one that was answered longest ago ends: probes and a few scrapers need no more.
pub const MAX_CONNECTIONS: usize = 64;

/// A connection ends when it has carried no answer for that long, be it idle, slow to ask or slow to read.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(90);

/// The admin endpoints could not be served.
#[derive(Debug, Error)]
pub enum AdminError {
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {address} for the admin endpoints: {source}")]
    Bind {
        /// The address as given.
        address: Listen,
        /// What the system said.
        source: io::Error,
    },
}

/// What `/metrics` shows. Probes are answered before there is anything to show.
pub type Metrics = Arc<OnceLock<Arc<Registry>>>;

/// The admin endpoints, bound but not served yet: so a bad address is an error at the start.
#[derive(Debug)]
pub struct BoundAdmin {
    listener: TcpListener,
    address: SocketAddr,
}

impl BoundAdmin {
    /// Binds the address. Port 0 takes a free one.
    pub async fn bind(address: Listen) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Bind { address, source };
        let listener = address.bind().await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// The address that is bound, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is cancelled. The registry is encoded anew for each scrape; without `open` there is no `/metrics`.
    pub async fn serve(
        self,
        health: Health,
        open: Option<Metrics>,
        shutdown: CancellationToken,
    ) -> Result<(), AdminError> {
        self.serve_bounded(health, open, shutdown, MAX_CONNECTIONS, CONNECTION_TIMEOUT).await
    }

    async fn serve_bounded(
        self,
        health: Health,
        open: Option<Metrics>,
        shutdown: CancellationToken,
        connections: usize,
        timeout: Duration,
    ) -> Result<(), AdminError> {
        let mut router = Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(health);
        if let Some(open) = open {
            router = router.merge(Router::new().route("/metrics", get(open_metrics)).with_state(open));
        }
        let listener = BoundedListener::new(self.listener, connections, timeout);
        bounded::serve(listener, router, &shutdown).await;
        Ok(())
    }
}

async fn livez(State(health): State<Health>) -> Response {
    answer(health.livez())
}

async fn readyz(State(health): State<Health>) -> Response {
    answer(health.readyz())
}

fn answer(report: Report) -> Response {
    let status = if report.passed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, report.text).into_response()
}

async fn open_metrics(State(open): State<Metrics>) -> Response {
    match open.get() {
        Some(registry) => metrics(State(registry.clone())).await,
        None => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
    }
}

/// The numbers as Prometheus reads them.
pub async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot encode the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
