//! How a client is told: in RESP3 by a push, in RESP2 on the channel `__redis__:invalidate` of a connection that it
//! redirects to.

use bytes::Bytes;

use super::{Recipient, Tracking};
use crate::resp::{Protocol, Reply};

/// The channel of invalidations.
pub const CHANNEL: &str = "__redis__:invalidate";

impl Tracking {
    /// Tells a client that `key` changed, or all keys (`None`).
    pub(super) fn send(&self, recipient: Recipient, key: Option<&[u8]>) {
        let Recipient { client, redirect } = recipient;
        let Some(target) = self.clients.get(redirect.unwrap_or(client)) else {
            // A client that tracks is told that nobody listens any more, as far as it can be told.
            if let (Some(lost), Some(client)) = (redirect, self.clients.get(client))
                && client.protocol() == Protocol::Resp3
            {
                let lost = i64::try_from(lost.0).unwrap_or(i64::MAX);
                client.mailbox().push(Reply::Push(vec![text("tracking-redir-broken"), Reply::Int(lost)]));
            }
            return;
        };
        let keys = key.map_or(Reply::Null, |key| Reply::Array(vec![Reply::Bulk(Bytes::copy_from_slice(key))]));
        if target.protocol() == Protocol::Resp3 {
            target.mailbox().invalidate(Reply::Push(vec![text("invalidate"), keys]));
        } else if redirect.is_some() && target.subscriptions() != (0, 0) {
            target.mailbox().invalidate(Reply::Array(vec![text("message"), text(CHANNEL), keys]));
        }
    }
}

fn text(text: &'static str) -> Reply {
    Reply::Bulk(Bytes::from_static(text.as_bytes()))
}
