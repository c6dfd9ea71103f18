//! The controller's command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use thiserror::Error;

use super::certificates::args::{TlsArgs, TlsArgsError};
use super::election::{LeaderArgs, LeaderArgsError};
use super::injection::InjectionArgs;
use crate::core::names::is_namespace;
use crate::core::tally::Bounds;
use crate::runtime::admin::AdminArgs;
use crate::runtime::kube_client::KubeArgs;
use crate::runtime::listen::{Advertise, Listen};

/// Watches sessions and tells the pods which of their copies to drop.
#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// Address on which agents connect; :PORT for all addresses.
    #[arg(long, env = "VMCP_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub listen: Listen,

    /// Address under which other replicas reach this one, perhaps without a port: that of --listen. Default: the one it listens on.
    #[arg(long, env = "VMCP_ADVERTISE", value_name = "ADDRESS")]
    pub advertise: Option<Advertise>,

    /// Namespaces to watch, separated by commas. Default: all.
    #[arg(long, env = "VMCP_NAMESPACES", value_name = "NAMES", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// The controller's own namespace: its Lease is there, and the marker that registers it.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", default_value = "vmcp-system")]
    pub operator_namespace: String,

    /// Name of this replica's pod, for its registration and for logs. Default: the host's name.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub replica_name: Option<String>,

    /// How long, in seconds, a pod may serve its copies when nobody can tell it that they are stale: 1 to 300.
    #[arg(long, env = "VMCP_LEASE_SECONDS", value_name = "SECONDS", default_value_t = 15.0)]
    pub lease_seconds: f64,

    /// Audience that the tokens of agents and of other replicas must be made for.
    #[arg(long, env = "VMCP_TOKEN_AUDIENCE", value_name = "NAME", default_value = "vmcp.dev")]
    pub token_audience: String,

    /// File with a token of this controller's service account for that audience, to connect to other replicas with.
    #[arg(long, env = "VMCP_PEER_TOKEN_FILE", value_name = "PATH")]
    pub peer_token_file: Option<PathBuf>,

    /// How often, in seconds, agents report which sessions were used: 1 to 600.
    #[arg(long, env = "VMCP_RENEWAL_SECONDS", value_name = "SECONDS", default_value_t = 5.0)]
    pub renewal_seconds: f64,

    /// Copies that all pods together may hold: 1 to 100000000, at most some 1,200 bytes each. One namespace may have most of them,
    /// and leaves some to others.
    #[arg(long, env = "VMCP_COPIES", value_name = "NUMBER", default_value_t = 500_000)]
    pub copies: usize,

    /// Copies that one pod may hold: 1 to 100000000. A stream that reports more ends. Default: half of --copies.
    #[arg(long, env = "VMCP_COPIES_PER_POD", value_name = "NUMBER")]
    pub copies_per_pod: Option<usize>,

    /// The certificate of the streams.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Adding agents to pods.
    #[command(flatten)]
    pub injection: InjectionArgs,

    /// How the leader is elected.
    #[command(flatten)]
    pub leader: LeaderArgs,

    /// Address of /metrics for those only who may get it: over TLS, with the certificate of the streams and with a token that the
    /// API server accepts. Without it, /metrics is one of the admin endpoints, and open.
    #[arg(long, env = "VMCP_METRICS_LISTEN", value_name = "ADDRESS", help_heading = "Admin endpoints")]
    pub metrics_listen: Option<Listen>,

    /// Where to serve the admin endpoints.
    #[command(flatten)]
    pub admin: AdminArgs,

    /// How to reach the Kubernetes API.
    #[command(flatten)]
    pub kube: KubeArgs,
}

