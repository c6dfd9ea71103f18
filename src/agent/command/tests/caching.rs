//! What clients that keep copies of their own are told.

use bytes::BytesMut;
use serde_json::json;

use crate::agent::testing::{Bench, Guest};
use crate::resp::{Protocol, Reply};

/// What waits to be sent to a client.
fn heard(guest: &Guest) -> String {
    let mut heard = BytesMut::new();
    guest.client.handle().mailbox().take(Protocol::Resp3, true, &mut heard);
    String::from_utf8(heard.to_vec()).unwrap()
}

#[tokio::test]
async fn who_does_not_want_to_hear_of_itself_hears_that_more_is_there_than_it_wrote() {
    let invalidated = ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n";
    let bench = Bench::new();
    let mut guest = bench.guest();
    for command in ["HELLO 3", "HSET k a 1", "CLIENT TRACKING ON NOLOOP", "GET k"] {
        guest.asks(command).await;
    }
    // Another pod's write: the client is told, and is registered for nothing any more.
    bench.api.merge("k", &json!({"spec": {"metadata": {"b": "other"}}}));
    bench.agent.tracking.stale(b"k");
    assert_eq!(heard(&guest), invalidated);
    assert_eq!(guest.asks(r#"SET k {"a":"2"}"#).await, Reply::OK);
    assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"], json!({"a": "2", "b": "other"}));
    assert_eq!(heard(&guest), invalidated, "it keeps what it wrote");
    // What is just what it wrote is no news.
    assert_eq!(guest.asks("HSET k a 3").await, Reply::Int(0));
    assert_eq!(heard(&guest), "");
}
