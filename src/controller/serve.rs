//! The gRPC service: the one place where streams come in, are decrypted and authenticated.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use rustls::ServerConfig;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Extensions, Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::attach::Attach;
use super::auth::{Authenticator, Denied};
use super::clock::now;
use super::connections::{Busy, Connection, Connections};
use super::peer::Peer;
use super::stream_limits::StreamLimits;
use crate::core::rate::TokenBucket;
use crate::proto::MAX_MESSAGE_BYTES;
use crate::proto::v1;
use crate::proto::v1::coherence_server::{Coherence, CoherenceServer};
use crate::runtime::listen::Listen;
use crate::runtime::tls::server::Encrypted;

/// Messages that are on their way to one agent. More wait in the replica, as a set keyed by session.
const OUTBOX: usize = 2;
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Streams on one connection. Agents and replicas open one.
const STREAMS: u32 = 8;
/// Bytes that are taken in, of a stream and of a connection, before anybody reads them.
const WINDOW: u32 = 128 * 1_024;
/// How long the answer to a new stream may take: as long as the check of its token, and some more.
const ANSWER: Duration = Duration::from_secs(10);
/// Lines about who was not let in: so many at once, then one in each interval. Anybody can cause them.
const REFUSALS: (u32, Duration) = (10, Duration::from_secs(10));

/// The streams cannot be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address} for streams: {source}")]
    Bind {
        /// The address.
        address: Listen,
        /// What the system said.
        source: std::io::Error,
    },
    /// Serving failed.
    #[error("serving streams failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The service.
pub struct Service {
    attach: Attach,
    peer: Peer,
    authenticator: Authenticator,
    limits: Arc<StreamLimits>,
    refusals: Mutex<TokenBucket>,
}

impl Service {
    /// Serves agents by `attach` and other replicas by `peer`, after `authenticator` has told who they are.
    pub fn new(attach: Attach, peer: Peer, authenticator: Authenticator) -> Self {
        let refusals = Mutex::new(TokenBucket::new(REFUSALS.0, REFUSALS.1));
        Self { attach, peer, authenticator, limits: Arc::default(), refusals }
    }

    /// Says who was not let in, now and then.
    fn refused(&self, extensions: &Extensions, reason: impl Display + Into<Status>) -> Status {
        if self.refusals.lock().take(now()) {
            let from = extensions.get::<Connection>().map(|connection| connection.from.to_string());
            warn!(from = from.unwrap_or_default(), %reason, "a stream was refused");
        }
        reason.into()
    }
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The messages of a stream, and the status that it ends with: that one needs no place in the outbox, which may be full.
fn outgoing<T: Send + 'static>() -> (mpsc::Sender<T>, oneshot::Sender<Status>, Outgoing<T>) {
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let (end, ended) = oneshot::channel::<Status>();
    let ended = stream::once(ended).filter_map(async |status| status.ok().map(Err));
    (outbox, end, Box::pin(ReceiverStream::new(messages).map(Ok).chain(ended)))
}

/// Where a stream comes from.
fn from(extensions: &Extensions) -> IpAddr {
    extensions.get::<Connection>().map_or(Ipv4Addr::UNSPECIFIED.into(), |connection| connection.from.ip())
}

/// Whoever opened a stream is known: the connection that it came on counts.
fn busy(extensions: &Extensions) -> Option<Busy> {
    extensions.get::<Connection>().map(Connection::busy)
}

#[tonic::async_trait]
impl Coherence for Service {
    type AttachStream = Outgoing<v1::ReplicaMessage>;
    type PeerStream = Outgoing<v1::PeerReply>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let refused = |denied: Denied| self.refused(request.extensions(), denied);
        let from = from(request.extensions());
        let (pod, pass) = self.authenticator.pod(request.metadata(), from).await.map_err(refused)?;
        let exceeded = |exceeded| self.refused(request.extensions(), exceeded);
        let permit = self.limits.open(&pod.namespace, &pod.uid).map_err(exceeded)?;
        let busy = busy(request.extensions());
        let (outbox, end, outgoing) = outgoing();
        let (attach, authenticator) = (self.attach.clone(), self.authenticator.clone());
        let pod_name = format!("{}/{}", pod.namespace, pod.name);
        tokio::spawn(async move {
            let status = tokio::select! {
                status = attach.serve(pod, request.into_inner(), outbox) => status,
                denied = authenticator.revoked(&pass) => {
                    info!(%pod_name, reason = %denied, "a stream was ended");
                    Some(denied.into())
                }
            };
            drop((permit, busy));
            // Nobody may be reading any more.
            status.map(|status| end.send(status))
        });
        Ok(Response::new(outgoing))
    }

    async fn peer(&self, request: Request<Streaming<v1::PeerRequest>>) -> Result<Response<Self::PeerStream>, Status> {
        let refused = |denied: Denied| self.refused(request.extensions(), denied);
        let from = from(request.extensions());
        let pass = self.authenticator.peer(request.metadata(), from).await.map_err(refused)?;
        let busy = busy(request.extensions());
        let (outbox, end, outgoing) = outgoing();
        let (peer, authenticator) = (self.peer.clone(), self.authenticator.clone());
        tokio::spawn(async move {
            let status = tokio::select! {
                status = peer.serve(request.into_inner(), outbox) => status,
                denied = authenticator.revoked(&pass) => {
                    info!(%from, reason = %denied, "a stream of a replica was ended");
                    denied.into()
                }
            };
            drop(busy);
            end.send(status)
        });
        Ok(Response::new(outgoing))
    }
}

/// A bound address for streams.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    /// The address, with the real port.
    pub address: SocketAddr,
}

impl Bound {
    /// Binds `address`, so that a bad one is an error at the start.
    pub async fn bind(address: Listen) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Bind { address, source };
        let listener = address.bind().await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Serves until `shutdown`, with TLS.
    pub async fn serve(
        self,
        service: Service,
        tls: Arc<ServerConfig>,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let service = CoherenceServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let connections = Arc::new(Connections::default()).accept(self.listener);
        let encrypted = connections.map(move |accepted| accepted.map(|io| Encrypted::new(io, &tls)));
        let serving = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(Some(STREAMS))
            .initial_stream_window_size(Some(WINDOW))
            .initial_connection_window_size(Some(WINDOW))
            .timeout(ANSWER)
            .add_service(service)
            .serve_with_incoming(encrypted);
        // Streams never end by themselves, so there is nothing to wait for: they are told before this is cancelled.
        tokio::select! {
            served = serving => served.map_err(ServeError::Serve),
            () = shutdown.cancelled() => Ok(()),
        }
    }
}
