//! Up to when a batch of uses tells everything: not up to when it came, since it may have been late on the way, and uses may have
//! been told to its replica after it was taken.
//!
//! So the leader asks with numbers, and a batch bears the last number that had come to its replica when it was taken: it was
//! taken after that was sent. No clock is read but the leader's.

use crate::core::time::Time;

/// What was asked on one stream to a replica. One question is open at a time: the next one is asked when a batch has answered it.
///
/// The stream's opening is the first. A replica of a version without numbers does not say so, and is asked nothing more, since it would not
/// understand. Its batches were taken after the opening like all others, and count from then. While there is such a
/// replica, as in a rolling upgrade, little is idle before its stream is opened anew, as streams are whose tokens end.
#[derive(Debug)]
pub struct Questions {
    last: u64,
    asked: Time,
    open: bool,
    through: Time,
}

impl Questions {
    /// The number of the question that opens a stream.
    pub const FIRST: u64 = 1;

    /// A stream is opened at `now`.
    pub const fn opening(now: Time) -> Self {
        Self { last: Self::FIRST, asked: now, open: true, through: now }
    }

    /// The last of a batch came, which says that it answers this question (none if it is zero). What was told to the replica by the
    /// time that is returned is known.
    pub fn answered(&mut self, number: u64) -> Time {
        if number == self.last && self.open {
            self.open = false;
            self.through = self.asked;
        }
        self.through
    }

    /// The question that is to be asked now.
    pub fn next(&self) -> Option<u64> {
        (!self.open).then_some(self.last + 1)
    }

    /// It was sent, not before `now`.
    pub const fn sent(&mut self, now: Time) {
        self.last += 1;
        self.asked = now;
        self.open = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Time {
        Time::from_nanos(secs * 1_000_000_000)
    }

    #[test]
    fn a_batch_counts_from_the_question_that_it_answers_however_late_it_comes() {
        let mut questions = Questions::opening(at(10));
        assert_eq!(questions.next(), None, "the opening is not answered yet");
        assert_eq!(questions.answered(Questions::FIRST), at(10));
        assert_eq!(questions.next(), Some(2));
        questions.sent(at(12));
        assert_eq!(questions.answered(1), at(10), "it was taken before the question came");
        assert_eq!(questions.next(), None, "one at a time");
        assert_eq!(questions.answered(2), at(12));
        assert_eq!(questions.answered(2), at(12), "the next batch may be taken before the next question comes");
    }

    #[test]
    fn what_could_not_be_sent_is_asked_with_the_next_batch() {
        let mut questions = Questions::opening(at(10));
        questions.answered(1);
        assert_eq!((questions.next(), questions.answered(1), questions.next()), (Some(2), at(10), Some(2)));
        assert_eq!(questions.answered(2), at(10), "nobody was asked");
    }

    #[test]
    fn a_replica_that_knows_no_numbers_is_believed_as_of_its_streams_opening_and_asked_nothing() {
        let mut questions = Questions::opening(at(10));
        for _ in 0..3 {
            assert_eq!((questions.answered(0), questions.next()), (at(10), None));
        }
    }
}
