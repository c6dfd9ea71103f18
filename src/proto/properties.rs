//! Whatever comes in, conversion takes what keeps the rules, refuses the rest with a text that repeats nothing of it, and
//! never panics.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use prost::bytes::Bytes;

use super::MAX_SESSIONS_PER_MESSAGE;
use super::convert::{self, Malformed};
use super::v1::{self, agent_message, replica_message};
use super::version::Versions;

/// Every conversion that a replica does with what an agent says.
fn hear(message: v1::AgentMessage) -> Result<(), Malformed> {
    use agent_message::Message as M;
    let namespace: Arc<str> = "ns".into();
    match message.message {
        Some(M::Hello(hello)) => convert::hello(&hello).map(drop),
        Some(M::Reports(reports)) => convert::reports(&reports, &namespace).map(drop),
        Some(M::Acknowledgements(acks)) => {
            convert::bounded(acks.done.len())?;
            acks.done.iter().try_for_each(|ack| convert::session_name(&ack.session).map(drop))
        }
        Some(M::Renewals(renewals)) => {
            convert::bounded(renewals.used.len())?;
            renewals.used.iter().try_for_each(|renewal| convert::renewal(renewal).map(drop))
        }
        Some(M::Confirm(request)) => convert::barrier(request.state.as_ref()).map(drop),
        Some(M::Heartbeat(_) | M::LeaseReturned(_)) | None => Ok(()),
    }
}

/// Every conversion that an agent does with what a replica says.
fn obey(message: v1::ReplicaMessage) -> Result<(), Malformed> {
    if let Some(replica_message::Message::Signals(signals)) = message.message {
        signals.evictions.iter().try_for_each(|eviction| convert::eviction(eviction).map(drop))?;
        signals.barriers.iter().try_for_each(|barrier| convert::barrier(barrier.state.as_ref()).map(drop))?;
    }
    Ok(())
}

/// What Kubernetes allows, said in another way than the code says it.
fn is_name(name: &str) -> bool {
    let inner = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.');
    let edge = |c: char| c == '-' || c == '.';
    (1..=253).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with(edge)
        && !name.ends_with(edge)
        && !["..", "-.", ".-"].iter().any(|pair| name.contains(pair))
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z0-9]{1,8}", 2 => "[-a-z0-9.]{0,6}", 1 => ".{0,4}", 1 => "[a-c]{250,256}"]
}

fn bytes(right: usize) -> impl Strategy<Value = Bytes> {
    prop_oneof![4 => vec(any::<u8>(), right), 1 => vec(any::<u8>(), 0..40)].prop_map(Bytes::from)
}

prop_compose! {
    fn holding()(
        session in name(), uid in bytes(16), generation: u64, digest in bytes(32), resource_version: u64,
        since: u64
    ) -> v1::Holding {
        v1::Holding { session, uid, generation, digest, resource_version, since }
    }
}

prop_compose! {
    fn state()(
        session in name(), uid in bytes(16), gone: bool, generation: u64,
        digest in prop_oneof![bytes(32), Just(Bytes::new())], resource_version: u64
    ) -> v1::State {
        v1::State { session, uid, gone, generation, digest, resource_version }
    }
}

prop_compose! {
    fn eviction()(state in state(), signal: u64) -> v1::Eviction {
        let v1::State { session, uid, gone, generation: below, digest, resource_version } = state;
        v1::Eviction { session, signal, uid, gone, below, resource_version, digest }
    }
}

