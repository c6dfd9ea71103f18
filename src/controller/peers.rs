//! Streams from the leading replica to the others: it asks them for confirmations, and takes over what was renewed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Status, Streaming};
use tracing::{debug, info, warn};

use super::clock::now;
use super::election::Leadership;
use super::ledger::Ledger;
use crate::core::expiry::Questions;
use crate::core::session::{SessionKey, Uid};
use crate::core::signal::Barrier;
use crate::proto::convert::{self, Malformed};
use crate::proto::v1::coherence_client::CoherenceClient;
use crate::proto::v1::{self, peer_reply, peer_request};
use crate::proto::version::Versions;
use crate::proto::{MAX_MESSAGE_BYTES, MAX_SESSIONS_PER_MESSAGE};
use crate::runtime::backoff::Backoff;
use crate::runtime::failing::Failing;
use crate::runtime::transport::{Transport, TransportError};

/// Requests that wait for one peer. What does not fit is not asked for: its leases end instead.
const REQUESTS: usize = 1024;
/// How long a peer may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3);
/// Registered replicas in one answer, and bytes of a name, at most.
const MAX_REPLICAS: usize = 64;
const MAX_NAME: usize = 253;

/// What a peer had to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A stream to it was opened: whatever is still wanted must be asked for again.
    Opened {
        /// The replica.
        replica: Arc<str>,
    },
    /// Nobody whom it may have leased to serves anything older.
    Confirmed {
        /// The replica.
        replica: Arc<str>,
        /// The request's number.
        number: u64,
        /// The replicas that were registered when the state was committed.
        registered: Vec<Arc<str>>,
    },
}

/// The open streams.
#[derive(Debug)]
pub struct Links {
    open: Mutex<BTreeMap<Arc<str>, mpsc::Sender<v1::PeerRequest>>>,
    answers: mpsc::Sender<Answer>,
}

impl Links {
    /// No streams, and where the answers will come.
    pub fn new() -> (Arc<Self>, mpsc::Receiver<Answer>) {
        let (answers, receiver) = mpsc::channel(REQUESTS);
        (Arc::new(Self { open: Mutex::default(), answers }), receiver)
    }

    /// Replicas to which a stream is open.
    pub fn open(&self) -> Vec<Arc<str>> {
        self.open.lock().keys().cloned().collect()
    }

    /// Asks a replica for a confirmation. If the request is lost, so is the stream: it is asked again on the next one.
    pub fn ask(&self, replica: &str, number: u64, key: &SessionKey, barrier: &Barrier) {
        let request = v1::ConfirmRequest { number, state: Some(convert::state_message(key.name(), barrier)) };
        let confirm = v1::PeerConfirm { namespace: key.namespace().to_string(), request: Some(request) };
        let message = v1::PeerRequest { message: Some(peer_request::Message::Confirm(confirm)) };
        if let Some(link) = self.open.lock().get(replica)
            && link.try_send(message).is_err()
        {
            debug!(replica, session = %key, "too much to ask: waiting for the leases to end");
        }
    }
}

#[derive(Debug, Error)]
enum Ended {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("{}", .0.message())]
    Status(Box<Status>),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("it did not say who it is in time")]
    NoHello,
    #[error("another replica answers at this address")]
    AnotherReplica,
    #[error("closed by the peer")]
    Closed,
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Keeps a stream to each registered replica while this one leads.
pub struct Peers {
    /// Name of this replica.
    pub own: Arc<str>,
    /// Which replicas there are; where renewals go.
    pub ledger: Arc<Ledger>,
    /// Whether this replica leads.
    pub leadership: watch::Receiver<Leadership>,
    /// How they are reached.
    pub transport: Transport,
    /// The open streams.
    pub links: Arc<Links>,
}

