//! The stream of the leading replica to another one: confirmations are asked for, renewals are handed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, info};

use super::attach::confirm;
use super::ledger::{Ledger, Turn};
use super::shared::{Shared, StreamGuard};
use crate::core::replica::Outgoing;
use crate::core::session::{SessionKey, Uid};
use crate::proto::v1::{self, peer_reply, peer_request};
use crate::proto::version::Versions;
use crate::proto::{MAX_SESSIONS_PER_MESSAGE, convert};

const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// How long the peer may take to read a message.
const READ_DEADLINE: Duration = Duration::from_secs(20);

type Outbox = mpsc::Sender<v1::PeerReply>;

/// What is needed to serve a peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The replica.
    pub shared: Arc<Shared>,
    /// Where renewals wait for the leader.
    pub ledger: Arc<Ledger>,
    /// Name of this replica.
    pub name: String,
    /// How often renewals are handed over.
    pub renewal: Duration,
    /// Cancelled when the replica has nothing more to say.
    pub closing: CancellationToken,
}

impl Peer {
    /// Serves one stream until it ends, and returns what it ends with.
    pub async fn serve(self, mut inbound: Streaming<v1::PeerRequest>, outbox: Outbox) -> Status {
        let stream = self.shared.open_stream();
        let asked = AtomicU64::new(0);
        let ended = tokio::select! {
            Err(ended) = self.receive(&stream, &mut inbound, &outbox, &asked) => ended,
            Err(ended) = self.send(&stream, &outbox, &asked) => ended,
            () = self.closing.cancelled() => Status::unavailable("the replica is stopping"),
            else => Status::ok(""),
        };
        info!(reason = ended.message(), "peer's stream ended");
        ended
    }

    async fn send(&self, stream: &StreamGuard, outbox: &Outbox, asked: &AtomicU64) -> Result<(), Status> {
        // Before the peer knows that it is connected: from then on it counts on hearing everything.
        let turn = self.ledger.begin_taking();
        let Versions { lowest: lowest_version, highest: highest_version } = Versions::OWN;
        let hello = v1::PeerHello { lowest_version, highest_version, replica: self.name.clone(), question: 0 };
        push(outbox, peer_reply::Message::Hello(hello)).await?;
        // What a batch answers had come when the one before was taken. All that this replica was told by the time at which it was asked
        // may have been waiting to be read together with the question, and this task may run before those that read.
        let mut answers = 0;
        let mut renewals = interval(self.renewal);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.answer(stream, outbox).await?;
            tokio::select! {
                () = stream.woken.notified() => {}
                _ = renewals.tick() => {
                    let next = asked.load(Ordering::Relaxed);
                    self.hand_over(stream, turn, outbox, answers).await?;
                    answers = next;
                }
            }
        }
    }

    /// Answers the confirmations that have come about.
    async fn answer(&self, stream: &StreamGuard, outbox: &Outbox) -> Result<(), Status> {
        while let Some(outgoing) = self.shared.with(|replica, _| replica.drain(stream.id, 1)) {
            if let Outgoing::Confirmed(confirmed) = outgoing {
                let registered = confirmed.registered.iter().map(ToString::to_string).collect();
                let confirmed = v1::Confirmed { number: confirmed.request, registered };
                push(outbox, peer_reply::Message::Confirmed(confirmed)).await?;
            }
        }
        Ok(())
    }

    /// Hands over what has been renewed by now, even if it is nothing: only so does the leader know that nothing was. Answers do
    /// not wait for the end of it.
    async fn hand_over(&self, stream: &StreamGuard, turn: Turn, outbox: &Outbox, answers: u64) -> Result<(), Status> {
        let renewed = self.ledger.take_renewed(turn).ok_or(Status::aborted("another replica leads"))?;
        let mut renewed = renewed.into_iter();
        loop {
            let message = part(&mut renewed, answers);
            let last = message.last == Some(true);
            push(outbox, peer_reply::Message::Renewals(message)).await?;
            if last {
                return Ok(());
            }
            self.answer(stream, outbox).await?;
        }
    }

    async fn receive(
        &self,
        stream: &StreamGuard,
        inbound: &mut Streaming<v1::PeerRequest>,
        outbox: &Outbox,
        asked: &AtomicU64,
    ) -> Result<(), Status> {
        let first = timeout(HELLO_DEADLINE, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??.and_then(|m| m.message);
        let Some(peer_request::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("expected a PeerHello"));
        };
        let theirs = Versions::told(hello.lowest_version, hello.highest_version);
        Versions::agree(("leading replica", theirs), ("other replica", Versions::OWN))
            .map_err(|apart| Status::failed_precondition(apart.to_string()))?;
        let malformed = |malformed: convert::Malformed| Status::invalid_argument(malformed.to_string());
        let peer = convert::session_name(&hello.replica).map_err(malformed)?;
        info!(%peer, "the leading replica connected");
        asked.store(hello.question, Ordering::Relaxed);
        while let Some(message) = inbound.message().await? {
            tokio::task::yield_now().await;
            let (namespace, request) = match message.message {
                Some(peer_request::Message::Question(question)) => {
                    asked.store(question.number, Ordering::Relaxed);
                    continue;
                }
                Some(peer_request::Message::Confirm(v1::PeerConfirm { namespace, request: Some(request) })) => {
                    (namespace, request)
                }
                _ => return Err(Status::invalid_argument("expected a PeerConfirm or a PeerQuestion")),
            };
            let namespace = convert::namespace(&namespace).map_err(malformed)?;
            let asked = confirm(&self.shared, stream.id, &namespace.into(), &request).map_err(malformed)?;
            if let Err(refused) = asked {
                debug!(reason = %refused, "confirmation refused");
                let refused = v1::ConfirmRefused { number: request.number, reason: refused.to_string() };
                push(outbox, peer_reply::Message::ConfirmRefused(refused)).await?;
            }
        }
        Err(Status::ok("closed by the peer"))
    }
}