fn said() -> impl Strategy<Value = v1::AgentMessage> {
    use agent_message::Message as M;
    let hello = (0_u32..4, 0_u32..4, bytes(16), ".{0,70}");
    let hello = hello.prop_map(|(lowest_version, highest_version, instance, software)| v1::Hello {
        lowest_version,
        highest_version,
        instance,
        software,
    });
    let reports = (vec(holding(), 0..4), vec(name(), 0..4), any::<u64>(), any::<bool>())
        .prop_map(|(held, released, through, complete)| v1::Reports { held, released, through, complete });
    let ack = (name(), any::<u64>(), any::<bool>());
    let ack = ack.prop_map(|(session, signal, kept)| v1::Acknowledgement { session, signal, kept });
    let renewal = (name(), bytes(16), any::<u64>());
    let renewal = renewal.prop_map(|(session, uid, idle_millis)| v1::Renewal { session, uid, idle_millis });
    let confirm = (any::<u64>(), proptest::option::of(state()));
    let message = prop_oneof![
        hello.prop_map(M::Hello),
        reports.prop_map(M::Reports),
        vec(ack, 0..4).prop_map(|done| M::Acknowledgements(v1::Acknowledgements { done })),
        vec(renewal, 0..4).prop_map(|used| M::Renewals(v1::Renewals { used })),
        any::<u64>().prop_map(|number| M::Heartbeat(v1::Heartbeat { number })),
        confirm.prop_map(|(number, state)| M::Confirm(v1::ConfirmRequest { number, state })),
        Just(M::LeaseReturned(v1::LeaseReturned {})),
    ];
    proptest::option::of(message).prop_map(|message| v1::AgentMessage { message })
}

fn told() -> impl Strategy<Value = v1::ReplicaMessage> {
    let barrier = (any::<u64>(), proptest::option::of(state()));
    let barrier = barrier.prop_map(|(signal, state)| v1::Barrier { signal, state });
    (vec(eviction(), 0..3), vec(barrier, 0..3)).prop_map(|(evictions, barriers)| {
        let signals = v1::Signals { evictions, barriers };
        v1::ReplicaMessage { message: Some(replica_message::Message::Signals(signals)) }
    })
}

/// Whether the rules allow it.
fn keeps_the_rules(message: &v1::AgentMessage) -> bool {
    use agent_message::Message as M;
    let state =
        |s: &v1::State| is_name(&s.session) && s.uid.len() == 16 && (s.digest.is_empty() || s.digest.len() == 32);
    match &message.message {
        Some(M::Hello(h)) => {
            h.lowest_version <= Versions::OWN.highest && h.instance.len() == 16 && h.software.len() <= 64
        }
        Some(M::Reports(r)) => {
            r.held.iter().all(|h| is_name(&h.session) && h.uid.len() == 16 && h.digest.len() == 32)
                && r.released.iter().all(|name| is_name(name))
        }
        Some(M::Acknowledgements(a)) => a.done.iter().all(|a| is_name(&a.session)),
        Some(M::Renewals(r)) => r.used.iter().all(|r| is_name(&r.session) && r.uid.len() == 16),
        Some(M::Confirm(c)) => c.state.as_ref().is_some_and(state),
        Some(M::Heartbeat(_) | M::LeaseReturned(_)) | None => true,
    }
}

/// Bytes of a message of which some were overwritten, or which was cut.
fn damaged(bytes: Vec<u8>, damage: &[(prop::sample::Index, u8)], cut: prop::sample::Index) -> Vec<u8> {
    let mut bytes = bytes;
    for (at, byte) in damage {
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
    }
    let length = cut.index(bytes.len() * 2 + 1).min(bytes.len());
    bytes.truncate(length);
    bytes
}

