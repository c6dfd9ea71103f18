//! Random sequences of commands. What does not depend on time, nor on how long ago something was: no timeout ends within a
//! run, and no two timeouts of a sequence are near each other.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::step::{Command, Step};

/// Connections that a sequence uses: the first speaks RESP2, the second RESP3.
pub const CONNECTIONS: usize = 2;

/// Makes sequences.
pub struct Generator {
    rng: StdRng,
    prefix: &'static str,
    /// Seconds since 1970, before now.
    now: u64,
    timeouts: Vec<u64>,
    steps: Vec<Step>,
}

/// Ids that keys have: names of objects and others.
const IDS: [&[u8]; 8] =
    [b"one", b"two", b"3", b"UPPER", b"with space", b"a/b:c", "\u{fc}n\u{ef}".as_bytes(), b"\xff\x00\x01"];
const FIELDS: [&str; 6] = ["a", "b", "backend", "a.b/c", "\u{fc}", "n"];

impl Generator {
    /// One for this seed.
    pub fn new(seed: u64, prefix: &'static str, now: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut timeouts: Vec<u64> = (1..1_000).map(|n| n * 1_000).collect();
        timeouts.shuffle(&mut rng);
        Self { rng, prefix, now, timeouts, steps: Vec::new() }
    }

    /// A sequence of about so many steps.
    pub fn sequence(mut self, length: usize) -> Vec<Step> {
        while self.steps.len() < length {
            match self.rng.random_range(0..100) {
                0..4 => self.transaction(),
                4..6 => self.subscriber(),
                6..9 => self.tracker(),
                9..12 => {
                    let (over, options) = (self.connection(), self.scan());
                    self.steps.push(Step::Scan { over, options });
                }
                _ => {
                    let mut command = self.command(false);
                    self.mangle(&mut command);
                    self.push(command);
                }
            }
        }
        self.steps
    }

    fn connection(&mut self) -> usize {
        self.rng.random_range(0..CONNECTIONS)
    }

    fn push(&mut self, command: Command) {
        let over = self.connection();
        self.push_over(over, command);
    }

