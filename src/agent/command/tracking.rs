//! Client-side caching: `CLIENT TRACKING` and what belongs to it. The table of who has read what is not here.

use bytes::Bytes;

use super::Flow;
use super::args::{integer, is};
use super::client::Client;
use super::client_command::number;
use super::connection::ok;
use super::context::Context;
use super::refusal::{Refusal, bounded};
use crate::agent::Agent;
use crate::agent::server::{Caching, ClientId, Clients};
use crate::agent::tracking::{Mode, Options};
use crate::resp::Reply;

/// Prefixes of one client, at most.
const MOST_PREFIXES: usize = 1_024;

/// Options of `CLIENT TRACKING ON`, as they were given.
#[derive(Default)]
struct Given {
    redirect: Option<ClientId>,
    broadcast: bool,
    prefixes: Vec<Bytes>,
    opt_in: bool,
    opt_out: bool,
    no_loop: bool,
}

impl Given {
    fn parse(agent: &Agent, mut args: &[Bytes]) -> Result<Self, Refusal> {
        let mut given = Self::default();
        while let Some((option, rest)) = args.split_first() {
            args = rest;
            match rest {
                [id, rest @ ..] if is(option, "REDIRECT") => {
                    if given.redirect.is_some() {
                        return Err(Refusal::Text("ERR A client can only redirect to a single other client"));
                    }
                    let id = ClientId(u64::try_from(integer(id)?).unwrap_or_default());
                    if agent.clients.get(id).is_none() {
                        return Err(Refusal::Text("ERR The client ID you want redirect to does not exist"));
                    }
                    given.redirect = Some(id);
                    args = rest;
                }
                [prefix, rest @ ..] if is(option, "PREFIX") => {
                    bounded(prefix)?;
                    given.prefixes.push(prefix.clone());
                    args = rest;
                }
                _ if is(option, "BCAST") => given.broadcast = true,
                _ if is(option, "OPTIN") => given.opt_in = true,
                _ if is(option, "OPTOUT") => given.opt_out = true,
                _ if is(option, "NOLOOP") => given.no_loop = true,
                _ => return Err(Refusal::Syntax),
            }
        }
        Ok(given)
    }

    /// The options that result, if they go together, and with those that are in force.
    fn checked(self, before: Option<&Options>) -> Result<Options, Refusal> {
        if !self.broadcast && !self.prefixes.is_empty() {
            return Err(Refusal::Text("ERR PREFIX option requires BCAST mode to be enabled"));
        }
        if before.is_some_and(|before| matches!(before.mode, Mode::Broadcast { .. }) != self.broadcast) {
            return Err(Refusal::Text(
                "ERR You can't switch BCAST mode on/off before disabling tracking for this client, and then re-enabling it \
                 with a different mode.",
            ));
        }
        if self.broadcast && (self.opt_in || self.opt_out) {
            return Err(Refusal::Text("ERR OPTIN and OPTOUT are not compatible with BCAST"));
        }
        if self.opt_in && self.opt_out {
            return Err(Refusal::Text("ERR You can't specify both OPTIN mode and OPTOUT mode"));
        }
        let before_mode = before.map(|before| &before.mode);
        if self.opt_in && before_mode == Some(&Mode::OptOut) || self.opt_out && before_mode == Some(&Mode::OptIn) {
            return Err(Refusal::Text(
                "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, and then re-enabling it \
                 with a different mode.",
            ));
        }
        let mode = if self.broadcast {
            let before: &[Bytes] = match before_mode {
                Some(Mode::Broadcast { prefixes }) => prefixes,
                _ => &[],
            };
            Mode::Broadcast { prefixes: joined(before, &self.prefixes)? }
        } else if self.opt_in {
            Mode::OptIn
        } else if self.opt_out {
            Mode::OptOut
        } else {
            Mode::Default
        };
        Ok(Options { mode, no_loop: self.no_loop, redirect: self.redirect })
    }
}

/// The prefixes that a client has, and those that come; if none come, the one that all keys have. None may begin with another one,
/// or keys would be told of twice: only the empty one comes unasked, as in Redis.
fn joined(before: &[Bytes], new: &[Bytes]) -> Result<Vec<Bytes>, Refusal> {
    let overlap = |a: &Bytes, b: &Bytes| a.starts_with(b) || b.starts_with(a);
    let refused = |new: &Bytes, with: &Bytes, which: &str| {
        let [new, with] = [new, with].map(|p| String::from_utf8_lossy(p).into_owned());
        Refusal::quoting(format!(
            "ERR Prefix '{new}' overlaps with {which} prefix '{with}'. Prefixes for a single client must not overlap."
        ))
    };
    for (at, prefix) in new.iter().enumerate() {
        if let Some(with) = before.iter().find(|with| overlap(prefix, with)) {
            return Err(refused(prefix, with, "an existing"));
        }
        if let Some(with) = new[at + 1..].iter().find(|with| overlap(prefix, with)) {
            return Err(refused(prefix, with, "another provided"));
        }
    }
    let copied = new.iter().map(|prefix| Bytes::copy_from_slice(prefix));
    let mut all: Vec<Bytes> = before.iter().cloned().chain(copied).collect();
    if new.is_empty() && !before.iter().any(Bytes::is_empty) {
        all.push(Bytes::new());
    }
    if all.len() > MOST_PREFIXES {
        return Err(Refusal::Text("ERR too many prefixes for one client"));
    }
    all.sort();
    Ok(all)
}

