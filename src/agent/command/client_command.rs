//! `CLIENT`.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use super::args::{is, parse_integer};
use super::client::Replies;
use super::connection::ok;
use super::context::Context;
use super::refusal::{Refusal, quoted};
use super::tracking::is_broken;
use super::{Flow, lines};
use crate::agent::server::{ClientHandle, ClientId, Clients};
use crate::resp::{Protocol, Reply};

pub use super::tracking::{caching, getredir, tracking, trackinginfo};

/// A client's number as replies show it.
pub fn number(id: ClientId) -> i64 {
    i64::try_from(id.0).unwrap_or(i64::MAX)
}

/// Refuses names that would break the lines of `CLIENT LIST`.
pub fn check_name(name: &[u8], what: &'static str) -> Result<(), Refusal> {
    /// Longer than any that means something.
    const LONGEST: usize = 1_024;
    if name.len() > LONGEST || name.iter().any(|b| !(b'!'..=b'~').contains(b)) {
        return Err(Refusal::Name(what));
    }
    Ok(())
}

/// `CLIENT ID`
pub fn id(context: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(Flow::Reply(Reply::Int(number(context.client.id()))))
}

/// `CLIENT GETNAME`
pub fn getname(context: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    let name = context.client.handle.name();
    Ok(Flow::Reply(if name.is_empty() { Reply::Null } else { Reply::Bulk(name) }))
}

/// `CLIENT SETNAME name`
pub fn setname(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let name = args.get(2).ok_or(Refusal::Syntax)?;
    check_name(name, "Client names")?;
    context.client.handle.set_name(name.clone());
    context.client.keeps();
    Ok(ok())
}

/// `CLIENT SETINFO LIB-NAME name | LIB-VER version`
pub fn setinfo(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let [_, _, option, value] = args else {
        return Err(Refusal::Syntax);
    };
    let handle = &context.client.handle;
    if is(option, "lib-name") {
        check_name(value, "lib-name")?;
        handle.set_library_name(value.clone());
    } else if is(option, "lib-ver") {
        check_name(value, "lib-ver")?;
        handle.set_library_version(value.clone());
    } else {
        return Err(Refusal::quoting(format!("ERR Unrecognized option '{}'", quoted(option, 128))));
    }
    context.client.keeps();
    Ok(ok())
}

fn verbatim(text: String) -> Flow {
    Flow::Reply(Reply::Verbatim("txt", text))
}

/// `CLIENT INFO`
pub fn info(context: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    let mut line = String::new();
    describe(&context.agent.clients, &context.client.handle, &mut line);
    Ok(verbatim(line))
}

/// `CLIENT LIST [TYPE type] [ID id ...]`
pub fn list(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let clients = &context.agent.clients;
    let mut listed: Vec<Arc<ClientHandle>> = Vec::new();
    match args.get(2..).unwrap_or_default() {
        [] => clients.each(|handle| listed.push(handle.clone())),
        [option, name] if is(option, "TYPE") => {
            let pubsub = is(name, "pubsub");
            let known = pubsub || ["normal", "master", "replica", "slave"].iter().any(|n| is(name, n));
            if !known {
                return Err(Refusal::quoting(format!("ERR Unknown client type '{}'", quoted(name, 128))));
            }
            if pubsub || is(name, "normal") {
                clients.each(|handle| {
                    if (handle.subscriptions() != (0, 0)) == pubsub {
                        listed.push(handle.clone());
                    }
                });
            }
        }
        [option, ids @ ..] if is(option, "ID") && !ids.is_empty() => {
            for id in ids {
                let id = parse_integer(id).ok_or(Refusal::Text("ERR Invalid client ID"))?;
                // Nobody has a number below one.
                listed.extend(u64::try_from(id).ok().and_then(|id| clients.get(ClientId(id))));
            }
        }
        _ => return Err(Refusal::Syntax),
    }
    // Not within `each`: a line says whether another client is still there.
    let mut lines = String::new();
    for handle in &listed {
        describe(clients, handle, &mut lines);
    }
    Ok(verbatim(lines))
}