impl Peers {
    /// Connects until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let mut streams: BTreeMap<(Arc<str>, String), DropGuard> = BTreeMap::new();
        let mut led = false;
        loop {
            let leading = self.leadership.borrow_and_update().leading;
            if leading != led {
                led = leading;
                // Before any stream is opened: what was heard by then does not count.
                streams.clear();
                self.ledger.lead(leading);
            }
            let wanted = if leading { self.ledger.replicas() } else { BTreeMap::new() };
            streams.retain(|(replica, address), _| wanted.get(replica) == Some(address));
            for (replica, address) in wanted.into_iter().filter(|(replica, _)| *replica != self.own) {
                streams.entry((replica.clone(), address.clone())).or_insert_with(|| {
                    let ending = CancellationToken::new();
                    let peer = Peer {
                        own: self.own.clone(),
                        replica,
                        address,
                        ledger: self.ledger.clone(),
                        transport: self.transport.clone(),
                        links: self.links.clone(),
                    };
                    tokio::spawn(ending.clone().run_until_cancelled_owned(peer.follow()));
                    ending.drop_guard()
                });
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.ledger.wakers().markers.notified() => {}
                changed = self.leadership.changed() => if changed.is_err() {
                    // The election has ended, and with it everything else.
                    break;
                },
            }
        }
        drop(streams);
        self.ledger.lead(false);
        shutdown.cancelled().await;
        Ok(())
    }
}

/// One other replica.
struct Peer {
    own: Arc<str>,
    replica: Arc<str>,
    address: String,
    ledger: Arc<Ledger>,
    transport: Transport,
    links: Arc<Links>,
}

/// An open stream, for as long as it is.
struct Open<'a>(&'a Peer);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.links.open.lock().remove(&self.0.replica);
        self.0.ledger.peer_closed(&self.0.replica);
    }
}

impl Peer {
    async fn follow(self) {
        let mut backoff = Backoff::new(*BACKOFF.start(), *BACKOFF.end());
        let mut failing = Failing::default();
        loop {
            let Err(ended) = self.once(&mut backoff).await;
            let reason = ended.to_string();
            if failing.failed(&reason, Instant::now()) {
                warn!(peer = %self.replica, address = self.address, reason, "no stream to the peer; trying again");
            } else {
                debug!(peer = %self.replica, address = self.address, reason, "still no stream to the peer");
            }
            sleep(backoff.pause()).await;
        }
    }

    async fn once(&self, backoff: &mut Backoff) -> Result<Infallible, Ended> {
        let channel = self.transport.connect(&self.address).await?;
        let mut client = CoherenceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let questions = Questions::opening(now());
        let (replica, question) = (self.own.to_string(), Questions::FIRST);
        let Versions { lowest: lowest_version, highest: highest_version } = Versions::OWN;
        let hello = v1::PeerHello { lowest_version, highest_version, replica, question };
        let hello = v1::PeerRequest { message: Some(peer_request::Message::Hello(hello)) };
        // There is room for it.
        let _ = requests.try_send(hello);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        self.transport.authorize(&mut request).await?;
        let greeting = async {
            let mut inbound = client.peer(request).await?.into_inner();
            let first = inbound.message().await?;
            Ok::<_, Status>((inbound, first))
        };
        let (mut inbound, first) = timeout(HELLO_DEADLINE, greeting).await.map_err(|_| Ended::NoHello)??;
        self.check(first)?;
        self.ledger.peer_opened(&self.replica);
        self.links.open.lock().insert(self.replica.clone(), requests.clone());
        let _open = Open(self);
        self.answer(Answer::Opened { replica: self.replica.clone() }).await?;
        info!(peer = %self.replica, address = self.address, "connected to the peer");
        backoff.reset();
        self.receive(&mut inbound, &requests, questions).await
    }

    fn check(&self, first: Option<v1::PeerReply>) -> Result<(), Ended> {
        let Some(peer_reply::Message::Hello(hello)) = first.and_then(|reply| reply.message) else {
            return Err(Malformed::Unexpected { expected: "a PeerHello" }.into());
        };
        let theirs = Versions::told(hello.lowest_version, hello.highest_version);
        Versions::agree(("leading replica", Versions::OWN), ("other replica", theirs))?;
        // Another one may have taken the address since: it cannot answer for this one.
        if *hello.replica == *self.replica { Ok(()) } else { Err(Ended::AnotherReplica) }
    }

