//! Many copies.

use std::time::{Duration, Instant};

use tonic::Code;
use vmcp_session::core::session::Uid;
use vmcp_session::proto::v1::agent_message::Message as Said;
use vmcp_session::proto::{MAX_SESSIONS_PER_MESSAGE, v1};

use super::client::holding;
use super::setup::{COPIES, Shared, on_shared, soon, unnoticed};

const INVENTORY: usize = 100_000;
/// What it may cost, in MiB, while its tables grow.
const MEMORY: usize = 200;
const HOLDINGS: &str = "vmcp_session_holdings";

/// Reports of so many copies, in parts; only the last one ends the inventory. The copies are of sessions that the watch does
/// not show, and newer than it: they stay, and wait without cover.
fn parts(prefix: &str, copies: usize) -> Vec<Said> {
    let held: Vec<_> = (0..copies)
        .map(|n| {
            let copy = holding(&format!("{prefix}-{n:08}-and-some-more"), Uid::from_u128(n as u128));
            v1::Holding { resource_version: u64::MAX, ..copy }
        })
        .collect();
    let parts = held.chunks(MAX_SESSIONS_PER_MESSAGE);
    let last = parts.len() - 1;
    let part = |(n, held): (usize, &[v1::Holding])| {
        let complete = n == last;
        let through = if complete { copies as u64 } else { 0 };
        Said::Reports(v1::Reports { held: held.to_vec(), released: vec![], through, complete })
    };
    parts.enumerate().map(part).collect()
}

/// The longest time that an eviction takes until `work` is done.
async fn longest_beside<T>(shared: &Shared, work: impl Future<Output = T>) -> (T, Duration) {
    let mut longest = Duration::ZERO;
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return (done, longest),
            took = shared.evictions_take(1) => longest = longest.max(took),
        }
    }
}

#[test]
fn an_inventory_of_100_000_copies_is_taken_in_and_nobody_waits() {
    on_shared(async |shared| {
        let before = shared.resident_mib();
        let pod = shared.pod(shared.namespace()).await;
        let mut agent = super::client::Agent::open_with(shared.address(), &pod.token).await.unwrap();
        agent.say(super::client::hello(super::client::instance())).await;
        let mut parts = parts("many", INVENTORY);
        let last = parts.pop().unwrap();
        let begun = Instant::now();
        let telling = async {
            for part in parts {
                agent.say(part).await;
            }
            assert_eq!(agent.leased().await.covers, 0, "covered before the last part");
            agent.say(last).await;
            assert_eq!(agent.leased().await.covers, 0, "covered before anything was compared");
            agent
        };
        let (agent, longest) = longest_beside(shared, telling).await;
        let took = begun.elapsed();
        let grown = shared.resident_mib() - before;
        println!("{INVENTORY} copies: {took:?}, {grown} MiB");
        unnoticed("beside a large inventory", longest);
        assert!(grown < MEMORY, "{grown} MiB");
        assert!(shared.metric(HOLDINGS).await >= INVENTORY as u64);

        // It leaves all at once, which nobody notices either.
        drop(agent);
        let gone = soon("all is forgotten", shared.wait_at_most(HOLDINGS, 10));
        let ((), longest) = longest_beside(shared, gone).await;
        unnoticed("while a large inventory goes", longest);
    });
}

#[test]
fn who_reports_more_than_it_may_hold_is_cut_off() {
    on_shared(async |shared| {
        let mut agent = shared.agent(shared.namespace()).await;
        for part in parts("more", COPIES) {
            agent.say(part).await;
        }
        // Just as many as it may: the same again are no more.
        agent.leased().await;
        assert!(shared.metric(HOLDINGS).await >= COPIES as u64);
        agent.say(parts("more", 1).remove(0)).await;
        agent.leased().await;
        agent.say(parts("one-more", 1).remove(0)).await;
        let status = agent.ended().await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("the pod has as many as one may have"), "{status:?}");
        shared.wait_at_most(HOLDINGS, 10).await;
    });
}
