//! Resident memory per session: the controller beside a plain kube reflector store of the same type.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt, reflector as store, watcher};
use serde_json::{Value, json};
use testkit::{Cluster, ClusterOptions, Process, Programs, eventually};
use tokio::io::AsyncWriteExt;
use vmcp_session::api::{VmcpSession, VmcpSessionSpec};

const SESSIONS: usize = 20_000;
const PATIENCE: Duration = Duration::from_secs(300);

/// 8 keys of 70 characters, key and value together.
fn metadata(session: usize) -> std::collections::BTreeMap<String, String> {
    (0..8).map(|key| (format!("backend-{key}"), format!("{:060}", session * 8 + key))).collect()
}

/// Keeps all sessions in a plain reflector store, and prints how many there are whenever the number is a new one.
pub async fn reflector() {
    let client = kube::Client::try_default().await.unwrap();
    let api: Api<VmcpSession> = Api::all(client);
    let (reader, writer) = store::store();
    let mut objects =
        std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff().reflect(writer).applied_objects());
    let mut told = 0;
    let mut stdout = tokio::io::stdout();
    while objects.next().await.is_some() {
        let count = reader.len();
        if count > told {
            told = count;
            let line = format!("{count}\n");
            stdout.write_all(line.as_bytes()).await.unwrap();
            stdout.flush().await.unwrap();
        }
    }
}

/// Resident memory of a process in bytes, without pages of files.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let anonymous = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    anonymous.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

fn plain(cluster: &Cluster, name: &str) -> Process {
    let log = cluster.plane.dir().join(format!("{name}.count"));
    Process::builder(name, std::env::current_exe().unwrap())
        .arg("reflector")
        .env("KUBECONFIG", cluster.plane.kubeconfig_path())
        .stdout(log)
        .spawn()
        .unwrap()
}

fn counted(cluster: &Cluster, name: &str) -> usize {
    let text = std::fs::read_to_string(cluster.plane.dir().join(format!("{name}.count"))).unwrap_or_default();
    text.lines().last().and_then(|l| l.parse().ok()).unwrap_or(0)
}

/// Measures, and returns a row.
pub async fn run(programs: &Programs) -> Value {
    let options = ClusterOptions::default().size(1, 0);
    let mut cluster = Cluster::start(programs.clone(), options).await.unwrap();
    let watched = plain(&cluster, "watched");
    let wait_plain = async |cluster: &Cluster, name: &str, least: usize| {
        eventually(PATIENCE, "the plain reflector has all", async || (counted(cluster, name) >= least).then_some(()))
            .await
            .unwrap();
    };
    wait_plain(&cluster, "watched", 1).await;
    let before = (resident(cluster.controllers[0].process.pid()), resident(watched.pid()));
    create(&cluster).await;
    wait_plain(&cluster, "watched", SESSIONS).await;
    wait_controller(&cluster, 0).await;
    let after = (resident(cluster.controllers[0].process.pid()), resident(watched.pid()));
    // Both again, started when the sessions are there.
    let listed = plain(&cluster, "listed");
    cluster.add_controller().await.unwrap();
    cluster.controllers[1].wait_ready().await.unwrap();
    wait_controller(&cluster, 1).await;
    wait_plain(&cluster, "listed", SESSIONS).await;
    let fresh = (resident(cluster.controllers[1].process.pid()), resident(listed.pid()));
    let per_session = |bytes: u64| bytes as f64 / SESSIONS as f64;
    let grown = (per_session(after.0 - before.0), per_session(after.1 - before.1));
    let fresh = (per_session(fresh.0 - before.0), per_session(fresh.1 - before.1));
    println!("\nmemory per session, {SESSIONS} sessions of 8 keys (70 characters each, key and value)");
    println!("{:<44}{:>12}{:>12}{:>8}", "", "controller", "reflector", "ratio");
    for (what, (ours, theirs)) in
        [("sessions that came through the watch", grown), ("sessions that were listed", fresh)]
    {
        println!("{what:<44}{ours:>10.0} B{theirs:>10.0} B{:>8.2}", ours / theirs);
    }
    println!("bar: ratio at most 0.70");
    json!({"sessions": SESSIONS, "watched": {"controller": grown.0, "reflector": grown.1, "ratio": grown.0 / grown.1},
        "listed": {"controller": fresh.0, "reflector": fresh.1, "ratio": fresh.0 / fresh.1}, "bar": 0.7})
}

async fn wait_controller(cluster: &Cluster, at: usize) {
    eventually(PATIENCE, "the controller has all", async || {
        let metrics = cluster.controllers[at].metrics().await.ok()?;
        let line = metrics.lines().find(|l| l.starts_with("vmcp_session_sessions "))?;
        (line.rsplit(' ').next()?.parse::<f64>().ok()? >= SESSIONS as f64).then_some(())
    })
    .await
    .unwrap();
}

async fn create(cluster: &Cluster) {
    let api: Arc<Api<VmcpSession>> = Arc::new(Api::namespaced(cluster.plane.client(), &cluster.options.namespace));
    stream::iter(0..SESSIONS)
        .for_each_concurrent(32, |n| {
            let api = api.clone();
            async move {
                let spec = VmcpSessionSpec { metadata: metadata(n), ..VmcpSessionSpec::default() };
                let session = VmcpSession::new(&format!("session-{n:06}"), spec);
                api.create(&PostParams::default(), &session).await.unwrap();
            }
        })
        .await;
}
