//! How a cache is set up.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::core::names::is_object_name;
use crate::runtime::tls::Trust;
use crate::runtime::transport::{CONTROLLER_NAME, Transport};

/// Settings of a [`Cache`](super::Cache). [`CacheConfig::new`] gives good ones; change what you need.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The namespace whose sessions are served.
    pub namespace: String,
    /// Replicas of the controller, each as `host:port`. A host that is a DNS name is resolved again and again, and may
    /// stand for any number of replicas (a headless Service). Without any, each `get` asks the API server.
    pub controllers: Vec<String>,
    /// File with the token that is shown to the controller. It is read again for each connection.
    pub token_file: Option<PathBuf>,
    /// File with the authorities, as PEM, that the controller's certificate is signed by. Needed if there are controllers. It
    /// is read again for each connection.
    pub ca_file: Option<PathBuf>,
    /// The name in the controller's certificate. Without one: the host of the first of `controllers` that is a name, or
    /// else that of the controller's Service in its usual namespace, `vmcp-session-controller.vmcp-system.svc`.
    pub controllers_name: Option<String>,
    /// Who writes, for `managedFields`: at most 128 bytes.
    pub field_manager: String,
    /// `spec.server` of the sessions that are created, unless a create names another one.
    pub server: Option<String>,
    /// Annotations that are kept with each copy, by name.
    pub annotations: Vec<Arc<str>>,
    /// Whether each use of a copy begins the session's idle timeout anew. Else only [`Cache::renew`](super::Cache::renew)
    /// does.
    pub uses_renew: bool,
    /// Whether the cache remembers what its clients last had of a session ([`Cache::base`](super::Cache::base)), for clients
    /// that do not keep the [`Session`](super::Session) themselves. It takes up to an eighth more memory.
    pub remember_given: bool,
    /// Copies that are kept, at most. They are spread over shards by a hash, so it may be a few per cent less.
    pub entries: usize,
    /// Bytes of memory that the copies take, at most, by estimate.
    pub bytes: usize,
    /// How long one request to the API server may take.
    pub call_deadline: Duration,
    /// GETs that are in flight at once.
    pub concurrent_gets: usize,
    /// Sessions that are waited for at once. Further misses fail with `Overloaded`.
    pub waiting_gets: usize,
    /// Names without a session that may be asked for, per second: what keeps a flood of unknown names from becoming a
    /// flood on the API server. Sessions that are found do not count; GETs that fail do. Nor do names that were met before: of
    /// which a copy is held, or was, unless somebody has said since that the session is gone.
    pub unknown_per_second: u32,
    /// As many of them may come at once.
    pub unknown_burst: u32,
    /// Writes that are in flight at once.
    pub concurrent_writes: usize,
    /// Writes that wait or are in flight. Further ones fail with `Overloaded`.
    pub waiting_writes: usize,
    /// No replica grants longer leases. A write with [`Visibility::Everywhere`](super::Visibility::Everywhere) that is not
    /// confirmed by all replicas waits for so long, or for the longest lease that a replica has told of, if that is longer. Must not be
    /// less than the controller's `--lease-seconds`: what a replica grants that this cache never reached is known from nowhere else.
    pub lease_upper_bound: Duration,
    /// How often DNS names are resolved.
    pub resolve_every: Duration,
    /// Longest pause between two attempts to reach a replica.
    pub reconnect_at_most: Duration,
    /// Evictions that a subscriber may be behind before it misses some.
    pub backlog: usize,
}

/// A setting that makes no sense.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{setting} is wrong: expected {expected}")]
pub struct ConfigError {
    /// The setting.
    pub setting: &'static str,
    /// What would be right.
    pub expected: &'static str,
}

/// The longest name of a field manager that Kubernetes takes.
const MAX_FIELD_MANAGER: usize = 128;

impl CacheConfig {
    /// Good settings for the pod `pod` in `namespace`.
    pub fn new(namespace: impl Into<String>, pod: &str) -> Self {
        let field_manager = format!("vmcp/{pod}").chars().take(MAX_FIELD_MANAGER).collect();
        Self {
            namespace: namespace.into(),
            controllers: Vec::new(),
            token_file: None,
            ca_file: None,
            controllers_name: None,
            field_manager,
            server: None,
            annotations: Vec::new(),
            uses_renew: true,
            remember_given: false,
            entries: 100_000,
            bytes: 256 << 20,
            call_deadline: Duration::from_secs(5),
            concurrent_gets: 64,
            waiting_gets: 4_096,
            unknown_per_second: 100,
            unknown_burst: 256,
            concurrent_writes: 64,
            waiting_writes: 4_096,
            lease_upper_bound: Duration::from_secs(15),
            resolve_every: Duration::from_secs(5),
            reconnect_at_most: Duration::from_secs(3),
            backlog: 4_096,
        }
    }