/// `CLIENT TRACKING ON | OFF [REDIRECT client-id] [PREFIX prefix ...] [BCAST] [OPTIN] [OPTOUT] [NOLOOP]`
pub fn tracking(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let Context { agent, client } = context;
    let (Some(mode), Some(options)) = (args.get(2), args.get(3..)) else {
        return Err(Refusal::Syntax);
    };
    let given = Given::parse(agent, options)?;
    if is(mode, "ON") {
        let options = given.checked(client.tracking.as_ref())?;
        agent.tracking.enable(&client.handle, &options);
        client.tracking = Some(options);
        client.keeps();
    } else if is(mode, "OFF") {
        disable(agent, client);
    } else {
        return Err(Refusal::Syntax);
    }
    let caching = |options: &Options| Caching {
        broadcast: matches!(options.mode, Mode::Broadcast { .. }),
        redirect: options.redirect,
    };
    client.handle.set_caching(client.tracking.as_ref().map(caching));
    Ok(ok())
}

/// Ends tracking.
pub(super) fn disable(agent: &Agent, client: &mut Client) {
    if client.tracking.take().is_some() {
        agent.tracking.disable(client.id());
        client.handle.set_caching(None);
        client.keeps();
    }
    client.caching = None;
}

/// Where invalidations go, as replies show it: -1 without tracking, 0 without a redirection.
fn redirect(client: &Client) -> i64 {
    client.tracking.as_ref().map_or(-1, |options| options.redirect.map_or(0, number))
}

/// Whether the connection that was to hear of invalidations has gone.
pub(super) fn is_broken(clients: &Clients, redirect: Option<ClientId>) -> bool {
    redirect.is_some_and(|to| clients.get(to).is_none())
}

/// `CLIENT CACHING YES | NO`
pub fn caching(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let client = &mut *context.client;
    let mode = client.tracking.as_ref().map(|options| &options.mode);
    if mode.is_none() {
        return Err(Refusal::Text(
            "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled",
        ));
    }
    match args.get(2) {
        Some(arg) if is(arg, "YES") && mode == Some(&Mode::OptIn) => client.caching = Some(true),
        Some(arg) if is(arg, "YES") => {
            return Err(Refusal::Text("ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode."));
        }
        Some(arg) if is(arg, "NO") && mode == Some(&Mode::OptOut) => client.caching = Some(false),
        Some(arg) if is(arg, "NO") => {
            return Err(Refusal::Text("ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode."));
        }
        _ => return Err(Refusal::Syntax),
    }
    Ok(ok())
}

/// `CLIENT GETREDIR`
pub fn getredir(context: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(Flow::Reply(Reply::Int(redirect(context.client))))
}

/// `CLIENT TRACKINGINFO`
pub fn trackinginfo(context: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    let Context { agent, client } = context;
    let text = |text: &'static str| Reply::Bulk(Bytes::from_static(text.as_bytes()));
    let mut flags = Vec::new();
    let mut prefixes = Vec::new();
    match &client.tracking {
        None => flags.push(text("off")),
        Some(options) => {
            flags.push(text("on"));
            match &options.mode {
                Mode::Default => {}
                Mode::OptIn => flags.push(text("optin")),
                Mode::OptOut => flags.push(text("optout")),
                Mode::Broadcast { prefixes: those } => {
                    flags.push(text("bcast"));
                    prefixes.extend(those.iter().cloned().map(Reply::Bulk));
                }
            }
            match client.caching {
                Some(true) => flags.push(text("caching-yes")),
                Some(false) => flags.push(text("caching-no")),
                None => {}
            }
            if options.no_loop {
                flags.push(text("noloop"));
            }
            if is_broken(&agent.clients, options.redirect) {
                flags.push(text("broken_redirect"));
            }
        }
    }
    Ok(Flow::Reply(Reply::Map(vec![
        (text("flags"), Reply::Set(flags)),
        (text("redirect"), Reply::Int(redirect(client))),
        (text("prefixes"), Reply::Array(prefixes)),
    ])))
}
