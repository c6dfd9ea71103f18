//! The cache library by itself: in this process, against a real API server, with the rights that a pod has.

use std::time::Duration;

use kube::api::{Api, PostParams};
use testkit::{Cluster, ClusterOptions, LoopbackAddr, eventually};
use vmcp_session::api::{VmcpSession, VmcpSessionSpec};
use vmcp_session::cache::{Cache, CacheConfig, DropReason, Event, Metadata, Origin, Session, Subscription};
use vmcp_session::runtime::kube_client::{KubeArgs, Timeouts};

use crate::programs;

mod everywhere;
mod hits;
mod leases;
mod misses;
mod sessions;
mod writes;

const SOON: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_hours(1);
const LEASE: Duration = Duration::from_secs(3);
const ACCOUNT: &str = "vmcp-server";
const CANARY: &str = "canary-7f3a";

fn map<const N: usize>(pairs: [(&str, &str); N]) -> Metadata {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// An API server with the definition and the accounts, and no controller.
async fn without_controller() -> Cluster {
    bare(ClusterOptions::default()).await
}

async fn bare(options: ClusterOptions) -> Cluster {
    let cluster = Cluster::start(programs(), options.size(0, 0)).await.unwrap();
    // The first write of a new type takes an API server two seconds; some tests have shorter deadlines.
    let first = VmcpSession::new("first", VmcpSessionSpec::default());
    objects(&cluster).create(&PostParams::default(), &first).await.unwrap();
    cluster
}

async fn with_controllers(replicas: usize) -> Cluster {
    with_leases(replicas, LEASE).await
}

async fn with_leases(replicas: usize, lease: Duration) -> Cluster {
    Cluster::start(programs(), ClusterOptions::default().size(replicas, 0).lease(lease)).await.unwrap()
}

/// What a cache in the pod `name` is made of.
async fn pod(cluster: &Cluster, name: &str, url: &str) -> (kube::Client, CacheConfig) {
    let (plane, namespace) = (&cluster.plane, &cluster.options.namespace);
    let ip = LoopbackAddr::claim().unwrap();
    let pod = plane.create_pod(namespace, name, ACCOUNT, ip.ip()).await.unwrap();
    let token = plane.token_for_pod(namespace, ACCOUNT, &pod, &[], HOUR).await.unwrap();
    let access = plane.kubeconfig_for_token(name, url, &token).unwrap();
    let stream = plane.token_for_pod(namespace, ACCOUNT, &pod, &["vmcp.dev"], HOUR).await.unwrap();
    let stream = plane.kubeconfig_for_token(&format!("{name}-stream"), url, &stream).unwrap();
    let kube = KubeArgs { kubeconfig: Some(access.kubeconfig.display().to_string()), ..KubeArgs::default() };
    let config = CacheConfig {
        controllers: cluster.controllers.iter().map(|c| c.address.to_string()).collect(),
        token_file: Some(stream.token_file),
        ca_file: Some(cluster.streams.ca.clone()),
        lease_upper_bound: cluster.options.lease,
        ..CacheConfig::new(namespace.as_str(), name)
    };
    (kube.client(Timeouts::default()).await.unwrap(), config)
}

/// A cache in the pod `name`, with settings of the test's choice.
async fn cache_with(cluster: &Cluster, name: &str, url: &str, change: impl FnOnce(&mut CacheConfig)) -> Cache {
    let (client, mut config) = pod(cluster, name, url).await;
    change(&mut config);
    Cache::connect(client, config).unwrap()
}

/// A cache in the pod `name`, with a lease of each replica.
async fn cache(cluster: &Cluster, name: &str) -> Cache {
    let cache = cache_with(cluster, name, cluster.plane.url(), |_| ()).await;
    leased(&cache, cluster.controllers.len()).await;
    cache
}

async fn leased(cache: &Cache, replicas: usize) {
    eventually(SOON, "every replica has granted a lease", async || {
        let leases = cache.state().streams.iter().filter(|s| s.leased_for.is_some()).count();
        (leases == replicas).then_some(())
    })
    .await
    .unwrap();
}

/// Asks until the session comes from the cache alone.
async fn cached(cache: &Cache, name: &str) -> Session {
    eventually(SOON, "the session is served from the cache", async || {
        let session = cache.get(name).await.ok()?;
        (session.origin() == Origin::Cache).then_some(session)
    })
    .await
    .unwrap()
}

fn objects(cluster: &Cluster) -> Api<VmcpSession> {
    Api::namespaced(cluster.plane.client(), &cluster.options.namespace)
}

async fn next(evictions: &mut Subscription) -> (String, DropReason) {
    let event = tokio::time::timeout(SOON, evictions.next()).await.expect("an eviction").unwrap();
    match event {
        Event::Evicted(eviction) => (eviction.name.to_string(), eviction.reason),
        other => panic!("expected an eviction: {other:?}"),
    }
}
