//! A pod whose sidecar is the agent, as a process.

use crate::{
    Cluster, Error, LoopbackAddr, Process, RespClient, Result, TcpProxy, TokenAccess,
    cluster::POD_ACCOUNT,
    controller::{Launch, api_proxy},
    eventually,
    vmcp_pod::http,
};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

const READY: Duration = Duration::from_secs(30);

/// What an agent is started with.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// Where it listens. Default: a port of an address of its own.
    pub listen: Option<SocketAddr>,
    /// The replicas that it connects to. Default: all.
    pub controllers: Option<Vec<usize>>,
    /// Whether it reaches the API server and the replicas through proxies of its own, which can be made hostile. It has
    /// them anyhow if the cluster's pods do.
    pub proxied: bool,
    /// More arguments.
    pub args: Vec<String>,
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
}

impl AgentOptions {
    /// With more arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With proxies of its own.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }
}

/// A pod with an agent.
pub struct AgentPod {
    /// Its process.
    pub process: Process,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Its Unix socket.
    pub socket: PathBuf,
    /// Where its admin endpoints are.
    pub admin: SocketAddr,
    /// Name of its pod.
    pub name: String,
    /// The proxy through which it reaches the API server, if it has one.
    pub api: Option<TcpProxy>,
    /// The proxies through which it reaches the replicas, if it has them.
    pub streams: Vec<TcpProxy>,
    /// The files with its token.
    pub access: TokenAccess,
    /// The file with its token for the replicas.
    pub stream_token: PathBuf,
    /// The program, its arguments and its environment: what `agent get` and the like are run with.
    pub command: (PathBuf, Vec<String>),
    launch: Launch,
    _ip: LoopbackAddr,
}

impl AgentPod {
    pub(crate) async fn start(cluster: &Cluster, name: &str, options: AgentOptions) -> Result<Self> {
        let ip = LoopbackAddr::claim()?;
        let address = options.listen.map_or_else(|| ip.free_socket(), Ok)?;
        let admin = ip.free_socket()?;
        let (plane, namespace) = (&cluster.plane, &cluster.options.namespace);
        let proxied = options.proxied;
        let api = if proxied || cluster.options.api_proxies { Some(api_proxy(cluster).await?) } else { None };
        let url = api.as_ref().map_or_else(|| plane.url().to_owned(), TcpProxy::https_url);
        let (mut streams, mut controllers) = (Vec::new(), Vec::new());
        let all = (0..cluster.controllers.len()).collect();
        for controller in options.controllers.unwrap_or(all).into_iter().map(|at| &cluster.controllers[at]) {
            if proxied || cluster.options.stream_proxies {
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
        let socket = plane.dir().join(format!("{name}.sock"));
        let mut args = vec![
            "agent".to_owned(),
            format!("--listen={address}"),
            format!("--unix-socket={}", socket.display()),
            format!("--admin-listen={admin}"),
            format!("--controllers={}", controllers.join(",")),
            format!("--namespace={namespace}"),
            "--server=demo".to_owned(),
            format!("--pod-name={name}"),
            format!("--token-file={}", stream.token_file.display()),
            format!("--ca-file={}", cluster.streams.ca.display()),
            format!("--lease-upper-bound={}", cluster.options.lease.as_secs_f64()),
            "--log-format=json".to_owned(),
        ];
        args.extend(options.args);
        let program = cluster.programs.session.clone();
        let command = (program.clone(), args.clone());
        let launch = Launch::new(cluster, name, &program, args, &access).env(options.env);
        let process = launch.spawn()?;
        let (name, stream_token) = (name.to_owned(), stream.token_file);
        let agent = Self {
            process,
            address,
            socket,
            admin,
            name,
            api,
            streams,
            access,
            stream_token,
            command,
            launch,
            _ip: ip,
        };
        agent.wait_listening().await?;
        Ok(agent)
    }

    /// Starts it again, after it has ended.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = self.launch.spawn()?;
        self.wait_listening().await
    }

    async fn wait_listening(&self) -> Result<()> {
        let what = format!("{} listens", self.name);
        let listens = async || RespClient::connect(self.address).await.ok();
        let ended = async || self.process.exit_status();
        tokio::select! {
            listens = eventually(READY, &what, listens) => listens.map(drop),
            Ok(status) = eventually(READY, "ended", ended) => Err(Error::Malformed(format!(
                "{} ended while it started ({status}):\n{}", self.name, self.process.log_tail()
            ))),
        }
    }

    /// Waits until it has a lease in force from so many replicas.
    pub async fn wait_leases(&self, replicas: usize) -> Result<()> {
        let what = format!("{} has {replicas} leases", self.name);
        let line = format!("vmcp_agent_controllers{{state=\"leasing\"}} {replicas}");
        eventually(READY, &what, async || self.metrics().await.ok()?.lines().any(|l| l == line).then_some(())).await
    }

    /// Connects to it, with RESP2 and without a word.
    pub async fn client(&self) -> Result<RespClient> {
        RespClient::connect(self.address).await
    }

    /// Connects to it with RESP3.
    pub async fn client3(&self) -> Result<RespClient> {
        RespClient::connect3(self.address).await
    }

    /// The text of its metrics.
    pub async fn metrics(&self) -> Result<String> {
        Ok(self.admin("/metrics").await?.1)
    }

    /// A number of its metrics: the name with its labels as it stands in the text.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.metrics().await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        Ok(value.unwrap_or(0.0))
    }

    /// An answer of its admin endpoints: status and text.
    pub async fn admin(&self, path: &str) -> Result<(u16, String)> {
        let reply = http(self.admin, "GET", path, None).await?;
        Ok((reply.status, reply.text))
    }
}
