//! Runs a sequence on two servers, side by side, and makes one that shows a difference short.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::compare::{normal, same};
use super::generate::CONNECTIONS;
use super::step::{Command, Step, name, word};
use crate::agent::wire::{Connection, Value};

/// Runs that making a sequence short may take.
const ATTEMPTS: usize = 150;
/// Rounds that a SCAN may take.
const ROUNDS: usize = 10_000;

/// Two servers.
#[derive(Clone, Copy)]
pub struct Pair {
    /// Redis.
    pub reference: SocketAddr,
    /// What is compared with it.
    pub subject: SocketAddr,
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
    connections: Vec<Connection>,
}

impl Side {
    async fn open(address: SocketAddr) -> Self {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Connection::open(address).await.unwrap());
        }
        let hello = connections[CONNECTIONS - 1].ask("HELLO 3").await.unwrap();
        assert!(matches!(hello, Value::Map(_)), "HELLO 3: {hello}");
        Self { connections }
    }

    /// Carries out a command; a lost connection is an answer too. Subscriptions are answered by none, one or several
    /// messages: those that come before the answer to a PING.
    async fn execute(&mut self, over: usize, command: &Command) -> Vec<Value> {
        const MARK: &str = "after the subscriptions";
        let connection = &mut self.connections[over];
        let lost = |e: std::io::Error| vec![Value::Error(format!("(the connection is lost: {})", e.kind()))];
        if !is_subscription(command) {
            return connection.call(command).await.map_or_else(lost, |answer| vec![answer]);
        }
        let mut answers = Vec::new();
        let sent = async {
            connection.send(command).await?;
            connection.send(&["PING", MARK]).await
        };
        if let Err(e) = sent.await {
            return lost(e);
        }
        loop {
            match connection.read().await {
                Ok(answer) if answer.text() == MARK || answer.items().last().is_some_and(|i| i.text() == MARK) => {
                    return in_any_order(answers);
                }
                Ok(answer) => answers.push(answer),
                Err(e) => return lost(e),
            }
        }
    }

    /// All keys that a SCAN with these options names, or its error.
    async fn scan(&mut self, over: usize, options: &Command) -> Result<BTreeSet<Vec<u8>>, Value> {
        let mut found = BTreeSet::new();
        let mut cursor = b"0".to_vec();
        for _ in 0..ROUNDS {
            let command = [&[b"scan".to_vec(), cursor.clone()][..], options].concat();
            let answer = self.execute(over, &command).await.remove(0);
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
    /// Runs a sequence on both, from nothing. None: no difference.
    pub async fn run(&self, steps: &[Step]) -> Option<Difference> {
        let (mut reference, mut subject) = (Side::open(self.reference).await, Side::open(self.subject).await);
        let mut look = Connection::open(self.reference).await.unwrap();
        let mut transactions: [Transaction; CONNECTIONS] = Default::default();
        let mut found = None;
        let mut used = BTreeSet::new();
        for (at, step) in steps.iter().enumerate() {
            let (ours, theirs) = match step {
                // A transaction would answer otherwise to each round.
                Step::Scan { over, .. } if transactions[*over].open => continue,
                Step::Scan { over, options } => {
                    let shown = |keys: Result<BTreeSet<Vec<u8>>, Value>| match keys {
                        Ok(keys) => {
                            format!("{:?}", keys.iter().map(|k| k.escape_ascii().to_string()).collect::<Vec<_>>())
                        }
                        Err(answer) => answer.to_string(),
                    };
                    (shown(reference.scan(*over, options).await), shown(subject.scan(*over, options).await))
                }
                Step::Command { over, command } => {
                    let transaction = &mut transactions[*over];
                    if transaction.open && is_subscription(command) || self.has_other_form(&mut look, command).await {
                        continue;
                    }
                    used.extend(command.iter().skip(1).cloned());
                    let ours = reference.execute(*over, command).await;
                    let theirs = subject.execute(*over, command).await;
                    // The key had the other form only when the transaction came to it: not a sequence to be compared.
                    if ours.iter().any(|answer| answer.to_string().contains("-WRONGTYPE")) {
                        break;
                    }
                    if ours.len() == theirs.len() {
                        let pairs = ours.into_iter().zip(theirs).map(|(ours, theirs)| {
                            let normal = |answer| normal(command, &transaction.queued, answer);
                            (normal(ours), normal(theirs))
                        });
                        let pairs: Vec<_> = pairs.collect();
                        let same = pairs.iter().all(|(a, b)| same(command, &transaction.queued, a, b));
                        follow(transaction, command, &pairs[..1]);
                        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
                        if same {
                            continue;
                        }
                        (shown(&ours), shown(&theirs))
                    } else {
                        (shown(&ours), shown(&theirs))
                    }
                }
            };
            if ours != theirs {
                found = Some(Difference { at, reference: ours, subject: theirs });
                break;
            }
        }
        self.clean(used).await;
        found
    }

    /// Whether Redis would answer WRONGTYPE, which the agent never does: such a command is left out.
    async fn has_other_form(&self, look: &mut Connection, command: &Command) -> bool {
        let (keys, form) = formed(command);
        for key in keys {
            let found = look.call(&[b"TYPE", key.as_slice()]).await.unwrap().text();
            if found != form && found != "none" {
                return true;
            }
        }
        false
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

fn shown(answers: &[Value]) -> String {
    answers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" then ")
}

/// Follows a transaction by what the reference answers.
fn follow(transaction: &mut Transaction, command: &Command, answers: &[(Value, Value)]) {
    let Some((answer, _)) = answers.first() else { return };
    match (name(command).as_str(), answer) {
        (_, Value::Simple(text)) if text == "QUEUED" => transaction.queued.push(command.clone()),
        ("multi", Value::Simple(_)) => transaction.open = true,
        ("reset", _) => *transaction = Transaction::default(),
        // A wrong number of arguments leaves it open.
        ("exec" | "discard", answer) if !answer.text().starts_with("ERR wrong number") => {
            *transaction = Transaction::default();
        }
        _ => {}
    }
}
