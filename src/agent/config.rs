//! The agent's command line.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use thiserror::Error;

use super::command::Password;
use super::server::Room;
use super::sessions::{MAX_PREFIX, SessionsConfig};
use crate::cache::{CacheConfig, ConfigError, Visibility};
use crate::runtime::admin::AdminArgs;
use crate::runtime::environment::pod_name;
use crate::runtime::kube_client::KubeArgs;
use crate::runtime::small_file;

/// Longest password that is read from a file.
const MAX_PASSWORD: usize = 4_096;

/// Serves the sessions of a namespace to the other containers of its pod, in the Redis protocol.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Address to listen on: a loopback address, since whoever connects can read the sessions. `none` listens on the Unix
    /// socket only.
    #[arg(long, env = "VMCP_AGENT_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:6379")]
    pub listen: Listen,

    /// Unix socket to listen on as well.
    #[arg(long, env = "VMCP_AGENT_UNIX_SOCKET", value_name = "PATH")]
    pub unix_socket: Option<PathBuf>,

    /// Permissions of the Unix socket, as in chmod: 600 lets in the user that the agent runs as, 660 its group, too. Never others.
    #[arg(long, env = "VMCP_AGENT_UNIX_SOCKET_MODE", value_name = "OCTAL", default_value = "600")]
    pub unix_socket_mode: SocketMode,

    /// Replicas of the controller, as host:port, separated by commas. A DNS name may stand for all of them.
    #[arg(long, env = "VMCP_CONTROLLERS", value_name = "ADDRESSES", value_delimiter = ',')]
    pub controllers: Vec<String>,

    /// File with the token to show to the controllers; read again for each connection.
    #[arg(long, env = "VMCP_TOKEN_FILE", value_name = "PATH")]
    pub token_file: Option<PathBuf>,

    /// File with the authorities, as PEM, that the controllers' certificate is signed by; read again for each connection.
    #[arg(long, env = "VMCP_CA_FILE", value_name = "PATH", default_value = "/var/run/secrets/vmcp.dev/ca.crt")]
    pub ca_file: PathBuf,

    /// Name in the controllers' certificate. Default: the host in --controllers, if it is a name, or else
    /// vmcp-session-controller.vmcp-system.svc.
    #[arg(long, env = "VMCP_CONTROLLERS_NAME", value_name = "NAME")]
    pub controllers_name: Option<String>,

    /// Namespace of the sessions: the pod's own. The controllers take it from the token; with another one there is no
    /// lease.
    #[arg(long, env = "VMCP_NAMESPACE", value_name = "NAME", default_value = "default")]
    pub namespace: String,

    /// Name of the pod, for managedFields.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,

    /// The vMCP server that this is a pod of: spec.server of new sessions.
    #[arg(long, env = "VMCP_SERVER", value_name = "NAME")]
    pub server: Option<String>,

    /// What all keys begin with; the rest of a key is the session's id.
    #[arg(long, env = "VMCP_KEY_PREFIX", value_name = "PREFIX", default_value = "")]
    pub key_prefix: String,

    /// Metadata keys that are true only in this pod, as patterns separated by commas: kept beside the copy, never written.
    #[arg(long, env = "VMCP_POD_LOCAL_KEYS", value_name = "GLOBS", value_delimiter = ',')]
    pub pod_local_keys: Vec<String>,

    /// File with the password that clients must show.
    #[arg(long, env = "VMCP_PASSWORD_FILE", value_name = "PATH")]
    pub password_file: Option<PathBuf>,

    /// File with a key, the same in all pods: objects are named by a keyed hash of the session's id, which nobody learns who
    /// may only list or log objects.
    #[arg(long, env = "VMCP_HASH_SESSION_IDS", value_name = "KEY_FILE")]
    pub hash_session_ids: Option<PathBuf>,

    /// When a write is answered: when it is committed, or when no pod can serve the older state any more.
    #[arg(long, env = "VMCP_VISIBILITY", value_name = "WHEN", default_value = "everywhere")]
    pub visibility: VisibilityArg,

    /// Clients that may be connected at once: 1 to 10000.
    #[arg(long, env = "VMCP_MAX_CLIENTS", value_name = "NUMBER", default_value_t = 10_000)]
    pub max_clients: usize,

    /// Seconds after which a client that sends nothing, and does not listen to channels, is disconnected; 0: never.
    #[arg(long, env = "VMCP_CLIENT_TIMEOUT", value_name = "SECONDS", default_value_t = 3_600)]
    pub client_timeout: u64,

    /// Bytes of answers that may wait for a client that does not read them.
    #[arg(long, env = "VMCP_CLIENT_OUTPUT_LIMIT", value_name = "BYTES", default_value_t = 32 << 20)]
    pub client_output_limit: usize,

    /// Bytes that all clients may take together: requests that are not complete, answers that are not read, commands that wait
    /// for EXEC, writes that are not answered. With more, those that take the most are disconnected; writes may have half of it,
    /// and are refused beyond it.
    #[arg(long, env = "VMCP_CLIENTS_MEMORY", value_name = "BYTES", default_value_t = 128 << 20)]
    pub clients_memory: usize,

    /// Keys that are remembered for client-side caching. With more, some are forgotten, and their readers told so.
    #[arg(long, env = "VMCP_TRACKING_TABLE_MAX_KEYS", value_name = "NUMBER", default_value_t = 1_000_000)]
    pub tracking_table_max_keys: usize,

    /// Copies to keep, at most.
    #[arg(long, env = "VMCP_CACHE_ENTRIES", value_name = "NUMBER", default_value_t = 100_000)]
    pub cache_entries: usize,

    /// Bytes of memory for copies, at most.
    #[arg(long, env = "VMCP_CACHE_BYTES", value_name = "BYTES", default_value_t = 256 << 20)]
    pub cache_bytes: usize,

    /// How long a lease may be that a controller grants: not less than its --lease-seconds. A write waits that long at most
    /// when controllers cannot be reached.
    #[arg(long, env = "VMCP_LEASE_UPPER_BOUND", value_name = "SECONDS", default_value_t = 15.0)]
    pub lease_upper_bound: f64,

    /// Where to serve the admin endpoints.
    #[command(flatten)]
    pub admin: AdminArgs,

    /// How to reach the Kubernetes API.
    #[command(flatten)]
    pub kube: KubeArgs,
}

