//! A replica of the controller, as a process.

use crate::{
    Cluster, Error, LoopbackAddr, Process, Result, TcpProxy, TokenAccess,
    cluster::{CONTROLLER_ACCOUNT, OPERATOR},
    eventually, free_port,
    vmcp_pod::http,
};
use std::{
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

const READY: Duration = Duration::from_secs(30);

/// A replica.
pub struct Controller {
    /// Its process.
    pub process: Process,
    /// The proxy through which it reaches the API server, if the cluster has proxies.
    pub api: Option<TcpProxy>,
    /// Where agents connect.
    pub address: SocketAddr,
    /// Where its admin endpoints are.
    pub admin: SocketAddr,
    /// Name of its pod.
    pub name: String,
    /// The files with its token.
    pub access: TokenAccess,
    /// The file with its token for other replicas.
    pub peer_token: PathBuf,
    launch: Launch,
    _ip: LoopbackAddr,
}

impl Controller {
    pub(crate) async fn start(cluster: &Cluster, name: &str) -> Result<Self> {
        let ip = LoopbackAddr::claim()?;
        let admin = ip.free_socket()?;
        let (address, listen) = if cluster.options.ipv6 {
            let port = free_port(Ipv6Addr::UNSPECIFIED.into())?;
            ((Ipv6Addr::LOCALHOST, port).into(), [format!("--listen=:{port}"), "--advertise=::1".into()].to_vec())
        } else {
            let address = ip.free_socket()?;
            (address, vec![format!("--listen={address}")])
        };
        let plane = &cluster.plane;
        let api = if cluster.options.api_proxies { Some(api_proxy(cluster).await?) } else { None };
        let url = api.as_ref().map_or_else(|| plane.url().to_owned(), TcpProxy::https_url);
        let pod = plane.create_pod(OPERATOR, name, CONTROLLER_ACCOUNT, ip.ip()).await?;
        let pod = cluster.token_holder(&pod, CONTROLLER_ACCOUNT, ip.ip()).await?;
        let lifetime = cluster.options.token_lifetime;
        let token = plane.token_for_pod(OPERATOR, CONTROLLER_ACCOUNT, &pod, &[], lifetime).await?;
        let access = plane.kubeconfig_for_token(name, &url, &token)?;
        let peer = plane.token_for_pod(OPERATOR, CONTROLLER_ACCOUNT, &pod, &["vmcp.dev"], lifetime).await?;
        let peer = plane.kubeconfig_for_token(&format!("{name}-peer"), &url, &peer)?;
        let mut args: Vec<String> = vec![
            "controller".into(),
            format!("--admin-listen={admin}"),
            format!("--operator-namespace={OPERATOR}"),
            format!("--replica-name={name}"),
            format!("--lease-seconds={}", cluster.options.lease.as_secs_f64()),
            format!("--peer-token-file={}", peer.token_file.display()),
            "--log-format=json".into(),
        ];
        args.extend(listen);
        if !cluster.options.own_certificates {
            args.extend(cluster.streams.controller_args());
        }
        if !cluster.options.chosen.is_empty() {
            args.push(format!("--namespaces={}", cluster.options.chosen.join(",")));
        }
        args.extend(cluster.options.controller_args.iter().cloned());
        let launch = Launch::new(cluster, name, &cluster.programs.session, args, &access);
        let launch = launch.env(cluster.options.controller_env.clone());
        let process = launch.spawn()?;
        let (name, peer_token) = (name.to_owned(), peer.token_file);
        Ok(Self { process, api, address, admin, name, access, peer_token, launch, _ip: ip })
    }

    /// Starts it again, after it has ended.
    #[expect(clippy::unused_async, reason = "called as a pod's restart is, which waits")]
    pub async fn restart(&mut self) -> Result<()> {
        self.process = self.launch.spawn()?;
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub async fn wait_ready(&self) -> Result<()> {
        let what = format!("{} is ready", self.name);
        let ready = async || {
            let reply = http(self.admin, "GET", "/readyz", None).await.ok()?;
            (reply.status == 200).then_some(())
        };
        let ended = async || self.process.exit_status().is_some().then_some(());
        tokio::select! {
            ready = eventually(READY, &what, ready) => ready,
            Ok(()) = eventually(READY, "ended", ended) => Err(Error::Malformed(format!(
                "{} ended while it started:\n{}", self.name, self.process.log_tail()
            ))),
        }
    }

    /// The text of its metrics.
    pub async fn metrics(&self) -> Result<String> {
        let reply = http(self.admin, "GET", "/metrics", None).await?;
        Ok(reply.text)
    }
}

pub(crate) async fn api_proxy(cluster: &Cluster) -> Result<TcpProxy> {
    TcpProxy::start(cluster.options.api_server.unwrap_or(cluster.plane.apiserver().address())).await
}

/// How a program of the cluster is started, and started again.
pub(crate) struct Launch {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    kubeconfig: PathBuf,
    log_level: String,
    log: PathBuf,
    env: Vec<(String, String)>,
}

impl Launch {
    pub(crate) fn new(cluster: &Cluster, name: &str, program: &Path, args: Vec<String>, access: &TokenAccess) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            args,
            kubeconfig: access.kubeconfig.clone(),
            log_level: cluster.options.log_level.clone(),
            log: cluster.plane.dir().join(format!("{name}.log")),
            env: Vec::new(),
        }
    }

    /// With these variables as well.
    pub(crate) fn env(mut self, env: Vec<(String, String)>) -> Self {
        self.env = env;
        self
    }

    /// Starts it. Its log goes on where that of the run before ended.
    pub(crate) fn spawn(&self) -> Result<Process> {
        let builder = Process::builder(&self.name, &self.program)
            .args(&self.args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("VMCP_LOG_LEVEL", &self.log_level)
            .log(&self.log);
        self.env.iter().fold(builder, |builder, (name, value)| builder.env(name, value)).spawn()
    }
}