fn all_decoders(bytes: &[u8]) {
    let _ = v1::AgentMessage::decode(bytes).map(hear);
    let _ = v1::ReplicaMessage::decode(bytes).map(obey);
    let _ = v1::PeerRequest::decode(bytes).map(|request| {
        if let Some(v1::peer_request::Message::Confirm(confirm)) = request.message {
            let _ = convert::namespace(&confirm.namespace);
            let _ = convert::barrier(confirm.request.as_ref().and_then(|r| r.state.as_ref()));
        }
    });
    let _ = v1::PeerReply::decode(bytes).map(|reply| {
        if let Some(v1::peer_reply::Message::Renewals(renewals)) = reply.message {
            for renewal in renewals.used.iter().filter_map(|used| used.renewal.as_ref()) {
                let _ = convert::renewal(renewal);
            }
        }
    });
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        all_decoders(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic(
        said in said(), told in told(), damage in vec(any::<(prop::sample::Index, u8)>(), 0..6), cut: prop::sample::Index
    ) {
        all_decoders(&damaged(said.encode_to_vec(), &damage, cut));
        all_decoders(&damaged(told.encode_to_vec(), &damage, cut));
    }

    #[test]
    fn just_what_keeps_the_rules_is_taken(message in said()) {
        prop_assert_eq!(hear(message.clone()).is_ok(), keeps_the_rules(&message), "{:?}", message);
    }

    #[test]
    fn just_names_that_an_object_can_have_are_taken(name in name()) {
        prop_assert_eq!(convert::session_name(&name).is_ok(), is_name(&name));
        let label = is_name(&name) && name.len() <= 63 && !name.contains('.');
        prop_assert_eq!(convert::namespace(&name).is_ok(), label);
    }

    /// Nobody takes a part of a message whose rest is wrong: it is refused as a whole, wherever the fault is.
    #[test]
    fn one_fault_is_enough(mut held in vec(holding(), 1..6), at: prop::sample::Index) {
        for (n, holding) in held.iter_mut().enumerate() {
            (holding.session, holding.uid, holding.digest) = (format!("s{n}"), vec![0; 16].into(), vec![0; 32].into());
        }
        let through = 1;
        let mut reports = v1::Reports { held, released: vec![], through, complete: true };
        prop_assert!(convert::reports(&reports, &"ns".into()).is_ok());
        let at = at.index(reports.held.len());
        reports.held[at].uid = vec![0; 15].into();
        prop_assert!(convert::reports(&reports, &"ns".into()).is_err());
    }

    /// A canary in every field that can hold one: the refusal does not repeat it (I6).
    #[test]
    fn a_refusal_repeats_nothing(message in said(), times in 1_usize..20) {
        use agent_message::Message as M;
        let canary = "Canary!".repeat(times);
        let mut message = message;
        match &mut message.message {
            Some(M::Hello(h)) => {
                h.software = canary.repeat(10);
                h.instance = canary.clone().into();
            }
            Some(M::Reports(r)) => {
                r.held.iter_mut().for_each(|h| (h.session, h.digest) = (canary.clone(), canary.clone().into()));
                r.released.iter_mut().for_each(|name| name.clone_from(&canary));
            }
            Some(M::Acknowledgements(a)) => a.done.iter_mut().for_each(|a| a.session.clone_from(&canary)),
            Some(M::Renewals(r)) => r.used.iter_mut().for_each(|r| r.uid = canary.clone().into()),
            Some(M::Confirm(v1::ConfirmRequest { state: Some(state), .. })) => state.session.clone_from(&canary),
            _ => {}
        }
        if let Err(refusal) = hear(message) {
            let text = format!("{refusal} {refusal:?}");
            prop_assert!(!text.contains("Canary"), "{}", text);
        }
    }
}

#[test]
fn the_most_sessions_fit_into_the_longest_message() {
    let held = (0..MAX_SESSIONS_PER_MESSAGE).map(|_| v1::Holding {
        session: "x".repeat(253),
        uid: vec![1; 16].into(),
        generation: u64::MAX,
        digest: vec![1; 32].into(),
        resource_version: u64::MAX,
        since: u64::MAX,
    });
    let reports = v1::Reports { held: held.collect(), released: vec![], through: u64::MAX, complete: true };
    let message = v1::AgentMessage { message: Some(agent_message::Message::Reports(reports)) };
    assert!(message.encoded_len() <= super::MAX_MESSAGE_BYTES, "{}", message.encoded_len());
    assert_eq!(hear(message), Ok(()));

    let state = v1::State {
        session: "x".repeat(253),
        uid: vec![1; 16].into(),
        gone: true,
        generation: u64::MAX,
        digest: vec![1; 32].into(),
        resource_version: u64::MAX,
    };
    let barrier = v1::Barrier { signal: u64::MAX, state: Some(state) };
    let signals = v1::Signals { evictions: vec![], barriers: vec![barrier; MAX_SESSIONS_PER_MESSAGE] };
    let message = v1::ReplicaMessage { message: Some(replica_message::Message::Signals(signals)) };
    assert!(message.encoded_len() <= super::MAX_MESSAGE_BYTES, "{}", message.encoded_len());
    assert_eq!(obey(message), Ok(()));
}
