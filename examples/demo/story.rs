//! What the demo prints: chapters, commands, facts. Every fact is checked, and counted.

use std::fmt::Display;
use std::io::IsTerminal;
use std::time::Duration;

/// Where the times begin, so that they stand in one column.
const WIDTH: usize = 66;

/// The story, and how many of its claims held.
pub struct Story {
    colours: bool,
    passed: usize,
    failed: usize,
}

impl Story {
    /// Colours on a terminal, unless `NO_COLOR` is set or the terminal is dumb.
    pub fn new() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colours = std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb;
        Self { colours, passed: 0, failed: 0 }
    }

    fn paint(&self, code: &str, text: impl Display) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// Begins a part of the story.
    pub fn chapter(&self, title: &str) {
        println!("\n{}", self.paint("1;36", title));
    }

    /// Says what is about to be seen.
    pub fn text(&self, text: &str) {
        println!("  {}", self.paint("3", text));
    }

    /// Shows a command that is run.
    pub fn command(&self, command: &str) {
        let mut lines = command.lines();
        println!("  {} {}", self.paint("2", "$"), self.paint("1", lines.next().unwrap_or_default()));
        for line in lines {
            println!("    {}", self.paint("1", line));
        }
    }

    /// Shows what a program printed.
    pub fn quote(&self, output: &str) {
        for line in output.lines() {
            println!("    {}", self.paint("2", line.trim_end()));
        }
    }

    /// Shows a row of a table: a name, and times in columns.
    pub fn row(&self, name: &str, columns: [&str; 2]) {
        let times = format!("{:>24}{:>24}", columns[0], columns[1]);
        let times = times.trim_end();
        println!("    {name:<30}{}", self.paint("1", times));
    }

    /// A fact. It is counted, and shown as what it is.
    pub fn check(&mut self, claim: &str, holds: bool) {
        self.fact(claim, holds, "");
    }

    /// A fact, and how long it took.
    pub fn check_timed(&mut self, claim: &str, holds: bool, took: Duration) {
        self.fact(claim, holds, &human(took));
    }

    /// A fact, and what was found. Where the fact does not hold, this says what was there instead.
    pub fn check_found(&mut self, claim: &str, holds: bool, found: &str) {
        self.fact(claim, holds, if holds { "" } else { found });
    }

    fn fact(&mut self, claim: &str, holds: bool, detail: &str) {
        let mark = if holds { self.paint("32", "ok  ") } else { self.paint("1;31", "FAIL") };
        *(if holds { &mut self.passed } else { &mut self.failed }) += 1;
        println!("  {}", format!("{mark}  {claim:<WIDTH$}{detail:>10}").trim_end());
    }

    /// The last line, and whether all is well.
    pub fn end(&self) -> bool {
        let Self { passed, failed, .. } = self;
        let line = match failed {
            0 => self.paint("1;32", format!("demo: {passed} checks passed")),
            _ => self.paint("1;31", format!("demo: {passed} checks passed, {failed} FAILED")),
        };
        println!("\n{line}");
        *failed == 0
    }
}

/// A duration with three digits or so.
pub fn human(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{}.{} ms", micros / 1_000, micros / 100 % 10),
        _ => format!("{}.{} s", micros / 1_000_000, micros / 100_000 % 10),
    }
}
