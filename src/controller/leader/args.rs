//! The command line's part of leader election.

use std::time::Duration;

use crate::core::election::{Timings, TimingsError};

/// How the controller elects its leader.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Leader election")]
pub struct LeaderArgs {
    /// Name of the Lease object that the replicas of one controller share.
    #[arg(long = "leader-lease-name", env = "VMCP_LEADER_LEASE_NAME", value_name = "NAME")]
    #[arg(default_value = "vmcp-session-controller", value_parser = parse_object_name)]
    pub lease_name: String,

    /// How long the other replicas leave a lease alone that is not renewed.
    #[arg(long = "leader-lease-duration", env = "VMCP_LEADER_LEASE_DURATION", value_name = "DURATION")]
    #[arg(default_value = "15s", value_parser = parse_duration)]
    pub lease_duration: Duration,

    /// How long a leader goes on without a renewal; at most nine tenths of the lease duration.
    #[arg(long = "leader-renew-deadline", env = "VMCP_LEADER_RENEW_DEADLINE", value_name = "DURATION")]
    #[arg(default_value = "10s", value_parser = parse_duration)]
    pub renew_deadline: Duration,

    /// How often the leader renews and the others look; at most half the renew deadline.
    #[arg(long = "leader-retry-period", env = "VMCP_LEADER_RETRY_PERIOD", value_name = "DURATION")]
    #[arg(default_value = "2s", value_parser = parse_duration)]
    pub retry_period: Duration,
}

impl LeaderArgs {
    /// The periods, if they fit together.
    pub fn timings(&self) -> Result<Timings, TimingsError> {
        Timings::new(self.lease_duration, self.renew_deadline, self.retry_period)
    }
}

/// Why an argument is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// Not a number with a unit.
    #[error("expected a whole number with a unit, such as 15s, 500ms or 2m")]
    Duration,
    /// Not a name that Kubernetes takes.
    #[error("expected at most 253 lowercase letters, digits, '-' and '.', beginning and ending with a letter or digit")]
    Name,
}

fn parse_duration(text: &str) -> Result<Duration, ArgumentError> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| ArgumentError::Duration)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err(ArgumentError::Duration),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or(ArgumentError::Duration)
}

fn parse_object_name(text: &str) -> Result<String, ArgumentError> {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        label.starts_with(alphanumeric)
            && label.ends_with(alphanumeric)
            && label.chars().all(|c| alphanumeric(c) || c == '-')
    };
    if text.len() <= 253 && text.split('.').all(label) { Ok(text.to_owned()) } else { Err(ArgumentError::Name) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use clap::Parser;

    use super::{LeaderArgs, parse_duration, parse_object_name};

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        leader: LeaderArgs,
    }

    #[test]
    fn defaults_fit_together() {
        let args = Command::try_parse_from(["test"]).unwrap().leader;
        assert_eq!(args.lease_name, "vmcp-session-controller");
        let timings = args.timings().unwrap();
        assert_eq!(timings.lease_duration(), Duration::from_secs(15));
        assert_eq!(timings.renew_deadline(), Duration::from_secs(10));
        assert_eq!(timings.retry_period(), Duration::from_secs(2));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_reason() {
        let args = ["test", "--leader-lease-duration", "5s"];
        let message = Command::try_parse_from(args).unwrap().leader.timings().unwrap_err().to_string();
        assert_eq!(message, "the renew deadline (10s) must be at most nine tenths of the lease duration (5s)");
        let args = ["test", "--leader-lease-duration", "15"];
        let message = Command::try_parse_from(args).unwrap_err().to_string();
        assert!(message.contains("a whole number with a unit"), "{message}");
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("1500ms").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_mins(2));
        for bad in ["", "s", "15", "15 s", "-1s", "1.5s", "1h", "99999999999999999999s", "99999999999999999m"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lease_names_are_object_names() {
        assert!(parse_object_name("a.b-c").is_ok());
        for bad in ["", ".", "a..b", "-a", "a-", "A", "a/b", &"a".repeat(254)] {
            assert!(parse_object_name(bad).is_err(), "{bad}");
        }
    }
}
