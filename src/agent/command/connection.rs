//! Commands about the connection itself.

use bytes::Bytes;

use super::args::{integer, is, parse_integer};
use super::client::{Client, Replies};
use super::client_command::check_name;
use super::context::Context;
use super::refusal::{Refusal, quoted};
use super::{Flow, REDIS_VERSION, tracking};
use crate::agent::Agent;
use crate::resp::{Protocol, Reply};

/// The one user there is.
const USER: &[u8] = b"default";
const WRONG_PASSWORD: Refusal = Refusal::Text("WRONGPASS invalid username-password pair or user is disabled.");

/// The reply `OK`.
pub fn ok() -> Flow {
    Flow::Reply(Reply::Simple("OK".into()))
}

fn text(text: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(text.as_bytes()))
}

/// `PING [message]`
pub fn ping(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    if args.len() > 2 {
        return Err(Refusal::Arity("ping"));
    }
    let message = args.get(1);
    Ok(Flow::Reply(if context.client.only_listens() {
        Reply::Array(vec![text("pong"), Reply::Bulk(message.cloned().unwrap_or_default())])
    } else {
        message.map_or(Reply::Simple("PONG".into()), |message| Reply::Bulk(message.clone()))
    }))
}

/// `ECHO message`
pub fn echo(_: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(Flow::Reply(Reply::Bulk(args.get(1).cloned().unwrap_or_default())))
}

/// `QUIT`
pub fn quit(_: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(Flow::Close(Some(Reply::Simple("OK".into()))))
}

/// `SELECT index`
pub fn select(_: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let index = integer(args.get(1).ok_or(Refusal::Syntax)?)?;
    if i32::try_from(index).is_err() {
        return Err(Refusal::Text("ERR value is out of range, value must between -2147483648 and 2147483647"));
    }
    if index != 0 {
        return Err(Refusal::Text("ERR DB index is out of range"));
    }
    Ok(ok())
}

/// Ends what `MULTI`, `WATCH`, subscriptions and tracking have begun.
pub(super) fn forget(agent: &Agent, client: &mut Client) {
    super::transaction::end(client);
    super::subscribe::unsubscribe_all(agent, client);
    tracking::disable(agent, client);
}

/// `RESET`
pub fn reset(context: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    let Context { agent, client } = context;
    forget(agent, client);
    client.replies = Replies::On;
    client.only_looks = false;
    client.handle.set_name(Bytes::new());
    client.keeps();
    set_protocol(client, Protocol::Resp2);
    client.authenticated = !agent.commands.needs_password();
    Ok(Flow::Reply(Reply::Simple("RESET".into())))
}

fn set_protocol(client: &mut Client, protocol: Protocol) {
    client.protocol = protocol;
    client.handle.set_protocol(protocol);
}

/// Whether the client may go on, without a password or with this one.
fn authenticate(context: &mut Context<'_>, user: &[u8], password: &[u8]) -> Result<(), Refusal> {
    let right = context.agent.commands.is_password(password);
    if user != USER || !right {
        return Err(WRONG_PASSWORD);
    }
    context.client.authenticated = true;
    Ok(())
}

/// `AUTH [username] password`
pub fn auth(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    match args {
        [_, _] if !context.agent.commands.needs_password() => {
            return Err(Refusal::Text(
                "ERR AUTH <password> called without any password configured for the default user. Are you sure your \
                 configuration is correct?",
            ));
        }
        [_, password] => authenticate(context, USER, password)?,
        [_, user, password] => authenticate(context, user, password)?,
        _ => return Err(Refusal::Syntax),
    }
    Ok(ok())
}

/// `HELLO [protover [AUTH username password] [SETNAME clientname]]`
pub fn hello(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let protocol = match args.get(1) {
        None => None,
        Some(version) => Some(match parse_integer(version) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return Err(Refusal::Text("NOPROTO unsupported protocol version")),
            None => return Err(Refusal::Text("ERR Protocol version is not an integer or out of range")),
        }),
    };
    // As Redis 7.0 does it, one after the other: what is wrong behind them undoes nothing.
    let mut rest = args.get(2..).unwrap_or_default();
    while let Some((option, values)) = rest.split_first() {
        rest = match values {
            [user, password, rest @ ..] if is(option, "AUTH") => {
                authenticate(context, user, password)?;
                rest
            }
            [value, rest @ ..] if is(option, "SETNAME") => {
                check_name(value, "Client names")?;
                context.client.handle.set_name(value.clone());
                context.client.keeps();
                rest
            }
            _ => {
                let option = quoted(option, 512);
                return Err(Refusal::quoting(format!("ERR Syntax error in HELLO option '{option}'")));
            }
        };
    }
    let client = &mut *context.client;
    if !client.authenticated {
        return Err(Refusal::Text(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> \
             <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
        ));
    }
    if let Some(protocol) = protocol {
        set_protocol(client, protocol);
    }
    let version = match client.protocol {
        Protocol::Resp2 => 2,
        Protocol::Resp3 => 3,
    };
    Ok(Flow::Reply(Reply::Map(vec![
        (text("server"), text("redis")),
        (text("version"), text(REDIS_VERSION)),
        (text("proto"), Reply::Int(version)),
        (text("id"), Reply::Int(super::client_command::number(client.id()))),
        (text("mode"), text("standalone")),
        (text("role"), text("master")),
        (text("modules"), Reply::Array(Vec::new())),
    ])))
}
