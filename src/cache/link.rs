//! An open stream: what a replica says is done at once and in order, what there is to say goes out as fast as it reads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::outbox::Outbox;
use super::shared::Shared;
use super::stream::Ended;
use super::transport::one_line;
use crate::core::lease::{Grant, StreamId, with_drift};
use crate::core::signal::{Barrier, Fate};
use crate::proto::convert::{self, Malformed};
use crate::proto::v1::{self, agent_message, replica_message};
use crate::proto::version::Versions;
use crate::runtime::backoff::Backoff;

/// What a replica said first.
#[derive(Debug)]
pub(super) struct Settings {
    replica: Arc<str>,
    lease: Duration,
    heartbeat: Duration,
    renewal: Duration,
    /// The namespace that the replica takes this pod for one of, if it says it.
    namespace: Option<String>,
}

/// When a replica is asked again for the confirmations that it has refused: much sooner than the leases end, and late enough for some of
/// those that it has to be over.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// After how long, if it goes on refusing: it has enough to do, and hundreds of pods may ask.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

const HOUR: u64 = 3_600_000;

impl Settings {
    /// Checks what a replica said.
    pub fn read(settings: &v1::Settings) -> Result<Self, Malformed> {
        // It has chosen one, of those that both speak.
        let spoken = Versions::told(settings.protocol_version, 0);
        Versions::agree(("agent", Versions::OWN), ("controller", spoken))?;
        let field = |field, expected| Err(Malformed::Field { field, expected });
        if settings.replica.is_empty() || settings.replica.len() > 253 {
            return field("replica", "a name of 1 to 253 bytes");
        }
        if settings.lease_millis > HOUR {
            return field("lease_millis", "at most one hour");
        }
        for (name, millis) in
            [("heartbeat_millis", settings.heartbeat_millis), ("renewal_millis", settings.renewal_millis)]
        {
            if !(10..=HOUR).contains(&millis) {
                return field(name, "10 ms to one hour");
            }
        }
        Ok(Self {
            replica: one_line(&settings.replica).into(),
            lease: Duration::from_millis(settings.lease_millis),
            heartbeat: Duration::from_millis(settings.heartbeat_millis),
            renewal: Duration::from_millis(settings.renewal_millis),
            namespace: settings.namespace.as_deref().map(one_line),
        })
    }

    /// Whether what the replica says is of sessions in `namespace`. Else its leases and confirmations would be about
    /// others of the same names.
    pub fn are_for(&self, namespace: &str) -> Result<(), Ended> {
        match &self.namespace {
            Some(told) if told != namespace => {
                Err(Ended::OtherNamespace { token: told.clone(), cache: namespace.to_owned() })
            }
            _ => Ok(()),
        }
    }
}

/// An open stream. When it is dropped, its outbox is closed; its lease runs on to its end.
pub(super) struct Link {
    shared: Arc<Shared>,
    address: SocketAddr,
    stream: StreamId,
    settings: Settings,
    inbound: Streaming<v1::ReplicaMessage>,
    sender: mpsc::Sender<v1::AgentMessage>,
    outbox: Outbox,
    reported: watch::Receiver<()>,
    requests: watch::Receiver<u64>,
    /// When it is asked again for what was refused, and how long that is left alone.
    ask_again: Option<Instant>,
    patience: Backoff,
    _channel: Channel,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.store.close(self.stream);
    }
}

impl Link {
    pub fn new(
        shared: Arc<Shared>,
        address: SocketAddr,
        stream: StreamId,
        settings: Settings,
        channel: Channel,
        inbound: Streaming<v1::ReplicaMessage>,
        sender: mpsc::Sender<v1::AgentMessage>,
    ) -> Self {
        if shared.confirmer.told_lease(settings.lease) {
            warn!(
                lease_upper_bound = shared.config.lease_upper_bound.as_secs_f64(),
                lease = settings.lease.as_secs_f64(),
                replica = %settings.replica,
                "leases are longer than their upper bound (`lease_upper_bound` of the cache, --lease-upper-bound of an agent): raise \
                 it to that of the controller, or a write that a replica out of reach does not confirm may be answered too early"
            );
        }
        let shortest = shared.streams.opened(address, settings.replica.clone(), settings.lease);
        shared.store.set_lease_length(shortest);
        // Subscribed before the outbox is opened, so that nothing in it goes unnoticed.
        let (reported, requests) = (shared.store.reported(), shared.confirmer.requests());
        let outbox = Outbox::new(stream, shared.store.open(stream));
        let (ask_again, patience) = (None, Backoff::new(ASK_AGAIN, LONGEST_PAUSE));
        Self {
            shared,
            address,
            stream,
            settings,
            inbound,
            sender,
            outbox,
            reported,
            requests,
            ask_again,
            patience,
            _channel: channel,
        }
    }