/// Where to listen with TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl std::str::FromStr for Listen {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|address| Self(Some(address))) }
    }
}

/// Permissions of the Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(pub u32);

/// Not permissions that a socket of the agent can have.
#[derive(Debug, Error)]
#[error("expected the digits of chmod, as 600 or 660: read and write for the owner, and nothing for others")]
pub struct BadSocketMode;

impl std::str::FromStr for SocketMode {
    type Err = BadSocketMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mode = u32::from_str_radix(text, 8).map_err(|_| BadSocketMode)?;
        // Whoever connects can read and change sessions: the group is chosen, others are not.
        let is_good = mode & 0o600 == 0o600 && mode & !0o770 == 0;
        if is_good { Ok(Self(mode)) } else { Err(BadSocketMode) }
    }
}

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VisibilityArg {
    /// When it is committed.
    Committed,
    /// When no pod can serve the older state any more.
    Everywhere,
}

impl From<VisibilityArg> for Visibility {
    fn from(arg: VisibilityArg) -> Self {
        match arg {
            VisibilityArg::Committed => Self::Committed,
            VisibilityArg::Everywhere => Self::Everywhere,
        }
    }
}

/// A setting that makes no sense.
#[derive(Debug, Error)]
pub enum ArgsError {
    /// Whoever connects can read and change sessions.
    #[error("--listen {0} is not a loopback address: only containers of the same pod may connect")]
    NotLoopback(SocketAddr),
    /// Nobody could connect.
    #[error("--listen is none and there is no --unix-socket: nobody could connect")]
    Nowhere,
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
    /// A setting of the cache that is no flag.
    #[error(transparent)]
    Cache(#[from] ConfigError),
    /// The password cannot be read.
    #[error("cannot read the password from {}: {source}", path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds no password.
    #[error("{} holds no password: expected 1 to {MAX_PASSWORD} bytes in one line", .0.display())]
    NoPassword(PathBuf),
}

impl AgentArgs {
    /// Refuses what makes no sense.
    pub fn validate(&self) -> Result<(), ArgsError> {
        match self.listen.0 {
            Some(address) if !address.ip().is_loopback() => return Err(ArgsError::NotLoopback(address)),
            None if self.unix_socket.is_none() => return Err(ArgsError::Nowhere),
            _ => {}
        }
        let range = |flag, got: String, good: bool, expected| {
            if good { Ok(()) } else { Err(ArgsError::Range { flag, got, expected }) }
        };
        let clients = self.max_clients;
        range("max-clients", clients.to_string(), (1..=10_000).contains(&clients), "1 to 10000")?;
        let output = self.client_output_limit;
        let expected = "64 KiB to 1 GiB";
        range("client-output-limit", output.to_string(), (1 << 16..=1 << 30).contains(&output), expected)?;
        let memory = self.clients_memory;
        let expected = "4 MiB to 1 TiB";
        range("clients-memory", memory.to_string(), (4 << 20..=1 << 40).contains(&memory), expected)?;
        let keys = self.tracking_table_max_keys;
        let expected = "1 to 100000000";
        range("tracking-table-max-keys", keys.to_string(), (1..=100_000_000).contains(&keys), expected)?;
        let bound = self.lease_upper_bound;
        range("lease-upper-bound", bound.to_string(), (1.0..=3_600.0).contains(&bound), "1 to 3600 seconds")?;
        let prefix = &self.key_prefix;
        range("key-prefix", prefix.clone(), prefix.len() <= MAX_PREFIX, "at most 256 bytes")?;
        let cache = self.cache();
        cache.validate().map_err(|error| match flag(&cache, error.setting) {
            Some((flag, got)) => ArgsError::Range { flag, got, expected: error.expected },
            None => error.into(),
        })
    }

