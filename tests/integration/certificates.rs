//! The certificate of the streams, as the controllers make it themselves.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::{AgentOptions, ClusterOptions, eventually};

use crate::world::{PATIENCE, World};

/// Keys and certificates that are made in the test: none may be in a log.
const SECRET: &str = "vmcp-session-controller-tls";
/// An authority lives that long, which is as short as it may be.
const AUTHORITY: Duration = Duration::from_mins(1);

/// What the Secret shows to people.
async fn shown(world: &World, key: &str) -> String {
    let path = format!("--output=jsonpath={{.data.{}}}", key.replace('.', r"\."));
    let get = ["get", "secret", SECRET, "--namespace=vmcp-system", &path];
    let encoded = world.plane.kubectl(&get).await.unwrap_or_default();
    String::from_utf8(data_encoding::BASE64.decode(encoded.trim().as_bytes()).unwrap()).unwrap()
}

/// Authorities and certificates are replaced several times: each new stream finds a certificate that is believed by who has
/// the bundle of a while ago, no open one ends, no signal is lost, and nothing is restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_and_nobody_notices() {
    let lifetimes = ["--ca-lifetime=60", "--tls-lifetime=30"];
    let options = ClusterOptions { own_certificates: true, ..ClusterOptions::default() };
    let mut world = World::start_alone(options.size(2, 0).controller_args(&lifetimes)).await;
    eventually(PATIENCE, "the bundle is published", async || world.sync_bundle().await.ok()).await.unwrap();
    world.add_pod().await.unwrap();
    world.pods[0].wait_leases(2).await.unwrap();
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0]).await;

    let first = shown(&world, "ca.crt").await;
    let mut certificates = BTreeSet::new();
    let mut n = 0;
    let end = Instant::now() + AUTHORITY * 3;
    loop {
        assert!(Instant::now() < end, "the first authority is never forgotten");
        // What a pod knows is always a little old, as with a kubelet.
        let bundle = shown(&world, "ca.crt").await;
        certificates.insert(shown(&world, "tls.crt").await);
        // A signal on the streams that are open,
        n += 1;
        world.merge("s", &json!({"n": n.to_string()})).await;
        let newest = n.to_string();
        let follows = eventually(PATIENCE, "the pod follows", async || {
            let read = world.pods[0].get("s").await.ok()?;
            (read.metadata()?["n"] == *newest).then_some(())
        });
        follows.await.unwrap();
        // and a new stream.
        let fresh = world.agent(&format!("fresh-{n}"), AgentOptions::default()).await.unwrap();
        fresh.wait_leases(2).await.unwrap();
        world.sync_bundle().await.unwrap();
        if !bundle.contains(first.trim()) {
            break;
        }
    }
    assert!(certificates.len() >= 3, "only {} certificates were shown", certificates.len());
    for process in world.controllers.iter().map(|c| &c.process).chain(world.pods.iter().map(|p| &p.process)) {
        let log = process.log();
        assert!(process.is_running() && log.matches("\"agent disconnected\"").count() <= n, "{}", process.name());
        assert!(!log.contains("PRIVATE KEY"), "{} shows a key", process.name());
    }
    println!("{n} changes, {} certificates", certificates.len());
}

/// The Secret is deleted, then broken: the leader makes another one, and pods follow when they have heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_were_lost_are_made_anew() {
    let options = ClusterOptions { own_certificates: true, ..ClusterOptions::default() };
    let mut world =
        World::start(options.size(2, 0).controller_args(&["--tls-lifetime=300", "--ca-lifetime=3000"])).await;
    let mut before = shown(&world, "ca.crt").await;
    for loss in [&["delete"][..], &["patch", "--type=merge", r#"--patch={"data":{"state.json":"e30h"}}"#]] {
        let what = [loss, &["secret", SECRET, "--namespace=vmcp-system"]].concat();
        world.plane.kubectl(&what).await.unwrap();
        let made = eventually(PATIENCE * 2, "another authority is published", async || {
            world.sync_bundle().await.ok()?;
            let bundle = std::fs::read_to_string(&world.streams.ca).ok()?;
            (bundle != before && bundle == shown(&world, "ca.crt").await).then_some(bundle)
        });
        before = made.await.unwrap();
        world.add_pod().await.unwrap();
        world.pods.last().unwrap().wait_leases(2).await.unwrap();
    }
}
