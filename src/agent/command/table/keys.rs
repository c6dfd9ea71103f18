//! Commands on keys: generic ones, strings, hashes.

use super::{Command, Flags, Position, Run};
use crate::agent::command::op::parse;
use crate::agent::command::scan::scan;

const FIRST: Position = Position::First;
const ALL: Position = Position::All;
const READ: Flags = Flags::READONLY;
const FAST_READ: Flags = Flags::READONLY.and(Flags::FAST);
const FAST_WRITE: Flags = Flags::WRITE.and(Flags::FAST);
const GROWS: Flags = Flags::WRITE.and(Flags::DENYOOM);
const FAST_GROWS: Flags = GROWS.and(Flags::FAST);

/// How times of expiry differ.
const LIMITED: &str = "A timeout is a year at most; a longer one is refused.";
/// What tells of a timeout, or decides by one, reads it first.
const ASKS: &str = "Asks the API server: the copy does not know what other pods have made of the timeout.";
const LIMITED_ASKS: &str =
    "A timeout is a year at most; a longer one is refused. With NX, XX, GT or LT it asks the API server.";
const JSON: &str = "The value is a JSON object of strings.";

const SUMS: &[&str] = &["request_policy:multi_shard", "response_policy:agg_sum"];
const VARIES: &[&str] = &["nondeterministic_output"];
const UNORDERED: &[&str] = &["nondeterministic_output_order"];

const fn generic(name: &'static str, arity: i32, flags: Flags, run: Run) -> Command {
    Command::new(name, arity, flags, run).group("generic", &["keyspace"])
}

const fn string(name: &'static str, arity: i32, flags: Flags, run: Run) -> Command {
    Command::new(name, arity, flags, run).group("string", &["string"])
}

const fn hash(name: &'static str, arity: i32, flags: Flags, run: Run) -> Command {
    Command::new(name, arity, flags, run).group("hash", &["hash"])
}

