//! Messages that break the protocol end their own stream, with the reason.

use prost::bytes::Bytes;
use tonic::{Code, Status};
use vmcp_session::core::session::Uid;
use vmcp_session::proto::v1::agent_message::Message as Said;
use vmcp_session::proto::v1::replica_message::Message as Heard;
use vmcp_session::proto::{MAX_MESSAGE_BYTES, MAX_SESSIONS_PER_MESSAGE, v1};

use super::client::{Agent, confirm, connect, hello, holding, instance, send_bytes};
use super::setup::{CANARY, Shared, on_shared};

const UID: Uid = Uid::from_u128(1);

/// What a case sends after its hello, or instead of it.
struct Case {
    what: &'static str,
    greeted: bool,
    /// `None` is a message without content.
    message: Option<Said>,
    code: Code,
    text: &'static str,
}

fn reports(held: Vec<v1::Holding>, released: Vec<String>) -> Said {
    Said::Reports(v1::Reports { held, released, through: 1, complete: true })
}

fn ack(session: &str) -> v1::Acknowledgement {
    v1::Acknowledgement { session: session.to_owned(), signal: 1, kept: false }
}

fn renewal(session: &str, uid: &'static [u8]) -> v1::Renewal {
    v1::Renewal { session: session.to_owned(), uid: uid.into(), idle_millis: u64::MAX }
}

/// First messages that are wrong.
fn openings() -> Vec<Case> {
    let hello_with = |change: fn(&mut v1::Hello)| {
        let Said::Hello(mut hello) = hello(instance()) else { unreachable!() };
        change(&mut hello);
        Some(Said::Hello(hello))
    };
    let case = |what, message, code, text| Case { what, greeted: false, message, code, text };
    let (version, invalid) = (Code::FailedPrecondition, Code::InvalidArgument);
    vec![
        case(
            "an unknown version",
            hello_with(|h| (h.lowest_version, h.highest_version) = (7, 9)),
            version,
            "the agent speaks versions 7 to 9, the controller version 1: upgrade the controller",
        ),
        case(
            "an unknown version of one that speaks no other",
            hello_with(|h| (h.lowest_version, h.highest_version) = (7, 0)),
            version,
            "the agent speaks version 7, the controller version 1: upgrade the controller",
        ),
        case(
            "a short instance",
            hello_with(|h| h.instance.truncate(15)),
            invalid,
            "instance is wrong: expected 16 bytes",
        ),
        case("a long instance", hello_with(|h| h.instance = CANARY.repeat(3).into()), invalid, "expected 16 bytes"),
        case("no instance", hello_with(|h| h.instance.clear()), invalid, "expected 16 bytes"),
        case(
            "a long name",
            hello_with(|h| h.software = CANARY.repeat(11)),
            invalid,
            "software is wrong: expected at most 64",
        ),
        case("a heartbeat first", Some(Said::Heartbeat(v1::Heartbeat { number: 1 })), invalid, "expected a Hello"),
        case("an inventory first", Some(reports(vec![], vec![])), invalid, "expected a Hello"),
        case("nothing first", None, invalid, "expected a Hello"),
    ]
}

/// Later messages that are wrong.
fn later() -> Vec<Case> {
    let invalid = Code::InvalidArgument;
    let case = |what, message, text| Case { what, greeted: true, message, code: invalid, text };
    let held = |change: fn(&mut v1::Holding)| {
        let mut held = holding("s", UID);
        change(&mut held);
        Some(reports(vec![holding("good", UID), held], vec![]))
    };
    let state = |change: fn(&mut v1::State)| {
        let Said::Confirm(mut request) = confirm(1, "s", UID, 1, 1) else { unreachable!() };
        change(request.state.as_mut().unwrap());
        Some(Said::Confirm(request))
    };
    let acks = |done| Some(Said::Acknowledgements(v1::Acknowledgements { done }));
    let renewals = |used| Some(Said::Renewals(v1::Renewals { used }));
    let name = "session is wrong: expected the name of an object";
    let most = MAX_SESSIONS_PER_MESSAGE;
    let too_many = "names 2049 sessions: at most 2048 are allowed";
    vec![
        case("a second hello", Some(hello(instance())), "unexpected message: expected reports"),
        case("nothing", None, "unexpected message"),
        case("a short uid", held(|h| h.uid.truncate(15)), "uid is wrong: expected 16 bytes"),
        case("a long uid", held(|h| h.uid = CANARY.repeat(3).into()), "uid is wrong"),
        case("a short digest", held(|h| h.digest.truncate(31)), "digest is wrong: expected 32 bytes"),
        case("a long digest", held(|h| h.digest = CANARY.repeat(9).into()), "digest is wrong"),
        case("no digest", held(|h| h.digest.clear()), "digest is wrong"),
        case("an empty name", held(|h| h.session.clear()), name),
        case("a path for a name", held(|h| h.session = format!("../{CANARY}")), name),
        case("capitals", held(|h| h.session = CANARY.to_uppercase()), name),
        case("a long name", held(|h| h.session = format!("{CANARY}{}", "x".repeat(248))), name),
        case("a released path", Some(reports(vec![], vec![format!("{CANARY}/status")])), name),
        case("a dot at the end", acks(vec![ack("s"), ack(&format!("{CANARY}."))]), name),
        case("a control character", renewals(vec![renewal(&format!("{CANARY}\n"), &[1; 16])]), name),
        case("a renewed uid", renewals(vec![renewal("s", &[1; 17])]), "uid is wrong"),
        case("no state", Some(Said::Confirm(v1::ConfirmRequest { number: 1, state: None })), "state is wrong"),
        case("a confirmed uid", state(|s| s.uid.clear()), "uid is wrong"),
        case("a confirmed digest", state(|s| s.digest = CANARY.into()), "digest is wrong"),
        case("a confirmed name", state(|s| s.session = format!("-{CANARY}")), name),
        case("2,049 holdings", Some(reports(vec![holding("s", UID); most + 1], vec![])), too_many),
        case("2,049 reports", Some(reports(vec![holding("s", UID); most], vec!["s".into()])), too_many),
        case("2,049 acknowledgements", acks(vec![ack("s"); most + 1]), too_many),
        case(
            "many that say nothing",
            Some(reports(vec![v1::Holding::default(); 100_000], vec![])),
            "names more than 2048",
        ),
        case("2,049 renewals", renewals(vec![renewal("s", &[1; 16]); most + 1]), too_many),
    ]
}