/// The next message with what is handed over. The last one is never full: an older leader knows it by that.
fn part(renewed: &mut impl Iterator<Item = (SessionKey, Uid, Duration)>, answers: u64) -> v1::PeerRenewals {
    let used = renewed.take(MAX_SESSIONS_PER_MESSAGE).map(|(key, uid, idle)| v1::PeerRenewal {
        namespace: key.namespace().to_string(),
        renewal: Some(convert::renewal_message(key.name(), uid, idle)),
    });
    let used: Vec<_> = used.collect();
    let last = used.len() < MAX_SESSIONS_PER_MESSAGE;
    v1::PeerRenewals { used, answers, last: Some(last) }
}

async fn push(outbox: &Outbox, message: peer_reply::Message) -> Result<(), Status> {
    match timeout(READ_DEADLINE, outbox.send(v1::PeerReply { message: Some(message) })).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::ok("closed by the peer")),
        Err(_) => Err(Status::deadline_exceeded("the peer does not read")),
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    #[test]
    fn the_end_of_what_is_handed_over_is_said_and_an_older_leader_finds_it_too() {
        const MOST: usize = MAX_SESSIONS_PER_MESSAGE;
        for (count, parts) in [(0, 1), (1, 1), (MOST - 1, 1), (MOST, 2), (MOST + 1, 2), (2 * MOST, 3)] {
            let one = |n| (SessionKey::new("ns", format!("s-{n}").as_str()), Uid::from_u128(1), Duration::ZERO);
            let mut renewed = (0..count).map(one);
            let messages: Vec<_> = iter::repeat_with(|| part(&mut renewed, 7)).take(parts).collect();
            assert_eq!(messages.iter().map(|message| message.used.len()).sum::<usize>(), count);
            for (n, message) in messages.iter().enumerate() {
                let last = n + 1 == parts;
                assert_eq!(message.last, Some(last), "{count}: {n}");
                assert_eq!(message.used.len() < MOST, last, "{count}: {n}");
                assert_eq!(message.answers, 7);
            }
        }
    }
}
