//! The admin endpoints: `/livez`, `/readyz` and `/metrics`, on a port of their own.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use clap::Args;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::health::{Health, Report};

/// Where to serve the admin endpoints.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Admin endpoints")]
pub struct AdminArgs {
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "VMCP_ADMIN_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:8081")]
    pub admin_listen: SocketAddr,
}

/// More connections than this wait to be accepted: probes and a few scrapers need no more.
const MAX_CONNECTIONS: usize = 64;

/// A connection ends when it has carried no answer for that long, be it idle, slow to ask or slow to read.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(90);

/// What Prometheus asks for, and what the encoder writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The admin endpoints could not be served.
#[derive(Debug, Error)]
pub enum AdminError {
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {address} for the admin endpoints: {source}")]
    Bind {
        /// The address as given.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The server ended.
    #[error("the admin endpoints ended: {0}")]
    Serve(#[source] io::Error),
}

/// The admin endpoints, bound but not served yet: so a bad address is an error at the start.
#[derive(Debug)]
pub struct BoundAdmin {
    listener: TcpListener,
    address: SocketAddr,
}

impl BoundAdmin {
    /// Binds the address. Port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// The address that is bound, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is cancelled. The registry is encoded anew for each scrape.
    pub async fn serve(
        self,
        health: Health,
        registry: Arc<Registry>,
        shutdown: CancellationToken,
    ) -> Result<(), AdminError> {
        self.serve_bounded(health, registry, shutdown, MAX_CONNECTIONS, CONNECTION_TIMEOUT).await
    }

    async fn serve_bounded(
        self,
        health: Health,
        registry: Arc<Registry>,
        shutdown: CancellationToken,
        connections: usize,
        timeout: Duration,
    ) -> Result<(), AdminError> {
        let router = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(Endpoints { health, registry });
        let listener =
            BoundedListener { inner: self.listener, permits: Arc::new(Semaphore::new(connections)), timeout };
        // Not axum's graceful shutdown: it waits for connections that a scraper keeps open. An answer takes
        // microseconds, and nobody depends on the last one.
        tokio::select! {
            served = axum::serve(listener, router).into_future() => served.map_err(AdminError::Serve),
            () = shutdown.cancelled() => Ok(()),
        }
    }
}

#[derive(Clone)]
struct Endpoints {
    health: Health,
    registry: Arc<Registry>,
}

async fn livez(State(endpoints): State<Endpoints>) -> Response {
    answer(endpoints.health.livez())
}

async fn readyz(State(endpoints): State<Endpoints>) -> Response {
    answer(endpoints.health.readyz())
}

fn answer(report: Report) -> Response {
    let status = if report.passed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, report.text).into_response()
}

async fn metrics(State(endpoints): State<Endpoints>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &endpoints.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot encode the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Accepts a bounded number of connections at a time.
struct BoundedListener {
    inner: TcpListener,
    permits: Arc<Semaphore>,
    timeout: Duration,
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
            // The semaphore is never closed.
            return poll_fn(|_| Poll::Pending).await;
        };
        // axum's own accept logs and retries errors.
        let (stream, peer) = Listener::accept(&mut self.inner).await;
        let deadline = Box::pin(sleep(self.timeout));
        (BoundedStream { stream, deadline, timeout: self.timeout, _permit: permit }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection that fails when it has written nothing for too long. Bytes that come in do not count, so that nobody
/// keeps it open by asking slowly.
struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    timeout: Duration,
    _permit: OwnedSemaphorePermit,
}

impl BoundedStream {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if matches!(written, Poll::Ready(Ok(1..))) {
            let next = Instant::now() + self.timeout;
            self.deadline.as_mut().reset(next);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
