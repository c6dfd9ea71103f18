//! The stream of an agent: what it says goes into the replica, what the replica has for it goes out.

use std::error::Error as _;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tracing::{debug, info, warn};

use super::auth::Pod;
use super::ledger::Ledger;
use super::shared::{Shared, StreamGuard};
use crate::core::lease::StreamId;
use crate::core::replica::{ConfirmRefused, Hello, SignalId};
use crate::core::session::SessionKey;
use crate::core::tally::Full;
use crate::proto::convert::{self, Malformed};
use crate::proto::v1::{self, agent_message, replica_message};
use crate::proto::{MAX_MESSAGE_BYTES, MAX_SESSIONS_PER_MESSAGE};

/// How long an agent may take to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// How long an agent may take to read a message. Nobody else waits for it; it only has no lease meanwhile.
/// A connection on which nothing is read at all is given up after as long.
const READ_DEADLINE: Duration = Duration::from_secs(20);
/// Leases for which an agent may say nothing: whoever lives sends five heartbeats in each. A message that has begun to come takes its
/// memory until it has come, and a network that is back, or a machine that was busy, has brought one by then.
const SILENT_LEASES: u32 = 2;
/// The same for short leases, for which a busy machine may well be busy.
const SHORTEST_SILENCE: Duration = Duration::from_secs(20);
/// Messages that are taken out of the replica in one go. Only an agent itself can make more signals than they name come
/// again and again: it is told to drop a session once for each copy of it that it reports. Few, since they wait for an agent that
/// does not read, which may report others meanwhile.
const IN_ONE_GO: usize = 4;

/// Where a stream's messages go out.
pub type Outbox = mpsc::Sender<v1::ReplicaMessage>;

/// Why a stream ended.
#[derive(Debug, Error)]
enum Ended {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the agent said no hello within {} s", HELLO_DEADLINE.as_secs())]
    NoHello,
    #[error("more copies are held than may be: {0}")]
    TooMany(#[from] Full),
    #[error("the agent has not read for {} s", READ_DEADLINE.as_secs())]
    Stuck,
    #[error("no whole message has come for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("namespace {0} is not watched by this controller")]
    NotWatched(String),
    #[error("the same process has opened another stream")]
    Superseded,
    #[error("a message is longer than {MAX_MESSAGE_BYTES} bytes")]
    TooLong,
    #[error("a message names more than {MAX_SESSIONS_PER_MESSAGE} sessions")]
    TooManyNamed,
    #[error("a message cannot be decoded")]
    Undecodable,
    #[error("the stream broke: {0}")]
    Broken(Code),
    #[error("closed by the agent")]
    Closed,
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        // These come from the decoder, not from the other side, and their texts are made for another reader.
        match status.code() {
            Code::OutOfRange => Self::TooLong,
            Code::InvalidArgument if status.source().is_none() => Self::TooManyNamed,
            Code::Internal if status.source().is_none() => Self::Undecodable,
            code => Self::Broken(code),
        }
    }
}

impl Ended {
    fn status(&self) -> Option<Status> {
        let text = self.to_string();
        match self {
            Self::Malformed(Malformed::NoVersion { .. }) | Self::NotWatched(_) => {
                Some(Status::failed_precondition(text))
            }
            Self::Malformed(_) | Self::TooManyNamed | Self::Undecodable => Some(Status::invalid_argument(text)),
            Self::NoHello | Self::Stuck | Self::Silent(_) => Some(Status::deadline_exceeded(text)),
            Self::TooMany(_) | Self::TooLong => Some(Status::resource_exhausted(text)),
            Self::Superseded => Some(Status::aborted(text)),
            Self::Broken(_) | Self::Closed => None,
        }
    }
}

/// What is needed to serve an agent.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The replica.
    pub shared: Arc<Shared>,
    /// Where renewals go.
    pub ledger: Arc<Ledger>,
    /// What an agent is told first.
    pub settings: v1::Settings,
    /// Cancelled when the replica has nothing more to say.
    pub closing: CancellationToken,
}

