//! Where the certificate of the streams comes from, as the command line says it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use thiserror::Error;

use super::bundle::trust_bundle::signer;
use super::plan::Lifetimes;

const DAY: u64 = 24 * 60 * 60;

/// The certificate of the streams.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Certificate")]
pub struct TlsArgs {
    /// File with the certificate to show, as PEM, with all between it and the authority. Without it, the leader makes one and
    /// replaces it in time.
    #[arg(long, env = "VMCP_TLS_CERT_FILE", value_name = "PATH")]
    pub tls_cert_file: Option<PathBuf>,

    /// File with its key. Both are looked at again and again, since they are replaced.
    #[arg(long, env = "VMCP_TLS_KEY_FILE", value_name = "PATH")]
    pub tls_key_file: Option<PathBuf>,

    /// File with the authorities, as PEM, that the certificates of other replicas are signed by.
    #[arg(long, env = "VMCP_TLS_CA_FILE", value_name = "PATH")]
    pub tls_ca_file: Option<PathBuf>,

    /// Name in the certificate, by which agents and other replicas know the controller. Default: that of its Service,
    /// vmcp-session-controller.NAMESPACE.svc.
    #[arg(long, env = "VMCP_TLS_NAME", value_name = "NAME")]
    pub tls_name: Option<String>,

    /// Secret in the controller's own namespace that the leader keeps the keys in, if it makes the certificate.
    #[arg(long, env = "VMCP_TLS_SECRET", value_name = "NAME", default_value = "vmcp-session-controller-tls")]
    pub tls_secret: String,

    /// Where the leader tells the pods whom to believe: the authorities that it makes, or those in --tls-ca-file.
    #[arg(long, env = "VMCP_CA_BUNDLE", value_name = "WHERE", default_value = "auto")]
    pub ca_bundle: BundleArg,

    /// `ClusterTrustBundle` that does so: DOMAIN:PATH:NAME, where DOMAIN/PATH is a signer that the controller may attest for.
    /// Default: vmcp.dev:session-controller:NAMESPACE, with the controller's own namespace.
    #[arg(long, env = "VMCP_CA_TRUST_BUNDLE", value_name = "NAME", value_parser = parse_trust_bundle)]
    pub ca_trust_bundle: Option<String>,

    /// `ConfigMap` that does so.
    #[arg(long, env = "VMCP_CA_CONFIG_MAP", value_name = "NAME", default_value = "vmcp-session-ca")]
    pub ca_config_map: String,

    /// Namespaces that have this `ConfigMap`, separated by commas, besides the controller's own.
    #[arg(long, env = "VMCP_CA_NAMESPACES", value_name = "NAMES", value_delimiter = ',')]
    pub ca_namespaces: Vec<String>,

    /// For how many seconds an authority is valid that the leader makes: 60 to ten years. Its successor comes when a third is
    /// left.
    #[arg(long, env = "VMCP_CA_LIFETIME", value_name = "SECONDS", default_value_t = 365 * DAY)]
    pub ca_lifetime: u64,

    /// For how many seconds a certificate is valid that the leader makes: 30 to half of that of the authority.
    #[arg(long, env = "VMCP_TLS_LIFETIME", value_name = "SECONDS", default_value_t = 30 * DAY)]
    pub tls_lifetime: u64,
}

/// Where pods find whom to believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BundleArg {
    /// In the `ConfigMap`s, and in the `ClusterTrustBundle` if the cluster has these (since Kubernetes 1.37).
    Auto,
    /// In the `ClusterTrustBundle`; in a `ConfigMap` in the controller's own namespace only.
    ClusterTrustBundle,
    /// In the `ConfigMap`s.
    ConfigMap,
}

/// A name that no `ClusterTrustBundle` of a signer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected DOMAIN:PATH:NAME, as in vmcp.dev:session-controller:vmcp-system")]
pub struct InvalidTrustBundle;

fn parse_trust_bundle(name: &str) -> Result<String, InvalidTrustBundle> {
    signer(name).map(|_| name.to_owned()).ok_or(InvalidTrustBundle)
}

/// The certificate is not said completely.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TlsArgsError {
    /// One file without the others.
    #[error("--tls-cert-file, --tls-key-file and --tls-ca-file belong together: give all three, or none")]
    Incomplete,
    /// A lifetime makes no sense.
    #[error("--{flag} is {got}: expected {expected}")]
    Lifetime {
        /// The flag.
        flag: &'static str,
        /// What it is.
        got: u64,
        /// What would be right.
        expected: &'static str,
    },
}

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Somebody puts it into files.
    Files {
        /// The certificate.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
        /// Whom other replicas' certificates are signed by.
        ca: PathBuf,
    },
    /// The leader makes it.
    Managed(Lifetimes),
}

