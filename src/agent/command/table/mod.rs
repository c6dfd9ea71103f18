//! The table of commands: what each is called, takes and does. It drives dispatch, the checks before it, `COMMAND`, and
//! the documentation.

mod connection;
mod flags;
mod keys;
mod server;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use flags::Flags;

use super::Flow;
use super::args::Clock;
use super::context::Context;
use super::op::Plan;
use super::refusal::Refusal;

/// Carries out a command that never waits.
pub type Now = fn(&mut Context<'_>, &[Bytes]) -> Result<Flow, Refusal>;

/// What a command does.
#[derive(Clone, Copy, Debug)]
pub enum Run {
    /// Something with keys.
    Keys(fn(&[Bytes], &Clock) -> Result<Plan, Refusal>),
    /// Something that needs nobody else: it never waits.
    Now(Now),
    /// `EXEC`
    Exec,
    /// `WATCH`
    Watch,
    /// What its subcommand does, or what it does without one.
    Container(Option<Now>),
    /// Nothing: it is refused, with this reason.
    Refused(&'static str),
}

/// A command, or a subcommand.
#[derive(Debug)]
pub struct Command {
    /// Its name in lower case; of a subcommand, its own.
    pub name: &'static str,
    /// Its name, with `container|` before that of a subcommand.
    pub full_name: &'static str,
    /// How many arguments it takes, its name included; at least so many, if negative.
    pub arity: i32,
    /// What is true of it.
    pub flags: Flags,
    /// Where its keys are.
    pub keys: Position,
    /// What it does with them, in Redis's words.
    pub access: &'static [&'static str],
    /// The group that it is documented in.
    pub group: &'static str,
    /// The categories that do not follow from its flags.
    pub categories: &'static [&'static str],
    /// Hints for proxies.
    pub tips: &'static [&'static str],
    /// What it does, in a line.
    pub summary: &'static str,
    /// The version of Redis that had it first.
    pub since: &'static str,
    /// How long it takes.
    pub complexity: &'static str,
    /// How it differs from Redis's, if it does.
    pub differs: &'static str,
    /// Its subcommands.
    pub subcommands: &'static [Self],
    /// What it does.
    pub run: Run,
    /// Where its counters are, see [`index`].
    id: u16,
}

/// Where the keys of a command are among its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// It has none.
    None,
    /// The first argument.
    First,
    /// All arguments.
    All,
}

/// Categories, in the order in which Redis lists them.
const CATEGORIES: [&str; 14] = [
    "keyspace",
    "read",
    "write",
    "list",
    "hash",
    "string",
    "pubsub",
    "admin",
    "fast",
    "slow",
    "blocking",
    "dangerous",
    "connection",
    "transaction",
];

impl Command {
    const fn new(name: &'static str, arity: i32, flags: Flags, run: Run) -> Self {
        Self {
            name,
            full_name: name,
            arity,
            flags,
            keys: Position::None,
            access: &[],
            group: "",
            categories: &[],
            tips: &[],
            summary: "",
            since: "",
            complexity: "O(1)",
            differs: "",
            subcommands: &[],
            run,
            id: 0,
        }
    }

