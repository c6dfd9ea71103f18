//! Runs a sequence on two servers, side by side, and makes one that shows a difference short.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::caching::{ClientCache, Tracking};
use super::compare::{normal, same};
use super::generate::CONNECTIONS;
use super::step::{Command, Step, name, word};
use crate::agent::wire::{Connection, Value};

/// Runs that making a sequence short may take.
const ATTEMPTS: usize = 150;
/// Rounds that a SCAN may take.
const ROUNDS: usize = 10_000;

/// Two servers.
pub struct Pair {
    /// Redis.
    reference: SocketAddr,
    /// What is compared with it.
    subject: SocketAddr,
    /// Keys that clients of both were told to drop by the same step.
    told: AtomicUsize,
    /// Events of keys that were compared.
    events: AtomicUsize,
}

/// The first step at which they differed.
#[derive(Debug, Clone)]
pub struct Difference {
    pub at: usize,
    pub reference: String,
    pub subject: String,
}

/// One server's side of a run.
struct Side {
    address: SocketAddr,
    connections: Vec<Connection>,
    /// What the client behind each connection keeps in a memory of its own.
    caching: [ClientCache; CONNECTIONS],
    /// Hears what happens to keys.
    listener: Connection,
}

/// What is sent to see what comes before its answer.
const MARK: &str = "what came before this";

impl Side {
    async fn open(address: SocketAddr) -> Self {
        let mut connections = Vec::new();
        for at in 0..CONNECTIONS {
            connections.push(Self::connect(address, at).await);
        }
        let mut listener = Connection::open(address).await.unwrap();
        listener.ask("PSUBSCRIBE __keyspace@0__:* __keyevent@0__:*").await.unwrap();
        listener.read().await.unwrap();
        Self { address, connections, caching: Default::default(), listener }
    }

    async fn connect(address: SocketAddr, at: usize) -> Connection {
        let mut connection = Connection::open(address).await.unwrap();
        if at == CONNECTIONS - 1 {
            let hello = connection.ask("HELLO 3").await.unwrap();
            assert!(matches!(hello, Value::Map(_)), "HELLO 3: {hello}");
        }
        connection
    }

    /// Carries out a command; a lost connection is an answer too. Subscriptions are answered by none, one or several
    /// messages: those that come before the answer to a PING.
    async fn execute(&mut self, over: usize, command: &Command, inline: bool) -> Vec<Value> {
        let lost = |e: std::io::Error| vec![Value::Error(format!("(the connection is lost: {})", e.kind()))];
        if is_subscription(command) {
            return match self.before_mark(over, Some(command)).await {
                Ok(answers) => in_any_order(answers),
                Err(e) => lost(e),
            };
        }
        let connection = &mut self.connections[over];
        let sent = match as_line(command).filter(|_| inline) {
            Some(line) => connection.send_bytes(&line).await,
            None => connection.send(command).await,
        };
        if let Err(e) = sent {
            return lost(e);
        }
        let mut pushes = Vec::new();
        let answer = connection.answer_behind(&mut pushes).await;
        for push in &pushes {
            self.caching[over].hear(push);
        }
        if name(command) == "quit" && matches!(answer, Ok(Value::Simple(_))) {
            // That the connection ends is part of the answer. The next one has its place.
            let end = connection.read().await.map_or("it ends", |_| "it goes on");
            *connection = Self::connect(self.address, over).await;
            return vec![answer.unwrap(), Value::Simple(end.into())];
        }
        answer.map_or_else(lost, |answer| vec![answer])
    }

    /// All that comes over a connection before the answer to a PING that is sent behind `command`, without invalidations.
    async fn before_mark(&mut self, over: usize, command: Option<&Command>) -> std::io::Result<Vec<Value>> {
        let connection = &mut self.connections[over];
        if let Some(command) = command {
            connection.send(command).await?;
        }
        connection.send(&["PING", MARK]).await?;
        let mut answers = Vec::new();
        loop {
            let answer = connection.read().await?;
            if answer.text() == MARK || answer.items().last().is_some_and(|item| item.text() == MARK) {
                return Ok(answers);
            }
            if !self.caching[over].hear(&answer) {
                answers.push(answer);
            }
        }
    }

