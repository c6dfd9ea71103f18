//! Agents that say too much, read too little, or ask for what cannot be.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::eventually;
use tonic::{Code, Status};
use vmcp_session::core::session::Uid;
use vmcp_session::proto::v1::agent_message::Message as Said;
use vmcp_session::proto::v1::replica_message::Message as Heard;
use vmcp_session::proto::{MAX_SESSIONS_PER_MESSAGE, v1};

use super::client::{Agent, confirm, endpoint, hello, holding, instance};
use super::setup::{LEASE, PATIENCE, Shared, on_shared, soon, unnoticed};

const CONNECTED: &str = "vmcp_session_agents{state=\"connected\"}";
const CONFIRMATIONS: &str = "vmcp_session_queue_depth{queue=\"confirmations\"}";
/// Memory that a flood may cost for a while, in MiB: buffers of its connections, and what the allocator keeps.
const FLAT: usize = 48;
/// Confirmations that one pod may have under way.
const PER_POD: u64 = 512;

/// An agent that is served, and takes hardly anything before it must read.
async fn narrow(shared: &Shared, token: &str) -> Agent {
    let endpoint = endpoint(shared.address()).initial_stream_window_size(256).initial_connection_window_size(65_535);
    let channel = endpoint.connect().await.unwrap();
    let agent = Agent::open(channel, Some(&format!("Bearer {token}"))).await.unwrap();
    agent.say(hello(instance())).await;
    agent.say(Said::Reports(v1::Reports { complete: true, ..Default::default() })).await;
    agent
}

/// A session whose object can be confirmed: its uid, and the resourceVersion at which it is what it is.
async fn confirmable(shared: &Shared, namespace: &str, name: &str) -> (Uid, u64) {
    let (object, uid) = shared.session(namespace, name, &json!({"metadata": {}})).await;
    (uid, object.metadata.resource_version.unwrap().parse().unwrap())
}

#[test]
fn an_agent_that_never_reads_holds_nobody_up_gets_no_lease_and_is_let_go() {
    on_shared(async |shared| {
        let pod = shared.pod(shared.namespace()).await;
        let mut stuck = narrow(shared, &pod.token).await;
        let mut held = Vec::new();
        for n in 0..50 {
            let name = format!("unread-{n}");
            let (uid, _) = confirmable(shared, shared.namespace(), &name).await;
            held.push(holding(&name, uid));
        }
        stuck.say(Said::Reports(v1::Reports { held, released: vec![], through: 50, complete: true })).await;
        let begun = Instant::now();
        let mut sent = 0;
        let mut longest = Duration::ZERO;
        // It goes on asking for leases as long as it is listened to.
        while shared.metric(CONNECTED).await > 1 {
            assert!(begun.elapsed() < PATIENCE * 2, "who never reads is still served");
            for _ in 0..20 {
                sent += 1;
                let message = v1::AgentMessage { message: Some(Said::Heartbeat(v1::Heartbeat { number: sent })) };
                let _ = stuck.outbox.try_send(message);
            }
            longest = longest.max(shared.evictions_take(1).await);
        }
        unnoticed("beside an agent that never reads", longest);
        println!("who never reads was let go after {:?}", begun.elapsed());
        // What it finds when it reads at last: a few leases, all measured from heartbeats sent long ago, and the reason.
        let (mut leases, mut last) = (0, 0);
        let status = loop {
            match stuck.hear().await {
                Ok(Heard::Lease(lease)) => (leases, last) = (leases + 1, lease.heartbeat),
                Ok(_) => {}
                Err(status) => break status,
            }
        };
        assert!(leases < 30 && last < sent / 2, "{leases} leases, the last one for heartbeat {last} of {sent}");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(status.message().contains("has not read for 20 s"), "{status:?}");
    });
}

/// Sends the same again and again, until told to end or its stream ends, and reads whatever comes. Returns how many it has sent, and
/// with what its stream has ended before.
async fn flood(mut agent: Agent, messages: Vec<Said>, until: Instant) -> (usize, Option<Status>) {
    let sent = AtomicUsize::new(0);
    let outbox = agent.outbox.clone();
    let sending = async {
        for message in messages.iter().cycle() {
            if Instant::now() > until {
                return;
            }
            if outbox.send(v1::AgentMessage { message: Some(message.clone()) }).await.is_err() {
                // The other half says why.
                std::future::pending::<()>().await;
            }
            sent.fetch_add(1, Ordering::Relaxed);
        }
    };
    let reading = async {
        loop {
            match agent.inbound.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("ended"),
                Err(status) => return status,
            }
        }
    };
    tokio::select! {
        () = sending => (sent.load(Ordering::Relaxed), None),
        status = reading => (sent.load(Ordering::Relaxed), Some(status)),
    }
}

