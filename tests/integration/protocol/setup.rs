//! The cluster that the tests share, and the pod that must not notice them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{ClusterOptions, PodClient, eventually, policy_rule};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use vmcp_session::api::VmcpSession;
use vmcp_session::core::session::Uid;

use super::client::Agent;
use crate::world::{Evictions, World};

/// Longer than anything takes that works, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Length of a lease.
pub const LEASE: Duration = Duration::from_secs(5);
/// Copies that a pod may hold.
pub const COPIES: usize = 120_000;
/// A part of whatever is sent wrongly: no answer and no line of a log repeats it.
pub const CANARY: &str = "canary";
/// A second namespace with pods.
pub const OTHER: &str = "other";
const ACCOUNT: &str = "vmcp-server";

/// Within what everybody else hears of a change, whatever is going on: milliseconds, but for a busy machine.
const NOTICEABLE: Duration = Duration::from_secs(10);
/// The cluster stays for the next test.
const LINGER: Duration = Duration::from_secs(2);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static SHARED: LazyLock<Mutex<Weak<Shared>>> = LazyLock::new(Mutex::default);

/// The cluster: one replica, one well-behaved pod.
pub struct Shared {
    pub world: World,
    pods: AtomicUsize,
}

/// A pod that exists as an object and as a token; what it says is up to the test.
#[derive(Debug, Clone)]
pub struct HostilePod {
    pub namespace: String,
    pub name: String,
    pub token: String,
}

/// Runs a test on the shared cluster, when no other does.
pub fn on_shared(test: impl AsyncFnOnce(&Shared)) {
    RUNTIME.block_on(async {
        let mut turn = SHARED.lock().await;
        let shared = match turn.upgrade() {
            Some(shared) => shared,
            None => Shared::start().await,
        };
        *turn = Arc::downgrade(&shared);
        let bystander = Bystander::watch(&shared).await;
        test(&shared).await;
        bystander.check(&shared).await;
        let log = shared.world.controllers[0].process.log();
        let line = log.lines().find(|line| line.contains(CANARY));
        assert_eq!(line, None, "the log repeats what was sent");
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            drop(shared);
        });
    });
}

impl Shared {
    async fn start() -> Arc<Self> {
        let copies = format!("--copies-per-pod={COPIES}");
        let options = ClusterOptions::default().size(1, 1).lease(LEASE);
        let world = World::start(options.controller_args(&[&copies, "--renewal-seconds=1"])).await;
        world.plane.create_namespace(OTHER).await.unwrap();
        world.plane.create_service_account(OTHER, ACCOUNT).await.unwrap();
        world
            .plane
            .bind_role(OTHER, ACCOUNT, vec![policy_rule("vmcp.dev", &["vmcpsessions"], &["get"])])
            .await
            .unwrap();
        Arc::new(Self { world, pods: AtomicUsize::new(0) })
    }

    /// Where the replica's agents connect.
    pub fn address(&self) -> std::net::SocketAddr {
        self.world.controllers[0].address
    }

    /// The namespace of the cluster's own pods.
    pub fn namespace(&self) -> &str {
        &self.world.options.namespace
    }

    /// Another pod in a namespace.
    pub async fn pod(&self, namespace: &str) -> HostilePod {
        let name = format!("hostile-{}", self.pods.fetch_add(1, Ordering::Relaxed));
        self.pod_named(namespace, &name).await
    }

    /// Another pod of this name.
    pub async fn pod_named(&self, namespace: &str, name: &str) -> HostilePod {
        self.pod_of(namespace, name, ACCOUNT).await
    }

    /// Another pod of this name and account.
    pub async fn pod_of(&self, namespace: &str, name: &str, account: &str) -> HostilePod {
        let plane = &self.world.plane;
        let pod = plane.create_pod(namespace, name, account, [127, 0, 0, 1].into()).await.unwrap();
        let hour = Duration::from_hours(1);
        let token = plane.token_for_pod(namespace, account, &pod, &["vmcp.dev"], hour).await.unwrap();
        HostilePod { namespace: namespace.to_owned(), name: name.to_owned(), token }
    }

    /// A token of the pods' account that is bound to nothing, for these audiences.
    pub async fn unbound_token(&self, audiences: &[&str]) -> String {
        let hour = Duration::from_hours(1);
        self.world.plane.token_for_account(self.namespace(), ACCOUNT, audiences, hour).await.unwrap()
    }

    /// A token for other audiences, bound to a pod.
    pub async fn token_for(&self, pod: &HostilePod, audiences: &[&str]) -> String {
        let pods = kube::Api::<k8s_openapi::api::core::v1::Pod>::namespaced(self.world.plane.client(), &pod.namespace);
        let object = pods.get(&pod.name).await.unwrap();
        let hour = Duration::from_hours(1);
        self.world.plane.token_for_pod(&pod.namespace, ACCOUNT, &object, audiences, hour).await.unwrap()
    }

    /// Deletes a pod, at once.
    pub async fn delete_pod(&self, pod: &HostilePod) {
        let args = ["delete", "pod", "-n", &pod.namespace, &pod.name, "--grace-period=0", "--force", "--wait=true"];
        self.world.plane.kubectl(&args).await.unwrap();
    }