    const fn keys(mut self, keys: Position, access: &'static [&'static str]) -> Self {
        self.keys = keys;
        self.access = access;
        self
    }

    const fn group(mut self, group: &'static str, categories: &'static [&'static str]) -> Self {
        self.group = group;
        self.categories = categories;
        self
    }

    const fn doc(mut self, summary: &'static str, since: &'static str) -> Self {
        self.summary = summary;
        self.since = since;
        self
    }

    const fn takes(mut self, complexity: &'static str) -> Self {
        self.complexity = complexity;
        self
    }

    const fn tips(mut self, tips: &'static [&'static str]) -> Self {
        self.tips = tips;
        self
    }

    const fn differs(mut self, differs: &'static str) -> Self {
        self.differs = differs;
        self
    }

    const fn full_name(mut self, full_name: &'static str) -> Self {
        self.full_name = full_name;
        self
    }

    const fn subcommands(mut self, subcommands: &'static [Self]) -> Self {
        self.subcommands = subcommands;
        self
    }

    /// Whether so many arguments, its name included, are right.
    #[inline]
    pub fn takes_arguments(&self, count: usize) -> bool {
        let wanted = usize::try_from(self.arity.unsigned_abs()).unwrap_or(usize::MAX);
        if self.arity < 0 { count >= wanted } else { count == wanted }
    }

    /// The subcommand of this name, in any case.
    pub fn subcommand(&self, name: &[u8]) -> Option<&'static Self> {
        self.subcommands.iter().find(|command| name.eq_ignore_ascii_case(command.name.as_bytes()))
    }

    /// Its keys in a request.
    pub fn keys_of<'a>(&self, args: &'a [Bytes]) -> &'a [Bytes] {
        match self.keys {
            Position::None => &[],
            Position::First => args.get(1..2).unwrap_or_default(),
            Position::All => args.get(1..).unwrap_or_default(),
        }
    }

    /// Where its keys are, as first, last and step.
    pub fn key_range(&self) -> (i64, i64, i64) {
        match self.keys {
            Position::None => (0, 0, 0),
            Position::First => (1, 1, 1),
            Position::All => (1, -1, 1),
        }
    }

    /// Its categories, as in `ACL`.
    pub fn categories(&self) -> impl Iterator<Item = &'static str> {
        let has = |flag| self.flags.has(flag);
        CATEGORIES.into_iter().filter(move |category| match *category {
            "read" => has(Flags::READONLY),
            "write" => has(Flags::WRITE),
            "admin" => has(Flags::ADMIN),
            "pubsub" => has(Flags::PUBSUB),
            "fast" => has(Flags::FAST),
            "slow" => !has(Flags::FAST),
            "dangerous" => has(Flags::ADMIN) || self.categories.contains(category),
            category => self.categories.contains(&category),
        })
    }

    /// The number under which its calls are counted; below [`COMMANDS`].
    #[inline]
    pub fn index(&self) -> usize {
        usize::from(self.id)
    }
}

/// How many commands there are, without subcommands.
pub const COMMANDS: usize = connection::ROWS.len() + server::ROWS.len() + keys::ROWS.len();

/// All commands.
pub static TABLE: [Command; COMMANDS] = table();

const fn table() -> [Command; COMMANDS] {
    let mut table = [const { Command::new("", 0, Flags::NONE, Run::Exec) }; COMMANDS];
    let parts: [&[Command]; 3] = [&connection::ROWS, &server::ROWS, &keys::ROWS];
    let (mut part, mut at) = (0, 0_u16);
    while part < parts.len() {
        let mut row = 0;
        while row < parts[part].len() {
            table[at as usize] = Command { id: at, ..copy(&parts[part][row]) };
            at += 1;
            row += 1;
        }
        part += 1;
    }
    table
}

/// A copy, as constants need it: `Clone` cannot be called there.
const fn copy(of: &Command) -> Command {
    let Command {
        name,
        full_name,
        arity,
        flags,
        keys,
        access,
        group,
        categories,
        tips,
        summary,
        since,
        complexity,
        differs,
        subcommands,
        run,
        id,
    } = *of;
    Command {
        name,
        full_name,
        arity,
        flags,
        keys,
        access,
        group,
        categories,
        tips,
        summary,
        since,
        complexity,
        differs,
        subcommands,
        run,
        id,
    }
}

/// Slots of the hash table, a power of two well above the number of commands.
const SLOTS: usize = 512;
/// An empty slot.
const EMPTY: u16 = u16::MAX;

/// Where each command is: found by its hash, or in one of the slots behind.
static INDEX: [u16; SLOTS] = index();

const fn index() -> [u16; SLOTS] {
    let table = table();
    let mut index = [EMPTY; SLOTS];
    let mut id = 0;
    while id < COMMANDS {
        let mut slot = hash(table[id].name.as_bytes());
        while index[slot] != EMPTY {
            slot = (slot + 1) % SLOTS;
        }
        index[slot] = table[id].id;
        id += 1;
    }
    index
}

/// Of the length, the first seven bytes and the last: enough to tell the names apart, and any case will do.
#[inline]
const fn hash(name: &[u8]) -> usize {
    let mut word = name.len() as u64;
    let mut at = 0;
    while at < 7 && at < name.len() {
        word = (word << 8) | (name[at] | 0x20) as u64;
        at += 1;
    }
    if let [.., last] = name {
        word ^= ((*last | 0x20) as u64) << 56;
    }
    ((word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48) as usize) % SLOTS
}

/// The command of this name, in any case. Allocates nothing.
#[inline]
pub fn lookup(name: &[u8]) -> Option<&'static Command> {
    let mut slot = hash(name);
    loop {
        let command = TABLE.get(usize::from(INDEX[slot]))?;
        if command.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(command);
        }
        slot = (slot + 1) % SLOTS;
    }
}