    pub fn replica(&self) -> &str {
        &self.settings.replica
    }

    /// Serves the stream until it ends.
    pub async fn run(&mut self) -> Ended {
        let mut heartbeat = Instant::now();
        let mut renewal = Instant::now();
        loop {
            let sender = self.sender.clone();
            tokio::select! {
                // Who does not read what we answer is not read from either: what waits stays bounded.
                message = self.inbound.message(), if self.outbox.may_answer() => {
                    let taken = match message {
                        Ok(Some(message)) => self.take(message),
                        Ok(None) => Err(Ended::Closed),
                        Err(status) => Err(Ended::Status(status)),
                    };
                    if let Err(ended) = taken {
                        return ended;
                    }
                }
                permit = sender.reserve(), if self.outbox.has_some() => {
                    let Ok(permit) = permit else { return Ended::Closed };
                    if let Some(message) = self.outbox.next(&self.shared.store, &self.shared.confirmer) {
                        permit.send(v1::AgentMessage { message: Some(message) });
                    }
                }
                Ok(()) = self.reported.changed() => self.outbox.reports_wait(),
                Ok(()) = self.requests.changed() => self.outbox.requests_wait(),
                () = sleep_until(self.ask_again.unwrap_or(heartbeat)), if self.ask_again.is_some() => {
                    let more = self.outbox.ask_again(&self.shared.confirmer);
                    self.ask_again = more.then(|| Instant::now() + self.patience.pause());
                }
                () = sleep_until(heartbeat) => {
                    self.outbox.heartbeat_due();
                    heartbeat = Instant::now() + jittered(self.settings.heartbeat);
                }
                () = sleep_until(renewal) => {
                    self.outbox.renewals_due(&self.shared.store);
                    renewal = Instant::now() + jittered(self.settings.renewal);
                }
            }
        }
    }

    /// Tells of the last uses, gives the lease back and ends the stream, so that nobody waits for a lease that nobody uses.
    pub async fn leave(mut self) {
        self.shared.store.revoke(self.stream);
        self.shared.streams.revoked(self.address);
        let returned = agent_message::Message::LeaseReturned(v1::LeaseReturned {});
        let sender = std::mem::replace(&mut self.sender, mpsc::channel(1).0);
        // Nobody else knows of the last uses. Whoever does not read them is not waited for longer than the rest.
        while let Some(renewals) = self.outbox.last_renewals(&self.shared.store) {
            if sender.send(v1::AgentMessage { message: Some(renewals) }).await.is_err() {
                return;
            }
        }
        if sender.send(v1::AgentMessage { message: Some(returned) }).await.is_ok() {
            // The replica ends the stream when it has read to its end.
            drop(sender);
            while let Ok(Some(_)) = self.inbound.message().await {}
        }
    }

