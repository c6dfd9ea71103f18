//! What clients that keep copies of their own are told.

use serde_json::json;

use crate::agent::testing::Bench;
use crate::resp::Reply;

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
    assert_eq!(guest.heard(), invalidated);
    assert_eq!(guest.asks(r#"SET k {"a":"2"}"#).await, Reply::OK);
    assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"], json!({"a": "2", "b": "other"}));
    assert_eq!(guest.heard(), invalidated, "it keeps what it wrote");
    // What is just what it wrote is no news.
    assert_eq!(guest.asks("HSET k a 3").await, Reply::Int(0));
    assert_eq!(guest.heard(), "");
}