impl Attach {
    /// Serves one stream until it ends. What it ends with is returned, unless the agent has ended it.
    pub async fn serve(self, pod: Pod, mut inbound: Streaming<v1::AgentMessage>, outbox: Outbox) -> Option<Status> {
        let ended = match self.greet(&pod, &mut inbound, &outbox).await {
            Ok((stream, hello)) => {
                let agent = hello.name.clone();
                let superseded = self.shared.with(|replica, now| replica.stream_opened(stream.id, hello, now));
                if let Some(older) = superseded {
                    self.shared.end_stream(older);
                }
                info!(%agent, namespace = %pod.namespace, stream = stream.id.0, "agent connected");
                tokio::select! {
                    Err(ended) = self.receive(&pod, stream.id, &mut inbound, &outbox) => ended,
                    Err(ended) = self.send(&stream, &outbox) => ended,
                    () = stream.end.cancelled() => Ended::Superseded,
                    () = self.closing.cancelled() => Ended::Closed,
                    else => Ended::Closed,
                }
            }
            Err(ended) => ended,
        };
        let status = ended.status();
        if status.is_some() {
            warn!(agent = %pod.name, namespace = %pod.namespace, reason = %ended, "agent's stream ended");
        } else {
            info!(agent = %pod.name, namespace = %pod.namespace, reason = %ended, "agent disconnected");
        }
        status
    }

    async fn greet(
        &self,
        pod: &Pod,
        inbound: &mut Streaming<v1::AgentMessage>,
        outbox: &Outbox,
    ) -> Result<(StreamGuard, Hello), Ended> {
        if !self.shared.with(|replica, _| replica.watches(&pod.namespace)) {
            return Err(Ended::NotWatched(pod.namespace.clone()));
        }
        let first = timeout(HELLO_DEADLINE, inbound.message()).await.map_err(|_| Ended::NoHello)?;
        let message = first?.ok_or(Ended::Closed)?.message;
        let Some(agent_message::Message::Hello(hello)) = message else {
            return Err(Malformed::Unexpected { expected: "a Hello" }.into());
        };
        let (instance, protocol_version) = convert::hello(&hello)?;
        let settings =
            v1::Settings { protocol_version, namespace: Some(pod.namespace.clone()), ..self.settings.clone() };
        let message = replica_message::Message::Settings(settings);
        push(outbox, message).await?;
        let hello = Hello { instance, namespace: pod.namespace.as_str().into(), name: pod.name.as_str().into() };
        Ok((self.shared.open_stream(), hello))
    }

    async fn send(&self, stream: &StreamGuard, outbox: &Outbox) -> Result<(), Ended> {
        loop {
            // A lease follows all signals that wait. If they were taken one message at a time, those that come while
            // one is sent would come before the lease too, and without an end to them there would be none.
            let waiting: Vec<_> = self.shared.with(|replica, _| {
                iter::from_fn(|| replica.drain(stream.id, MAX_SESSIONS_PER_MESSAGE)).take(IN_ONE_GO).collect()
            });
            if waiting.is_empty() {
                stream.woken.notified().await;
            }
            for outgoing in waiting {
                let message = convert::outgoing(outgoing).message;
                push(outbox, message.ok_or(Ended::Closed)?).await?;
            }
        }
    }