#[test]
fn a_flood_of_messages_costs_nobody_else_and_no_memory() {
    on_shared(async |shared| {
        let uid = Uid::from_u128(9);
        let names: Vec<String> = (0..MAX_SESSIONS_PER_MESSAGE).map(|n| format!("flooded-{n}")).collect();
        let done = names.iter().zip(1..).map(|(session, signal)| v1::Acknowledgement {
            session: session.clone(),
            signal,
            kept: false,
        });
        let used = names.iter().map(|session| v1::Renewal {
            session: session.clone(),
            uid: uid.to_bytes().to_vec().into(),
            idle_millis: 0,
        });
        let floods = [
            ("heartbeats", vec![Said::Heartbeat(v1::Heartbeat { number: 1 })]),
            ("acknowledgements", vec![Said::Acknowledgements(v1::Acknowledgements { done: done.collect() })]),
            ("renewals", vec![Said::Renewals(v1::Renewals { used: used.collect() })]),
            ("confirmations", vec![confirm(1, "flooded", uid, u64::MAX, u64::MAX)]),
            ("reports of the same", {
                let held = vec![holding("flooded", uid); 100];
                vec![Said::Reports(v1::Reports { held, released: vec!["flooded".into()], through: 1, complete: true })]
            }),
        ];
        let before = shared.resident_mib();
        let until = Instant::now() + Duration::from_secs(5);
        let mut flooding = Vec::new();
        for (what, messages) in floods {
            let agent = shared.agent(shared.namespace()).await;
            flooding.push((what, tokio::spawn(flood(agent, messages, until))));
        }
        let mut longest = Duration::ZERO;
        while Instant::now() < until {
            longest = longest.max(shared.evictions_take(1).await);
        }
        for (what, flooding) in flooding {
            let (sent, ended) = flooding.await.unwrap();
            println!("{what}: {sent} messages in at most 5 s");
            // Some name thousands of sessions each.
            assert!(sent > 20, "{what}: {sent} messages are no flood");
            // HTTP/2 itself hangs up on who sends many small pieces faster than they are read. The replica ends nothing.
            assert!(ended.as_ref().is_none_or(|status| status.code() == Code::Unknown), "{what}: {ended:?}");
        }
        let after = shared.resident_mib();
        println!("resident: {before} MiB before, {after} MiB after");
        assert!(after < before + FLAT, "{before} MiB before, {after} MiB after");
        unnoticed("beside floods of messages", longest);
        shared.wait_at_most(CONNECTED, 1).await;
        shared.wait_at_most("vmcp_session_holdings", 2).await;
    });
}

#[test]
fn one_pod_cannot_use_up_the_confirmations_and_those_of_what_never_was_are_dropped() {
    on_shared(async |shared| {
        let mut liar = shared.agent(shared.namespace()).await;
        // What is beyond is refused, with the request's number. A proof that comes meanwhile drops what was asked before it,
        // which makes room again: a machine that is too busy to be quicker than the next one asks again.
        let mut asked = 0;
        let refused = loop {
            let first = asked + 1;
            asked += PER_POD + 100;
            for number in first..=asked {
                liar.say(confirm(number, "never", Uid::from_u128(1), u64::MAX, u64::MAX)).await;
            }
            let refused = refusals(&mut liar).await;
            for refused in &refused {
                // What an earlier round has left takes its part of a later one.
                let from = if first == 1 { first + PER_POD } else { first };
                assert!((from..=asked).contains(&refused.number), "{refused:?}");
                assert!(refused.reason.contains("too many"), "{refused:?}");
            }
            if !refused.is_empty() {
                break refused;
            }
        };
        assert!(refused.is_sorted_by_key(|refused| refused.number));
        assert!(shared.metric(CONFIRMATIONS).await <= PER_POD);
        // Others still have theirs.
        let (uid, version) = confirmable(shared, shared.namespace(), "confirmed").await;
        let mut honest = shared.agent(shared.namespace()).await;
        honest.say(confirm(7, "confirmed", uid, 1, version)).await;
        let Heard::Confirmed(confirmed) = next_but_signals(&mut honest).await else {
            panic!("expected a confirmation")
        };
        assert_eq!((confirmed.number, confirmed.registered.len()), (7, 1));
        // The liar stays, its requests do not.
        shared.wait_at_most(CONFIRMATIONS, 0).await;
        liar.leased().await;
        liar.say(confirm(9, "confirmed", uid, 1, version)).await;
        loop {
            match next_but_signals(&mut liar).await {
                Heard::Confirmed(confirmed) => break assert_eq!(confirmed.number, 9, "a lie was confirmed"),
                Heard::ConfirmRefused(refused) => panic!("still refused: {refused:?}"),
                _ => {}
            }
        }
    });
}

