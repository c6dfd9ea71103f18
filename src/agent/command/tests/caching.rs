//! What clients that keep copies of their own are told.

use serde_json::json;

use crate::agent::testing::{Bench, Guest, bulk};
use crate::resp::Reply;

const INVALIDATED: &str = ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n";

#[tokio::test]
async fn who_does_not_want_to_hear_of_itself_hears_that_more_is_there_than_it_wrote() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    for command in ["HELLO 3", "HSET k a 1", "CLIENT TRACKING ON NOLOOP", "GET k"] {
        guest.asks(command).await;
    }
    // Another pod's write: the client is told, and is registered for nothing any more.
    bench.api.merge("k", &json!({"spec": {"metadata": {"b": "other"}}}));
    bench.agent.tracking.stale(b"k");
    assert_eq!(guest.heard(), INVALIDATED);
    assert_eq!(guest.asks(r#"SET k {"a":"2"}"#).await, Reply::OK);
    assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"], json!({"a": "2", "b": "other"}));
    assert_eq!(guest.heard(), INVALIDATED, "it keeps what it wrote");
    // What is just what it wrote is no news.
    assert_eq!(guest.asks("HSET k a 3").await, Reply::Int(0));
    assert_eq!(guest.heard(), "");
}

#[tokio::test]
async fn who_does_not_want_to_hear_of_itself_need_not_read_what_it_wrote() {
    for (mode, hears) in [("NOLOOP", ["", INVALIDATED]), ("OPTOUT", [INVALIDATED, ""])] {
        let bench = Bench::new();
        let mut guest = bench.guest();
        for command in ["HELLO 3", "HSET k a 0", &format!("CLIENT TRACKING ON {mode}"), "GET k", "HSET k a 1"] {
            guest.asks(command).await;
        }
        assert_eq!(guest.heard(), hears[0], "{mode}: it wrote that itself");
        bench.guest().asks("HSET k a 2").await;
        assert_eq!(guest.heard(), hears[1], "{mode}: somebody else did");
    }
}

#[tokio::test]
async fn whose_redirection_is_lost_is_shown() {
    let bench = Bench::new();
    let flags = async |guest: &mut Guest, command: &str| {
        let Reply::Verbatim(_, text) = guest.asks(command).await else { panic!("{command}") };
        text.split_once(" flags=").unwrap().1.split(' ').next().unwrap().to_owned()
    };
    for (mode, is, becomes) in [("", "tU", "tRU"), (" BCAST", "tBU", "tRBU")] {
        let (mut guest, target) = (bench.guest(), bench.guest());
        let (id, to) = (guest.client.id(), target.client.id());
        guest.asks(&format!("CLIENT TRACKING ON REDIRECT {to}{mode}")).await;
        let list = format!("CLIENT LIST ID {id}");
        assert_eq!(flags(&mut guest, &list).await, is);
        bench.agent.clients.unregister(to);
        for command in ["CLIENT INFO", &list] {
            assert_eq!(flags(&mut guest, command).await, becomes, "{command}");
        }
        guest.asks("CLIENT TRACKING OFF").await;
        assert_eq!(flags(&mut guest, &list).await, "U");
    }
}

#[tokio::test]
async fn tracking_by_prefix_widens_and_never_narrows() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    let prefixes = async |guest: &mut Guest| {
        let Reply::Map(info) = guest.asks("CLIENT TRACKINGINFO").await else { panic!("no map") };
        info.last().unwrap().1.clone()
    };
    guest.asks("CLIENT TRACKING ON BCAST PREFIX a").await;
    assert_eq!(prefixes(&mut guest).await, Reply::Array(vec![bulk("a")]));
    assert_eq!(guest.asks("CLIENT TRACKING ON BCAST").await, Reply::OK);
    assert_eq!(prefixes(&mut guest).await, Reply::Array(vec![bulk(""), bulk("a")]));
    // Told again, it is no news.
    assert_eq!(guest.asks("CLIENT TRACKING ON BCAST").await, Reply::OK);
    assert_eq!(prefixes(&mut guest).await, Reply::Array(vec![bulk(""), bulk("a")]));
    let refused = guest.asks("CLIENT TRACKING ON BCAST PREFIX b").await;
    let text = "ERR Prefix 'b' overlaps with an existing prefix ''. Prefixes for a single client must not overlap.";
    assert_eq!(refused, Reply::Error(text.into()));
}

#[tokio::test]
async fn caching_is_about_the_next_command_whatever_it_is() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    guest.asks("SET k {}").await;
    for (mode, right, wrong) in [("OPTIN", "YES", "NO"), ("OPTOUT", "NO", "YES"), ("BCAST", "", "YES")] {
        guest.asks("CLIENT TRACKING OFF").await;
        guest.asks(&format!("CLIENT TRACKING ON {mode}")).await;
        let other = if wrong == "YES" { "OPTIN" } else { "OPTOUT" };
        let text = format!("ERR CLIENT CACHING {wrong} is only valid when tracking is enabled in {other} mode.");
        assert_eq!(guest.asks(&format!("CLIENT CACHING {wrong}")).await, Reply::Error(text.into()));
        assert_eq!(guest.asks("CLIENT CACHING maybe").await, Reply::Error("ERR syntax error".into()), "{mode}");
        if !right.is_empty() {
            assert_eq!(guest.asks(&format!("CLIENT CACHING {right}")).await, Reply::OK);
            guest.asks("NOSUCH").await;
            assert_eq!(guest.client.caching, None, "{mode}");
        }
    }
    guest.asks("CLIENT TRACKING OFF").await;
    let Reply::Error(text) = guest.asks("CLIENT CACHING YES").await else { panic!("no error") };
    assert!(text.contains("can be called only when the client is in tracking mode"), "{text}");
}
