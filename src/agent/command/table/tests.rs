//! The table, held against Redis's and against its documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{COMMANDS, Command, Position, Run, TABLE, lookup};

/// What redis-server says of these commands; the file says how to read it.
const REDIS: &str = include_str!("redis7.txt");

/// The documentation of the table.
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md");

fn all() -> impl Iterator<Item = &'static Command> {
    TABLE.iter().flat_map(|command| std::iter::once(command).chain(command.subcommands))
}

#[test]
fn each_command_is_found_by_its_name_in_any_case_and_nothing_else_is() {
    for (index, command) in TABLE.iter().enumerate() {
        assert_eq!(command.index(), index);
        for name in [command.name.to_owned(), command.name.to_uppercase()] {
            assert_eq!(lookup(name.as_bytes()).map(|c| c.name), Some(command.name));
        }
        let almost = format!("{}x", command.name);
        assert!(lookup(almost.as_bytes()).is_none(), "{almost}");
    }
    let names: BTreeSet<_> = all().map(|command| command.full_name).collect();
    assert_eq!(names.len(), all().count(), "no name twice");
    let long = [b'a'; 10_000];
    for unknown in [&b""[..], b"\0", b"g\xe9t", b"get ", b"ge", b"client|id", &long] {
        assert!(lookup(unknown).is_none(), "{unknown:?}");
    }
}

#[test]
fn rows_are_complete() {
    for command in all() {
        let name = command.full_name;
        if !matches!(command.run, Run::Refused(_)) {
            assert!(!command.summary.is_empty() && !command.since.is_empty(), "{name}: undocumented");
        }
        assert!(!command.group.is_empty(), "{name}: no group");
        let is_watch = matches!(command.run, Run::Watch);
        let has_keys = command.keys != Position::None;
        assert_eq!(has_keys, is_watch || matches!(command.run, Run::Keys(_)), "{name}: keys");
        assert_eq!(has_keys, !command.access.is_empty(), "{name}: what it does with its keys");
        for subcommand in command.subcommands {
            assert_eq!(subcommand.full_name, format!("{name}|{}", subcommand.name));
        }
    }
}

fn words<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.collect();
    if words.is_empty() { "-".into() } else { words.join(",") }
}

/// A line as in the file of what Redis says.
fn line(command: &Command) -> String {
    let (first, last, step) = command.key_range();
    format!(
        "{} {} {} {first} {last} {step} {} {} {}",
        command.full_name,
        command.arity,
        words(command.flags.names()),
        words(command.categories()),
        words(command.access.iter().copied()),
        words(command.tips.iter().copied()),
    )
}

#[test]
fn redis_says_the_same_of_each_command() {
    // These are newer than the version that was asked, and these may not be used within MULTI here.
    const NEWER: [&str; 2] = ["client|no-touch", "client|setinfo"];
    let here: BTreeSet<String> = all()
        .filter(|command| !matches!(command.run, Run::Refused(_)) && !NEWER.contains(&command.full_name))
        .map(|command| line(command).replace(",no_multi ", " "))
        .collect();
    let redis: BTreeSet<String> = REDIS.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let differ: Vec<_> = here.symmetric_difference(&redis).collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

/// The table as the documentation shows it.
fn documented() -> String {
    let mut text = String::new();
    let title = |group: &str| group[..1].to_uppercase() + &group[1..];
    let groups = ["string", "hash", "generic", "transactions", "pubsub", "connection", "server"];
    for group in groups {
        let _ = write!(text, "### {}\n\n| command | what it does | difference |\n|---|---|---|\n", title(group));
        for command in all().filter(|command| command.group == group && command.subcommands.is_empty()) {
            text.push_str(&row(command));
        }
        // Last, what a container does without a subcommand.
        for command in TABLE.iter().filter(|command| command.group == group) {
            if let Run::Container(Some(_)) = command.run {
                text.push_str(&row(command));
            }
        }
        text.push('\n');
    }
    text.push_str("### Refused\n\n");
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for command in &TABLE {
        if let Run::Refused(reason) = command.run {
            reasons.entry(reason).or_default().push(format!("`{}`", command.name.to_uppercase()));
        }
    }
    for (reason, commands) in reasons {
        let _ = writeln!(text, "- {}: `{reason}`", commands.join(", "));
    }
    text
}

fn row(command: &Command) -> String {
    let name = command.full_name.to_uppercase().replace('|', " ");
    let summary = command.summary.trim_end_matches('.');
    format!("| `{name}` | {summary} | {} |\n", command.differs)
}

#[test]
fn the_documentation_shows_the_table() {
    let (from, to) = ("<!-- the table: begin -->\n", "<!-- the table: end -->\n");
    let docs = std::fs::read_to_string(DOCS).unwrap();
    let (before, rest) = docs.split_once(from).unwrap();
    let (shown, after) = rest.split_once(to).unwrap();
    let expected = documented();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(DOCS, format!("{before}{from}{expected}{to}{after}")).unwrap();
    } else {
        assert_eq!(shown, expected, "docs/commands.md is out of date: run this test with UPDATE_DOCS=1");
    }
    assert_eq!(TABLE.len(), COMMANDS);
}
