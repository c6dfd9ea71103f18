//! A cluster for a test, and what the tests do with it again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testkit::{Cluster, ClusterOptions, PodClient, eventually};
use tokio::sync::{Semaphore, SemaphorePermit};
use vmcp_session::api::{LABEL_REPLICA, VmcpSession};

/// Longer than anything takes that works, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than anything takes that is done a thousand times.
pub const PATIENCE_WITH_MANY: Duration = Duration::from_mins(5);

/// Clusters that may run at once: this machine is not to be the reason why something is late.
static ROOM: Semaphore = Semaphore::const_new(ROOMS);
const ROOMS: usize = 2;

/// A cluster, and its share of the machine. Everything in it ends when it is dropped.
pub struct World {
    cluster: Cluster,
    fences: u64,
    _room: SemaphorePermit<'static>,
}

impl World {
    /// Starts a cluster beside at most one other.
    pub async fn start(options: ClusterOptions) -> Self {
        Self::with_room(options, 1).await
    }

    /// Starts a cluster that has the machine for itself.
    pub async fn start_alone(options: ClusterOptions) -> Self {
        Self::with_room(options, ROOMS).await
    }

    async fn with_room(options: ClusterOptions, rooms: usize) -> Self {
        let room = ROOM.acquire_many(u32::try_from(rooms).unwrap()).await.unwrap();
        let cluster = Box::pin(Cluster::start(crate::programs(), options)).await.unwrap();
        Self { cluster, fences: 0, _room: room }
    }

    /// What drives the pods.
    pub fn clients(&self) -> Vec<PodClient> {
        self.pods.iter().map(testkit::VmcpPod::client).collect()
    }

    /// Sessions, with all rights.
    pub fn sessions(&self) -> Api<VmcpSession> {
        Api::namespaced(self.cluster.plane.client(), &self.cluster.options.namespace)
    }

    /// Merges `metadata` into that of a session, as an administrator. Quicker than kubectl.
    pub async fn merge(&self, name: &str, metadata: &Value) -> VmcpSession {
        let patch = json!({"spec": {"metadata": metadata}});
        self.sessions().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    /// Creates sessions s0, s1, … whose number `n` is 0, and lets every pod hold them all.
    pub async fn hold_many(&self, count: usize) {
        let names: Vec<String> = (0..count).map(|n| format!("s{n}")).collect();
        let created = stream::iter(&names).map(async |name| {
            let session = json!({
                "apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
                "metadata": {"name": name}, "spec": {"metadata": {"n": "0"}},
            });
            let session: VmcpSession = serde_json::from_value(session).unwrap();
            self.sessions().create(&PostParams::default(), &session).await
        });
        created.buffer_unordered(16).try_for_each(async |_| Ok(())).await.unwrap();
        for pod in &self.pods {
            eventually(PATIENCE_WITH_MANY, &format!("{} may serve {count} sessions", pod.name), async || {
                let servable: BTreeSet<String> = pod.servable().await.ok()?.into_iter().collect();
                let missing: Vec<&String> = names.iter().filter(|name| !servable.contains(*name)).collect();
                let held = missing.is_empty();
                stream::iter(missing).map(|name| pod.get(name)).buffer_unordered(16).for_each(async |_| ()).await;
                held.then_some(())
            })
            .await
            .unwrap();
        }
    }

    /// Waits until the status of every session says that its last generation is synced; returns the sessions.
    pub async fn settled(&self) -> Vec<Value> {
        let settled = |session: &Value| {
            let status = &session["status"];
            let synced = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Synced");
            status["observedGeneration"] == session["metadata"]["generation"]
                && synced.is_some_and(|synced| synced["status"] == "True")
        };
        eventually(PATIENCE_WITH_MANY, "every status says that the last generation is synced", async || {
            let text = self.kubectl(&["get", "vmcps", "-o", "json"]).await.ok()?;
            let items = serde_json::from_str::<Value>(&text).ok()?["items"].as_array()?.clone();
            items.iter().all(settled).then_some(items)
        })
        .await
        .unwrap()
    }

    /// Events on a session for this reason.
    pub async fn events(&self, session: &str, reason: &str) -> Vec<Value> {
        let chosen = format!("--field-selector=involvedObject.name={session},reason={reason}");
        let text = self.kubectl(&["get", "events", &chosen, "-o", "json"]).await.unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["items"].as_array().unwrap().clone()
    }

    /// Lets these pods hold a copy of a session, covered by a lease of each replica that they are connected to.
    pub async fn hold(&self, name: &str, pods: &[usize]) {
        for pod in pods.iter().map(|at| &self.pods[*at]) {
            eventually(PATIENCE, &format!("{} serves {name} from its cache", pod.name), async || {
                let reply = pod.get(name).await.ok()?;
                (reply.status == 200 && reply.from() == "cache").then_some(())
            })
            .await
            .unwrap();
        }
    }

    /// Which replica leads, by the lease that they share. Waits until one has led.
    pub async fn leader(&self) -> usize {
        let holder =
            ["get", "leases", "-n", "vmcp-system", "vmcp-session-controller", "-o", "jsonpath={.spec.holderIdentity}"];
        eventually(PATIENCE, "a replica leads", async || {
            let holder = self.plane.kubectl(&holder).await.ok()?;
            self.controllers.iter().position(|c| holder.contains(&format!("{}-", c.name)))
        })
        .await
        .unwrap()
    }

    /// Waits until so many replicas are registered, no more and no less.
    pub async fn wait_registered(&self, replicas: usize) {
        let markers: Api<VmcpSession> = Api::namespaced(self.plane.client(), "vmcp-system");
        let labelled = ListParams::default().labels(LABEL_REPLICA);
        eventually(PATIENCE, &format!("{replicas} replicas are registered"), async || {
            (markers.list(&labelled).await.ok()?.items.len() == replicas).then_some(())
        })
        .await
        .unwrap();
    }

    /// Returns when every replica has seen everything that was committed before, and every pod has done all that the
    /// replicas had to tell it of that: what has not happened by then does not happen.
    ///
    /// The answer to a write that is visible everywhere shows that each replica has seen it. What a replica says to
    /// a pod stays in order, so the second write's barriers come after all that the replica had to say of what came before
    /// the first.
    pub async fn fence(&mut self) {
        for _ in 0..2 {
            self.fences += 1;
            let body = json!({"n": self.fences.to_string()});
            let pod = &self.pods[0];
            // Something may have been broken a moment ago, so that the first attempt finds a connection that is dead.
            eventually(PATIENCE, "the fence is written", async || {
                let reply = match pod.get("fence").await.ok()?.status {
                    404 => pod.create("fence", &body, "everywhere").await.ok()?,
                    _ => pod.patch("fence", &body, "everywhere").await.ok()?,
                };
                (200..300).contains(&reply.status).then_some(())
            })
            .await
            .unwrap();
        }
    }
}

impl Deref for World {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

/// An eviction that a pod has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    pub session: String,
    pub uid: String,
    /// The generation of the copy that was dropped.
    pub generation: u64,
    pub reason: String,
    /// When, on this machine's clock since boot.
    pub at: u64,
}

/// What a pod has seen since some moment.
pub struct Evictions {
    pod: PodClient,
    after: u64,
}

impl Evictions {
    /// From now on.
    pub async fn of(pod: &PodClient) -> Self {
        Self { pod: pod.clone(), after: pod.last_eviction().await.unwrap() }
    }