/// The refusals that come before the answer to a heartbeat, which is after all that was asked.
async fn refusals(agent: &mut Agent) -> Vec<v1::ConfirmRefused> {
    agent.say(Said::Heartbeat(v1::Heartbeat { number: u64::MAX })).await;
    let mut all = Vec::new();
    loop {
        match next_but_signals(agent).await {
            Heard::ConfirmRefused(refused) => all.push(refused),
            Heard::Lease(lease) if lease.heartbeat == u64::MAX => return all,
            _ => {}
        }
    }
}

async fn next_but_signals(agent: &mut Agent) -> Heard {
    loop {
        match agent.hear().await.unwrap() {
            Heard::Signals(signals) => {
                let ack = |signal| v1::Acknowledgement { session: "any".into(), signal, kept: false };
                let evictions = signals.evictions.iter().map(|e| ack(e.signal));
                let done = evictions.chain(signals.barriers.iter().map(|b| ack(b.signal))).collect();
                agent.say(Said::Acknowledgements(v1::Acknowledgements { done })).await;
            }
            other => return other,
        }
    }
}

#[test]
fn a_confirmation_waits_no_longer_than_a_lease_for_who_never_acknowledges() {
    on_shared(async |shared| {
        // It reads, and takes lease after lease, but acknowledges nothing.
        let mut silent = shared.agent(shared.namespace()).await;
        silent.leased().await;
        let (uid, version) = confirmable(shared, shared.namespace(), "unacknowledged").await;
        let mut honest = shared.agent(shared.namespace()).await;
        let begun = Instant::now();
        honest.say(confirm(7, "unacknowledged", uid, 1, version)).await;
        let leasing = async {
            loop {
                silent.leased().await;
                tokio::time::sleep(LEASE / 10).await;
            }
        };
        let confirmed = tokio::select! {
            heard = next_but_signals(&mut honest) => heard,
            () = leasing => unreachable!(),
        };
        assert!(matches!(confirmed, Heard::Confirmed(v1::Confirmed { number: 7, .. })), "{confirmed:?}");
        let took = begun.elapsed();
        println!("confirmed after {took:?} without an acknowledgement");
        assert!(took >= LEASE, "confirmed after {took:?}, though somebody may serve it for {LEASE:?}");
        assert!(took < LEASE * 2, "confirmed after {took:?}");
    });
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    on_shared(async |shared| {
        let (uid, version) = confirmable(shared, shared.namespace(), "asked").await;
        let pod = shared.pod(shared.namespace()).await;
        let agent = narrow(shared, &pod.token).await;
        let before = shared.resident_mib();
        let until = Instant::now() + Duration::from_secs(3);
        let mut sent = 0_u64;
        // The replica stops listening to who does not read the refusals.
        while Instant::now() < until {
            sent += 1;
            let message = v1::AgentMessage { message: Some(confirm(sent, "asked", uid, 1, version)) };
            let _ = tokio::time::timeout(Duration::from_millis(200), agent.outbox.send(message)).await;
        }
        let after = shared.resident_mib();
        println!("{sent} requests, resident: {before} MiB before, {after} MiB after");
        assert!(after < before + FLAT, "{before} MiB before, {after} MiB after");
        unnoticed("beside unread answers", shared.evictions_take(3).await);
        drop(agent);
        eventually(PATIENCE, "nothing is left of it", async || {
            let metrics = shared.metrics().await;
            (metrics[CONNECTED] <= 1 && metrics[CONFIRMATIONS] == 0).then_some(())
        })
        .await
        .unwrap();
    });
}

#[test]
fn who_opens_streams_again_and_again_must_wait() {
    on_shared(async |shared| {
        let pod = shared.pod(shared.namespace()).await;
        let begun = Instant::now();
        let mut opened = 0;
        let refused = loop {
            match Agent::open_with(shared.address(), &pod.token).await {
                Ok(agent) => {
                    opened += 1;
                    soon("its end is seen", agent.greeted(instance())).await.leased().await;
                }
                Err(status) if status.message().contains("too often") => break status,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
            }
            assert!(begun.elapsed() < PATIENCE, "{opened} streams, and no end");
        };
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        let most = 33 + begun.elapsed().as_millis() / 250;
        assert!(opened <= most, "{opened} streams in {:?}", begun.elapsed());
        shared.agent(shared.namespace()).await.leased().await;
    });
}