    /// Refuses what makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |good: bool, setting, expected| if good { Ok(()) } else { Err(ConfigError { setting, expected }) };
        let label = |name: &str| name.len() <= 63 && !name.contains('.') && is_object_name(name);
        let seconds = |d: Duration, most| d >= Duration::from_millis(10) && d <= Duration::from_secs(most);
        check(label(&self.namespace), "namespace", "the name of a namespace")?;
        let server = self.server.as_deref().is_none_or(label);
        check(server, "server", "a DNS label")?;
        let address =
            |a: &String| a.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        check(self.controllers.iter().all(address), "controllers", "addresses as host:port")?;
        check(self.controllers.len() <= 64, "controllers", "at most 64 addresses")?;
        let believed = self.controllers.is_empty() || self.ca_file.is_some();
        check(believed, "ca_file", "a file with the authorities of the controllers' certificate")?;
        let name = self.controllers_name.as_ref().is_none_or(|name| !name.is_empty() && name.len() <= 253);
        check(name, "controllers_name", "a DNS name")?;
        let printable = self.field_manager.chars().all(|c| !c.is_control() && !c.is_whitespace());
        let length = (1..=MAX_FIELD_MANAGER).contains(&self.field_manager.len());
        check(printable && length, "field_manager", "1 to 128 bytes of printable characters")?;
        check(self.annotations.len() <= 16, "annotations", "at most 16 names")?;
        check(self.entries > 0, "entries", "at least 1")?;
        check(self.bytes >= 1 << 20, "bytes", "at least 1 MiB")?;
        check(seconds(self.call_deadline, 60), "call_deadline", "10 ms to 60 s")?;
        check((1..=1_024).contains(&self.concurrent_gets), "concurrent_gets", "1 to 1024")?;
        check(self.waiting_gets >= self.concurrent_gets, "waiting_gets", "at least concurrent_gets")?;
        check(self.unknown_per_second > 0, "unknown_per_second", "at least 1")?;
        // What is found gives its token back, but only then: with fewer, restores would wait for each other.
        let burst = usize::try_from(self.unknown_burst).unwrap_or(usize::MAX);
        check(burst >= self.concurrent_gets, "unknown_burst", "at least concurrent_gets")?;
        check((1..=1_024).contains(&self.concurrent_writes), "concurrent_writes", "1 to 1024")?;
        check(self.waiting_writes >= self.concurrent_writes, "waiting_writes", "at least concurrent_writes")?;
        check(seconds(self.lease_upper_bound, 3_600), "lease_upper_bound", "10 ms to one hour")?;
        check(seconds(self.resolve_every, 3_600), "resolve_every", "10 ms to one hour")?;
        check(seconds(self.reconnect_at_most, 60), "reconnect_at_most", "10 ms to 60 s")?;
        check((1..=1 << 20).contains(&self.backlog), "backlog", "1 to 1048576")
    }

    /// How the controllers are reached.
    pub(super) fn transport(&self) -> Transport {
        let host = |address: &String| address.rsplit_once(':').map(|(host, _)| host.to_owned());
        let is_name = |host: &String| host.trim_matches(['[', ']']).parse::<IpAddr>().is_err();
        let first = || self.controllers.iter().filter_map(host).find(is_name);
        Transport {
            trust: self.ca_file.clone().map_or(Trust::None, Trust::File),
            name: self.controllers_name.clone().or_else(first).unwrap_or_else(|| CONTROLLER_NAME.to_owned()),
            token_file: self.token_file.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense_and_nonsense_is_refused_by_name() {
        let good = CacheConfig::new("team", &"p".repeat(200));
        good.validate().unwrap();
        assert_eq!(good.field_manager.len(), 128);
        let refused = |change: fn(&mut CacheConfig)| {
            let mut config = CacheConfig::new("team", "pod-0");
            change(&mut config);
            config.validate().unwrap_err().setting
        };
        assert_eq!(refused(|c| c.namespace = "a.b".into()), "namespace");
        assert_eq!(refused(|c| c.server = Some("A".into())), "server");
        assert_eq!(refused(|c| c.controllers = vec!["host".into()]), "controllers");
        assert_eq!(refused(|c| c.controllers = vec!["host:1".into()]), "ca_file");
        assert_eq!(refused(|c| c.controllers_name = Some(String::new())), "controllers_name");
        assert_eq!(refused(|c| c.field_manager = "a b".into()), "field_manager");
        assert_eq!(refused(|c| c.entries = 0), "entries");
        assert_eq!(refused(|c| c.unknown_burst = 1), "unknown_burst");
        assert_eq!(refused(|c| c.call_deadline = Duration::ZERO), "call_deadline");
    }

    #[test]
    fn the_name_in_the_certificate_is_that_which_was_asked_for() {
        let name = |controllers: &[&str], name: Option<&str>| {
            let mut config = CacheConfig::new("team", "pod-0");
            config.controllers = controllers.iter().map(ToString::to_string).collect();
            config.controllers_name = name.map(str::to_owned);
            config.transport().name
        };
        assert_eq!(name(&["controller.a.svc:7070"], None), "controller.a.svc");
        assert_eq!(name(&["10.0.0.1:7070", "[::1]:7070", "b:7070"], None), "b");
        assert_eq!(name(&["10.0.0.1:7070", "[::1]:7070"], None), CONTROLLER_NAME);
        assert_eq!(name(&["b:7070"], Some("c")), "c");
    }
}
