//! The replica, driven message by message.

use super::Replica;

impl Replica {
    /// What is left over though nothing is under way and so many agents are connected, if anything.
    pub(crate) fn left_over(&self, agents: usize) -> Option<String> {
        let waiting: usize = self.scopes.iter().map(|s| s.waiting.len()).sum();
        let counts = [
            ("queued signals", self.queued_signals(), 0),
            ("confirmations", self.confirmations(), 0),
            ("pods that wait for confirmations", self.confirmations_by_pod.len(), 0),
            ("waiting holdings", waiting, 0),
            ("rounds", self.rounds.len(), 0),
            ("replies", self.replies.values().map(Vec::len).sum(), 0),
            ("agents", self.agents.len(), agents),
            ("streams", self.by_stream.len(), agents),
            ("names of agents", self.by_hello.len(), agents),
        ];
        let wrong = counts.iter().find(|(_, n, expected)| n != expected);
        wrong.map(|(what, n, expected)| format!("has {n} {what} instead of {expected}"))
    }
}