/// A line of `CLIENT LIST`.
fn describe(clients: &Clients, handle: &ClientHandle, out: &mut String) {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let (channels, patterns) = handle.subscriptions();
    let caching = handle.caching();
    let redirect = caching.map_or(-1, |caching| caching.redirect.map_or(0, number));
    let queued = handle.queued();
    let mut flags = String::new();
    let set = [
        ('P', channels + patterns > 0),
        ('x', queued.is_some()),
        ('t', caching.is_some()),
        ('R', caching.is_some_and(|caching| is_broken(clients, caching.redirect))),
        ('B', caching.is_some_and(|caching| caching.broadcast)),
        ('U', handle.is_unix()),
    ];
    for (flag, set) in set {
        if set {
            flags.push(flag);
        }
    }
    if flags.is_empty() {
        flags.push('N');
    }
    let resp = match handle.protocol() {
        Protocol::Resp2 => 2,
        Protocol::Resp3 => 3,
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={flags} db=0 sub={channels} psub={patterns} ssub=0 \
         multi={} qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem={} tot-mem={} events=r cmd={} \
         user=default redir={redirect} resp={resp} lib-name={} lib-ver={}",
        handle.id().0,
        handle.address(),
        handle.local_address(),
        text(&handle.name()),
        handle.age().as_secs(),
        handle.idle().as_secs(),
        queued.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX)),
        handle.output_bytes(),
        handle.memory_bytes(),
        handle.last_command(),
        text(&handle.library_name()),
        text(&handle.library_version()),
    );
}

/// Refuses what is neither `ON` nor `OFF`.
fn on_or_off(args: &[Bytes]) -> Result<bool, Refusal> {
    match args.get(2) {
        Some(arg) if is(arg, "ON") => Ok(true),
        Some(arg) if is(arg, "OFF") => Ok(false),
        _ => Err(Refusal::Syntax),
    }
}

/// `CLIENT NO-EVICT ON | OFF`
pub fn no_evict(_: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    on_or_off(args).map(|_| ok())
}

/// `CLIENT NO-TOUCH ON | OFF`
pub fn no_touch(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    context.client.only_looks = on_or_off(args)?;
    Ok(ok())
}

/// `CLIENT REPLY ON | OFF | SKIP`
pub fn reply(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let mode = args.get(2).ok_or(Refusal::Syntax)?;
    let replies = &mut context.client.replies;
    if is(mode, "ON") {
        *replies = Replies::On;
        Ok(ok())
    } else if is(mode, "OFF") {
        *replies = Replies::Off;
        Ok(Flow::None)
    } else if is(mode, "SKIP") {
        if *replies != Replies::Off {
            *replies = Replies::SkipNext;
        }
        Ok(Flow::None)
    } else {
        Err(Refusal::Syntax)
    }
}

/// `CLIENT HELP`
pub fn help(_: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(lines(&[
        "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "CACHING (YES|NO)",
        "    Enable/disable tracking of the keys for next command in OPTIN/OPTOUT modes.",
        "GETNAME",
        "    Return the name of the current connection.",
        "GETREDIR",
        "    Return the client ID we are redirecting to when tracking is enabled.",
        "ID",
        "    Return the ID of the current connection.",
        "INFO",
        "    Return information about the current client connection.",
        "LIST [options ...]",
        "    Return information about client connections. Options:",
        "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
        "      Return clients of specified type.",
        "    * ID <id> [<id> ...]",
        "      Return clients of specified IDs only.",
        "NO-EVICT (ON|OFF)",
        "    Accepted, and changes nothing.",
        "NO-TOUCH (ON|OFF)",
        "    What is read is only looked at: no later SET takes its difference from it.",
        "REPLY (ON|OFF|SKIP)",
        "    Control the replies sent to the current connection.",
        "SETINFO (LIB-NAME|LIB-VER) <value>",
        "    Set the client meta attr.",
        "SETNAME <name>",
        "    Assign the name <name> to the current connection.",
        "TRACKING (ON|OFF) [REDIRECT <id>] [BCAST] [PREFIX <prefix> [...]]",
        "         [OPTIN] [OPTOUT] [NOLOOP]",
        "    Control server assisted client side caching.",
        "TRACKINGINFO",
        "    Report tracking status for the current connection.",
        "HELP",
        "    Print this help.",
    ]))
}
