//! Channels that clients listen to. Nobody publishes by a command: what is heard is what happened to sessions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::RwLock;

use super::command::matches;
use super::server::{ClientHandle, ClientId};
use crate::resp::Reply;

/// What a client listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// A channel.
    Channel,
    /// All channels that match a pattern.
    Pattern,
}

type Listeners = BTreeMap<ClientId, Arc<ClientHandle>>;

#[derive(Debug, Default)]
struct Rooms {
    channels: HashMap<Bytes, Listeners>,
    patterns: HashMap<Bytes, Listeners>,
}

impl Rooms {
    fn of(&mut self, topic: Topic) -> &mut HashMap<Bytes, Listeners> {
        match topic {
            Topic::Channel => &mut self.channels,
            Topic::Pattern => &mut self.patterns,
        }
    }
}

/// Who listens to what. How much one client may listen to is bounded where it asks.
#[derive(Debug, Default)]
pub struct PubSub {
    rooms: RwLock<Rooms>,
    /// Channels and patterns. Without any, an event costs no more than a look at this.
    topics: AtomicUsize,
}

impl PubSub {
    /// The client listens to this from now on, until it is unsubscribed.
    pub fn subscribe(&self, client: &Arc<ClientHandle>, topic: Topic, name: &Bytes) {
        self.change(|rooms| {
            rooms.of(topic).entry(name.clone()).or_default().insert(client.id(), client.clone());
        });
    }

    /// The client does not listen to this any more.
    pub fn unsubscribe(&self, client: ClientId, topic: Topic, name: &Bytes) {
        self.change(|rooms| {
            let rooms = rooms.of(topic);
            if let Some(listeners) = rooms.get_mut(name) {
                listeners.remove(&client);
                if listeners.is_empty() {
                    rooms.remove(name);
                }
            }
        });
    }

    /// Something happened to a key: `event` is Redis's word for it.
    pub fn event(&self, event: &str, key: &[u8]) {
        if self.topics.load(Ordering::SeqCst) == 0 {
            return;
        }
        self.publish(&[b"__keyspace@0__:", key].concat(), event.as_bytes());
        self.publish(&[b"__keyevent@0__:", event.as_bytes()].concat(), key);
    }

    /// Channels that somebody listens to, and patterns.
    pub fn counts(&self) -> (usize, usize) {
        let rooms = self.rooms.read();
        (rooms.channels.len(), rooms.patterns.len())
    }

    fn change(&self, change: impl FnOnce(&mut Rooms)) {
        let mut rooms = self.rooms.write();
        change(&mut rooms);
        self.topics.store(rooms.channels.len() + rooms.patterns.len(), Ordering::SeqCst);
    }

    fn publish(&self, channel: &[u8], message: &[u8]) {
        let bulk = |bytes: &[u8]| Reply::Bulk(Bytes::copy_from_slice(bytes));
        let rooms = self.rooms.read();
        for client in rooms.channels.get(channel).into_iter().flat_map(Listeners::values) {
            let message = vec![bulk(b"message"), bulk(channel), bulk(message)];
            client.mailbox().push(Reply::Push(message));
        }
        for (pattern, listeners) in rooms.patterns.iter().filter(|(pattern, _)| matches(pattern, channel)) {
            for client in listeners.values() {
                let message = vec![bulk(b"pmessage"), Reply::Bulk(pattern.clone()), bulk(channel), bulk(message)];
                client.mailbox().push(Reply::Push(message));
            }
        }
    }
}
