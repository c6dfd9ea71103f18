//! Sessions that have outlived their timeouts.

use std::time::Duration;

use kube::Api;
use serde_json::json;
use testkit::{ClusterOptions, PodClient, eventually};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use vmcp_session::api::VmcpSession;

use crate::world::{PATIENCE, World};

const IDLE: Duration = Duration::from_secs(6);
const LIFETIME: Duration = Duration::from_secs(10);
/// Longer than expiry takes: uses are reported every second, the leader looks twice a second.
const LATE: Duration = Duration::from_secs(20);

/// Lets a pod create a session; returns when that was asked for.
async fn create(pod: &PodClient, name: &str, timeouts: &str) -> Instant {
    let created = Instant::now();
    let reply = pod.call("POST", &format!("/sessions/{name}?{timeouts}"), Some(&json!({"a": "1"}))).await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    created
}

/// Somebody who uses a session again and again.
struct User {
    stopping: CancellationToken,
    task: JoinHandle<(Instant, u16)>,
}

impl User {
    fn of(pod: &PodClient, name: &'static str) -> Self {
        let (pod, stopping) = (pod.clone(), CancellationToken::new());
        let stop = stopping.clone();
        let task = tokio::spawn(async move {
            loop {
                let used = Instant::now();
                let reply = pod.get(name).await.unwrap();
                if reply.status != 200 || stop.is_cancelled() {
                    return (used, reply.status);
                }
                sleep(Duration::from_millis(200)).await;
            }
        });
        Self { stopping, task }
    }

    /// Stops using it. Returns when it was used last, or found to be gone, and the answer.
    async fn stop(self) -> (Instant, u16) {
        self.stopping.cancel();
        self.task.await.unwrap()
    }
}

/// Waits until a session is gone; returns a moment at which it was. However slowly it is looked: if that is too early, the
/// session was gone too early.
async fn gone(sessions: &Api<VmcpSession>, name: &str, within: Duration) -> Instant {
    eventually(within, &format!("{name} expires"), async || match sessions.get_opt(name).await {
        Ok(None) => Some(Instant::now()),
        Ok(Some(_)) | Err(_) => None,
    })
    .await
    .unwrap()
}

/// 15. Idle timeout and maximum lifetime; not early across a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_expire_when_they_are_idle_or_old_and_never_early() {
    let args = [
        "--renewal-seconds=1",
        "--leader-lease-seconds=4",
        "--leader-renew-deadline-seconds=3",
        "--leader-retry-seconds=0.5",
    ];
    let options = ClusterOptions::default().lease(Duration::from_secs(3)).controller_args(&args);
    let mut world = World::start(options).await;
    let (sessions, pods) = (world.sessions(), world.clients());

    let used = create(&pods[0], "used", "idle=6").await;
    let user = User::of(&pods[1], "used");
    let idle = create(&pods[0], "idle", "idle=6").await;
    let old = create(&pods[0], "old", "lifetime=10").await;
    let user_of_old = User::of(&pods[2], "old");
    create(&pods[0], "both", "idle=3600&lifetime=3600").await;
    let at = gone(&sessions, "idle", IDLE + LATE).await;
    assert!(at - idle >= IDLE, "expired {:?} after its creation", at - idle);
    let at = gone(&sessions, "old", LIFETIME + LATE).await;
    assert!(at - old >= LIFETIME, "expired {:?} after its creation", at - old);
    assert_eq!(user_of_old.stop().await.1, 404);

    println!("the leader is killed");
    let leader = world.leader().await;
    let unused = create(&pods[0], "unused", "idle=6").await;
    world.controllers[leader].process.kill9().await.unwrap();
    let successor = eventually(PATIENCE, "another replica leads", async || {
        Some(world.leader().await).filter(|successor| *successor != leader)
    });
    successor.await.unwrap();
    // The new leader must find that this one is over by its own hearing; the one that is used must outlive that.
    let at = gone(&sessions, "unused", IDLE + LATE * 2).await;
    assert!(at - unused >= IDLE, "expired {:?} after its creation", at - unused);
    assert!(used.elapsed() > IDLE * 3, "this test is too short to show anything");

    println!("the replica is back, and its successor is killed");
    world.controllers[leader].restart().await.unwrap();
    world.controllers[leader].wait_ready().await.unwrap();
    world.controllers[1 - leader].process.kill9().await.unwrap();
    let successor = eventually(PATIENCE, "the other replica leads again", async || {
        Some(world.leader().await).filter(|successor| *successor == leader)
    });
    successor.await.unwrap();
    let probe = create(&pods[0], "probe", "idle=1").await;
    gone(&sessions, "probe", IDLE + LATE * 2).await;
    assert!(probe.elapsed() >= Duration::from_secs(1));

    let (last, status) = user.stop().await;
    assert_eq!(status, 200, "it expired {:?} ago, although it was used", last.elapsed());
    let at = gone(&sessions, "used", IDLE + LATE).await;
    assert!(at - last >= IDLE, "expired {:?} after its last use", at - last);
    assert!(sessions.get_opt("both").await.unwrap().is_some(), "its timeouts are an hour");
}