impl TlsArgs {
    /// Where the certificate comes from.
    pub fn source(&self) -> Result<Source, TlsArgsError> {
        let given = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        match (given(&self.tls_cert_file), given(&self.tls_key_file), given(&self.tls_ca_file)) {
            (Some(cert), Some(key), Some(ca)) => Ok(Source::Files { cert, key, ca }),
            (None, None, None) => self.lifetimes().map(Source::Managed),
            _ => Err(TlsArgsError::Incomplete),
        }
    }

    fn lifetimes(&self) -> Result<Lifetimes, TlsArgsError> {
        let (authority, serving) = (self.ca_lifetime, self.tls_lifetime);
        if !(60..=3_650 * DAY).contains(&authority) {
            let expected = "60 seconds to ten years";
            return Err(TlsArgsError::Lifetime { flag: "ca-lifetime", got: authority, expected });
        }
        if !(30..=authority / 2).contains(&serving) {
            let expected = "30 seconds to half of --ca-lifetime";
            return Err(TlsArgsError::Lifetime { flag: "tls-lifetime", got: serving, expected });
        }
        Ok(Lifetimes { authority: Duration::from_secs(authority), serving: Duration::from_secs(serving) })
    }

    /// The name by which the controller is known.
    pub fn name(&self, operator_namespace: &str) -> String {
        let given = self.tls_name.clone().filter(|name| !name.is_empty());
        given.unwrap_or_else(|| format!("vmcp-session-controller.{operator_namespace}.svc"))
    }

    /// The `ClusterTrustBundle` that tells the pods whom to believe. Another controller in the cluster has another one.
    pub fn trust_bundle(&self, operator_namespace: &str) -> String {
        self.ca_trust_bundle.clone().unwrap_or_else(|| format!("vmcp.dev:session-controller:{operator_namespace}"))
    }

    /// All names that a certificate has which the leader makes: a Service is known by several.
    pub fn names(&self, operator_namespace: &str) -> Vec<String> {
        let name = self.name(operator_namespace);
        match name.strip_suffix(".svc") {
            Some(short) => vec![name.clone(), short.to_owned(), format!("{name}.cluster.local")],
            None => vec![name],
        }
    }

    /// Namespaces that are told whom to believe.
    pub fn told(&self, operator_namespace: &str) -> Vec<String> {
        let others: &[String] = if self.ca_bundle == BundleArg::ClusterTrustBundle { &[] } else { &self.ca_namespaces };
        let mut all: Vec<String> = others.iter().filter(|name| !name.is_empty()).cloned().collect();
        all.push(operator_namespace.to_owned());
        all.sort();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: TlsArgs,
    }

    fn parsed(args: &[&str]) -> TlsArgs {
        Command::try_parse_from([&["test"], args].concat()).unwrap().args
    }

    #[test]
    fn files_belong_together_and_lifetimes_fit() {
        let source = |args: &[&str]| parsed(args).source();
        assert!(matches!(source(&[]), Ok(Source::Managed(_))));
        let files = ["--tls-cert-file=c", "--tls-key-file=k", "--tls-ca-file=a"];
        assert!(matches!(source(&files), Ok(Source::Files { .. })));
        for n in 0..3 {
            let mut some = files.to_vec();
            some.remove(n);
            assert_eq!(source(&some), Err(TlsArgsError::Incomplete));
        }
        assert!(source(&["--ca-lifetime=60", "--tls-lifetime=30"]).is_ok());
        for bad in [["--ca-lifetime=59", "--tls-lifetime=30"], ["--ca-lifetime=100", "--tls-lifetime=51"]] {
            let error = source(&bad).unwrap_err().to_string();
            assert!(error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn names_are_those_of_the_service() {
        let names = parsed(&[]).names("ops");
        let expected = ["controller.ops.svc", "controller.ops", "controller.ops.svc.cluster.local"];
        assert_eq!(names, expected.map(|name| format!("vmcp-session-{name}")));
        assert_eq!(parsed(&["--tls-name=a.example"]).names("ops"), ["a.example"]);
        let told = |bundle: &str| parsed(&["--ca-namespaces=b,a,ops,a", bundle]).told("ops");
        assert_eq!(told("--ca-bundle=auto"), ["a", "b", "ops"]);
        assert_eq!(told("--ca-bundle=config-map"), ["a", "b", "ops"]);
        assert_eq!(told("--ca-bundle=cluster-trust-bundle"), ["ops"]);
    }

    #[test]
    fn a_cluster_trust_bundle_is_one_of_a_signer() {
        let refused = Command::try_parse_from(["test", "--ca-trust-bundle=ca"]).err().unwrap().to_string();
        assert!(refused.contains("DOMAIN:PATH:NAME"), "{refused}");
        assert_eq!(parsed(&["--ca-trust-bundle=a.example:b:c"]).trust_bundle("ops"), "a.example:b:c");
        assert_eq!(parsed(&[]).trust_bundle("ops"), "vmcp.dev:session-controller:ops");
    }
}