    async fn receive(
        &self,
        pod: &Pod,
        stream: StreamId,
        inbound: &mut Streaming<v1::AgentMessage>,
        outbox: &Outbox,
    ) -> Result<(), Ended> {
        let namespace: Arc<str> = pod.namespace.as_str().into();
        let silence = longest_silence(self.shared.with(|replica, _| replica.config().lease));
        let mut said = false;
        loop {
            // A message can name many sessions: who has many to send must not keep others, nor its own answers, from their turn.
            tokio::task::yield_now().await;
            let message = timeout(silence, inbound.message()).await.map_err(|_| Ended::Silent(silence))?;
            let message = message?.ok_or(Ended::Closed)?;
            let expected = "reports, acknowledgements, renewals, a heartbeat or a confirmation request";
            let message = message.message.ok_or(Malformed::Unexpected { expected })?;
            match message {
                agent_message::Message::Hello(_) => return Err(Malformed::Unexpected { expected }.into()),
                agent_message::Message::Reports(reports) => self.reports(stream, &namespace, &reports)?,
                agent_message::Message::Acknowledgements(acks) => {
                    convert::bounded(acks.done.len())?;
                    let done = acks.done.iter().map(|ack| {
                        let name = convert::session_name(&ack.session)?;
                        Ok((SessionKey::new(namespace.clone(), name), SignalId(ack.signal), ack.kept))
                    });
                    let done = done.collect::<Result<Vec<_>, Malformed>>()?;
                    self.shared.with(|replica, now| {
                        for (key, signal, kept) in done {
                            replica.acknowledged(stream, &key, signal, kept, now);
                        }
                    });
                }
                agent_message::Message::Renewals(renewals) => {
                    if let Err(full) = used(&self.ledger, &namespace, &renewals)?
                        && !std::mem::replace(&mut said, true)
                    {
                        debug!(agent = %pod.name, reason = %full, "uses of sessions that do not exist here are not kept");
                    }
                }
                agent_message::Message::Heartbeat(heartbeat) => {
                    self.shared.with(|replica, now| replica.heartbeat(stream, heartbeat.number, now));
                }
                agent_message::Message::Confirm(request) => {
                    if let Err(refused) = confirm(&self.shared, stream, &namespace, &request)? {
                        debug!(agent = %pod.name, reason = %refused, "confirmation refused");
                        let refused = v1::ConfirmRefused { number: request.number, reason: refused.to_string() };
                        push(outbox, replica_message::Message::ConfirmRefused(refused)).await?;
                    }
                }
                agent_message::Message::LeaseReturned(_) => {
                    self.shared.with(|replica, _| replica.lease_returned(stream));
                }
            }
        }
    }

    fn reports(&self, stream: StreamId, namespace: &Arc<str>, reports: &v1::Reports) -> Result<(), Ended> {
        let (reports, through) = convert::reports(reports, namespace)?;
        Ok(self.shared.with(|replica, now| replica.reported(stream, reports, through, now))?)
    }
}

/// Takes the uses that an agent tells of. Those of sessions that the watch does not show are dropped if there are too many, which
/// is no reason to end the stream: an agent may well tell a new replica of many that have ended meanwhile, and would do so again. What
/// the watch has yet to show counts as used then.
fn used(ledger: &Ledger, namespace: &Arc<str>, renewals: &v1::Renewals) -> Result<Result<(), Full>, Malformed> {
    convert::bounded(renewals.used.len())?;
    let mut kept = Ok(());
    for renewal in &renewals.used {
        let (name, uid, idle) = convert::renewal(renewal)?;
        let key = SessionKey::new(namespace.clone(), name);
        kept = kept.and(ledger.renewed(&key, uid, idle));
    }
    Ok(kept)
}

/// Begins a confirmation for whoever is at the other end of `stream`.
pub fn confirm(
    shared: &Shared,
    stream: StreamId,
    namespace: &Arc<str>,
    request: &v1::ConfirmRequest,
) -> Result<Result<(), ConfirmRefused>, Malformed> {
    let (name, barrier) = convert::barrier(request.state.as_ref())?;
    let key = SessionKey::new(namespace.clone(), name);
    Ok(shared.with(|replica, now| replica.confirm(stream, request.number, key, barrier, now)))
}

/// How long an agent may take from one message to the next.
fn longest_silence(lease: Duration) -> Duration {
    (lease * SILENT_LEASES).max(SHORTEST_SILENCE)
}

async fn push(outbox: &Outbox, message: replica_message::Message) -> Result<(), Ended> {
    let message = v1::ReplicaMessage { message: Some(message) };
    match timeout(READ_DEADLINE, outbox.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::Closed),
        Err(_) => Err(Ended::Stuck),
    }
}

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;
