//! The stream to one replica, connected again whenever it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::link::{Link, Settings};
use super::shared::Shared;
use super::transport::{self, TransportError, status_text};
use crate::core::lease::StreamId;
use crate::proto::convert::Malformed;
use crate::proto::v1::{self, agent_message, replica_message};
use crate::proto::version::Versions;
use crate::runtime::backoff::Backoff;
use crate::runtime::failing::Failing;

/// For a replica to be connected to, and to say how long its leases are.
const OPEN: Duration = Duration::from_secs(10);
/// For a replica to hear that this agent leaves. One that is stopped must not keep its address: it may be wanted again.
const LEAVE: Duration = Duration::from_secs(2);
/// Messages on their way out. Everything else waits where later news can take its place.
const OUTGOING: usize = 4;
/// Before it is tried again for the first time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Before it is tried again where there is no room for us: all copies would be told again, only to be cut off again.
const NO_ROOM: Duration = Duration::from_mins(1);
/// What lasted so long was no failure: the next pause is a first one.
const HEALTHY: Duration = Duration::from_secs(10);
/// What we are, for the replica's logs.
const SOFTWARE: &str = concat!("vmcp-session/", env!("CARGO_PKG_VERSION"));

static LAST_STREAM: AtomicU32 = AtomicU32::new(0);

/// How much a stream is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// It is connected again and again.
    Always,
    /// It may go on, but is not connected again: the address is not known as that of a replica any more.
    WhileItLasts,
    /// It ends.
    Never,
}

/// Why a stream ended.
#[derive(Debug, Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the replica breaks the protocol: {0}")]
    Malformed(#[from] Malformed),
    #[error("{}", status_text(_0))]
    Status(Status),
    #[error("this pod's token is of namespace {token}, and the cache is of namespace {cache}: set --namespace")]
    OtherNamespace { token: String, cache: String },
    #[error("not connected within {} s", OPEN.as_secs())]
    Deadline,
    #[error("closed by the replica")]
    Closed,
}

impl Ended {
    /// How long to wait before the replica is tried again.
    fn pause(&self, backoff: &mut Backoff) -> Duration {
        match self {
            Self::Status(status) if status.code() == Code::ResourceExhausted => Backoff::new(NO_ROOM, NO_ROOM).pause(),
            _ => backoff.pause(),
        }
    }
}

/// Keeps the stream to `address` for as long as it is wanted, and ends it soon after, in order if the replica hears it in time.
pub(super) async fn run(shared: Arc<Shared>, address: SocketAddr, mut wanted: watch::Receiver<Want>) {
    let mut backoff = Backoff::new(FIRST_PAUSE, shared.config.reconnect_at_most);
    // One for each address, random: a replica takes a stream of the same instance for the older one's successor.
    let instance: [u8; 16] = rand::random();
    let mut failing = Failing::default();
    loop {
        let opened = tokio::select! {
            opened = open(&shared, address, instance) => opened,
            _ = wanted.wait_for(|want| *want == Want::Never) => return,
        };
        let (ended, was_open) = match opened {
            Ok(mut link) => {
                info!(%address, replica = %link.replica(), "connected to the controller");
                let begun = Instant::now();
                let ended = tokio::select! {
                    ended = link.run() => Some(ended),
                    _ = wanted.wait_for(|want| *want == Want::Never) => None,
                };
                let Some(ended) = ended else {
                    let _ = timeout(LEAVE, link.leave()).await;
                    return;
                };
                if begun.elapsed() >= HEALTHY {
                    backoff.reset();
                    // That it ends is news again.
                    failing = Failing::default();
                }
                (ended, true)
            }
            Err(ended) => (ended, false),
        };
        let reason = ended.to_string();
        if !failing.failed(&reason, Instant::now()) {
            debug!(%address, reason, "not connected to the controller");
        } else if was_open && matches!(ended, Ended::Closed) {
            // It is stopping, as a rule. If it does not come back, that has a reason of its own.
            info!(%address, reason, "not connected to the controller any more; trying again");
        } else {
            warn!(%address, reason, "not connected to the controller; trying again");
        }
        shared.streams.closed(address, reason.into());
        tokio::select! {
            () = sleep(ended.pause(&mut backoff)) => {}
            _ = wanted.wait_for(|want| *want == Want::Never) => return,
        }
        if *wanted.borrow() != Want::Always {
            return;
        }
    }
}

/// Connects, says hello, and hears how long leases are.
async fn open(shared: &Arc<Shared>, address: SocketAddr, instance: [u8; 16]) -> Result<Link, Ended> {
    let (sender, outgoing) = mpsc::channel(OUTGOING);
    let hello = v1::Hello {
        lowest_version: Versions::OWN.lowest,
        highest_version: Versions::OWN.highest,
        instance: instance.to_vec().into(),
        software: SOFTWARE.to_owned(),
    };
    let hello = v1::AgentMessage { message: Some(agent_message::Message::Hello(hello)) };
    sender.try_send(hello).map_err(|_| Ended::Closed)?;
    let opening = async {
        let transport = shared.config.transport();
        let (channel, mut inbound) = transport::attach(address, &transport, outgoing).await?;
        let first = inbound.message().await.map_err(Ended::Status)?.ok_or(Ended::Closed)?;
        let Some(replica_message::Message::Settings(settings)) = first.message else {
            return Err(Malformed::Unexpected { expected: "Settings" }.into());
        };
        let settings = Settings::read(&settings)?;
        settings.are_for(&shared.config.namespace)?;
        Ok((channel, inbound, settings))
    };
    let opened = timeout(OPEN, opening).await.unwrap_or(Err(Ended::Deadline));
    let (channel, inbound, settings) = opened?;
    let stream = StreamId(LAST_STREAM.fetch_add(1, Ordering::Relaxed) + 1);
    Ok(Link::new(shared.clone(), address, stream, settings, channel, inbound, sender))
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
