//! The gRPC service: the one place where streams come in, are authenticated, and (later) decrypted.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::attach::Attach;
use super::auth::Authenticator;
use super::peer::Peer;
use crate::proto::MAX_MESSAGE_BYTES;
use crate::proto::v1;
use crate::proto::v1::coherence_server::{Coherence, CoherenceServer};

/// Messages that are on their way to one agent. More wait in the replica, as a set keyed by session.
const OUTBOX: usize = 2;
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The streams cannot be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address} for streams: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Serving failed.
    #[error("serving streams failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The service.
pub struct Service {
    /// Serves agents.
    pub attach: Attach,
    /// Serves other replicas.
    pub peer: Peer,
    /// Checks who they are.
    pub authenticator: Authenticator,
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coherence for Service {
    type AttachStream = Outgoing<v1::ReplicaMessage>;
    type PeerStream = Outgoing<v1::PeerReply>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let pod = self.authenticator.pod(request.metadata()).await?;
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        tokio::spawn(self.attach.clone().serve(pod, request.into_inner(), outbox));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn peer(&self, request: Request<Streaming<v1::PeerRequest>>) -> Result<Response<Self::PeerStream>, Status> {
        self.authenticator.peer(request.metadata()).await?;
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        tokio::spawn(self.peer.clone().serve(request.into_inner(), outbox));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
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
    pub async fn bind(address: SocketAddr) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, service: Service, shutdown: CancellationToken) -> Result<(), ServeError> {
        let service = CoherenceServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        // The builder's own setting counts only where it binds the address itself.
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let serving = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(Some(64))
            .timeout(Duration::from_secs(10))
            .add_service(service)
            .serve_with_incoming(incoming);
        // Streams never end by themselves, so there is nothing to wait for: they are told before this is cancelled.
        tokio::select! {
            served = serving => served.map_err(ServeError::Serve),
            () = shutdown.cancelled() => Ok(()),
        }
    }
}
