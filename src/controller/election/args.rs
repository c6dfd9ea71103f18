//! The command line's part of leader election.

use std::time::Duration;

use thiserror::Error;

use crate::core::election::{Timings, TimingsError};
use crate::core::names::is_object_name;

/// How the replicas elect the one that writes to Kubernetes.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Leader election")]
pub struct LeaderArgs {
    /// Name of the Lease that the replicas of one controller share.
    #[arg(long = "leader-lease-name", env = "VMCP_LEADER_LEASE_NAME", value_name = "NAME")]
    #[arg(default_value = "vmcp-session-controller", value_parser = parse_object_name)]
    pub lease_name: String,

    /// How long, in seconds, the other replicas leave a lease alone that is not renewed: 1 to 3600.
    #[arg(
        id = "leader_lease_seconds",
        long = "leader-lease-seconds",
        env = "VMCP_LEADER_LEASE_SECONDS",
        value_name = "SECONDS"
    )]
    #[arg(default_value_t = 15.0)]
    pub lease_seconds: f64,

    /// How long, in seconds, a leader goes on without a renewal: at most nine tenths of the lease.
    #[arg(long = "leader-renew-deadline-seconds", env = "VMCP_LEADER_RENEW_DEADLINE_SECONDS", value_name = "SECONDS")]
    #[arg(default_value_t = 10.0)]
    pub renew_deadline_seconds: f64,

    /// How often, in seconds, the leader renews and the others look: at most half the renew deadline.
    #[arg(long = "leader-retry-seconds", env = "VMCP_LEADER_RETRY_SECONDS", value_name = "SECONDS")]
    #[arg(default_value_t = 2.0)]
    pub retry_seconds: f64,
}

/// Why the arguments are refused.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum LeaderArgsError {
    /// Not a time.
    #[error("--{flag} is {got}: expected a number of seconds")]
    NotSeconds {
        /// The flag.
        flag: &'static str,
        /// What it is.
        got: f64,
    },
    /// Periods that do not fit together.
    #[error("leader election: {0}")]
    Timings(#[from] TimingsError),
}

impl LeaderArgs {
    /// The periods, if they fit together.
    pub fn timings(&self) -> Result<Timings, LeaderArgsError> {
        let seconds =
            |flag, got| Duration::try_from_secs_f64(got).map_err(|_| LeaderArgsError::NotSeconds { flag, got });
        Ok(Timings::new(
            seconds("leader-lease-seconds", self.lease_seconds)?,
            seconds("leader-renew-deadline-seconds", self.renew_deadline_seconds)?,
            seconds("leader-retry-seconds", self.retry_seconds)?,
        )?)
    }
}

/// A name that Kubernetes does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected at most 253 lowercase letters, digits, '-' and '.', with a letter or digit at each end of each part")]
struct InvalidName;

fn parse_object_name(text: &str) -> Result<String, InvalidName> {
    if is_object_name(text) { Ok(text.to_owned()) } else { Err(InvalidName) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        leader: LeaderArgs,
    }

    fn timings(args: &[&str]) -> Result<Timings, String> {
        let args = ["test"].iter().chain(args);
        Command::try_parse_from(args).unwrap().leader.timings().map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_fit_together() {
        let timings = timings(&[]).unwrap();
        assert_eq!(timings.lease_duration(), Duration::from_secs(15));
        assert_eq!(timings.renew_deadline(), Duration::from_secs(10));
        assert_eq!(timings.retry_period(), Duration::from_secs(2));
        let name = Command::try_parse_from(["test"]).unwrap().leader.lease_name;
        assert_eq!(name, "vmcp-session-controller");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_reason() {
        assert_eq!(
            timings(&["--leader-lease-seconds", "5"]).unwrap_err(),
            "leader election: the renew deadline (10s) must be at most nine tenths of the lease duration (5s)"
        );
        for bad in ["nan", "-1", "inf", "1e300"] {
            let flag = format!("--leader-retry-seconds={bad}");
            let message = timings(&[&flag]).unwrap_err();
            assert!(message.ends_with("expected a number of seconds"), "{message}");
        }
        assert!(timings(&["--leader-lease-seconds", "1e9"]).unwrap_err().contains("between 1s and 3600s"));
    }

    #[test]
    fn lease_names_are_object_names() {
        assert_eq!(parse_object_name("a.b-c").as_deref(), Ok("a.b-c"));
        for bad in ["", ".", "a..b", "-a", "a-", "A", "a/b", &"a".repeat(254)] {
            assert_eq!(parse_object_name(bad), Err(InvalidName), "{bad}");
        }
    }
}
