//! What is done to both servers.

use std::fmt;

use crate::agent::wire::quoted;

/// A command.
pub type Command = Vec<Vec<u8>>;

/// One step of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A command over one of the connections.
    Command {
        over: usize,
        command: Command,
        /// As a line, if its words can be typed.
        inline: bool,
    },
    /// All rounds of a SCAN with these options.
    Scan { over: usize, options: Command },
}

impl Step {
    /// A command as it is shown, of words without quotes: `a> get key`.
    pub fn typed(line: &str) -> Self {
        let (connection, words) = line.split_once("> ").expect("a connection");
        let command = words.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        Self::Command { over: usize::from(connection == "b"), command, inline: false }
    }

    /// The command's words after the connection is left aside.
    fn words(&self) -> (usize, String) {
        let line = |words: &Command| words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" ");
        match self {
            Self::Command { over, command, .. } => (*over, line(command)),
            Self::Scan { over, options } => (*over, format!("SCAN (all) {}", line(options))),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (over, words) = self.words();
        write!(f, "{}> {words}", ['a', 'b'][over])
    }
}

/// The command's name in lower case.
pub fn name(command: &Command) -> String {
    command.first().map(|n| String::from_utf8_lossy(n).to_ascii_lowercase()).unwrap_or_default()
}

/// The word at this place, in lower case.
pub fn word(command: &Command, at: usize) -> String {
    command.get(at).map(|w| String::from_utf8_lossy(w).to_ascii_lowercase()).unwrap_or_default()
}
