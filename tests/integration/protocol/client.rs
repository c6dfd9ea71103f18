//! A client that says whatever it is told to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::bytes::{Buf, BufMut, Bytes};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};
use vmcp_session::core::session::Uid;
use vmcp_session::proto::v1::agent_message::Message as Said;
use vmcp_session::proto::v1::coherence_client::CoherenceClient;
use vmcp_session::proto::v1::replica_message::Message as Heard;
use vmcp_session::proto::v1::{self, AgentMessage, ReplicaMessage};
use vmcp_session::proto::version::Versions;
use vmcp_session::runtime::transport::CONTROLLER_NAME;

use super::setup::soon;

/// A connection.
pub async fn connect(address: SocketAddr) -> Channel {
    endpoint(address).connect().await.unwrap()
}

pub fn endpoint(address: SocketAddr) -> Endpoint {
    let authority = Certificate::from_pem(testkit::stream_authority());
    let tls = ClientTlsConfig::new().ca_certificate(authority).domain_name(CONTROLLER_NAME);
    Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap().tcp_nodelay(true)
}

/// A request with a token, if there is one.
pub fn request<T>(message: T, authorization: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value.parse().unwrap());
    }
    request
}

/// An agent's stream.
pub struct Agent {
    pub outbox: mpsc::Sender<AgentMessage>,
    pub inbound: Streaming<ReplicaMessage>,
}

impl Agent {
    /// Opens a stream, and says nothing yet.
    pub async fn open(channel: Channel, authorization: Option<&str>) -> Result<Self, Status> {
        let (outbox, messages) = mpsc::channel(16);
        let mut client = CoherenceClient::new(channel).max_encoding_message_size(usize::MAX);
        let attached = client.attach(request(ReceiverStream::new(messages), authorization)).await?;
        Ok(Self { outbox, inbound: attached.into_inner() })
    }

    /// Opens a stream on a new connection with this token.
    pub async fn open_with(address: SocketAddr, token: &str) -> Result<Self, Status> {
        Self::open(connect(address).await, Some(&format!("Bearer {token}"))).await
    }

    /// An agent that is served: it has said hello, and that it holds nothing.
    pub async fn connect(address: SocketAddr, token: &str) -> Self {
        Self::connect_as(address, token, instance()).await
    }

    /// The same, as this process.
    pub async fn connect_as(address: SocketAddr, token: &str, instance: u128) -> Self {
        Self::open_with(address, token).await.unwrap().greeted(instance).await
    }

    /// Says hello and an empty inventory.
    pub async fn greeted(mut self, instance: u128) -> Self {
        self.say(hello(instance)).await;
        let Ok(Heard::Settings(_)) = self.hear().await else { panic!("expected Settings") };
        self.say(Said::Reports(v1::Reports { complete: true, ..Default::default() })).await;
        self
    }

    /// Says something, unless the stream has ended.
    pub async fn say(&self, message: Said) {
        let _ = soon("a message is taken", self.outbox.send(AgentMessage { message: Some(message) })).await;
    }

    /// The next message, or how the stream ended.
    pub async fn hear(&mut self) -> Result<Heard, Status> {
        let message = soon("a message comes", self.inbound.message()).await?;
        message.and_then(|m| m.message).ok_or_else(|| Status::ok("ended"))
    }

    /// How the stream ends.
    pub async fn ended(&mut self) -> Status {
        loop {
            if let Err(status) = self.hear().await {
                return status;
            }
        }
    }

    /// How the stream of an agent ends that goes on to ask for leases: a silent one is ended for that.
    pub async fn ended_though_alive(&mut self) -> Status {
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = beat.tick() => self.say(Said::Heartbeat(v1::Heartbeat { number: 0 })).await,
                heard = self.inbound.message() => match heard {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok("ended"),
                    Err(status) => return status,
                },
            }
        }
    }

    /// Asks for a lease, and returns it; what comes before it is passed over.
    pub async fn lease(&mut self) -> v1::Lease {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.say(Said::Heartbeat(v1::Heartbeat { number })).await;
        loop {
            match self.hear().await.unwrap() {
                Heard::Lease(lease) if lease.heartbeat == number => return lease,
                _ => {}
            }
        }
    }

    /// Waits until this replica has granted it a lease, and everything it said before was heard.
    pub async fn leased(&mut self) -> v1::Lease {
        let lease = self.lease().await;
        assert_eq!(lease.refused, "");
        lease
    }

    /// The next signals that come.
    pub async fn next_signals(&mut self) -> v1::Signals {
        loop {
            if let Heard::Signals(signals) = self.hear().await.unwrap() {
                return signals;
            }
        }
    }

    /// What it is told until the answer to a heartbeat: all that the replica has for it.
    pub async fn signals(&mut self) -> v1::Signals {
        let mut all = v1::Signals::default();
        self.say(Said::Heartbeat(v1::Heartbeat { number: u64::MAX })).await;
        loop {
            match self.hear().await.unwrap() {
                Heard::Signals(signals) => {
                    all.evictions.extend(signals.evictions);
                    all.barriers.extend(signals.barriers);
                }
                Heard::Lease(lease) if lease.heartbeat == u64::MAX => return all,
                _ => {}
            }
        }
    }
}

/// A random number.
pub fn instance() -> u128 {
    rand::random()
}

pub fn hello(instance: u128) -> Said {
    let instance = instance.to_be_bytes().to_vec().into();
    let Versions { lowest: lowest_version, highest: highest_version } = Versions::OWN;
    Said::Hello(v1::Hello { lowest_version, highest_version, instance, software: "test".into() })
}

/// A copy with this uid, of which nothing else is true.
pub fn holding(session: &str, uid: Uid) -> v1::Holding {
    v1::Holding {
        session: session.to_owned(),
        uid: uid.to_bytes().to_vec().into(),
        generation: 1,
        digest: vec![7; 32].into(),
        resource_version: 1,
        since: 0,
    }
}

/// The request to confirm that session `session` of uid `uid` has come to this generation, at this resourceVersion.
pub fn confirm(number: u64, session: &str, uid: Uid, generation: u64, resource_version: u64) -> Said {
    let state = v1::State {
        session: session.to_owned(),
        uid: uid.to_bytes().to_vec().into(),
        gone: false,
        generation,
        digest: Bytes::new(),
        resource_version,
    };
    Said::Confirm(v1::ConfirmRequest { number, state: Some(state) })
}

/// A stream on which any bytes can be sent as messages. Returns how it ends.
pub async fn send_bytes(channel: Channel, token: &str, messages: Vec<Bytes>) -> Status {
    let (outbox, stream) = mpsc::channel(16);
    let mut client = Grpc::new(channel).max_encoding_message_size(usize::MAX);
    client.ready().await.unwrap();
    let request = request(ReceiverStream::new(stream), Some(&format!("Bearer {token}")));
    let path = http::uri::PathAndQuery::from_static("/vmcp.session.v1.Coherence/Attach");
    let answer = client.streaming(request, path, Raw).await;
    let sending = async {
        for message in messages {
            let _ = outbox.send(message).await;
        }
    };
    let ending = async {
        let mut inbound = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status,
        };
        loop {
            match inbound.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("ended"),
                Err(status) => return status,
            }
        }
    };
    soon("the stream ends", async { tokio::join!(sending, ending).1 }).await
}

/// Messages as they are.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
