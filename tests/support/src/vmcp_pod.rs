//! A pod of a vMCP server, as a process that uses the cache library, and is driven over HTTP.

use crate::{
    Cluster, Error, LoopbackAddr, Process, Result, TcpProxy, TokenAccess,
    cluster::POD_ACCOUNT,
    controller::{Launch, api_proxy},
    eventually,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use std::{net::SocketAddr, ops::Deref, path::PathBuf, sync::LazyLock, time::Duration};

const READY: Duration = Duration::from_secs(30);
/// How long an answer may take: longer than a write waits that must be visible everywhere while a replica is dead.
const ANSWER: Duration = Duration::from_mins(1);

/// An answer over HTTP.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body.
    pub text: String,
}

impl Reply {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// `spec.metadata`, if it is a session.
    pub fn metadata(&self) -> Option<Value> {
        (self.status == 200).then(|| self.json()["metadata"].take())
    }

    /// Whether it came from the cache, was validated or restored.
    pub fn from(&self) -> String {
        self.json()["from"].as_str().unwrap_or_default().to_owned()
    }
}

/// A pod. What it can be asked for is in [`PodClient`].
pub struct VmcpPod {
    /// Its process.
    pub process: Process,
    /// The proxy through which it reaches the API server, if the cluster has proxies.
    pub api: Option<TcpProxy>,
    /// The proxies through which it reaches the replicas, if the cluster has them.
    pub streams: Vec<TcpProxy>,
    /// The files with its token.
    pub access: TokenAccess,
    /// The file with its token for the replicas.
    pub stream_token: PathBuf,
    client: PodClient,
    launch: Launch,
    _ip: LoopbackAddr,
}

impl VmcpPod {
    pub(crate) async fn start(cluster: &Cluster, name: &str, reaching: &[usize]) -> Result<Self> {
        let ip = LoopbackAddr::claim()?;
        let address = ip.free_socket()?;
        let (plane, namespace) = (&cluster.plane, &cluster.options.namespace);
        let api = if cluster.options.api_proxies { Some(api_proxy(cluster).await?) } else { None };
        let url = api.as_ref().map_or_else(|| plane.url().to_owned(), TcpProxy::https_url);
        let mut streams = Vec::new();
        let mut controllers = Vec::new();
        for controller in reaching.iter().map(|at| &cluster.controllers[*at]) {
            if cluster.options.stream_proxies {
                let proxy = TcpProxy::start(controller.address).await?;
                controllers.push(proxy.address().to_string());
                streams.push(proxy);
            } else {
                controllers.push(controller.address.to_string());
            }
        }
        let pod = plane.create_pod(namespace, name, POD_ACCOUNT, ip.ip()).await?;
        let pod = cluster.token_holder(&pod, POD_ACCOUNT, ip.ip()).await?;
        let lifetime = cluster.options.token_lifetime;
        let token = plane.token_for_pod(namespace, POD_ACCOUNT, &pod, &[], lifetime).await?;
        let access = plane.kubeconfig_for_token(name, &url, &token)?;
        let stream = plane.token_for_pod(namespace, POD_ACCOUNT, &pod, &["vmcp.dev"], lifetime).await?;
        let stream = plane.kubeconfig_for_token(&format!("{name}-stream"), &url, &stream)?;
        let args = vec![
            format!("--listen={address}"),
            format!("--controllers={}", controllers.join(",")),
            format!("--namespace={namespace}"),
            "--server=demo".to_owned(),
            format!("--lease-upper-bound={}", cluster.options.lease.as_secs_f64()),
            format!("--pod-name={name}"),
            format!("--token-file={}", stream.token_file.display()),
            format!("--ca-file={}", cluster.streams.ca.display()),
        ];
        let launch = Launch::new(cluster, name, &cluster.programs.pod, args, &access);
        let process = launch.spawn()?;
        let client = PodClient { name: name.to_owned(), address };
        let stream_token = stream.token_file;
        let pod = Self { process, api, streams, access, stream_token, client, launch, _ip: ip };
        pod.wait_listening().await?;
        Ok(pod)
    }