    /// What a client was told to drop since this was last asked, up to now.
    async fn dropped(&mut self, over: usize) -> BTreeSet<Vec<u8>> {
        // A lost connection shows in the next answer.
        let _ = self.before_mark(over, None).await;
        self.caching[over].take_dropped()
    }

    /// What was told of keys since this was last asked, up to now: channels, and what was said there. The order of what one
    /// command has done to several keys does not count, nor that a key has expired: Redis says so when it comes to it, which
    /// may be now or up to a tenth of a second later.
    async fn events(&mut self) -> std::io::Result<Vec<(String, String)>> {
        self.listener.send(&["PING", MARK]).await?;
        let mut events = Vec::new();
        loop {
            let heard = self.listener.read().await?;
            match heard.items() {
                [_, _, channel, message] => {
                    let event = (channel.text(), message.text());
                    if event.0 != "__keyevent@0__:expired" && event.1 != "expired" {
                        events.push(event);
                    }
                }
                _ => break,
            }
        }
        events.sort();
        Ok(events)
    }

    /// All keys that a SCAN with these options names, or its error.
    async fn scan(&mut self, over: usize, options: &Command) -> Result<BTreeSet<Vec<u8>>, Value> {
        let mut found = BTreeSet::new();
        let mut cursor = b"0".to_vec();
        for _ in 0..ROUNDS {
            let command = [&[b"scan".to_vec(), cursor.clone()][..], options].concat();
            let answer = self.execute(over, &command, false).await.remove(0);
            let [Value::Bulk(next), Value::Array(keys)] = answer.items() else { return Err(answer) };
            found.extend(keys.iter().map(|key| key.text().into_bytes()));
            if next == b"0" {
                return Ok(found);
            }
            cursor.clone_from(next);
        }
        Err(Value::Error("(the cursor never comes back to 0)".into()))
    }
}

/// A command as somebody types it, if it can be typed without quotes.
fn as_line(command: &Command) -> Option<Vec<u8>> {
    let plain = |b: &u8| b.is_ascii_graphic() && !b"\"'".contains(b);
    let typed = command.iter().all(|word| !word.is_empty() && word.iter().all(plain));
    // A line that begins so is a request of the other kind.
    let typed = typed && command.first().is_some_and(|name| name[0] != b'*');
    typed.then(|| [command.join(&b' '), b"\r\n".to_vec()].concat())
}

/// The messages that end subscriptions name the channels in no particular order.
fn in_any_order(answers: Vec<Value>) -> Vec<Value> {
    let rest = |answer: &Value, at: usize| answer.items().get(at).cloned().unwrap_or(Value::Null);
    let mut channels: Vec<Value> = answers.iter().map(|answer| rest(answer, 1)).collect();
    channels.sort();
    let renamed = answers.into_iter().zip(channels).map(|(answer, channel)| {
        let items = vec![rest(&answer, 0), channel, rest(&answer, 2)];
        match answer {
            Value::Push(items_before) if items_before.len() == 3 => Value::Push(items),
            Value::Array(items_before) if items_before.len() == 3 => Value::Array(items),
            answer => answer,
        }
    });
    renamed.collect()
}

fn is_subscription(command: &Command) -> bool {
    matches!(name(command).as_str(), "subscribe" | "psubscribe" | "unsubscribe" | "punsubscribe")
}

/// Keys of a command that must be of a form, and whether that is a hash.
fn formed(command: &Command) -> (&[Vec<u8>], &'static str) {
    let name = name(command);
    let first = command.get(1..2).unwrap_or_default();
    match name.as_str() {
        "get" | "getex" | "getdel" | "strlen" => (first, "string"),
        "set" if (3..command.len()).any(|at| word(command, at) == "get") => (first, "string"),
        "mget" => (command.get(1..).unwrap_or_default(), "string"),
        _ if name.starts_with('h') && name != "hello" => (first, "hash"),
        _ => (&[], ""),
    }
}

/// What is known of the transactions of a run.
#[derive(Default)]
struct Transaction {
    open: bool,
    queued: Vec<Command>,
}

impl Pair {
    /// Redis, and what is compared with it.
    pub fn new(reference: SocketAddr, subject: SocketAddr) -> Self {
        Self { reference, subject, told: AtomicUsize::new(0), events: AtomicUsize::new(0) }
    }

