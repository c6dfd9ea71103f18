//! A replica that says what a test wants, and nothing by itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::core::cache::Report;
use crate::core::session::{ResourceVersion, Uid};
use crate::core::signal::{Barrier, Fate, Mark};
use crate::proto::convert;
use crate::proto::v1::agent_message::Message as Said;
use crate::proto::v1::coherence_server::{Coherence, CoherenceServer};
use crate::proto::v1::replica_message::Message as Say;
use crate::proto::v1::{self, AgentMessage, ReplicaMessage};
use crate::proto::version::Versions;
use crate::runtime::tls::server::Encrypted;
use crate::runtime::tls::{STREAMS, ServingCertificate, server_config};
use crate::runtime::transport::CONTROLLER_NAME;

pub const SOON: Duration = Duration::from_secs(10);
pub const LEASE: Duration = Duration::from_mins(1);

/// What all of them show, and the file with it for those who are to believe it.
static CERTIFIED: LazyLock<(rcgen::CertifiedKey<rcgen::KeyPair>, tempfile::NamedTempFile)> = LazyLock::new(|| {
    let certified = rcgen::generate_simple_self_signed([CONTROLLER_NAME.to_owned()]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), certified.cert.pem()).unwrap();
    (certified, file)
});

/// The file with whom to believe.
pub fn authorities() -> PathBuf {
    CERTIFIED.1.path().to_owned()
}

/// One stream, as the replica sees it.
pub struct Attached {
    inbound: Streaming<AgentMessage>,
    pub outbox: mpsc::Sender<Result<ReplicaMessage, Status>>,
}

struct Service(mpsc::Sender<Attached>);

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coherence for Service {
    type AttachStream = Outgoing<ReplicaMessage>;
    type PeerStream = Outgoing<v1::PeerReply>;

    async fn attach(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::AttachStream>, Status> {
        let (outbox, outgoing) = mpsc::channel(16);
        let _ = self.0.send(Attached { inbound: request.into_inner(), outbox }).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn peer(&self, _: Request<Streaming<v1::PeerRequest>>) -> Result<Response<Self::PeerStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A replica that does nothing by itself.
pub struct Replica {
    pub address: SocketAddr,
    streams: mpsc::Receiver<Attached>,
}

impl Replica {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(16);
        let service = CoherenceServer::new(Service(sender)).max_decoding_message_size(crate::proto::MAX_MESSAGE_BYTES);
        let serving = Arc::new(ServingCertificate::default());
        serving.set(CERTIFIED.0.cert.pem().as_bytes(), CERTIFIED.0.signing_key.serialize_pem().as_bytes()).unwrap();
        let tls = server_config(serving, STREAMS).unwrap();
        let encrypted = TcpListenerStream::new(listener).map(move |io| io.map(|io| Encrypted::new(io, &tls)));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(encrypted));
        Self { address, streams }
    }

    /// The next stream, after its hello.
    pub async fn accept(&mut self) -> (Attached, v1::Hello) {
        let mut stream = timeout(SOON, self.streams.recv()).await.expect("a stream").unwrap();
        match stream.hear().await {
            Said::Hello(hello) => (stream, hello),
            other => panic!("expected a hello, got {other:?}"),
        }
    }

    /// The next stream, greeted as `name`, after its inventory.
    pub async fn greet(&mut self, name: &str) -> (Attached, Vec<(String, Report)>) {
        let (mut stream, _) = self.accept().await;
        stream.say(settings(name)).await;
        let mut inventory = Vec::new();
        loop {
            let Said::Reports(reports) = stream.hear_past_renewals().await else { panic!("expected the inventory") };
            let (part, through) = convert::reports(&reports, &"ns".into()).unwrap();
            inventory.extend(part.into_iter().map(|(key, report)| (key.name().to_owned(), report)));
            if through.is_some() {
                return (stream, inventory);
            }
        }
    }
}

impl Attached {
    pub async fn hear(&mut self) -> Said {
        let message = timeout(SOON, self.inbound.message()).await.expect("a message").unwrap();
        message.expect("the stream goes on").message.unwrap()
    }

    /// What is still said on a stream that ends; `None` if nothing.
    pub async fn ended(&mut self) -> Option<Said> {
        let message = timeout(SOON, self.inbound.message()).await.expect("the end");
        message.ok().flatten().and_then(|message| message.message)
    }

    pub async fn hear_past_renewals(&mut self) -> Said {
        loop {
            match self.hear().await {
                Said::Renewals(_) => {}
                other => return other,
            }
        }
    }

    /// The next message that is no heartbeat and no renewal.
    pub async fn hear_news(&mut self) -> Said {
        loop {
            match self.hear_past_renewals().await {
                Said::Heartbeat(_) => {}
                other => return other,
            }
        }
    }

    pub async fn heartbeat(&mut self) -> u64 {
        loop {
            if let Said::Heartbeat(heartbeat) = self.hear().await {
                return heartbeat.number;
            }
        }
    }

    pub async fn say(&self, message: Say) {
        self.outbox.send(Ok(ReplicaMessage { message: Some(message) })).await.unwrap();
    }

    /// Waits for a heartbeat and answers it with a lease.
    pub async fn grant(&mut self, covers: u64) {
        let heartbeat = self.heartbeat().await;
        self.say(lease(heartbeat, covers)).await;
    }
}

pub fn settings(replica: &str) -> Say {
    Say::Settings(settings_for(replica, None))
}

pub fn settings_for(replica: &str, namespace: Option<&str>) -> v1::Settings {
    v1::Settings {
        protocol_version: Versions::OWN.highest,
        replica: replica.into(),
        lease_millis: u64::try_from(LEASE.as_millis()).unwrap(),
        heartbeat_millis: 20,
        renewal_millis: 20,
        namespace: namespace.map(str::to_owned),
    }
}

pub fn lease(heartbeat: u64, covers: u64) -> Say {
    Say::Lease(v1::Lease { heartbeat, refused: String::new(), age_micros: 0, covers })
}

pub fn signals(evictions: &[(&str, u64, u64)], barriers: &[(&str, u64, u64)]) -> v1::Signals {
    let uid = Uid::from_u128(7).to_bytes().to_vec();
    let eviction = |(name, signal, below): &(&str, u64, u64)| v1::Eviction {
        session: (*name).into(),
        signal: *signal,
        uid: uid.clone().into(),
        below: *below,
        resource_version: 100,
        ..v1::Eviction::default()
    };
    let barrier = |(name, signal, below): &(&str, u64, u64)| v1::Barrier {
        signal: *signal,
        state: Some(convert::state_message(name, &state(Fate::Stale { below: *below }))),
    };
    v1::Signals {
        evictions: evictions.iter().map(eviction).collect(),
        barriers: barriers.iter().map(barrier).collect(),
    }
}

pub fn state(fate: Fate) -> Barrier {
    Barrier { mark: Mark { uid: Uid::from_u128(7), fate, resource_version: ResourceVersion(100) }, digest: None }
}
