//! `COMMAND`: the table, as clients see it.

use bytes::Bytes;

use super::context::Context;
use super::refusal::Refusal;
use super::table::{Command, Position, Run, TABLE, lookup};
use super::{Flow, lines};
use crate::resp::Reply;

fn bulk(text: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(text.as_bytes()))
}

fn simple(text: &'static str) -> Reply {
    Reply::Simple(text.into())
}

/// All commands that can be carried out.
fn offered() -> impl Iterator<Item = &'static Command> {
    TABLE.iter().filter(|command| !matches!(command.run, Run::Refused(_)))
}

/// A command by its name, or a subcommand as `container|name`.
fn find(name: &[u8]) -> Option<&'static Command> {
    let mut parts = name.splitn(2, |b| *b == b'|');
    let command = lookup(parts.next()?).filter(|command| !matches!(command.run, Run::Refused(_)))?;
    match parts.next() {
        Some(subcommand) => command.subcommand(subcommand),
        None => Some(command),
    }
}

/// Where the keys are, and what is done with them.
fn key_specs(command: &Command) -> Vec<Reply> {
    let last = match command.keys {
        Position::None => return Vec::new(),
        Position::First => 0,
        Position::All => -1,
    };
    let search = vec![(bulk("type"), bulk("index")), (bulk("spec"), Reply::Map(vec![(bulk("index"), Reply::Int(1))]))];
    let range =
        vec![(bulk("lastkey"), Reply::Int(last)), (bulk("keystep"), Reply::Int(1)), (bulk("limit"), Reply::Int(0))];
    let find = vec![(bulk("type"), bulk("range")), (bulk("spec"), Reply::Map(range))];
    vec![Reply::Map(vec![
        (bulk("flags"), Reply::Set(command.access.iter().map(|flag| simple(flag)).collect())),
        (bulk("begin_search"), Reply::Map(search)),
        (bulk("find_keys"), Reply::Map(find)),
    ])]
}

/// An element of `COMMAND`.
fn describe(command: &'static Command) -> Reply {
    let (first, last, step) = command.key_range();
    let categories = command.categories().map(|category| Reply::Simple(format!("@{category}").into()));
    Reply::Array(vec![
        bulk(command.full_name),
        Reply::Int(command.arity.into()),
        Reply::Set(command.flags.names().map(simple).collect()),
        Reply::Int(first),
        Reply::Int(last),
        Reply::Int(step),
        Reply::Set(categories.collect()),
        Reply::Array(command.tips.iter().map(|tip| bulk(tip)).collect()),
        Reply::Array(key_specs(command)),
        Reply::Array(command.subcommands.iter().map(describe).collect()),
    ])
}

/// An element of `COMMAND DOCS`.
fn document(command: &'static Command) -> (Reply, Reply) {
    let mut doc = vec![
        (bulk("summary"), bulk(command.summary)),
        (bulk("since"), bulk(command.since)),
        (bulk("group"), bulk(command.group)),
        (bulk("complexity"), bulk(command.complexity)),
    ];
    if !command.subcommands.is_empty() {
        doc.push((bulk("subcommands"), Reply::Map(command.subcommands.iter().map(document).collect())));
    }
    (bulk(command.full_name), Reply::Map(doc))
}

/// `COMMAND`
pub fn list(_: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(Flow::Reply(Reply::Array(offered().map(describe).collect())))
}

/// `COMMAND COUNT`
pub fn count(_: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(Flow::Reply(Reply::Int(i64::try_from(offered().count()).unwrap_or(i64::MAX))))
}

/// `COMMAND INFO [name ...]`
pub fn info(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    match args.get(2..) {
        Some(names) if !names.is_empty() => {
            let found = names.iter().map(|name| find(name).map_or(Reply::Null, describe));
            Ok(Flow::Reply(Reply::Array(found.collect())))
        }
        _ => list(context, args),
    }
}

/// `COMMAND DOCS [name ...]`
pub fn docs(_: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(Flow::Reply(Reply::Map(match args.get(2..) {
        Some(names) if !names.is_empty() => names.iter().filter_map(|name| find(name)).map(document).collect(),
        _ => offered().map(document).collect(),
    })))
}

/// `COMMAND LIST`
pub fn names(_: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    if args.len() > 2 {
        return Err(Refusal::Syntax);
    }
    let names = offered().flat_map(|command| std::iter::once(command).chain(command.subcommands));
    Ok(Flow::Reply(Reply::Array(names.map(|command| bulk(command.full_name)).collect())))
}

/// `COMMAND GETKEYS command [arg ...]`
pub fn getkeys(_: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let request = args.get(2..).unwrap_or_default();
    let command =
        request.first().and_then(|name| lookup(name)).ok_or(Refusal::Text("ERR Invalid command specified"))?;
    let command = request.get(1).and_then(|name| command.subcommand(name)).unwrap_or(command);
    if command.keys == Position::None {
        return Err(Refusal::Text("ERR The command has no key arguments"));
    }
    if !command.takes_arguments(request.len()) {
        return Err(Refusal::Text("ERR Invalid number of arguments specified for command"));
    }
    let keys = command.keys_of(request).iter().cloned().map(Reply::Bulk);
    Ok(Flow::Reply(Reply::Array(keys.collect())))
}

/// `COMMAND HELP`
pub fn help(_: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(lines(&[
        "COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "(no subcommand)",
        "    Return details about all commands.",
        "COUNT",
        "    Return the total number of commands in this server.",
        "LIST",
        "    Return a list of all commands in this server.",
        "INFO [<command-name> ...]",
        "    Return details about multiple commands.",
        "    If no command names are given, details for all commands are returned.",
        "DOCS [<command-name> ...]",
        "    Return documentation details about multiple commands.",
        "    If no command names are given, documentation details for all",
        "    commands are returned.",
        "GETKEYS <full-command>",
        "    Return the keys from a full command.",
        "HELP",
        "    Print this help.",
    ]))
}