/// A setting that makes no sense.
#[derive(Debug, Error, PartialEq)]
pub enum ConfigError {
    /// The periods of leader election do not fit together.
    #[error(transparent)]
    Leader(#[from] LeaderArgsError),
    /// Out of range.
    #[error("--{flag} is {got}: expected {expected}")]
    Range {
        /// The flag.
        flag: &'static str,
        /// What it is.
        got: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Other replicas could not connect to this one.
    #[error("--listen {0} is no address that other replicas can connect to: say --advertise, the address of this pod")]
    NoAdvertise(Listen),
    /// The certificate is not said completely.
    #[error(transparent)]
    Tls(#[from] TlsArgsError),
}

/// The longest lease that a controller grants.
pub const MAX_LEASE: Duration = Duration::from_mins(5);

impl ControllerArgs {
    /// Length of a lease.
    pub fn lease(&self) -> Result<Duration, ConfigError> {
        seconds("lease-seconds", self.lease_seconds, 1.0, MAX_LEASE.as_secs_f64(), "1 to 300 seconds")
    }

    /// How often renewals are reported.
    pub fn renewal(&self) -> Result<Duration, ConfigError> {
        seconds("renewal-seconds", self.renewal_seconds, 1.0, 600.0, "1 to 600 seconds")
    }

    /// Copies that pods may hold.
    pub fn copies(&self) -> Result<Bounds, ConfigError> {
        let within = |flag, got: usize| {
            let expected = "1 to 100000000 copies";
            let right = (1..=100_000_000).contains(&got);
            if right { Ok(got) } else { Err(ConfigError::Range { flag, got: got.to_string(), expected }) }
        };
        let all = within("copies", self.copies)?;
        let per_pod = within("copies-per-pod", self.copies_per_pod.unwrap_or(all.div_ceil(2)))?;
        Ok(Bounds { all, per_pod })
    }

    /// Refuses what makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.lease()?;
        self.renewal()?;
        self.copies()?;
        self.leader.timings()?;
        self.tls.source()?;
        if self.listen.is_everywhere() && self.advertise.is_none() {
            return Err(ConfigError::NoAdvertise(self.listen));
        }
        namespace("operator-namespace", &self.operator_namespace)?;
        let chosen = self.chosen_namespaces();
        for (at, name) in chosen.iter().enumerate() {
            namespace("namespaces", name)?;
            if chosen[..at].contains(name) {
                let expected = "each namespace once";
                return Err(ConfigError::Range { flag: "namespaces", got: name.clone(), expected });
            }
        }
        Ok(())
    }

    /// The namespaces to watch; none of them means all. An environment variable that is empty says so too.
    pub fn chosen_namespaces(&self) -> &[String] {
        match &self.namespaces[..] {
            [all] if all.is_empty() => &[],
            chosen => chosen,
        }
    }
}

fn namespace(flag: &'static str, name: &str) -> Result<(), ConfigError> {
    if !is_namespace(name) {
        let expected = "the name of a namespace: 1 to 63 of a-z, 0-9 and '-', with a letter or digit first and last";
        return Err(ConfigError::Range { flag, got: name.to_owned(), expected });
    }
    Ok(())
}

fn seconds(flag: &'static str, got: f64, min: f64, max: f64, expected: &'static str) -> Result<Duration, ConfigError> {
    if !(min..=max).contains(&got) {
        return Err(ConfigError::Range { flag, got: got.to_string(), expected });
    }
    Ok(Duration::from_secs_f64(got))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: ControllerArgs,
    }

    fn parsed(args: &[&str]) -> Result<(), ConfigError> {
        Command::try_parse_from([&["test"], args].concat()).unwrap().args.validate()
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        assert_eq!(parsed(&[]), Ok(()));
        for lease in ["0", "0.9", "301", "NaN", "inf"] {
            let error = parsed(&["--lease-seconds", lease]).unwrap_err();
            assert!(error.to_string().contains("1 to 300 seconds"), "{error}");
        }
        for flag in ["--copies", "--copies-per-pod"] {
            for copies in ["0", "100000001"] {
                let error = parsed(&[flag, copies]).unwrap_err();
                assert_eq!(error.to_string(), format!("{flag} is {copies}: expected 1 to 100000000 copies"));
            }
        }
        for listen in [":7070", "0.0.0.0:7070", "[::]:7070"] {
            let error = parsed(&["--listen", listen]).unwrap_err();
            assert_eq!(error, ConfigError::NoAdvertise(listen.parse().unwrap()));
            assert_eq!(parsed(&["--listen", listen, "--advertise=fd00::7"]), Ok(()));
        }
        for wrong in ["a,B", "a,", "a,a", ",", "a-", "b,-a"] {
            let error = parsed(&[&format!("--namespaces={wrong}")]).unwrap_err();
            assert!(error.to_string().starts_with("--namespaces is "), "{error}");
        }
        assert_eq!(parsed(&["--namespaces", "a,b"]), Ok(()));
        assert_eq!(parsed(&["--namespaces", ""]), Ok(()), "as an empty environment variable: all");
        let error = parsed(&["--operator-namespace", "B"]).unwrap_err();
        assert!(error.to_string().starts_with("--operator-namespace is "), "{error}");
        let error = parsed(&["--leader-lease-seconds", "5"]).unwrap_err();
        assert!(error.to_string().contains("renew deadline"), "{error}");
    }
}
