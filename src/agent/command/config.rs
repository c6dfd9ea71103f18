//! What commands know of the agent as a whole, and `CONFIG`.

use std::time::Instant;

use bytes::Bytes;
use rand::Rng;

use super::context::Context;
use super::password::Password;
use super::refusal::{Refusal, bounded};
use super::scan::Order;
use super::stats::Stats;
use super::{Flow, glob, lines};
use crate::resp::Reply;

/// What commands know of the agent as a whole.
#[derive(Debug)]
pub struct Server {
    /// The password that clients must know, if there is one.
    password: Option<Password>,
    /// What `CONFIG GET` answers: name and value, without secrets.
    parameters: Vec<(&'static str, String)>,
    /// The TCP port, for `INFO`.
    pub(super) port: u16,
    /// Clients that may be connected at once.
    pub(super) max_clients: usize,
    /// Bytes that copies may take.
    pub(super) max_memory: usize,
    /// Bytes that may wait for a client, and so the largest answer.
    pub(super) output_limit: usize,
    /// Counters.
    pub stats: Stats,
    /// When the agent began.
    pub(super) started: Instant,
    /// A random name for this run of the agent.
    pub(super) run_id: String,
    /// The order of `SCAN`.
    pub(super) order: Order,
}

/// Settings of the agent that commands show.
#[derive(Clone, Debug, Default)]
pub struct ServerSettings {
    /// The password that clients must know, if there is one.
    pub password: Option<Password>,
    /// The TCP address that is listened on.
    pub listen: Option<std::net::SocketAddr>,
    /// The Unix socket that is listened on.
    pub unix_socket: Option<std::path::PathBuf>,
    /// Clients that may be connected at once.
    pub max_clients: usize,
    /// Bytes that copies may take.
    pub max_memory: usize,
    /// Seconds after which a client that is silent is disconnected; 0: never.
    pub timeout: u64,
    /// Bytes of output that may wait for a client.
    pub output_limit: usize,
    /// Bytes that all clients may take together.
    pub clients_memory: usize,
    /// Bytes of one argument.
    pub max_bulk: usize,
    /// Keys that client-side caching remembers.
    pub tracking_table_max_keys: usize,
}

impl Server {
    /// With these settings.
    pub fn new(settings: ServerSettings) -> Self {
        let ServerSettings {
            password,
            listen,
            unix_socket,
            max_clients,
            max_memory,
            timeout,
            output_limit: limit,
            clients_memory,
            max_bulk,
            tracking_table_max_keys,
        } = settings;
        let parameters = vec![
            ("appendonly", "no".into()),
            ("bind", listen.map(|at| at.ip().to_string()).unwrap_or_default()),
            ("client-output-buffer-limit", format!("normal {limit} 0 0 slave 0 0 0 pubsub {limit} 0 0")),
            ("databases", "1".into()),
            ("maxclients", max_clients.to_string()),
            ("maxmemory", max_memory.to_string()),
            ("maxmemory-clients", clients_memory.to_string()),
            ("maxmemory-policy", "allkeys-lru".into()),
            ("notify-keyspace-events", "AKE".into()),
            ("port", listen.map_or(0, |at| at.port()).to_string()),
            ("proto-max-bulk-len", max_bulk.to_string()),
            ("save", String::new()),
            ("timeout", timeout.to_string()),
            ("tracking-table-max-keys", tracking_table_max_keys.to_string()),
            ("unixsocket", unix_socket.map(|path| path.display().to_string()).unwrap_or_default()),
        ];
        let random: [u8; 20] = rand::rng().random();
        Self {
            password,
            parameters,
            port: listen.map_or(0, |at| at.port()),
            max_clients,
            max_memory,
            output_limit: limit,
            stats: Stats::default(),
            started: Instant::now(),
            run_id: hex(&random),
            order: Order::default(),
        }
    }

    /// Whether clients must show a password.
    pub fn needs_password(&self) -> bool {
        self.password.is_some()
    }

    /// Whether a client that shows this password may go on.
    pub(super) fn is_password(&self, password: &[u8]) -> bool {
        self.password.as_ref().is_none_or(|known| known.is(password))
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(n.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// `CONFIG GET parameter ...`
pub fn get(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    args.iter().try_for_each(|pattern| bounded(pattern))?;
    let patterns: Vec<Vec<u8>> = args.iter().skip(2).map(|pattern| pattern.to_ascii_lowercase()).collect();
    let wanted = |name: &str| patterns.iter().any(|pattern| glob::matches(pattern, name.as_bytes()));
    let found = context.agent.commands.parameters.iter().filter(|(name, _)| wanted(name));
    let found = found.map(|(name, value)| {
        let value = Bytes::copy_from_slice(value.as_bytes());
        (Reply::Bulk(Bytes::from_static(name.as_bytes())), Reply::Bulk(value))
    });
    Ok(Flow::Reply(Reply::Map(found.collect())))
}

/// `CONFIG HELP`
pub fn help(_: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(lines(&[
        "CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "GET <pattern>",
        "    Return parameters matching the glob-like <pattern> and their values.",
        "HELP",
        "    Print this help.",
    ]))
}