    /// Starts it again, after it has ended.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = self.launch.spawn()?;
        self.wait_listening().await
    }

    async fn wait_listening(&self) -> Result<()> {
        let what = format!("{} listens", self.name);
        eventually(READY, &what, async || http(self.address, "GET", "/state", None).await.ok()).await?;
        Ok(())
    }

    /// What it is driven with. It stays of use when the pod is started again.
    pub fn client(&self) -> PodClient {
        self.client.clone()
    }
}

impl Deref for VmcpPod {
    type Target = PodClient;

    fn deref(&self) -> &PodClient {
        &self.client
    }
}

/// Drives a pod over HTTP.
#[derive(Debug, Clone)]
pub struct PodClient {
    /// The pod's name.
    pub name: String,
    /// Where it is driven.
    pub address: SocketAddr,
}

impl PodClient {
    /// Waits until it has a lease in force from so many replicas.
    pub async fn wait_leases(&self, replicas: usize) -> Result<()> {
        let what = format!("{} has {replicas} leases", self.name);
        eventually(READY, &what, async || (self.leases().await.ok()? == replicas).then_some(())).await
    }

    /// How many leases it has that are in force.
    pub async fn leases(&self) -> Result<usize> {
        let state = self.call("GET", "/state", None).await?.json();
        let streams = state["streams"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(streams.iter().filter(|s| s["leaseRemainingMillis"].as_u64().unwrap_or(0) > 0).count())
    }

    /// Asks it for a session.
    pub async fn get(&self, name: &str) -> Result<Reply> {
        self.call("GET", &format!("/sessions/{name}"), None).await
    }

    /// Lets it create a session. `visibility` is `committed` or `everywhere`.
    pub async fn create(&self, name: &str, metadata: &Value, visibility: &str) -> Result<Reply> {
        self.call("POST", &format!("/sessions/{name}?visibility={visibility}"), Some(metadata)).await
    }

    /// Lets it merge these keys into a session.
    pub async fn patch(&self, name: &str, metadata: &Value, visibility: &str) -> Result<Reply> {
        self.call("PATCH", &format!("/sessions/{name}?visibility={visibility}"), Some(metadata)).await
    }

    /// Lets it delete a session.
    pub async fn delete(&self, name: &str, visibility: &str) -> Result<Reply> {
        self.call("DELETE", &format!("/sessions/{name}?visibility={visibility}"), None).await
    }

    /// Names of the sessions that it can serve at this instant without asking anyone.
    pub async fn servable(&self) -> Result<Vec<String>> {
        let held = self.call("GET", "/held", None).await?.json();
        let held = held.as_array().map(Vec::as_slice).unwrap_or_default();
        let name = |h: &Value| h["name"].as_str().map(str::to_owned);
        Ok(held.iter().filter(|h| h["servable"] == true).filter_map(name).collect())
    }

    /// The evictions that it has seen since the one numbered `after`.
    pub async fn evictions(&self, after: u64) -> Result<Vec<Value>> {
        let reply = self.call("GET", &format!("/evictions?after={after}"), None).await?;
        Ok(reply.text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// The number of its last eviction.
    pub async fn last_eviction(&self) -> Result<u64> {
        let all = self.evictions(0).await?;
        Ok(all.last().and_then(|e| e["sequence"].as_u64()).unwrap_or(0))
    }

    /// Any call.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Reply> {
        http(self.address, method, path, body).await
    }
}

/// One request over HTTP. Connections are kept and used again.
pub(crate) async fn http(to: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> Result<Reply> {
    static CLIENT: LazyLock<Client<HttpConnector, Full<Bytes>>> =
        LazyLock::new(|| Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http());
    let what = || format!("{method} http://{to}{path}");
    let failed = |e: String| Error::Malformed(format!("{}: {e}", what()));
    let body = body.map_or_else(Bytes::new, |b| b.to_string().into());
    let request = http::Request::builder()
        .method(method)
        .uri(format!("http://{to}{path}"))
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(|e| failed(e.to_string()))?;
    let answer = async {
        let response = CLIENT.request(request).await.map_err(|e| failed(e.to_string()))?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|e| failed(e.to_string()))?.to_bytes();
        Ok(Reply { status, text: String::from_utf8_lossy(&body).into_owned() })
    };
    let limit = Error::Deadline { what: what(), waited: ANSWER };
    tokio::time::timeout(ANSWER, answer).await.map_err(|_| limit)?
}
