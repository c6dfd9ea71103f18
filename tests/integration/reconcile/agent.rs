//! An agent of few words: it holds what it is told to, acknowledges or does not, and says what was used.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use vmcp_session::core::cache::{Holding, Report};
use vmcp_session::core::digest::{Digest, Metadata};
use vmcp_session::core::session::{ResourceVersion, Uid};
use vmcp_session::proto::v1::coherence_client::CoherenceClient;
use vmcp_session::proto::v1::{self, agent_message, replica_message};
use vmcp_session::proto::{MAX_SESSIONS_PER_MESSAGE, convert};
use vmcp_session::runtime::tls::trust::{CurrentTrust, Trust};
use vmcp_session::runtime::transport::{CONTROLLER_NAME, Transport};

/// What it has heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// All signals, by session.
    signals: Vec<(String, u64)>,
    /// How many barriers came.
    pub barriers: usize,
    /// How many evictions came.
    pub evictions: usize,
    /// How many leases were granted.
    pub leases: usize,
}

/// An agent on one stream. It is gone when it is dropped.
pub struct Agent {
    outbox: mpsc::Sender<v1::AgentMessage>,
    pub heard: Arc<Mutex<Heard>>,
    sequence: u64,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Agent {
    /// Connects with the token in a file. `obedient`: it acknowledges whatever it is told.
    pub async fn connect(address: &str, token_file: std::path::PathBuf, instance: u128, obedient: bool) -> Self {
        let authority = Arc::new(CurrentTrust::default());
        authority.set(testkit::stream_authority().into());
        let trust = Trust::Current(authority);
        let transport = Transport { trust, name: CONTROLLER_NAME.into(), token_file: Some(token_file) };
        let mut client = CoherenceClient::new(transport.connect(address).await.unwrap());
        let (outbox, messages) = mpsc::channel(64);
        let instance = instance.to_be_bytes().to_vec().into();
        let hello = v1::Hello { lowest_version: 1, highest_version: 1, instance, software: "test".into() };
        say(&outbox, agent_message::Message::Hello(hello)).await;
        let reports = convert::reports_message([], Some(0));
        say(&outbox, agent_message::Message::Reports(reports)).await;
        let mut request = Request::new(ReceiverStream::new(messages));
        transport.authorize(&mut request).await.unwrap();
        let mut inbound = client.attach(request).await.unwrap().into_inner();
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let (hears, answers) = (heard.clone(), outbox.clone());
        let listening = tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                match message.message {
                    Some(replica_message::Message::Signals(signals)) => {
                        let evictions = signals.evictions.iter().map(|e| (e.session.clone(), e.signal));
                        let session = |b: &v1::Barrier| b.state.as_ref().map(|s| s.session.clone()).unwrap_or_default();
                        let barriers = signals.barriers.iter().map(|b| (session(b), b.signal));
                        let all: Vec<_> = evictions.chain(barriers).collect();
                        let done = all.iter().map(|(s, n)| v1::Acknowledgement {
                            session: s.clone(),
                            signal: *n,
                            kept: false,
                        });
                        let done = v1::Acknowledgements { done: done.collect() };
                        {
                            let mut heard = hears.lock();
                            heard.evictions += signals.evictions.len();
                            heard.barriers += signals.barriers.len();
                            heard.signals.extend(all);
                        }
                        if obedient {
                            say(&answers, agent_message::Message::Acknowledgements(done)).await;
                        }
                    }
                    Some(replica_message::Message::Lease(lease)) if lease.refused.is_empty() => {
                        hears.lock().leases += 1;
                    }
                    _ => {}
                }
            }
        });
        let beats = outbox.clone();
        let beating = tokio::spawn(async move {
            for number in 1.. {
                say(&beats, agent_message::Message::Heartbeat(v1::Heartbeat { number })).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        Self { outbox, heard, sequence: 0, tasks: [listening, beating] }
    }

    /// Says that it holds a copy of this object.
    pub async fn hold(&mut self, object: &Value) {
        let metadata: Metadata = serde_json::from_value(object["spec"]["metadata"].clone()).unwrap();
        let resource_version: ResourceVersion = text(&object["metadata"]["resourceVersion"]).parse().unwrap();
        let holding = Holding {
            uid: uid(object),
            generation: object["metadata"]["generation"].as_u64().unwrap(),
            digest: Digest::of(&metadata),
            resource_version,
            since: object["metadata"]["generation"].as_u64().unwrap(),
        };
        self.sequence += 1;
        let name: Arc<str> = text(&object["metadata"]["name"]).into();
        let reports = convert::reports_message([(name, Report::Held(holding))], Some(self.sequence));
        say(&self.outbox, agent_message::Message::Reports(reports)).await;
    }

    /// Acknowledges all signals about a session.
    pub async fn acknowledge(&self, session: &str) {
        let done = |(session, signal): &(String, u64)| v1::Acknowledgement {
            session: session.clone(),
            signal: *signal,
            kept: false,
        };
        let done = self.heard.lock().signals.iter().filter(|(name, _)| name == session).map(done).collect();
        say(&self.outbox, agent_message::Message::Acknowledgements(v1::Acknowledgements { done })).await;
    }

    /// Says that a session was used just now.
    pub async fn renew(&self, object: &Value) {
        let renewal = convert::renewal_message(text(&object["metadata"]["name"]), uid(object), Duration::ZERO);
        say(&self.outbox, agent_message::Message::Renewals(v1::Renewals { used: vec![renewal] })).await;
    }
}

/// Says without end that sessions were used which never were: other ones each time, as many as a message may name.
pub async fn make_up_uses(agent: &Agent, said: &AtomicUsize) {
    for made_up in 0.. {
        let name = |n: usize| format!("made-up-{made_up}-{n}");
        let used = (0..MAX_SESSIONS_PER_MESSAGE)
            .map(|n| convert::renewal_message(&name(n), Uid::from_u128(9), Duration::ZERO));
        let used = agent_message::Message::Renewals(v1::Renewals { used: used.collect() });
        let taken = agent.outbox.send(v1::AgentMessage { message: Some(used) }).await;
        taken.expect("whoever tells of what is not there is not cut off");
        said.fetch_add(MAX_SESSIONS_PER_MESSAGE, Ordering::Relaxed);
    }
}

async fn say(outbox: &mpsc::Sender<v1::AgentMessage>, message: agent_message::Message) {
    // Whoever is not heard any more is found out by what it waits for.
    let _ = outbox.send(v1::AgentMessage { message: Some(message) }).await;
}

fn uid(object: &Value) -> Uid {
    text(&object["metadata"]["uid"]).parse().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}