    async fn receive(
        &self,
        inbound: &mut Streaming<v1::PeerReply>,
        requests: &mpsc::Sender<v1::PeerRequest>,
        mut questions: Questions,
    ) -> Result<Infallible, Ended> {
        loop {
            let reply = inbound.message().await?.ok_or(Ended::Closed)?.message;
            match reply.ok_or(Malformed::Unexpected { expected: "a message" })? {
                peer_reply::Message::Hello(_) => {
                    return Err(Malformed::Unexpected { expected: "no second PeerHello" }.into());
                }
                peer_reply::Message::Renewals(renewals) => {
                    let through = is_last(&renewals).then(|| questions.answered(renewals.answers));
                    self.ledger.peer_renewed(&self.replica, used(&renewals)?, through);
                    ask(requests, &mut questions);
                }
                peer_reply::Message::Confirmed(confirmed) => {
                    let registered = replicas(&confirmed.registered)?;
                    let (replica, number) = (self.replica.clone(), confirmed.number);
                    self.answer(Answer::Confirmed { replica, number, registered }).await?;
                }
                peer_reply::Message::ConfirmRefused(refused) => {
                    debug!(peer = %self.replica, number = refused.number, "confirmation refused: waiting for the leases to end");
                }
            }
        }
    }

    async fn answer(&self, answer: Answer) -> Result<(), Ended> {
        // The receiver ends with the process only.
        self.links.answers.send(answer).await.map_err(|_| Ended::Closed)
    }
}

/// Asks the next question, if it is time.
fn ask(requests: &mpsc::Sender<v1::PeerRequest>, questions: &mut Questions) {
    let Some(number) = questions.next() else {
        return;
    };
    let now = now();
    let question = peer_request::Message::Question(v1::PeerQuestion { number });
    // If there is no room, it is asked with the next batch.
    if requests.try_send(v1::PeerRequest { message: Some(question) }).is_ok() {
        questions.sent(now);
    }
}

/// Whether a peer has told all with this that it hands over in this interval. One of an earlier version does not say so: what it
/// sends last is not full, and nothing else is.
fn is_last(message: &v1::PeerRenewals) -> bool {
    message.last.unwrap_or(message.used.len() < MAX_SESSIONS_PER_MESSAGE)
}

/// What a peer has told of uses.
fn used(message: &v1::PeerRenewals) -> Result<Vec<(SessionKey, Uid, Duration)>, Malformed> {
    convert::bounded(message.used.len())?;
    let one = |used: &v1::PeerRenewal| {
        let missing = Malformed::Unexpected { expected: "a renewal" };
        let (name, uid, idle) = convert::renewal(used.renewal.as_ref().ok_or(missing)?)?;
        let namespace = convert::session_name(&used.namespace)?;
        Ok((SessionKey::new(namespace, name), uid, idle))
    };
    message.used.iter().map(one).collect()
}

fn replicas(names: &[String]) -> Result<Vec<Arc<str>>, Malformed> {
    if names.len() > MAX_REPLICAS || names.iter().any(|name| name.len() > MAX_NAME) {
        return Err(Malformed::Unexpected { expected: "at most 64 names of replicas" });
    }
    Ok(names.iter().map(|name| name.as_str().into()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_says_which_message_is_the_last_unless_it_is_older() {
        let used = |count| vec![v1::PeerRenewal::default(); count];
        let renewals = |count, last| v1::PeerRenewals { used: used(count), answers: 0, last };
        for count in [0, 1, MAX_SESSIONS_PER_MESSAGE] {
            assert!(is_last(&renewals(count, Some(true))), "{count}");
            assert!(!is_last(&renewals(count, Some(false))), "{count}");
        }
        assert!(is_last(&renewals(0, None)) && is_last(&renewals(MAX_SESSIONS_PER_MESSAGE - 1, None)));
        assert!(!is_last(&renewals(MAX_SESSIONS_PER_MESSAGE, None)));
    }
}
