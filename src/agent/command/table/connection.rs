//! Commands about the connection: who it is, transactions, channels.

use super::{Command, Flags, Position, Run};
use crate::agent::command::{client_command as client, connection, subscribe, transaction};

/// Commands that work in any state of the server.
const ALWAYS: Flags = Flags::NOSCRIPT.and(Flags::LOADING).and(Flags::STALE);
const ALWAYS_FAST: Flags = ALWAYS.and(Flags::FAST);
/// Those that work without a password, too.
const FOR_ALL: Flags = ALWAYS_FAST.and(Flags::NO_AUTH).and(Flags::ALLOW_BUSY);
/// Those that end things, whatever state the connection is in.
const ENDS: Flags = FOR_ALL.and(Flags::NOT_QUEUED).and(Flags::LISTENER);
const TRANSACTION: Flags = ALWAYS_FAST.and(Flags::ALLOW_BUSY);
const CHANNELS: Flags = Flags::PUBSUB.and(ALWAYS).and(Flags::NO_MULTI).and(Flags::LISTENER);
/// Those that are never queued.
const IMMEDIATE: Flags = TRANSACTION.and(Flags::NOT_QUEUED);

const NOT_IN_MULTI: &str = "Not within MULTI.";

const fn row(name: &'static str, arity: i32, flags: Flags, run: Run) -> Command {
    Command::new(name, arity, flags, run).group("connection", &["connection"])
}

const fn transactions(name: &'static str, arity: i32, flags: Flags, run: Run) -> Command {
    Command::new(name, arity, flags, run).group("transactions", &["transaction"])
}

const fn channels(name: &'static str, arity: i32, run: Run) -> Command {
    Command::new(name, arity, CHANNELS, run).group("pubsub", &[]).differs(NOT_IN_MULTI)
}

const fn client(full_name: &'static str, name: &'static str, arity: i32, run: Run) -> Command {
    row(name, arity, ALWAYS, run).full_name(full_name)
}

pub(super) const ROWS: [Command; 17] = [
    row("auth", -2, FOR_ALL, Run::Now(connection::auth))
        .doc("Authenticate to the server", "1.0.0")
        .differs("There is one user, `default`."),
    Command::new("client", -2, Flags::NONE, Run::Container(None))
        .group("connection", &[])
        .doc("A container for client connection commands", "2.4.0")
        .takes("Depends on subcommand.")
        .subcommands(&CLIENT),
    row("echo", 2, Flags::LOADING.and(Flags::STALE).and(Flags::FAST), Run::Now(connection::echo))
        .doc("Echo the given string", "1.0.0"),
    row("hello", -1, FOR_ALL, Run::Now(connection::hello)).doc("Handshake with Redis", "6.0.0"),
    row("ping", -1, Flags::FAST.and(Flags::LISTENER), Run::Now(connection::ping))
        .doc("Ping the server", "1.0.0")
        .tips(&["request_policy:all_shards", "response_policy:all_succeeded"]),
    row("quit", -1, ENDS, Run::Now(connection::quit)).doc("Close the connection", "1.0.0"),
    row("reset", 1, ENDS, Run::Now(connection::reset)).doc("Reset the connection", "6.2.0"),
    row("select", 2, Flags::LOADING.and(Flags::STALE).and(Flags::FAST), Run::Now(connection::select))
        .doc("Change the selected database for the current connection", "1.0.0")
        .differs("There is one database, 0."),
    transactions("multi", 1, IMMEDIATE, Run::Now(transaction::multi))
        .doc("Mark the start of a transaction block", "1.2.0"),
    transactions("exec", 1, ALWAYS.and(Flags::SKIP_SLOWLOG).and(Flags::NOT_QUEUED), Run::Exec)
        .doc("Execute all commands issued after MULTI", "1.2.0")
        .takes("Depends on commands in the transaction")
        .differs("Each session is written once, with all changes or none; several sessions are several writes."),
    transactions("discard", 1, IMMEDIATE, Run::Now(transaction::discard))
        .doc("Discard all commands issued after MULTI", "2.0.0")
        .takes("O(N), when N is the number of queued commands"),
    transactions("watch", -2, IMMEDIATE, Run::Watch)
        .keys(Position::All, &["RO"])
        .doc("Watch the given keys to determine execution of the MULTI/EXEC block", "2.2.0")
        .takes("O(1) for every key.")
        .differs("Sees changes of fields, not renewals. A key that came and went again may look as if it had not."),
    transactions("unwatch", 1, TRANSACTION, Run::Now(transaction::unwatch))
        .doc("Forget about all watched keys", "2.2.0"),
    channels("subscribe", -2, Run::Now(subscribe::subscribe))
        .doc("Listen for messages published to the given channels", "2.0.0")
        .takes("O(N) where N is the number of channels to subscribe to."),
    channels("unsubscribe", -1, Run::Now(subscribe::unsubscribe))
        .doc("Stop listening for messages posted to the given channels", "2.0.0")
        .takes("O(N) where N is the number of channels to unsubscribe from."),
    channels("psubscribe", -2, Run::Now(subscribe::psubscribe))
        .doc("Listen for messages published to channels matching the given patterns", "2.0.0")
        .takes("O(N) where N is the number of patterns the client is already subscribed to."),
    channels("punsubscribe", -1, Run::Now(subscribe::punsubscribe))
        .doc("Stop listening for messages posted to channels matching the given patterns", "2.0.0")
        .takes("O(N) where N is the number of patterns to unsubscribe from."),
];