    /// Of several pods.
    pub async fn of_all<'a>(pods: impl IntoIterator<Item = &'a PodClient>) -> Vec<Self> {
        let mut all = Vec::new();
        for pod in pods {
            all.push(Self::of(pod).await);
        }
        all
    }

    /// Name of the pod.
    pub fn pod(&self) -> &str {
        &self.pod.name
    }

    /// All of them so far.
    pub async fn seen(&self) -> Vec<Eviction> {
        let text = |e: &Value, key: &str| e[key].as_str().unwrap_or_else(|| panic!("no {key} in {e}")).to_owned();
        let all = self.pod.evictions(self.after).await.unwrap();
        let eviction = |e: &Value| Eviction {
            session: text(e, "name"),
            uid: text(e, "uid"),
            generation: e["generation"].as_u64().unwrap(),
            reason: text(e, "reason"),
            at: e["at"].as_u64().unwrap(),
        };
        all.iter().map(eviction).collect()
    }

    /// Those of one session.
    pub async fn of_session(&self, name: &str) -> Vec<Eviction> {
        let mut seen = self.seen().await;
        seen.retain(|e| e.session == name);
        seen
    }

    /// Waits until there are so many of a session, and returns them.
    pub async fn wait(&self, name: &str, count: usize) -> Vec<Eviction> {
        let what = format!("{} sees {count} evictions of {name}", self.pod.name);
        let enough = async || Some(self.of_session(name).await).filter(|seen| seen.len() >= count);
        eventually(PATIENCE, &what, enough).await.unwrap()
    }

    /// No change cost two evictions (I3): between two evictions of a session its copy must have become another.
    pub async fn check_each_once(&self) {
        let mut last: BTreeMap<(String, String), u64> = BTreeMap::new();
        for Eviction { session, uid, generation, reason, .. } in self.seen().await {
            if reason == "capacity" {
                continue;
            }
            let before = last.insert((session.clone(), uid), generation);
            let pod = &self.pod.name;
            assert!(before.is_none_or(|b| b < generation), "{pod}: {session} at generation {generation} evicted twice");
        }
    }
}

/// Waits until a pod serves a session whose metadata has this value at this key.
pub async fn serves(pod: &PodClient, name: &str, key: &str, value: &str) {
    let what = format!("{} serves {name} with {key}={value}", pod.name);
    let same = async || (pod.get(name).await.ok()?.metadata()?[key] == value).then_some(());
    eventually(PATIENCE, &what, same).await.unwrap();
}