    fn push_over(&mut self, over: usize, mut command: Command) {
        if self.chance(20) {
            // Names and options are the same in any case.
            command[0].make_ascii_uppercase();
        }
        let inline = self.chance(10);
        self.steps.push(Step::Command { over, command, inline });
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent, 100)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.rng).expect("something to choose from")
    }

    /// A key whose values are strings (`s-`), hashes (`h-`), or anything. In a transaction the form that a key will have is
    /// not known, so that keys of any form are left out there.
    fn key(&mut self, class: &str, in_transaction: bool) -> Vec<u8> {
        let class = if !in_transaction && self.chance(30) { "" } else { class };
        // Few keys: most commands are to find something.
        let id = if self.chance(70) { IDS[self.rng.random_range(0..2)] } else { self.pick(&IDS) };
        [self.prefix.as_bytes(), class.as_bytes(), id].concat()
    }

    fn any_key(&mut self, in_transaction: bool) -> Vec<u8> {
        let class = self.pick(&["s-", "h-"]);
        self.key(class, in_transaction)
    }

    /// A value for a string: a JSON object of strings as the agent would write it, so that both return the same.
    fn object(&mut self) -> Vec<u8> {
        let mut object = serde_json::Map::new();
        for _ in 0..self.rng.random_range(0..4) {
            object.insert(self.field(), self.field_value().into());
        }
        serde_json::Value::Object(object).to_string().into_bytes()
    }

    fn field(&mut self) -> String {
        self.pick(&FIELDS).to_owned()
    }

    fn field_value(&mut self) -> String {
        match self.rng.random_range(0..10) {
            0..4 => self.rng.random_range(-5..100).to_string(),
            4 => i64::MAX.to_string(),
            5 => self.pick(&["", " 1", "1.5", "01", "-0", "9223372036854775808"]).to_owned(),
            6 => "quote\" backslash\\ newline\n tab\t bell\u{7} <&> \u{fc} \u{1f600} \u{2028}".to_owned(),
            7 => "long ".repeat(200),
            _ => "text".to_owned(),
        }
    }

    /// Seconds from now. No two of a sequence are the same, and none ends soon or is more than a year.
    fn timeout(&mut self) -> u64 {
        self.timeouts.pop().unwrap_or(1_000_000)
    }

    /// A number that is none, or is out of every range.
    fn bad_number(&mut self) -> String {
        let bad = ["abc", "", "1.5", " 1", "+1", "0x1", "9223372036854775808", "-9223372036854775809", "1e3"];
        self.pick(&bad).to_owned()
    }

    /// An argument for a relative time: in seconds, or in milliseconds. What Redis takes and what is more than a year is left
    /// out: the agent refuses it, and says so (docs/commands.md).
    fn relative(&mut self, unit: u64) -> String {
        match self.rng.random_range(0..20) {
            0 => self.bad_number(),
            // So many seconds are too much for Redis too; so many milliseconds are not.
            1 if unit == 1 && self.chance(25) => "9223372036854775".to_owned(),
            1 => self.pick(&["0", "-1", "9223372036854775807", "-9223372036854775808"]).to_owned(),
            _ => (self.timeout() * unit).to_string(),
        }
    }

    fn absolute(&mut self, unit: u64) -> String {
        match self.rng.random_range(0..20) {
            0 => self.bad_number(),
            1 if unit == 1 && self.chance(25) => "9223372036854775807".to_owned(),
            1 => self.pick(&["0", "-1", "1", "1000000000"]).to_owned(),
            _ => ((self.now + self.timeout()) * unit).to_string(),
        }
    }

    /// `EX seconds` and its like.
    fn expiry(&mut self) -> Vec<String> {
        match self.rng.random_range(0..4) {
            0 => vec!["ex".into(), self.relative(1)],
            1 => vec!["px".into(), self.relative(1_000)],
            2 => vec!["exat".into(), self.absolute(1)],
            _ => vec!["pxat".into(), self.absolute(1_000)],
        }
    }

    fn set(&mut self, in_transaction: bool) -> Command {
        let mut command = words(["set"]);
        command.push(self.key("s-", in_transaction));
        command.push(self.object());
        let mut options: Vec<Vec<String>> = Vec::new();
        if self.chance(40) {
            options.push(self.expiry());
        }
        for (word, percent) in [("nx", 20), ("xx", 20), ("get", 20), ("keepttl", 15)] {
            if self.chance(percent) {
                options.push(vec![word.to_owned()]);
            }
        }
        options.shuffle(&mut self.rng);
        command.extend(options.into_iter().flatten().map(|word| self.cased(&word)));
        command
    }

    fn cased(&mut self, word: &str) -> Vec<u8> {
        if self.chance(30) { word.to_uppercase().into_bytes() } else { word.as_bytes().to_vec() }
    }

    fn getex(&mut self, in_transaction: bool) -> Command {
        let mut command = words(["getex"]);
        command.push(self.key("s-", in_transaction));
        let options = match self.rng.random_range(0..10) {
            0 => vec![],
            1..3 => vec!["persist".to_owned()],
            3 => [self.expiry(), vec!["persist".to_owned()]].concat(),
            _ => self.expiry(),
        };
        command.extend(options.iter().map(|word| self.cased(word)));
        command
    }

    fn expire(&mut self, in_transaction: bool) -> Command {
        let (name, time) = match self.rng.random_range(0..4) {
            0 => ("expire", self.relative(1)),
            1 => ("pexpire", self.relative(1_000)),
            2 => ("expireat", self.absolute(1)),
            _ => ("pexpireat", self.absolute(1_000)),
        };
        let mut command = words([name]);
        command.push(self.any_key(in_transaction));
        command.push(time.into_bytes());
        for option in ["nx", "xx", "gt", "lt"] {
            if self.chance(15) {
                command.push(self.cased(option));
            }
        }
        command
    }

    fn several(&mut self, name: &str, class: &str, in_transaction: bool) -> Command {
        let mut command = words([name]);
        for _ in 0..self.rng.random_range(1..4) {
            command.push(self.key(class, in_transaction));
        }
        command
    }

    fn several_of_any(&mut self, name: &str, in_transaction: bool) -> Command {
        let mut command = words([name]);
        for _ in 0..self.rng.random_range(1..4) {
            command.push(self.any_key(in_transaction));
        }
        command
    }

    fn hash(&mut self, in_transaction: bool) -> Command {
        let names = [
            "hset", "hset", "hset", "hsetnx", "hget", "hmget", "hgetall", "hgetall", "hkeys", "hvals", "hlen",
            "hexists", "hdel", "hdel", "hstrlen", "hincrby", "hscan", "hmset",
        ];
        let name = self.pick(&names);
        let mut command = words([name]);
        command.push(self.key("h-", in_transaction));
        let fields = self.rng.random_range(1..4);
        match name {
            "hset" | "hmset" => {
                for _ in 0..fields {
                    command.push(self.field().into_bytes());
                    command.push(self.field_value().into_bytes());
                }
            }
            "hsetnx" => command.extend([self.field().into_bytes(), self.field_value().into_bytes()]),
            "hget" | "hexists" | "hstrlen" => command.push(self.field().into_bytes()),
            "hmget" | "hdel" => {
                for _ in 0..fields {
                    command.push(self.field().into_bytes());
                }
            }
            "hincrby" => {
                let by = match self.rng.random_range(0..10) {
                    0 => self.bad_number(),
                    1 => i64::MAX.to_string(),
                    2 => i64::MIN.to_string(),
                    _ => self.rng.random_range(-9..10).to_string(),
                };
                command.extend([self.field().into_bytes(), by.into_bytes()]);
            }
            "hscan" => command.extend(self.hscan()),
            _ => {}
        }
        command
    }

    /// Cursor and options. A hash with long values is none of one page in Redis, unless so many fields are asked for.
    fn hscan(&mut self) -> Command {
        let mut options = vec![[b"count".to_vec(), self.pick(&["1000", "1000", "1000", "0", "abc"]).into()]];
        if self.chance(50) {
            options.push([b"MATCH".to_vec(), self.pick(&["*", "a*", "?", "[a-m]", "b*k*", "nothing"]).into()]);
        }
        if self.chance(10) {
            options.push([b"type".to_vec(), b"hash".to_vec()]);
        }
        options.shuffle(&mut self.rng);
        let cursor = if self.chance(10) { "abc" } else { "0" };
        [vec![cursor.into()], options.concat()].concat()
    }

    fn scan(&mut self) -> Command {
        let mut options = Vec::new();
        if self.chance(60) {
            let pattern = self.pick(&["*", "*o*", "s-*", "h-t?o", "[sh]-[a-z]*", "[^s]-*", "\\*", "nothing*"]);
            options.extend([b"match".to_vec(), [self.prefix.as_bytes(), pattern.as_bytes()].concat()]);
        }
        if self.chance(40) {
            options.extend([b"COUNT".to_vec(), self.pick(&["1", "3", "1000"]).as_bytes().to_vec()]);
        }
        if self.chance(40) {
            options.extend([b"type".to_vec(), self.pick(&["string", "hash", "list"]).as_bytes().to_vec()]);
        }
        options
    }

    /// Commands about the connection, and wrong ones.
    fn connection_command(&mut self) -> Command {
        let prefix = self.prefix;
        let lines = [
            "ping",
            "ping hello",
            "ping a b",
            "echo hello",
            "echo",
            "select 0",
            "select abc",
            "select 999",
            "select",
            "time x",
            "hello",
            "hello 2",
            "hello 3",
            "hello 4",
            "hello abc",
            "hello 3 setname me",
            "hello 3 nonsense",
            "hello 3 auth default",
            "hello 3 auth nobody secret",
            "auth secret",
            "auth nobody secret",
            "auth a b c",
            "client getname",
            "client setname me",
            "client setname",
            "client nosuch",
            "client",
            "client id",
            "client id x",
            "client reply on",
            "client reply maybe",
            "client reply",
            "client trackinginfo",
            "client getredir",
            "client info",
            "client info x",
            "client list",
            "client list type normal",
            "client list type pubsub",
            "client list type nosuch",
            "client list type master",
            "client list type",
            "client list id 0",
            "client list id abc",
            "client list id",
            "client list nonsense",
            "client caching yes",
            "client caching maybe",
            "client tracking",
            "client tracking maybe",
            "client tracking on optin optout",
            "client tracking on prefix a",
            "client tracking on bcast optin",
            "client tracking on bcast prefix ab prefix abc",
            "client tracking on redirect 999999",
            "client tracking off",
            "client tracking on redirect abc",
            "unsubscribe",
            "client tracking on nonsense",
            "client no-evict on",
            "client no-evict off",
            "client no-evict maybe",
            "client no-evict",
            "command getkeys get a",
            "command getkeys mget a b",
            "command getkeys set a b",
            "command getkeys ping",
            "command getkeys nosuch a",
            "command getkeys get",
            "command nosuch",
            "command count x",
            "command info nosuch",
            "command docs nosuch",
            "config",
            "config get",
            "config nosuch",
            "config get nosuch",
            "config get save",
            "config get appendonly",
            "config get notify-keyspace-events",
            "config get APPENDON?Y",
            "info nosuch",
            "quit",
            "quit now",
            "dbsize",
            "dbsize x",
            "reset",
            "multi x",
            "exec",
            "discard",
            "unwatch",
            "watch",
            "exec x",
            "nosuch",
            "nosuch a b c",
            "nosuch-with-a-long-name-indeed-longer-than-one-would-think-possible-for-a-command x",
            "get",
            "set a",
            "del",
            "mget",
            "hset a b",
            "hset a b c d",
            "hmget a",
            "hdel a",
            "scan",
            "scan abc",
            "scan 0 count 0",
            "scan 0 count abc",
            "scan 0 nonsense",
            "scan 0 match",
            "type",
        ];
        let line = self.pick(&lines);
        // Keys begin with the prefix.
        line.split(' ')
            .map(|w| if w == "a" { format!("{prefix}one").into_bytes() } else { w.as_bytes().to_vec() })
            .collect()
    }

    /// A command that is right.
    fn command(&mut self, tx: bool) -> Command {
        match self.rng.random_range(0..100) {
            0..18 => self.set(tx),
            18..28 => {
                let name = self.pick(&["get", "get", "getdel", "strlen"]);
                let key = self.key("s-", tx);
                words_and(name, [key])
            }
            28..34 => self.getex(tx),
            34..37 => self.several("mget", "s-", tx),
            37..39 => words_and("setnx", [self.key("s-", tx), self.object()]),
            39..41 => {
                let (name, unit) = self.pick(&[("setex", 1), ("psetex", 1_000)]);
                words_and(name, [self.key("s-", tx), self.relative(unit).into_bytes(), self.object()])
            }
            41..45 => {
                let name = self.pick(&["del", "del", "unlink", "exists", "exists", "touch"]);
                self.several_of_any(name, tx)
            }
            45..55 => self.expire(tx),
            55..65 => {
                let name = self.pick(&["ttl", "pttl", "expiretime", "pexpiretime", "persist", "type"]);
                words_and(name, [self.any_key(tx)])
            }
            65..90 => self.hash(tx),
            _ if tx => self.hash(tx),
            90..93 => self.several_of_any("watch", tx),
            _ => self.connection_command(),
        }
    }

    /// Makes some commands wrong.
    fn mangle(&mut self, command: &mut Command) {
        // What commands there are is not the same. And one more word would be a value that is no object of strings.
        let lacks_its_value = command[0] == b"set" && command.len() == 2;
        if command[0] == b"command" || lacks_its_value {
            return;
        }
        match self.rng.random_range(0..40) {
            // Never the name; and a scan that is right is a step of its own, as the order of keys is not the same.
            0 if command.len() > 1 && command[0] != b"scan" => _ = command.pop(),
            1 => command.push(b"junk".to_vec()),
            2 => {
                let last = command[command.len() - 1].clone();
                command.push(last);
            }
            _ => {}
        }
    }

    /// MULTI and what comes to its end, or does not.
    fn transaction(&mut self) {
        let over = self.connection();
        if self.chance(40) {
            let watch = self.several_of_any("watch", true);
            self.push_over(over, watch);
            if self.chance(50) {
                let meanwhile = self.command(true);
                self.push_over(CONNECTIONS - 1 - over, meanwhile);
            }
        }
        self.push_over(over, words(["multi"]));
        for _ in 0..self.rng.random_range(0..6) {
            let command = match self.rng.random_range(0..20) {
                0 => words(["multi"]),
                1 => words(["watch", "key"]),
                2 => words(["get"]),
                3 => words(["nosuch"]),
                4 => words(["ping"]),
                _ => self.command(true),
            };
            self.push_over(over, command);
        }
        let end = self.pick(&["exec", "exec", "exec", "exec", "discard", "reset"]);
        self.push_over(over, words([end]));
    }

    /// A connection that keeps what it reads, and what others and itself do to that.
    fn tracker(&mut self) {
        let over = CONNECTIONS - 1;
        let [strings, hashes] = ["s-", "h-"].map(|class| format!("prefix {}{class}", self.prefix));
        let mode = match self.rng.random_range(0..8) {
            0..3 => String::new(),
            3 => "optin".to_owned(),
            4 => "optout".to_owned(),
            5 => "bcast".to_owned(),
            6 => format!("bcast {strings}"),
            _ => format!("bcast {hashes} {strings}"),
        };
        let line = |line: &str| -> Command { line.split_whitespace().map(|w| w.as_bytes().to_vec()).collect() };
        // Whoever speaks RESP2 is told of nothing.
        self.push_over(over, line("hello 3"));
        self.push_over(over, line("client tracking off"));
        let no_loop = if self.chance(40) { "noloop" } else { "" };
        self.push_over(over, line(&format!("client tracking on {mode} {no_loop}")));
        for _ in 0..self.rng.random_range(4..16) {
            match self.rng.random_range(0..100) {
                0..35 => {
                    let command = self.command(false);
                    self.push_over(over, command);
                }
                35..75 => {
                    let command = self.command(false);
                    self.push_over(CONNECTIONS - 1 - over, command);
                }
                75..85 if mode == "optin" || mode == "optout" => {
                    let caching = if mode == "optin" { "client caching yes" } else { "client caching no" };
                    self.push_over(over, line(caching));
                    let command = self.command(false);
                    self.push_over(over, command);
                }
                75..90 => {
                    // What was read just now is there to be invalidated.
                    let key = self.any_key(true);
                    self.push_over(over, words_and("exists", [key.clone()]));
                    let change = self.pick(&["del", "persist", "hset", "set"]);
                    let more: &[&str] = match change {
                        "hset" => &["a", "1"],
                        "set" => &["{}"],
                        _ => &[],
                    };
                    let change = [vec![change.into(), key], more.iter().map(|w| (*w).into()).collect()].concat();
                    self.push(change);
                }
                90..94 => self.transaction(),
                _ => {
                    let about = self.pick(&["client trackinginfo", "client getredir", "client info"]);
                    self.push_over(over, line(about));
                }
            }
        }
        self.push_over(over, line("client tracking off"));
    }

    /// A connection that subscribes, and what it may do then. Nobody changes the keys whose events it would hear.
    fn subscriber(&mut self) {
        let over = self.connection();
        let channels = ["__keyspace@0__:nothing", "__keyspace@0__:else", "__redis__:invalidate"];
        for _ in 0..self.rng.random_range(1..3) {
            let name = self.pick(&["subscribe", "psubscribe"]);
            let channel = self.pick(&channels);
            self.push_over(over, words([name, channel]));
        }
        for _ in 0..self.rng.random_range(0..3) {
            let command = match self.rng.random_range(0..3) {
                0 => words(["ping", "hello"]),
                1 => words(["unsubscribe", "__keyspace@0__:nothing"]),
                _ => words_and("get", [self.key("s-", true)]),
            };
            self.push_over(over, command);
        }
        if self.chance(50) {
            self.push_over(over, words(["unsubscribe"]));
            self.push_over(over, words(["punsubscribe"]));
        } else {
            self.push_over(over, words(["reset"]));
        }
    }
}

fn words<const N: usize>(of: [&str; N]) -> Command {
    of.iter().map(|w| w.as_bytes().to_vec()).collect()
}

fn words_and<const N: usize>(name: &str, more: [Vec<u8>; N]) -> Command {
    let mut command = words([name]);
    command.extend(more);
    command
}