    /// Keys that clients of both were told to drop by the same step so far.
    pub fn told(&self) -> usize {
        self.told.load(Ordering::Relaxed)
    }

    /// Events of keys that were compared so far.
    pub fn events(&self) -> usize {
        self.events.load(Ordering::Relaxed)
    }

    /// Runs a sequence on both, from nothing. None: no difference.
    pub async fn run(&self, steps: &[Step]) -> Option<Difference> {
        let mut run = Run::open(self).await;
        let mut difference = None;
        for (at, step) in steps.iter().enumerate() {
            match run.step(step).await {
                Outcome::Same => {}
                Outcome::Differs(reference, subject) => {
                    difference = Some(Difference { at, reference, subject });
                    break;
                }
                Outcome::Incomparable => break,
            }
        }
        self.clean(run.used).await;
        difference
    }

    /// Removes all keys that may be there.
    async fn clean(&self, used: BTreeSet<Vec<u8>>) {
        for address in [self.reference, self.subject] {
            let mut connection = Connection::open(address).await.unwrap();
            for key in &used {
                connection.call(&[b"DEL", key.as_slice()]).await.unwrap();
            }
        }
    }

    /// A shorter sequence that shows a difference too, and the difference.
    pub async fn shrink(&self, steps: Vec<Step>, difference: Difference) -> (Vec<Step>, Difference) {
        let mut steps = steps;
        let mut difference = difference;
        steps.truncate(difference.at + 1);
        let mut attempts = 0;
        let mut chunk = steps.len() / 2;
        while chunk > 0 {
            let mut at = 0;
            // The last step shows the difference.
            while at + chunk < steps.len() && attempts < ATTEMPTS {
                attempts += 1;
                let shorter = [&steps[..at], &steps[at + chunk..]].concat();
                match self.run(&shorter).await {
                    Some(found) => {
                        steps = shorter;
                        steps.truncate(found.at + 1);
                        difference = found;
                    }
                    None => at += chunk,
                }
            }
            chunk /= 2;
        }
        (steps, difference)
    }
}

/// What came of a step.
enum Outcome {
    /// Nothing differs, or it is not for comparison.
    Same,
    /// What the reference showed, and what the subject did.
    Differs(String, String),
    /// From here on the two cannot be compared.
    Incomparable,
}

impl Outcome {
    fn of(reference: String, subject: String) -> Self {
        if reference == subject { Self::Same } else { Self::Differs(reference, subject) }
    }
}

/// A sequence that is being run.
struct Run<'a> {
    pair: &'a Pair,
    reference: Side,
    subject: Side,
    /// Another connection to the reference.
    look: Connection,
    transactions: [Transaction; CONNECTIONS],
    tracking: [Tracking; CONNECTIONS],
    /// All words that may have become keys.
    used: BTreeSet<Vec<u8>>,
}

impl<'a> Run<'a> {
    async fn open(pair: &'a Pair) -> Self {
        Self {
            pair,
            reference: Side::open(pair.reference).await,
            subject: Side::open(pair.subject).await,
            look: Connection::open(pair.reference).await.unwrap(),
            transactions: Default::default(),
            tracking: Default::default(),
            used: BTreeSet::new(),
        }
    }

    async fn step(&mut self, step: &Step) -> Outcome {
        match step {
            // A transaction would answer otherwise to each round.
            Step::Scan { over, .. } if self.transactions[*over].open => Outcome::Same,
            Step::Scan { over, options } => {
                let shown = |keys: Result<BTreeSet<Vec<u8>>, Value>| match keys {
                    Ok(keys) => format!("{:?}", keys.iter().map(|k| k.escape_ascii().to_string()).collect::<Vec<_>>()),
                    Err(answer) => answer.to_string(),
                };
                let reference = shown(self.reference.scan(*over, options).await);
                Outcome::of(reference, shown(self.subject.scan(*over, options).await))
            }
            Step::Command { over, command, inline } => self.command(*over, command, *inline).await,
        }
    }