    /// Does what the replica says. When this returns it is done, so that what comes next may rest on it: a lease on the
    /// evictions before it.
    fn take(&mut self, message: v1::ReplicaMessage) -> Result<(), Ended> {
        use replica_message::Message;
        let expected = "signals, a lease, or a confirmation";
        let unexpected = || Ended::Malformed(Malformed::Unexpected { expected });
        match message.message.ok_or_else(unexpected)? {
            Message::Settings(_) => return Err(unexpected()),
            Message::Signals(signals) => self.signals(signals)?,
            Message::Lease(lease) => self.lease(&lease),
            Message::Revoke(_) => {
                self.shared.store.revoke(self.stream);
                self.shared.streams.revoked(self.address);
                self.outbox.revoked();
                info!(address = %self.address, replica = %self.settings.replica, "the replica is stopping");
            }
            Message::Reset(_) => {
                info!(address = %self.address, replica = %self.settings.replica, "etcd was restored from a backup: all copies are dropped");
                self.outbox.forget_heartbeats();
                self.shared.store.reset();
            }
            Message::Confirmed(confirmed) => {
                let v1::Confirmed { number, registered } = confirmed;
                self.shared.confirmer.answered(&self.settings.replica, number, &registered);
                self.patience.reset();
            }
            Message::ConfirmRefused(refused) => {
                debug!(replica = %self.settings.replica, reason = %one_line(&refused.reason), "confirmation refused");
                if self.outbox.refused(refused.number, &self.shared.confirmer) {
                    self.ask_again.get_or_insert_with(|| Instant::now() + self.patience.pause());
                }
            }
        }
        Ok(())
    }

    fn signals(&mut self, signals: v1::Signals) -> Result<(), Malformed> {
        convert::bounded(signals.evictions.len() + signals.barriers.len())?;
        for eviction in signals.evictions {
            let (name, state) = convert::eviction(&eviction)?;
            let kept = self.shared.store.evict(name, state);
            self.told(name, state);
            self.outbox.done(v1::Acknowledgement { session: eviction.session, signal: eviction.signal, kept });
        }
        for barrier in signals.barriers {
            let (name, state) = convert::barrier(barrier.state.as_ref())?;
            self.shared.store.barrier(name, state);
            self.told(name, state);
            let session = name.to_owned();
            self.outbox.done(v1::Acknowledgement { session, signal: barrier.signal, kept: false });
        }
        Ok(())
    }

    /// Whoever repeats the deletion here must not be told that there is nothing before no pod serves the session.
    fn told(&self, name: &str, Barrier { mark, .. }: Barrier) {
        if mark.fate == Fate::Gone {
            let long = with_drift(self.shared.confirmer.longest_lease());
            self.shared.unconfirmed.told_gone(name, mark.uid, mark.resource_version, long);
        }
    }

    fn lease(&mut self, lease: &v1::Lease) {
        // An answer to what was never asked, or was asked before the lease was taken back, grants nothing.
        let Some(sent) = self.outbox.heartbeat_answered(lease.heartbeat) else {
            return;
        };
        if !lease.refused.is_empty() {
            let refused = one_line(&lease.refused);
            let problem = format!("no lease: {refused}").into();
            if self.shared.streams.leased(self.address, Err(problem)) {
                info!(replica = %self.settings.replica, reason = %refused, "the controller grants no lease");
            }
            return;
        }
        let grant = Grant { sent, age: Duration::from_micros(lease.age_micros), covers: lease.covers };
        self.shared.store.grant(self.stream, self.settings.lease, grant);
        let until = sent + self.settings.lease.saturating_sub(grant.age);
        if self.shared.streams.leased(self.address, Ok(until)) {
            info!(replica = %self.settings.replica, "the controller grants leases again");
        }
    }
}

/// A little less than `period`, so that many agents do not speak at once.
fn jittered(period: Duration) -> Duration {
    period.mul_f64(rand::rng().random_range(0.9..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        let good = v1::Settings {
            protocol_version: Versions::OWN.highest,
            replica: "a".into(),
            lease_millis: 0,
            heartbeat_millis: 1_000,
            renewal_millis: 1_000,
            namespace: None,
        };
        assert!(Settings::read(&good).is_ok(), "no lease at all is a setting too");
        let refused = |change: fn(&mut v1::Settings)| {
            let mut settings = good.clone();
            change(&mut settings);
            Settings::read(&settings).unwrap_err().to_string()
        };
        assert!(refused(|s| s.protocol_version = 9).contains("controller speaks version 9"));
        assert!(refused(|s| s.replica = String::new()).contains("replica"));
        assert!(refused(|s| s.lease_millis = u64::MAX).contains("lease_millis"));
        assert!(refused(|s| s.heartbeat_millis = 0).contains("heartbeat_millis"));
        assert!(refused(|s| s.renewal_millis = 9).contains("renewal_millis"));
    }
}
