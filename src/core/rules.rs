//! The rules of the protocol that can be switched off in tests, one by one, to see which promise breaks without.
//!
//! Outside of this crate's own tests every rule is on, and the question is answered at compile time.

/// A rule whose absence breaks a promise. The names say what holds while the rule is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rule {
    /// A lease is measured from the moment its heartbeat was sent, not from when the answer came.
    LeaseFromSend,
    /// A lease is shortened by the age of the replica's knowledge.
    LeaseMinusAge,
    /// A replica whose watch was never proven complete grants no lease.
    ProofBeforeLease,
    /// Knowledge is as old as the moment its marker was sent, not as the moment it came back.
    ProofFromSend,
    /// Waiting evictions leave before the lease that was answered after them.
    EvictionsBeforeLease,
    /// A lease covers only holdings that the replica had processed.
    CoverBySequence,
    /// A new copy takes a new sequence number.
    NewCopyNewSequence,
    /// A copy that was just restored is covered only up to a lease's length after its GET was sent.
    CoverFromSend,
    /// A copy that was just restored is covered only by leases in force when its GET was sent.
    CoverByLeasesInForce,
    /// A signal marks every GET in flight; a marked answer counts only if it is provably not older.
    FenceRestores,
    /// The same for own writes in flight.
    FenceWrites,
    /// A request shares only a GET that was not yet sent when it came.
    NoLateJoin,
    /// A terminating object counts as not found.
    TerminatingIsGone,
    /// `gone` drops any copy of that uid, whatever its generation.
    GoneByUid,
    /// Of two signals about one uid, `gone` is the later one.
    GoneOutranks,
    /// A holding is compared with absence only when the replica's watch has reached the holding's resourceVersion.
    WaitForPosition,
    /// Copies are compared by digest, not by generation alone.
    CompareDigest,
    /// A state is newer only if its generation is.
    CompareGeneration,
    /// Eviction of a copy whose own write is in flight waits for the write's answer.
    OwnWriteDecides,
    /// A list below the replica's position is discarded.
    DiscardStaleList,
    /// A barrier goes to every agent of the namespace, holder or not.
    BarrierToAll,
    /// A replica remembers an agent until its last lease has ended.
    RememberAgents,
    /// A barrier is sent to new streams before any lease, until the watch has passed it.
    BarrierToNewStreams,
    /// The confirmer waits for every registered replica.
    AskEveryReplica,
    /// A restarted replica is another replica: it does not answer for its predecessor.
    NewProcessNewReplica,
    /// A copy is never replaced by an older state of the session.
    NeverGoBack,
    /// A holding that is newer than the watch is compared again when the watch has caught up.
    RecheckWaiting,
    /// A replica answers a confirmation only when its own watch shows the confirmed state.
    ConfirmWhenSeen,
    /// Whoever does not ask waits until every lease has ended, not less.
    WaitWholeLease,
    /// A replica reads the clock after it received the heartbeat that it answers, and not before.
    ReadClockLate,
    /// A registration stays until the replica's last lease has ended.
    StayRegistered,
    /// An own write's answer marks every GET and every other write in flight.
    WritesMark,
    /// A marked "not found" never counts.
    MarkedAbsence,
    /// A copy that a GET confirms takes over the generation that was read.
    AdoptGeneration,
    /// A holding is compared when it is reported, too, not only when an object changes.
    CompareOnReport,
    /// A holding beyond the limit ends coverage by sequence numbers.
    RefusedEndsCover,
    /// A lease that was granted over an older stream is not given back over a newer one.
    ReturnOwnLease,
    /// A marker that is older than what was acknowledged is of a backup.
    BehindIsRestored,
    /// A marker that was acknowledged and is not there may not have been in a backup.
    RemovedIsDoubted,
    /// What was listed before the first marker was acknowledged may be lost.
    FirstIsDoubted,
    /// What was seen since the last marker was acknowledged may be lost if that is long ago.
    LongAgoIsDoubted,
    /// A lease covers no holding that waits for the watch.
    CoverWhatIsCompared,
    /// What the watch shows of a session after what a pod holds of it is later than that, whatever the numbers say.
    ShownIsReached,
    /// After an own write of unknown outcome nothing that was in flight beside it counts.
    UnknownVoids,
    /// Where replicas differ, a lease is as long as the one says that granted it.
    LengthOfItsReplica,
    /// Whoever does not ask waits for the longest lease that any replica may grant, not for the longest of those it has met.
    WaitLongestLease,
    /// A registration stands still for as long as its own replica's leases are, whoever looks at it.
    RegisteredLength,
}

#[cfg(test)]
mod switch {
    use std::cell::Cell;

    use super::Rule;

    thread_local!(static OFF: Cell<u64> = const { Cell::new(0) });

    impl Rule {
        /// Every rule.
        pub const ALL: &[Self] = &[
            Self::LeaseFromSend,
            Self::LeaseMinusAge,
            Self::ProofBeforeLease,
            Self::ProofFromSend,
            Self::EvictionsBeforeLease,
            Self::CoverBySequence,
            Self::NewCopyNewSequence,
            Self::CoverFromSend,
            Self::CoverByLeasesInForce,
            Self::FenceRestores,
            Self::FenceWrites,
            Self::NoLateJoin,
            Self::TerminatingIsGone,
            Self::GoneByUid,
            Self::GoneOutranks,
            Self::WaitForPosition,
            Self::CompareDigest,
            Self::CompareGeneration,
            Self::OwnWriteDecides,
            Self::DiscardStaleList,
            Self::BarrierToAll,
            Self::RememberAgents,
            Self::BarrierToNewStreams,
            Self::AskEveryReplica,
            Self::NewProcessNewReplica,
            Self::NeverGoBack,
            Self::RecheckWaiting,
            Self::ConfirmWhenSeen,
            Self::WaitWholeLease,
            Self::ReadClockLate,
            Self::StayRegistered,
            Self::WritesMark,
            Self::MarkedAbsence,
            Self::AdoptGeneration,
            Self::CompareOnReport,
            Self::RefusedEndsCover,
            Self::ReturnOwnLease,
            Self::BehindIsRestored,
            Self::RemovedIsDoubted,
            Self::FirstIsDoubted,
            Self::LongAgoIsDoubted,
            Self::CoverWhatIsCompared,
            Self::ShownIsReached,
            Self::UnknownVoids,
            Self::LengthOfItsReplica,
            Self::WaitLongestLease,
            Self::RegisteredLength,
        ];

        /// Whether the rule is on in this thread.
        pub fn on(self) -> bool {
            OFF.get() & (1 << self as u8) == 0
        }

        /// Runs `body` with this rule off in this thread.
        pub fn without<T>(self, body: impl FnOnce() -> T) -> T {
            struct Restore(u64);
            impl Drop for Restore {
                fn drop(&mut self) {
                    OFF.set(self.0);
                }
            }
            let _restore = Restore(OFF.get());
            OFF.set(OFF.get() | 1 << self as u8);
            body()
        }
    }
}

#[cfg(not(test))]
impl Rule {
    /// Always true outside of this crate's own tests.
    #[inline]
    pub const fn on(self) -> bool {
        true
    }
}