    /// A new agent in this namespace that has said hello and is served.
    pub async fn agent(&self, namespace: &str) -> Agent {
        let pod = self.pod(namespace).await;
        Agent::connect(self.address(), &pod.token).await
    }

    /// A session in a namespace, with its object's uid.
    pub async fn session(&self, namespace: &str, name: &str, spec: &Value) -> (VmcpSession, Uid) {
        let object = json!({
            "apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        });
        let object: VmcpSession = serde_json::from_value(object).unwrap();
        let sessions = kube::Api::<VmcpSession>::namespaced(self.world.plane.client(), namespace);
        let object = sessions.create(&kube::api::PostParams::default(), &object).await.unwrap();
        let uid = object.metadata.uid.as_deref().unwrap().parse().unwrap();
        (object, uid)
    }

    /// Whole numbers of the replica's metrics, by name and labels as they are written.
    pub async fn metrics(&self) -> HashMap<String, u64> {
        let text = self.world.controllers[0].metrics().await.unwrap();
        let number = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        text.lines().filter(|line| !line.starts_with('#')).filter_map(number).collect()
    }

    /// One of them.
    pub async fn metric(&self, name: &str) -> u64 {
        let all = self.metrics().await;
        *all.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", all.keys()))
    }

    /// Waits until a metric is at most this.
    pub async fn wait_at_most(&self, name: &str, most: u64) {
        let what = format!("{name} is at most {most}");
        eventually(PATIENCE, &what, async || (self.metric(name).await <= most).then_some(())).await.unwrap();
    }

    fn proc(&self, file: &str) -> std::path::PathBuf {
        format!("/proc/{}/{file}", self.world.controllers[0].process.pid()).into()
    }

    /// Memory of the replica's process that is resident, in MiB.
    pub fn resident_mib(&self) -> usize {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1_024
    }

    /// Files and connections that the replica's process has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// How often this pod has connected so far.
    pub fn connects(&self, pod: &str) -> usize {
        let log = self.world.controllers[0].process.log();
        log.lines().filter(|line| line.contains("agent connected") && line.contains(&format!("\"{pod}\""))).count()
    }

    /// How long it takes, from the answer to a change, until the well-behaved pod has dropped its copy: the longest of `times`.
    pub async fn evictions_take(&self, times: usize) -> Duration {
        let mut longest = Duration::ZERO;
        for _ in 0..times {
            longest = longest.max(self.eviction_takes().await);
        }
        longest
    }

    async fn eviction_takes(&self) -> Duration {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let pod = &self.world.pods[0];
        let name = "timed";
        let value = json!({"n": COUNT.fetch_add(1, Ordering::Relaxed).to_string()});
        if pod.get(name).await.unwrap().status == 404 {
            self.session(self.namespace(), name, &json!({"metadata": {}})).await;
        }
        self.world.hold(name, &[0]).await;
        let evictions = Evictions::of(pod).await;
        self.world.merge(name, &value).await;
        let changed = Instant::now();
        evictions.wait(name, 1).await;
        changed.elapsed()
    }
}

/// The well-behaved pod, while a test runs.
struct Bystander {
    session: String,
    evictions: Evictions,
    connects: usize,
    over: CancellationToken,
    watching: tokio::task::JoinHandle<usize>,
}

impl Bystander {
    async fn watch(shared: &Shared) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let session = format!("watched-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        shared.session(shared.namespace(), &session, &json!({"metadata": {"k": "1"}})).await;
        shared.world.hold(&session, &[0]).await;
        let pod = shared.world.pods[0].client();
        let evictions = Evictions::of(&pod).await;
        let over = CancellationToken::new();
        let connects = shared.connects(&pod.name);
        let watching = tokio::spawn(without_lease(pod, over.clone()));
        Self { session, evictions, connects, over, watching }
    }

    /// It has had a lease all the time, over one connection, its copy was not touched, and it hears of a change now.
    async fn check(self, shared: &Shared) {
        self.over.cancel();
        assert_eq!(self.watching.await.unwrap(), 0, "the well-behaved pod was without a lease");
        let pod = &shared.world.pods[0];
        assert_eq!(shared.connects(&pod.name), self.connects, "the well-behaved pod had to connect again");
        assert_eq!(self.evictions.of_session(&self.session).await, [], "the well-behaved pod lost a copy");
        assert_eq!(pod.get(&self.session).await.unwrap().from(), "cache");
        shared.world.merge(&self.session, &json!({"k": "2"})).await;
        let changed = Instant::now();
        self.evictions.wait(&self.session, 1).await;
        assert!(changed.elapsed() < NOTICEABLE, "the eviction took {:?}", changed.elapsed());
    }
}

/// How often the pod was seen without a lease in force.
async fn without_lease(pod: PodClient, over: CancellationToken) -> usize {
    let mut times = 0;
    while !over.is_cancelled() {
        times += usize::from(pod.leases().await.unwrap() == 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    times
}

/// Waits for something that must come soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Asserts that nobody waits for long.
pub fn unnoticed(what: &str, took: Duration) {
    println!("an eviction took at most {took:?} {what}");
    assert!(took < NOTICEABLE, "an eviction took {took:?} {what}");
}