    async fn command(&mut self, over: usize, command: &Command, inline: bool) -> Outcome {
        let queues = self.transactions[over].open;
        if queues && is_subscription(command) || self.has_other_form(command).await {
            return Outcome::Same;
        }
        self.used.extend(command.iter().skip(1).cloned());
        let reference = self.reference.execute(over, command, inline).await;
        let subject = self.subject.execute(over, command, inline).await;
        // The key had the other form only when the transaction came to it: not a sequence to be compared.
        if reference.iter().any(|answer| answer.to_string().contains("-WRONGTYPE")) {
            return Outcome::Incomparable;
        }
        self.note_reads(over, command, reference.first());
        if reference.len() != subject.len() {
            return Outcome::Differs(shown(&reference), shown(&subject));
        }
        let transaction = &mut self.transactions[over];
        let normal = |answer| normal(command, &transaction.queued, answer);
        let (reference, subject) = (reference.into_iter().map(normal), subject.into_iter().map(normal));
        let (reference, subject): (Vec<_>, Vec<_>) = (reference.collect(), subject.collect());
        let mut pairs = reference.iter().zip(&subject);
        let all_same = pairs.all(|(a, b)| same(command, &transaction.queued, a, b));
        if let Some(answer) = reference.first() {
            follow(transaction, command, answer);
        }
        if !all_same {
            return Outcome::of(shown(&reference), shown(&subject));
        }
        match self.stale().await {
            Outcome::Same => self.events().await,
            differs => differs,
        }
    }

    /// What the clients of both keep after this command and its answer.
    fn note_reads(&mut self, over: usize, command: &Command, answer: Option<&Value>) {
        let (transaction, tracking) = (&self.transactions[over], &mut self.tracking[over]);
        let queued = transaction.open.then_some(transaction.queued.as_slice());
        let read = answer.map(|answer| tracking.follow(command, queued, answer));
        for side in [&mut self.reference, &mut self.subject] {
            match &read {
                Some(keys) if tracking.is_on() => side.caching[over].keep(keys),
                _ => side.caching[over].clear(),
            }
        }
    }

    /// Looks for what a client of the subject still keeps, although one of the reference was told to drop it.
    async fn stale(&mut self) -> Outcome {
        let mut outcome = Outcome::Same;
        for at in 0..CONNECTIONS {
            let tracking = &self.tracking[at];
            // A transaction would answer a PING too, and `CLIENT CACHING` is about what comes next.
            if !tracking.is_on() || self.transactions[at].open || tracking.is_about_the_next() {
                continue;
            }
            let (told, by_subject) = (self.reference.dropped(at).await, self.subject.dropped(at).await);
            self.pair.told.fetch_add(told.intersection(&by_subject).count(), Ordering::Relaxed);
            let kept = self.subject.caching[at].kept_of(&told);
            let stale: Vec<String> = kept.map(|key| key.escape_ascii().to_string()).collect();
            if matches!(outcome, Outcome::Same) && !stale.is_empty() {
                let told = |how| format!("{} is {how} to drop {}", ["a", "b"][at], stale.join(", "));
                outcome = Outcome::Differs(told("told"), told("not told"));
            }
        }
        outcome
    }

    /// Compares what those hear who listen to what happens to keys.
    async fn events(&mut self) -> Outcome {
        let (reference, subject) = (self.reference.events().await.unwrap(), self.subject.events().await.unwrap());
        self.pair.events.fetch_add(reference.len(), Ordering::Relaxed);
        Outcome::of(format!("tells {reference:?}"), format!("tells {subject:?}"))
    }

    /// Whether Redis would answer WRONGTYPE, which the agent never does: such a command is left out.
    async fn has_other_form(&mut self, command: &Command) -> bool {
        let (keys, form) = formed(command);
        for key in keys {
            let found = self.look.call(&[b"TYPE", key.as_slice()]).await.unwrap().text();
            if found != form && found != "none" {
                return true;
            }
        }
        false
    }
}

fn shown(answers: &[Value]) -> String {
    answers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" then ")
}

/// Follows a transaction by what the reference answers.
fn follow(transaction: &mut Transaction, command: &Command, answer: &Value) {
    match (name(command).as_str(), answer) {
        (_, Value::Simple(text)) if text == "QUEUED" => transaction.queued.push(command.clone()),
        ("multi", Value::Simple(_)) => transaction.open = true,
        ("reset" | "quit", _) => *transaction = Transaction::default(),
        // A wrong number of arguments leaves it open.
        ("exec" | "discard", answer) if !answer.text().starts_with("ERR wrong number") => {
            *transaction = Transaction::default();
        }
        _ => {}
    }
}