    /// The password that clients must show.
    pub fn password(&self) -> Result<Option<Password>, ArgsError> {
        Ok(self.password_line()?.map(|line| Password::new(&line)))
    }

    /// The same as it stands in the file.
    pub(super) fn password_line(&self) -> Result<Option<Vec<u8>>, ArgsError> {
        self.password_file.as_deref().map(read_password).transpose()
    }

    /// Settings of the cache.
    pub fn cache(&self) -> CacheConfig {
        let pod = pod_name(self.pod_name.as_deref()).unwrap_or_else(|| "agent".to_owned());
        CacheConfig {
            controllers: but_empty(&self.controllers),
            token_file: self.token_file.clone(),
            ca_file: Some(self.ca_file.clone()).filter(|path| !path.as_os_str().is_empty()),
            controllers_name: self.controllers_name.clone().filter(|name| !name.is_empty()),
            server: self.server.clone().filter(|server| !server.is_empty()),
            entries: self.cache_entries,
            bytes: self.cache_bytes,
            lease_upper_bound: Duration::from_secs_f64(self.lease_upper_bound),
            ..CacheConfig::new(self.namespace.clone(), &pod)
        }
    }

    /// Whether each write waits until all leases are over: no controller is named that could confirm it.
    pub(super) fn confirms_by_waiting(&self) -> bool {
        self.cache().controllers.is_empty() && self.sessions().visibility == Visibility::Everywhere
    }

    /// How many clients there may be, and what they may take.
    pub(super) fn room(&self) -> Room {
        Room { clients: self.max_clients, output: self.client_output_limit, memory: self.clients_memory }
    }

