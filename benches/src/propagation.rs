//! From the moment a patch is sent until a bare watcher sees it, and until every pod has dropped its copy.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use testkit::{Cluster, ClusterOptions, Process, Programs, eventually};
use tokio::io::AsyncWriteExt;
use vmcp_session::api::VmcpSession;
use vmcp_session::runtime::clock::boottime_nanos;

use crate::percentile::Percentiles;
use crate::streams::Streams;

const PATIENCE: Duration = Duration::from_secs(60);
/// Sessions that are changed in turn.
const SESSIONS: usize = 20;
/// How many pods, and how many changes are measured with so many.
const SIZES: [(usize, usize); 3] = [(1, 300), (10, 300), (100, 60)];

/// Prints each object's name, resourceVersion and the moment at which it was seen.
pub async fn watch() {
    let client = kube::Client::try_default().await.unwrap();
    let api: Api<VmcpSession> = Api::all(client);
    let mut objects = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff().touched_objects());
    let mut stdout = tokio::io::stdout();
    while let Some(object) = objects.next().await {
        let at = boottime_nanos();
        let Ok(object) = object else { continue };
        let line = format!("{} {} {at}\n", object.name_any(), object.resource_version().unwrap_or_default());
        stdout.write_all(line.as_bytes()).await.unwrap();
        stdout.flush().await.unwrap();
    }
}

struct Bench {
    cluster: Cluster,
    _watcher: Process,
    api: Api<VmcpSession>,
    streams: Streams,
    value: usize,
}

impl Bench {
    async fn start(programs: &Programs) -> Self {
        let cluster = Cluster::start(programs.clone(), ClusterOptions::default().size(2, 0)).await.unwrap();
        let watcher = Process::builder("watcher", std::env::current_exe().unwrap())
            .arg("watcher")
            .env("KUBECONFIG", cluster.plane.kubeconfig_path())
            .stdout(cluster.plane.dir().join("watcher.seen"))
            .spawn()
            .unwrap();
        for n in 0..SESSIONS {
            cluster.apply(&format!("session-{n}"), &json!({"backend": "0"})).await.unwrap();
        }
        let api = Api::namespaced(cluster.plane.client(), &cluster.options.namespace);
        Self { cluster, _watcher: watcher, api, streams: Streams::default(), value: 0 }
    }

    /// When the bare watcher saw each resourceVersion.
    fn seen(&self) -> HashMap<String, u64> {
        let text = std::fs::read_to_string(self.cluster.plane.dir().join("watcher.seen")).unwrap();
        let line = |line: &str| {
            let mut words = line.split(' ').skip(1);
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        };
        text.lines().filter_map(line).collect()
    }

    /// Starts pods until there are so many, and waits until each has leases.
    async fn grow(&mut self, kind: Kind, pods: usize) {
        match kind {
            Kind::Streams => {
                while self.streams.len() < pods {
                    self.streams.add(&self.cluster).await;
                }
            }
            Kind::Processes => {
                while self.cluster.pods.len() < pods {
                    self.cluster.add_pod().await.unwrap();
                }
                for pod in &self.cluster.pods {
                    pod.wait_leases(2).await.unwrap();
                }
            }
        }
    }

    /// One change: nanoseconds until the watcher saw it, until the last pod had dropped its copy, and until the patch
    /// itself was answered.
    async fn change(&mut self, session: &str) -> (u64, u64, u64) {
        self.streams.hold(session).await;
        for pod in &self.cluster.pods {
            eventually(PATIENCE, "the pod has a copy that it may serve", async || {
                (pod.get(session).await.ok()?.from() == "cache").then_some(())
            })
            .await
            .unwrap();
        }
        let mut before = Vec::new();
        for pod in &self.cluster.pods {
            before.push(pod.last_eviction().await.unwrap());
        }
        self.value += 1;
        let patch = json!({"spec": {"metadata": {"backend": self.value.to_string()}}});
        let sent = boottime_nanos();
        let patched = self.api.patch(session, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        let answered = boottime_nanos() - sent;
        let version = patched.resource_version().unwrap();
        // The pods say when they dropped their copies. They are not asked while they are at it.
        let seen =
            eventually(PATIENCE, "the watcher has seen it", async || self.seen().remove(&version)).await.unwrap();
        let mut last = 0;
        if self.streams.len() > 0 {
            last = self.streams.dropped(session).await;
        }
        for (pod, before) in self.cluster.pods.iter().zip(before) {
            let dropped = eventually(PATIENCE, "the pod has dropped its copy", async || {
                let evictions = pod.evictions(before).await.ok()?;
                let own = evictions.iter().find(|e| e["name"] == session)?;
                own["at"].as_u64()
            });
            last = last.max(dropped.await.unwrap());
        }
        (seen - sent, last - sent, answered)
    }
}

/// What a pod is here.
#[derive(Clone, Copy)]
enum Kind {
    /// A cache of its own in this process.
    Streams,
    /// A process of its own.
    Processes,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Processes => "processes",
        }
    }
}

/// Measures, and returns a row for each number of pods.
pub async fn run(programs: &Programs) -> Value {
    println!("\nfrom sending a patch, in milliseconds");
    println!(
        "{:<15}{:>9}{:>12}{:>9}{:>13}{:>9}{:>14}{:>9}{:>14}{:>11}",
        "pods",
        "changes",
        "answer p50",
        "p99",
        "watcher p50",
        "p99",
        "all pods p50",
        "p99",
        "p50 later by",
        "p99 ratio"
    );
    let mut rows = Vec::new();
    for kind in [Kind::Streams, Kind::Processes] {
        rows.extend(measure(programs, kind).await);
    }
    println!("bars, for 10 pods: p50 at most 0.50 ms later, p99 at most 2.00 times the watcher's");
    json!({"unit": "milliseconds", "rows": rows, "bars": {"pods": 10, "p50_later_ms": 0.5, "p99_ratio": 2.0}})
}

async fn measure(programs: &Programs, kind: Kind) -> Vec<Value> {
    let mut bench = Bench::start(programs).await;
    let mut rows = Vec::new();
    for (pods, changes) in SIZES {
        bench.grow(kind, pods).await;
        let (mut watcher, mut all, mut answer) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..changes + SESSIONS {
            let (seen, dropped, answered) = bench.change(&format!("session-{}", n % SESSIONS)).await;
            // The first change of each session warms connections and caches up.
            if n >= SESSIONS {
                watcher.push(seen as f64 / 1e6);
                all.push(dropped as f64 / 1e6);
                answer.push(answered as f64 / 1e6);
            }
        }
        let (watcher, all, answer) = (Percentiles::of(watcher), Percentiles::of(all), Percentiles::of(answer));
        let (later, ratio) = (all.p50 - watcher.p50, all.p99 / watcher.p99);
        println!(
            "{:<15}{changes:>9}{:>12.2}{:>9.2}{:>13.2}{:>9.2}{:>14.2}{:>9.2}{later:>14.2}{ratio:>11.2}",
            format!("{pods} {}", kind.as_str()),
            answer.p50,
            answer.p99,
            watcher.p50,
            watcher.p99,
            all.p50,
            all.p99
        );
        rows.push(json!({"pods": pods, "as": kind.as_str(), "changes": changes, "answer": answer.json(),
            "watcher": watcher.json(), "all_pods": all.json(), "p50_later_ms": later, "p99_ratio": ratio}));
    }
    rows
}
