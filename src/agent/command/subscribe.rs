//! Channels: keyspace events, and `__redis__:invalidate`.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::Flow;
use super::client::Client;
use super::context::Context;
use super::refusal::{Refusal, bounded};
use crate::agent::Agent;
use crate::agent::pubsub::Topic;
use crate::resp::Reply;

/// Channels and patterns of one client, at most.
const MOST: usize = 1_024;
/// Bytes of patterns of one client, at most: whoever writes a session pays for the look at each.
const MOST_PATTERN_BYTES: usize = 16 * 1_024;

fn text(text: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(text.as_bytes()))
}

fn told(kind: &'static str, name: Option<Bytes>, client: &Client) -> Reply {
    let count = i64::try_from(client.subscriptions()).unwrap_or(i64::MAX);
    Reply::Push(vec![text(kind), name.map_or(Reply::Null, Reply::Bulk), Reply::Int(count)])
}

fn set(client: &mut Client, topic: Topic) -> &mut BTreeSet<Bytes> {
    match topic {
        Topic::Channel => &mut client.channels,
        Topic::Pattern => &mut client.patterns,
    }
}

fn show(client: &Client) {
    client.handle.set_subscriptions(client.channels.len(), client.patterns.len());
    client.keeps();
}

fn add(context: &mut Context<'_>, args: &[Bytes], topic: Topic, kind: &'static str) -> Result<Flow, Refusal> {
    let Context { agent, client } = context;
    let names = args.get(1..).unwrap_or_default();
    if client.subscriptions() + names.len() > MOST {
        return Err(Refusal::Text("ERR too many subscriptions for one client"));
    }
    names.iter().try_for_each(|name| bounded(name))?;
    let has: usize = client.patterns.iter().map(Bytes::len).sum();
    let comes: usize = names.iter().map(Bytes::len).sum();
    if topic == Topic::Pattern && has + comes > MOST_PATTERN_BYTES {
        return Err(Refusal::Text("ERR too many bytes of patterns for one client: at most 16384"));
    }
    let mut replies = Vec::with_capacity(names.len());
    for name in names {
        // The name must not keep the whole buffer alive that the request came in.
        let name = Bytes::copy_from_slice(name);
        if set(client, topic).insert(name.clone()) {
            agent.pubsub.subscribe(&client.handle, topic, &name);
        }
        replies.push(told(kind, Some(name), client));
    }
    show(client);
    Ok(Flow::Replies(replies))
}

fn remove(context: &mut Context<'_>, args: &[Bytes], topic: Topic, kind: &'static str) -> Flow {
    let Context { agent, client } = context;
    let names = match args.get(1..) {
        Some(names) if !names.is_empty() => names.to_vec(),
        _ => set(client, topic).iter().cloned().collect(),
    };
    if names.is_empty() {
        return Flow::Replies(vec![told(kind, None, client)]);
    }
    let mut replies = Vec::with_capacity(names.len());
    for name in names {
        if set(client, topic).remove(&name) {
            agent.pubsub.unsubscribe(client.id(), topic, &name);
        }
        replies.push(told(kind, Some(name), client));
    }
    show(client);
    Flow::Replies(replies)
}

/// Ends all subscriptions, without telling.
pub(super) fn unsubscribe_all(agent: &Agent, client: &mut Client) {
    for topic in [Topic::Channel, Topic::Pattern] {
        for name in std::mem::take(set(client, topic)) {
            agent.pubsub.unsubscribe(client.id(), topic, &name);
        }
    }
    show(client);
}

/// `SUBSCRIBE channel ...`
pub fn subscribe(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    add(context, args, Topic::Channel, "subscribe")
}

/// `PSUBSCRIBE pattern ...`
pub fn psubscribe(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    add(context, args, Topic::Pattern, "psubscribe")
}

/// `UNSUBSCRIBE [channel ...]`
pub fn unsubscribe(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(remove(context, args, Topic::Channel, "unsubscribe"))
}

/// `PUNSUBSCRIBE [pattern ...]`
pub fn punsubscribe(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    Ok(remove(context, args, Topic::Pattern, "punsubscribe"))
}
