//! The certificate of the streams: as the controllers make it themselves, and as others put it into files.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use testkit::{AgentOptions, ClusterOptions, eventually};
use vmcp_session::controller::certificates::issue;
use vmcp_session::controller::certificates::plan::Validity;

use crate::world::{Evictions, PATIENCE, World};

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
    world.sync_bundle().await.unwrap();
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

/// The Secret is deleted, then emptied: the leader makes another one, and pods follow when they have heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_were_lost_are_made_anew() {
    let options = ClusterOptions { own_certificates: true, ..ClusterOptions::default() };
    let mut world =
        World::start(options.size(2, 0).controller_args(&["--tls-lifetime=300", "--ca-lifetime=3000"])).await;
    let mut before = shown(&world, "ca.crt").await;
    for loss in [&["delete"][..], &["patch", "--type=merge", r#"--patch={"data":{"state.json":""}}"#]] {
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

/// A replica that serves under another name follows one that does not; when it leads, it makes a certificate with that name at
/// once. Until then no API server could ask it about a pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_another_name_makes_its_certificate_at_once() {
    let options = ClusterOptions { own_certificates: true, ..ClusterOptions::default() };
    let mut world = World::start(options.size(1, 0)).await;
    world.options.controller_args.push("--tls-name=another.example".into());
    world.add_controller().await.unwrap().wait_ready().await.unwrap();
    let before = shown(&world, "tls.crt").await;
    world.controllers[0].process.terminate(PATIENCE).await.unwrap();
    let follower = &world.controllers[1].process;
    let made = eventually(PATIENCE, "the one that is left makes another certificate", async || {
        (shown(&world, "tls.crt").await != before).then_some(())
    });
    made.await.unwrap();
    let at = |text: &str| {
        let log = follower.log();
        let line = log.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("nothing of {text}:\n{log}"));
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()
    };
    let pause = at("a new certificate for the streams was made").duration_since(at("\"leading\""));
    // In quiet times it is looked every 10 s.
    assert!(pause.as_secs() < 4, "it took {pause}");
}

/// Somebody else replaces the files, as the kubelet does with a Secret of cert-manager: new streams find the new certificate, no
/// open one ends, no signal is lost, and nothing is restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_replaced_and_nobody_notices() {
    let world = World::start(ClusterOptions::default().size(2, 1)).await;
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0]).await;
    let streams = |text: &str| {
        let lines = |log: String| log.lines().filter(|line| line.contains(text)).count();
        world.controllers.iter().map(|controller| lines(controller.process.log())).sum::<usize>()
    };
    let opened = streams("agent connected");

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let validity = Validity::new(now, Duration::from_hours(1));
    let authority = issue::authority("another one", validity).unwrap();
    let name = "vmcp-session-controller.vmcp-system.svc".to_owned();
    let pair = issue::serving(&[name], &authority, validity).unwrap();
    let replace = |path: &Path, text: &str| {
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, path).unwrap();
    };
    // First all hear of the new authority,
    let files = &world.streams;
    replace(&files.ca, &format!("{}{}", testkit::stream_authority(), authority.cert));
    replace(&files.key, &pair.key);
    replace(&files.cert, &pair.cert);
    let replaced = async || (streams("the certificate was replaced") == 2).then_some(());
    eventually(PATIENCE, "both replicas have seen it", replaced).await.unwrap();
    // as pods do, which the leader tells,
    let told = async |expected: &str| {
        let get =
            ["get", "configmap", "vmcp-session-ca", "--namespace=vmcp-system", r"--output=jsonpath={.data.ca\.crt}"];
        let is = world.plane.kubectl(&get).await.ok()?;
        (is.trim() == expected.trim()).then_some(())
    };
    let both = format!("{}{}", testkit::stream_authority(), authority.cert);
    eventually(PATIENCE, "pods are told of both", async || told(&both).await).await.unwrap();
    // and then nobody need believe the old one. What is no authority is not passed on.
    replace(&files.ca, "nothing of use");
    let refused = async || (streams("there is no bundle of authorities to publish") > 0).then_some(());
    eventually(PATIENCE, "the leader says what is wrong", refused).await.unwrap();
    told(&both).await.expect("what pods were told stays");
    replace(&files.ca, &authority.cert);
    eventually(PATIENCE, "pods are told of the new one", async || told(&authority.cert).await).await.unwrap();
    let fresh = world.agent("fresh", AgentOptions::default()).await.unwrap();
    fresh.wait_leases(2).await.unwrap();

    let watched = Evictions::of(&world.pods[0]).await;
    world.merge("s", &json!({"n": "1"})).await;
    watched.wait("s", 1).await;
    assert_eq!(streams("agent connected"), opened + 2, "those of the fresh pod, and no other");
    assert_eq!(streams("agent disconnected") + streams("stream ended"), 0);
    assert!(world.controllers.iter().all(|controller| controller.process.is_running()));
}