    /// How keys become sessions.
    pub fn sessions(&self) -> SessionsConfig {
        SessionsConfig {
            prefix: self.key_prefix.clone(),
            pod_local_keys: but_empty(&self.pod_local_keys),
            hash_key_file: self.hash_session_ids.clone(),
            visibility: self.visibility.into(),
        }
    }
}

/// The flag that a setting of the cache comes from, and what it is.
fn flag(cache: &CacheConfig, setting: &str) -> Option<(&'static str, String)> {
    let quoted = |text: &str| format!("'{text}'");
    let optional = |text: &Option<String>| quoted(text.as_deref().unwrap_or_default());
    Some(match setting {
        "namespace" => ("namespace", quoted(&cache.namespace)),
        "server" => ("server", optional(&cache.server)),
        "controllers" => ("controllers", quoted(&cache.controllers.join(","))),
        "controllers_name" => ("controllers-name", optional(&cache.controllers_name)),
        "field_manager" => ("pod-name", quoted(cache.field_manager.trim_start_matches("vmcp/"))),
        "entries" => ("cache-entries", cache.entries.to_string()),
        "bytes" => ("cache-bytes", cache.bytes.to_string()),
        _ => return None,
    })
}

/// An empty variable, or nothing between two commas, means none.
fn but_empty(list: &[String]) -> Vec<String> {
    list.iter().filter(|item| !item.is_empty()).cloned().collect()
}

/// The first line of a file. It may end in a line break, as files do.
fn read_password(path: &Path) -> Result<Vec<u8>, ArgsError> {
    // With its line break.
    let text = match small_file::read(path, MAX_PASSWORD as u64 + 2) {
        Ok(text) => text,
        Err(long) if long.kind() == ErrorKind::FileTooLarge => return Err(ArgsError::NoPassword(path.to_owned())),
        Err(source) => return Err(ArgsError::PasswordFile { path: path.to_owned(), source }),
    };
    let line = text.strip_suffix(b"\n").unwrap_or(&text);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || line.len() > MAX_PASSWORD || line.contains(&b'\n') {
        return Err(ArgsError::NoPassword(path.to_owned()));
    }
    Ok(line.to_vec())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn parsed(args: &[&str]) -> Result<AgentArgs, String> {
        let command = Command::try_parse_from([&["test"], args].concat()).map_err(|e| e.to_string())?;
        command.args.validate().map_err(|e| e.to_string())?;
        Ok(command.args)
    }

    /// What may be kept by default, all at once, fits into the memory that the chart gives, with room for the program itself.
    #[test]
    fn the_defaults_fit_into_the_memory_limit() {
        const TRACKED_KEY: usize = 150;
        const PROGRAM: usize = 48 << 20;
        let args = parsed(&[]).unwrap();
        let copies = args.cache_bytes + args.cache_bytes / 8;
        let hashed_ids = args.cache_bytes / 4;
        let tracked = args.tracking_table_max_keys * TRACKED_KEY;
        let values = include_str!("../../charts/vmcp-session-operator/values.yaml");
        let agent = values.split_once("\ninjection:").unwrap().1;
        let limit = agent.split_once("limits: {memory: ").unwrap().1.split_once("Mi}").unwrap().0;
        let limit = limit.parse::<usize>().unwrap() << 20;
        assert!(copies + hashed_ids + args.clients_memory + tracked + PROGRAM <= limit, "{limit}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        parsed(&[]).unwrap();
        parsed(&["--listen", "[::1]:0"]).unwrap();
        parsed(&["--listen", "none", "--unix-socket", "/run/agent.sock"]).unwrap();
        let refused = |args: &[&str], reason: &str| {
            let error = parsed(args).unwrap_err();
            assert!(error.contains(reason), "{args:?}: {error}");
        };
        refused(&["--listen", "0.0.0.0:6379"], "not a loopback address");
        refused(&["--listen", "none"], "nobody could connect");
        for mode in ["666", "604", "060", "1600", "rw", "-600", "8"] {
            refused(&[&format!("--unix-socket-mode={mode}")], "expected the digits of chmod");
        }
        refused(&["--max-clients", "0"], "1 to 10000");
        refused(&["--max-clients", "10001"], "1 to 10000");
        refused(&["--client-output-limit", "1"], "64 KiB");
        refused(&["--clients-memory", "1"], "4 MiB");
        refused(&["--tracking-table-max-keys", "0"], "1 to 100000000");
        refused(&["--lease-upper-bound", "NaN"], "1 to 3600");
        refused(&["--visibility", "sometimes"], "everywhere");
        // What the cache refuses is told by the flag, too.
        refused(&["--controllers", "a:1,b"], "--controllers is 'a:1,b': expected addresses as host:port");
        refused(&["--namespace", "A_B"], "--namespace is 'A_B': expected the name of a namespace");
        refused(&["--namespace", ""], "--namespace is ''");
        refused(&["--server", "a.b"], "--server is 'a.b': expected a DNS label");
        refused(&["--pod-name", "a b"], "--pod-name is 'a b'");
        refused(&["--cache-entries", "0"], "--cache-entries is 0: expected at least 1");
        refused(&["--cache-bytes", "7"], "--cache-bytes is 7: expected at least 1 MiB");
    }

    #[test]
    fn the_command_line_of_the_documentation_is_understood() {
        let args = parsed(&[
            "--listen=127.0.0.1:6379",
            "--unix-socket=/run/vmcp/agent.sock",
            "--controllers=10.0.0.1:7070,vmcp-session-controller.vmcp-system.svc:7070",
            "--namespace=team",
            "--server=weather",
            "--key-prefix=mcp:session:",
            "--pod-local-keys=conn.*,backend-?",
            "--password-file=/etc/vmcp/password",
        ])
        .unwrap();
        assert_eq!(args.cache().controllers.len(), 2);
        assert_eq!(args.sessions().pod_local_keys, ["conn.*", "backend-?"]);
        args.cache().validate().unwrap();
        assert_eq!(args.unix_socket_mode, SocketMode(0o600));
        for (text, mode) in [("660", 0o660), ("0700", 0o700)] {
            assert_eq!(parsed(&["--unix-socket-mode", text]).unwrap().unix_socket_mode, SocketMode(mode));
        }
    }

    #[test]
    fn without_controllers_writes_wait_unless_they_need_not_be_visible_everywhere() {
        let waits = |args: &[&str]| parsed(args).unwrap().confirms_by_waiting();
        assert!(waits(&[]) && waits(&["--controllers="]));
        assert!(!waits(&["--controllers=10.0.0.1:7070"]) && !waits(&["--visibility=committed"]));
    }

    #[test]
    fn an_empty_variable_means_that_nothing_is_set() {
        let args = parsed(&["--controllers=", "--pod-local-keys=", "--pod-name=", "--server="]).unwrap();
        let cache = args.cache();
        cache.validate().unwrap();
        assert!(cache.controllers.is_empty() && args.sessions().pod_local_keys.is_empty());
        assert_eq!(cache.server, None);
        let unset = parsed(&[]).unwrap().cache();
        assert_eq!(cache.field_manager, unset.field_manager, "the host's name, or the word for none");
        assert_ne!(cache.field_manager, CacheConfig::new("default", "").field_manager);
    }

    #[test]
    fn a_password_is_one_line_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let read = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            read_password(&path).map_err(|e| e.to_string())
        };
        for good in [&b"open sesame\n"[..], b"open sesame", b"open sesame\r\n"] {
            assert_eq!(read(good).unwrap(), b"open sesame");
        }
        for bad in [&b""[..], b"\n", b"two\nlines\n", &[b'x'; MAX_PASSWORD + 1], &[b'x'; MAX_PASSWORD + 3]] {
            let error = read(bad).unwrap_err();
            assert!(error.contains("holds no password"), "{error}");
        }
        assert!(read_password(&folder.path().join("none")).unwrap_err().to_string().contains("cannot read"));
    }
}
