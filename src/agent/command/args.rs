//! Reading arguments as Redis reads them.

use std::sync::OnceLock;

use bytes::Bytes;

use super::refusal::Refusal;
use crate::agent::sessions::now_millis;

/// The time of a command, in milliseconds since 1970: the same throughout, and read only by commands that ask for it.
#[derive(Clone, Debug, Default)]
pub struct Clock(OnceLock<u64>);

impl Clock {
    /// A clock that stands still.
    pub fn at(millis: u64) -> Self {
        Self(OnceLock::from(millis))
    }

    /// What it shows.
    pub fn millis(&self) -> u64 {
        *self.0.get_or_init(now_millis)
    }
}

/// A number as Redis writes it, and no other spelling of it: no space, no `+`, no leading zero.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    // Long enough for any of them, and a bound on the work.
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] => {}
        _ => return None,
    }
    // Counted downwards, since there is one more negative number.
    let value = digits.iter().try_fold(0_i64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| i64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_sub(digit)
    })?;
    if negative { Some(value) } else { value.checked_neg() }
}

/// An argument that must be a number.
pub fn integer(arg: &[u8]) -> Result<i64, Refusal> {
    parse_integer(arg).ok_or(Refusal::NotAnInteger)
}

/// Whether an argument is this keyword, in any case.
#[inline]
pub fn is(arg: &[u8], keyword: &str) -> bool {
    arg.eq_ignore_ascii_case(keyword.as_bytes())
}

/// An argument that can be a key or a value of `spec.metadata`.
pub fn text(arg: &Bytes) -> Result<&str, Refusal> {
    std::str::from_utf8(arg)
        .map_err(|_| Refusal::Text("ERR fields and values of a session are text: they must be valid UTF-8"))
}

/// The unit of a time in a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
}

/// A point in time, as a command gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When {
    /// The unit it is given in.
    pub unit: Unit,
    /// Since 1970, or from now on.
    pub absolute: bool,
}

impl When {
    /// `EX`.
    pub const EX: Self = Self { unit: Unit::Seconds, absolute: false };
    /// `PX`.
    pub const PX: Self = Self { unit: Unit::Milliseconds, absolute: false };
    /// `EXAT`.
    pub const EXAT: Self = Self { unit: Unit::Seconds, absolute: true };
    /// `PXAT`.
    pub const PXAT: Self = Self { unit: Unit::Milliseconds, absolute: true };

    /// The instant that `value` means at `now`, both in milliseconds since 1970; `None` if no 64 bits can hold it.
    pub fn at(self, value: i64, now: u64) -> Option<i64> {
        let value = match self.unit {
            Unit::Seconds => value.checked_mul(1_000)?,
            Unit::Milliseconds => value,
        };
        let base = if self.absolute { 0 } else { i64::try_from(now).ok()? };
        value.checked_add(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_spelling() {
        for good in [0, 1, -1, 10, i64::MAX, i64::MIN, 1_234_567_890_123] {
            assert_eq!(parse_integer(good.to_string().as_bytes()), Some(good));
        }
        let bad = ["", "-", "+1", " 1", "1 ", "01", "-0", "00", "1.0", "1e3", "0x1", "9223372036854775808", "é"];
        for bad in bad.into_iter().chain(["-9223372036854775809", "99999999999999999999", "111111111111111111111"]) {
            assert_eq!(parse_integer(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn instants_that_no_number_holds_are_none() {
        assert_eq!(When::EX.at(10, 5), Some(10_005));
        assert_eq!(When::PX.at(-10, 5), Some(-5));
        assert_eq!(When::EXAT.at(10, 5), Some(10_000));
        assert_eq!(When::PXAT.at(10, 5), Some(10));
        assert_eq!(When::EX.at(i64::MAX / 1_000, 1_000), None);
        assert_eq!(When::EX.at(i64::MIN / 1_000 - 1, 1_000), None);
        assert_eq!(When::PX.at(i64::MAX, 1), None);
        assert_eq!(When::EXAT.at(i64::MAX / 1_000, 1), Some(i64::MAX / 1_000 * 1_000));
    }
}
