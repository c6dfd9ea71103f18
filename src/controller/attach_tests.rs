//! What one stream may ask for, and how it ends.

use axum::body::Body;
use futures::{StreamExt, stream};
use prost::Message as _;
use tokio::time::Instant;
use tonic::codec::Codec;
use tonic_prost::ProstCodec;

use super::*;
use crate::controller::tests::Nobody;
use crate::core::cache::{Holding, Report};
use crate::core::digest::{Digest, Metadata};
use crate::core::replica::{Config, InstanceId, Replica};
use crate::core::session::{ResourceVersion, Uid};

#[test]
fn no_agent_is_silent_that_misses_a_few_heartbeats() {
    let seconds = |lease| longest_silence(Duration::from_secs(lease)).as_secs();
    assert_eq!([1, 5, 15, 300].map(seconds), [20, 20, 30, 600]);
}

#[test]
fn uses_of_too_many_sessions_that_do_not_exist_end_no_stream() {
    let second = Duration::from_secs(1);
    let ledger = Ledger::new("own", second, second, Box::new(Nobody));
    let turn = ledger.begin_taking();
    let tell = |namespace: &str, first: usize, count: usize| {
        let names = (first..first + count).map(|n| format!("s-{n}"));
        let used = names.map(|name| convert::renewal_message(&name, Uid::from_u128(1), Duration::ZERO));
        used_in(&ledger, namespace, &v1::Renewals { used: used.collect() })
    };
    let most = MAX_SESSIONS_PER_MESSAGE;
    let full = (0..100).find_map(|n| tell("ns", n * most, most).err());
    assert_eq!(full, Some(Full::Namespace));
    assert_eq!(tell("other", 0, 1), Ok(()));
    let kept = ledger.take_renewed(turn).unwrap();
    assert!(kept.len() > most && kept.iter().any(|(key, ..)| &**key.namespace() == "other"), "{}", kept.len());
    // What was taken has made room.
    assert_eq!(tell("ns", 0, most), Ok(()));
}

fn used_in(ledger: &Ledger, namespace: &str, renewals: &v1::Renewals) -> Result<(), Full> {
    used(ledger, &namespace.into(), renewals).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_message_that_has_begun_and_never_ends_ends_the_stream() {
    let second = Duration::from_secs(1);
    let ledger = Arc::new(Ledger::new("own", second, second, Box::new(Nobody)));
    let shared = Arc::new(Shared::new(Replica::new(Config::default(), &[]), ledger.clone()));
    let stream = shared.open_stream();
    let attach = Attach { shared, ledger, settings: v1::Settings::default(), closing: CancellationToken::new() };
    // A whole heartbeat, and the beginning of a message as long as may be.
    let heartbeat = agent_message::Message::Heartbeat(v1::Heartbeat { number: 1 });
    let heartbeat = v1::AgentMessage { message: Some(heartbeat) }.encode_to_vec();
    let head = |length: usize| [&[0][..], &u32::try_from(length).unwrap().to_be_bytes()].concat();
    let begun = [head(heartbeat.len()), heartbeat, head(MAX_MESSAGE_BYTES), vec![0; 100]].concat();
    let body = stream::iter([Ok::<_, Status>(begun)]).chain(stream::pending());
    let decoder = ProstCodec::<(), v1::AgentMessage>::default().decoder();
    let mut inbound = Streaming::new_request(decoder, Body::from_stream(body), None, Some(MAX_MESSAGE_BYTES));
    let pod = Pod { namespace: "ns".into(), name: "pod".into(), uid: "1".into() };
    let (outbox, _read) = mpsc::channel(1);
    let begun = Instant::now();
    let ended = timeout(Duration::from_hours(1), attach.receive(&pod, stream.id, &mut inbound, &outbox)).await;
    let ended = ended.expect("it is waited for").unwrap_err();
    assert_eq!(ended.status().unwrap().code(), Code::DeadlineExceeded);
    assert_eq!(ended.to_string(), "no whole message has come for 30 s");
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn signals_without_end_do_not_keep_an_agent_without_a_lease() {
    let second = Duration::from_secs(1);
    let ledger = Arc::new(Ledger::new("own", second, second, Box::new(Nobody)));
    let replica = Replica::new(Config::default(), &[]);
    let scope = replica.scopes().next().unwrap().0;
    let shared = Arc::new(Shared::new(replica, ledger.clone()));
    let stream = shared.open_stream();
    let hello = Hello { instance: InstanceId(1), namespace: "ns".into(), name: "pod".into() };
    shared.with(|replica, now| {
        replica.relist(scope, Vec::new(), ResourceVersion(2), now).unwrap();
        assert_eq!(replica.stream_opened(stream.id, hello, now), None);
    });
    // A copy of what does not exist any more is one to drop.
    let (mut copies, digest) = (0, Digest::of(&Metadata::new()));
    let mut signal = || {
        copies += 1;
        let key = SessionKey::new("ns", format!("s-{copies}").as_str());
        let held =
            Holding { uid: Uid::from_u128(1), generation: 1, digest, resource_version: ResourceVersion(1), since: 1 };
        shared.with(|replica, now| replica.reported(stream.id, vec![(key, Report::Held(held))], None, now)).unwrap();
    };
    let (outbox, mut read) = mpsc::channel(1);
    outbox.try_send(v1::ReplicaMessage::default()).unwrap();
    signal();
    let attach =
        Attach { shared: shared.clone(), ledger, settings: v1::Settings::default(), closing: CancellationToken::new() };
    let reading = async {
        shared.with(|replica, now| replica.heartbeat(stream.id, 1, now));
        for _ in 0..100 {
            signal();
            if let Some(replica_message::Message::Lease(_)) = read.recv().await.unwrap().message {
                return;
            }
        }
        panic!("no lease");
    };
    tokio::select! {
        biased;
        Err(ended) = attach.send(&stream, &outbox) => panic!("{ended}"),
        () = reading => {}
    }
}
