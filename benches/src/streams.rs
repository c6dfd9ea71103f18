//! Pods as streams: caches in this process, each with a Pod object, tokens and streams of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use testkit::{Cluster, LoopbackAddr, eventually};
use vmcp_session::cache::{Cache, CacheConfig, Event, Origin};

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A cache in this process that is a pod to everybody else.
pub async fn connect(cluster: &Cluster, name: &str) -> Cache {
    let (plane, namespace) = (&cluster.plane, &cluster.options.namespace);
    let ip = LoopbackAddr::claim().unwrap();
    let pod = plane.create_pod(namespace, name, "vmcp-server", ip.ip()).await.unwrap();
    let token = plane.token_for_pod(namespace, "vmcp-server", &pod, &["vmcp.dev"], HOUR).await.unwrap();
    let access = plane.kubeconfig_for_token(name, plane.url(), &token).unwrap();
    let config = CacheConfig {
        controllers: cluster.controllers.iter().map(|c| c.address.to_string()).collect(),
        token_file: Some(access.token_file),
        ca_file: Some(cluster.streams.ca.clone()),
        ..CacheConfig::new(namespace.clone(), name)
    };
    Cache::connect(plane.client(), config).unwrap()
}

/// When each cache dropped its copy of a session last.
type Dropped = Arc<Mutex<HashMap<(usize, String), u64>>>;

/// Caches, and what they drop.
#[derive(Default)]
pub struct Streams {
    caches: Vec<Cache>,
    dropped: Dropped,
}

impl Streams {
    /// How many.
    pub fn len(&self) -> usize {
        self.caches.len()
    }

    /// One more.
    pub async fn add(&mut self, cluster: &Cluster) {
        let number = self.len();
        let cache = connect(cluster, &format!("stream-{number}")).await;
        let (mut evictions, dropped) = (cache.subscribe(), self.dropped.clone());
        tokio::spawn(async move {
            while let Some(event) = evictions.next().await {
                let Event::Evicted(eviction) = event else { continue };
                dropped.lock().insert((number, eviction.name.to_string()), eviction.at.as_nanos());
            }
        });
        self.caches.push(cache);
    }

    /// Waits until each may serve the session from memory.
    pub async fn hold(&self, session: &str) {
        for cache in &self.caches {
            eventually(PATIENCE, "the cache has a copy that it may serve", async || {
                (cache.get(session).await.ok()?.origin() == Origin::Cache).then_some(())
            })
            .await
            .unwrap();
        }
        self.dropped.lock().retain(|(_, name), _| name != session);
    }

    /// When the last one dropped its copy, since [`Self::hold`].
    pub async fn dropped(&self, session: &str) -> u64 {
        eventually(PATIENCE, "every cache has dropped its copy", async || {
            let dropped = self.dropped.lock();
            let at = (0..self.len()).map(|n| dropped.get(&(n, session.to_owned())).copied());
            at.collect::<Option<Vec<_>>>()?.into_iter().max()
        })
        .await
        .unwrap()
    }
}