fn check(what: &str, status: &Status, code: Code, text: &str) {
    assert_eq!(status.code(), code, "{what}: {status:?}");
    assert!(status.message().contains(text), "{what}: {status:?}");
    let said = format!("{status:?}");
    assert!(!said.to_lowercase().contains(CANARY), "{what}: {said}");
}

/// Ends streams of as many pods as are needed: one that opens streams too often is not let in.
async fn end_each(shared: &Shared, cases: Vec<Case>) {
    let mut pod = shared.pod(shared.namespace()).await;
    for (n, Case { what, greeted, message, code, text }) in cases.into_iter().enumerate() {
        if n % 20 == 19 {
            pod = shared.pod(shared.namespace()).await;
        }
        let mut agent = Agent::open_with(shared.address(), &pod.token).await.unwrap();
        if greeted {
            agent = agent.greeted(instance()).await;
        }
        let _ = agent.outbox.send(v1::AgentMessage { message }).await;
        check(what, &agent.ended().await, code, text);
    }
}

#[test]
fn a_wrong_first_message_ends_the_stream_with_the_reason() {
    on_shared(async |shared| end_each(shared, openings()).await);
}

/// One that speaks newer versions too, as an upgraded agent does, and those from before versions were told in a range, or at all.
#[test]
fn the_version_that_both_speak_is_used_and_told() {
    on_shared(async |shared| {
        let pod = shared.pod(shared.namespace()).await;
        for (lowest, highest) in [(1, 9), (1, 0), (0, 0)] {
            let Said::Hello(hello) = hello(instance()) else { unreachable!() };
            let hello = v1::Hello { lowest_version: lowest, highest_version: highest, ..hello };
            let mut agent = Agent::open_with(shared.address(), &pod.token).await.unwrap();
            agent.say(Said::Hello(hello)).await;
            let Ok(Heard::Settings(settings)) = agent.hear().await else {
                panic!("{lowest} to {highest}: expected Settings")
            };
            assert_eq!(settings.protocol_version, 1, "{lowest} to {highest}");
        }
    });
}

#[test]
fn a_malformed_message_ends_the_stream_with_the_reason_and_nothing_of_it_counts() {
    on_shared(async |shared| {
        end_each(shared, later()).await;
        shared.wait_at_most("vmcp_session_agents{state=\"connected\"}", 1).await;
        assert_eq!(shared.metric("vmcp_session_holdings").await, 1, "only the well-behaved pod holds a copy");
    });
}

#[test]
fn what_is_no_message_or_too_long_ends_the_stream_with_the_reason() {
    on_shared(async |shared| {
        let pod = shared.pod(shared.namespace()).await;
        let long = "x".repeat(MAX_MESSAGE_BYTES);
        let mut agent = Agent::connect(shared.address(), &pod.token).await;
        agent.say(reports(vec![], vec![format!("{CANARY}{long}")])).await;
        check("over 1 MiB", &agent.ended().await, Code::ResourceExhausted, "longer than 1048576 bytes");

        let not_decoded = (Code::InvalidArgument, "cannot be decoded");
        let garbage = [
            ("a tag that does not exist", Bytes::from_static(&[0x07, 0x00])),
            ("a length beyond the end", Bytes::from_static(&[0x0a, 0x7f, 0x01])),
            ("a wrong type", Bytes::from_static(&[0x08, 0x01])),
            ("text", Bytes::from(CANARY)),
            ("text that is not UTF-8", Bytes::from_static(&[0x0a, 0x05, 0x1a, 0x03, 0xff, 0xfe, 0xfd])),
            ("many bytes", Bytes::from(vec![0xff; 100_000])),
        ];
        for (what, bytes) in garbage {
            let status = send_bytes(connect(shared.address()).await, &pod.token, vec![bytes]).await;
            check(what, &status, not_decoded.0, not_decoded.1);
        }
        // A message as long as may be is no harm, even if all of it is unknown.
        let mut unknown = vec![0x7a, 0xf0, 0xff, 0x3f];
        unknown.resize(unknown.len() + 0x000f_fff0, 0);
        let status = send_bytes(connect(shared.address()).await, &pod.token, vec![unknown.into()]).await;
        check("a long unknown field", &status, Code::InvalidArgument, "expected a Hello");
    });
}