pub(super) const ROWS: [Command; 39] = [
    // Generic.
    generic("del", -2, Flags::WRITE, Run::Keys(parse::del))
        .keys(ALL, &["RM", "delete"])
        .doc("Delete a key", "1.0.0")
        .takes("O(N) where N is the number of keys: one request to the API server each.")
        .tips(SUMS),
    generic("exists", -2, FAST_READ, Run::Keys(parse::exists))
        .keys(ALL, &["RO"])
        .doc("Determine if a key exists", "1.0.0")
        .takes("O(N) where N is the number of keys to check.")
        .tips(SUMS),
    generic("expire", -3, FAST_WRITE, Run::Keys(parse::expire))
        .keys(FIRST, &["RW", "update"])
        .doc("Set a key's time to live in seconds", "1.0.0")
        .differs(LIMITED_ASKS),
    generic("expireat", -3, FAST_WRITE, Run::Keys(parse::expireat))
        .keys(FIRST, &["RW", "update"])
        .doc("Set the expiration for a key as a UNIX timestamp", "1.2.0")
        .differs(LIMITED_ASKS),
    generic("expiretime", 2, FAST_READ, Run::Keys(parse::expiretime))
        .keys(FIRST, &["RO", "access"])
        .doc("Get the expiration Unix timestamp for a key", "7.0.0")
        .differs(ASKS),
    generic("persist", 2, FAST_WRITE, Run::Keys(parse::persist))
        .keys(FIRST, &["RW", "update"])
        .doc("Remove the expiration from a key", "2.2.0")
        .differs(ASKS),
    generic("pexpire", -3, FAST_WRITE, Run::Keys(parse::pexpire))
        .keys(FIRST, &["RW", "update"])
        .doc("Set a key's time to live in milliseconds", "2.6.0")
        .differs(LIMITED_ASKS),
    generic("pexpireat", -3, FAST_WRITE, Run::Keys(parse::pexpireat))
        .keys(FIRST, &["RW", "update"])
        .doc("Set the expiration for a key as a UNIX timestamp specified in milliseconds", "2.6.0")
        .differs(LIMITED_ASKS),
    generic("pexpiretime", 2, FAST_READ, Run::Keys(parse::pexpiretime))
        .keys(FIRST, &["RO", "access"])
        .doc("Get the expiration Unix timestamp for a key in milliseconds", "7.0.0")
        .differs(ASKS),
    generic("pttl", 2, FAST_READ, Run::Keys(parse::pttl))
        .keys(FIRST, &["RO", "access"])
        .doc("Get the time to live for a key in milliseconds", "2.6.0")
        .differs(ASKS)
        .tips(VARIES),
    generic("scan", -2, READ, Run::Now(scan))
        .doc("Incrementally iterate the keys space", "2.8.0")
        .takes("O(N) for every call. N is the number of sessions that this agent holds.")
        .differs(
            "Lists the sessions that this agent holds a copy of, not all there are: it may not list them at the API server.",
        )
        .tips(&["nondeterministic_output", "request_policy:special"]),
    generic("touch", -2, FAST_READ, Run::Keys(parse::exists))
        .keys(ALL, &["RO"])
        .doc("Alters the last access time of a key(s). Returns the number of existing keys specified.", "3.2.1")
        .takes("O(N) where N is the number of keys that will be touched.")
        .tips(SUMS),
    generic("ttl", 2, FAST_READ, Run::Keys(parse::ttl))
        .keys(FIRST, &["RO", "access"])
        .doc("Get the time to live for a key in seconds", "1.0.0")
        .differs(ASKS)
        .tips(VARIES),
    generic("type", 2, FAST_READ, Run::Keys(parse::type_of))
        .keys(FIRST, &["RO"])
        .doc("Determine the type stored at key", "1.0.0")
        .differs("How the session was last written as a whole: `string` by SET, else `hash`. Asks the API server."),
    generic("unlink", -2, FAST_WRITE, Run::Keys(parse::del))
        .keys(ALL, &["RM", "delete"])
        .doc("Delete a key, the same as DEL", "4.0.0")
        .takes("O(N) where N is the number of keys: one request to the API server each.")
        .tips(SUMS),
    // Strings.
    string("get", 2, FAST_READ, Run::Keys(parse::get))
        .keys(FIRST, &["RO", "access"])
        .doc("Get the value of a key", "1.0.0"),
    string("getdel", 2, FAST_WRITE, Run::Keys(parse::getdel))
        .keys(FIRST, &["RW", "access", "delete"])
        .doc("Get the value of a key and delete the key", "6.2.0"),
    string("getex", -2, FAST_WRITE, Run::Keys(parse::getex))
        .keys(FIRST, &["RW", "access", "update"])
        .doc("Get the value of a key and optionally set its expiration", "6.2.0")
        .differs(LIMITED),
    string("mget", -2, FAST_READ, Run::Keys(parse::mget))
        .keys(ALL, &["RO", "access"])
        .doc("Get the values of all the given keys", "1.0.0")
        .takes("O(N) where N is the number of keys to retrieve.")
        .tips(&["request_policy:multi_shard"]),
    string("psetex", 4, GROWS, Run::Keys(parse::psetex))
        .keys(FIRST, &["OW", "update"])
        .doc("Set the value and expiration in milliseconds of a key", "2.6.0")
        .differs(JSON),
    string("set", -3, GROWS, Run::Keys(parse::set))
        .keys(FIRST, &["RW", "access", "update", "variable_flags"])
        .doc("Set the string value of a key", "1.0.0")
        .differs(JSON),
    string("setex", 4, GROWS, Run::Keys(parse::setex))
        .keys(FIRST, &["OW", "update"])
        .doc("Set the value and expiration of a key", "2.0.0")
        .differs(JSON),
    string("setnx", 3, FAST_GROWS, Run::Keys(parse::setnx))
        .keys(FIRST, &["OW", "insert"])
        .doc("Set the value of a key, only if the key does not exist", "1.0.0")
        .differs(JSON),
    string("strlen", 2, FAST_READ, Run::Keys(parse::strlen))
        .keys(FIRST, &["RO"])
        .doc("Get the length of the value stored in a key", "2.2.0"),
    // Hashes.
    hash("hdel", -3, FAST_WRITE, Run::Keys(parse::hdel))
        .keys(FIRST, &["RW", "delete"])
        .doc("Delete one or more hash fields", "2.0.0")
        .takes("O(N) where N is the number of fields to be removed."),
    hash("hexists", 3, FAST_READ, Run::Keys(parse::hexists))
        .keys(FIRST, &["RO"])
        .doc("Determine if a hash field exists", "2.0.0"),
    hash("hget", 3, FAST_READ, Run::Keys(parse::hget))
        .keys(FIRST, &["RO", "access"])
        .doc("Get the value of a hash field", "2.0.0"),
    hash("hgetall", 2, READ, Run::Keys(parse::hgetall))
        .keys(FIRST, &["RO", "access"])
        .doc("Get all the fields and values in a hash", "2.0.0")
        .takes("O(N) where N is the size of the hash.")
        .tips(UNORDERED),
    hash("hincrby", 4, FAST_GROWS, Run::Keys(parse::hincrby))
        .keys(FIRST, &["RW", "access", "update"])
        .doc("Increment the integer value of a hash field by the given number", "2.0.0"),
    hash("hkeys", 2, READ, Run::Keys(parse::hkeys))
        .keys(FIRST, &["RO", "access"])
        .doc("Get all the fields in a hash", "2.0.0")
        .takes("O(N) where N is the size of the hash.")
        .tips(UNORDERED),
    hash("hlen", 2, FAST_READ, Run::Keys(parse::hlen))
        .keys(FIRST, &["RO"])
        .doc("Get the number of fields in a hash", "2.0.0"),
    hash("hmget", -3, FAST_READ, Run::Keys(parse::hmget))
        .keys(FIRST, &["RO", "access"])
        .doc("Get the values of all the given hash fields", "2.0.0")
        .takes("O(N) where N is the number of fields being requested."),
    hash("hmset", -4, FAST_GROWS, Run::Keys(parse::hmset))
        .keys(FIRST, &["RW", "update"])
        .doc("Set multiple hash fields to multiple values", "2.0.0")
        .takes("O(N) where N is the number of fields being set."),
    hash("hscan", -3, READ, Run::Keys(parse::hscan))
        .keys(FIRST, &["RO", "access"])
        .doc("Incrementally iterate hash fields and associated values", "2.8.0")
        .takes("O(N) where N is the size of the hash.")
        .differs("All fields that match are answered at once, whatever COUNT says, as Redis does for a small hash.")
        .tips(&["nondeterministic_output"]),
    hash("hset", -4, FAST_GROWS, Run::Keys(parse::hset))
        .keys(FIRST, &["RW", "update"])
        .doc("Set the string value of a hash field", "2.0.0")
        .takes("O(N) to add N field/value pairs."),
    hash("hsetnx", 4, FAST_GROWS, Run::Keys(parse::hsetnx))
        .keys(FIRST, &["RW", "insert"])
        .doc("Set the value of a hash field, only if the field does not exist", "2.0.0"),
    hash("hstrlen", 3, FAST_READ, Run::Keys(parse::hstrlen))
        .keys(FIRST, &["RO"])
        .doc("Get the length of the value of a hash field", "3.2.0"),
    hash("hvals", 2, READ, Run::Keys(parse::hvals))
        .keys(FIRST, &["RO", "access"])
        .doc("Get all the values in a hash", "2.0.0")
        .takes("O(N) where N is the size of the hash.")
        .tips(UNORDERED),
    // Last of the generic ones, as in Redis: about all keys.
    Command::new("dbsize", 1, FAST_READ, Run::Now(crate::agent::command::scan::dbsize))
        .group("server", &["keyspace"])
        .doc("Return the number of keys in the selected database", "1.0.0")
        .differs("Counts the sessions that this agent holds a copy of.")
        .tips(&["request_policy:all_shards", "response_policy:agg_sum"]),
];