const ADMIN: Flags = ALWAYS.and(Flags::ADMIN);

const CLIENT: [Command; 14] = [
    client("client|caching", "caching", 3, Run::Now(client::caching))
        .doc("Instruct the server about tracking or not keys in the next request", "6.0.0"),
    client("client|getname", "getname", 2, Run::Now(client::getname)).doc("Get the current connection name", "2.6.9"),
    client("client|getredir", "getredir", 2, Run::Now(client::getredir))
        .doc("Get tracking notifications redirection client ID if any", "6.0.0"),
    Command::new("help", 2, Flags::LOADING.and(Flags::STALE), Run::Now(client::help))
        .group("connection", &["connection"])
        .full_name("client|help")
        .doc("Show helpful text about the different subcommands", "5.0.0"),
    client("client|id", "id", 2, Run::Now(client::id)).doc("Returns the client ID for the current connection", "5.0.0"),
    client("client|info", "info", 2, Run::Now(client::info))
        .doc("Returns information about the current client connection.", "6.2.0")
        .tips(&["nondeterministic_output"]),
    Command::new("list", -2, ADMIN, Run::Now(client::list))
        .group("connection", &["connection"])
        .full_name("client|list")
        .doc("Get the list of client connections", "2.4.0")
        .takes("O(N) where N is the number of client connections")
        .tips(&["nondeterministic_output"]),
    Command::new("no-evict", 3, ADMIN, Run::Now(client::no_evict))
        .group("connection", &["connection"])
        .full_name("client|no-evict")
        .doc("Set client eviction mode for the current connection", "7.0.0")
        .differs("Changes nothing: nobody is exempt from `--clients-memory`."),
    client("client|no-touch", "no-touch", 3, Run::Now(client::no_touch))
        .doc("Controls whether commands sent by the client affect the LRU/LFU of accessed keys.", "7.2.0")
        .differs(
            "What such a client reads is only looked at: no later `SET` takes its difference from it. Outside `MULTI`.",
        ),
    client("client|reply", "reply", 3, Run::Now(client::reply))
        .doc("Instruct the server whether to reply to commands", "3.2.0"),
    client("client|setinfo", "setinfo", 4, Run::Now(client::setinfo))
        .doc("Set client or connection specific info", "7.2.0"),
    client("client|setname", "setname", 3, Run::Now(client::setname)).doc("Set the current connection name", "2.6.9"),
    client("client|tracking", "tracking", -3, Run::Now(client::tracking))
        .doc("Enable or disable server assisted client side caching support", "6.0.0")
        .takes("O(1). Some options may introduce additional complexity."),
    client("client|trackinginfo", "trackinginfo", 2, Run::Now(client::trackinginfo))
        .doc("Return information about server assisted client side caching for the current connection", "6.2.0"),
];
