//! etcd, an API server and, on demand, the rest.

use crate::{
    ApiServer, AuditLog, Component, Error, LoopbackAddr, Process, Result, TcpProxy,
    assets::Assets,
    eventually,
    kubectl::Kubectl,
    pki::{self, Authority, Identity},
    scratch::Scratch,
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Namespace, Node, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

/// The node that the pods of tests are on.
pub(crate) const NODE: &str = "testkit";
/// How long single steps may take on a busy machine.
const STEP: Duration = Duration::from_mins(1);

/// What a control plane has besides etcd and one API server.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ControlPlaneOptions {
    /// Also start kube-controller-manager (without the controllers that wait for real nodes), so that namespaces
    /// can be deleted, owned objects are collected and workloads get their pods.
    pub controller_manager: bool,
    /// More arguments for each API server.
    pub apiserver_args: Vec<String>,
    /// Whether a real node joins it: see [`RealNode`](crate::RealNode).
    pub(crate) real_node: bool,
    /// The namespaces that the controllers are to watch; empty for all. For who looks at what they asked for.
    pub(crate) chosen: Vec<String>,
}

impl ControlPlaneOptions {
    /// Also starts kube-controller-manager.
    #[must_use]
    pub fn with_controller_manager(mut self) -> Self {
        self.controller_manager = true;
        self
    }

    /// Adds an argument for each API server, as `--name=value`.
    #[must_use]
    pub fn with_apiserver_arg(mut self, arg: impl Into<String>) -> Self {
        self.apiserver_args.push(arg.into());
        self
    }
}

/// A control plane of one's own: etcd and kube-apiserver on a loopback address that nobody else uses, in a temporary
/// folder, with TLS, RBAC, service-account tokens and an audit log. It ends when the value is dropped, and with this
/// process, however that ends.
pub struct ControlPlane {
    apiserver: ApiServer,
    controller_manager: Option<Process>,
    etcd: Component,
    kubectl: Kubectl,
    options: ControlPlaneOptions,
    ready_after: Duration,
    shared: Arc<Shared>,
}

/// What all parts of one control plane share. The folder is removed after the last of them has ended.
pub(crate) struct Shared {
    pub(crate) assets: Assets,
    pub(crate) authority: Authority,
    pub(crate) admin: Identity,
    pub(crate) etcd_url: String,
    pub(crate) controller_manager: bool,
    pub(crate) real_node: bool,
    pub(crate) chosen: Vec<String>,
    pub(crate) apiservers: AtomicUsize,
    pub(crate) loopback: LoopbackAddr,
    pub(crate) dir: Scratch,
}

/// How a kubeconfig says who one is.
pub(crate) enum Credential<'a> {
    Certificate(&'a Identity),
    Token(&'a str),
    TokenFile(&'a Path),
}

impl Shared {
    /// A kubeconfig with the authority's certificate in it. JSON is YAML too.
    pub(crate) fn kubeconfig(&self, url: &str, credential: &Credential) -> Value {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let user = match credential {
            Credential::Certificate(Identity { cert, key }) => {
                json!({ "client-certificate-data": bytes(cert), "client-key-data": bytes(key) })
            }
            Credential::Token(token) => json!({ "token": token }),
            Credential::TokenFile(path) => json!({ "tokenFile": path }),
        };
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "testkit",
            "clusters": [{
                "name": "testkit",
                "cluster": { "server": url, "certificate-authority-data": bytes(self.authority.cert()) },
            }],
            "users": [{ "name": "testkit", "user": user }],
            "contexts": [{
                "name": "testkit",
                "context": { "cluster": "testkit", "user": "testkit", "namespace": "default" },
            }],
        })
    }

    /// The configuration of a client at `url`.
    pub(crate) async fn config_as(&self, url: &str, credential: &Credential<'_>) -> Result<Config> {
        let malformed = |e: &dyn std::fmt::Display| Error::Malformed(format!("the kubeconfig for {url}: {e}"));
        let kubeconfig: Kubeconfig =
            serde_json::from_value(self.kubeconfig(url, credential)).map_err(|e| malformed(&e))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.map_err(|e| malformed(&e))?;
        // Not the proxy of the machine's environment: everything here is on loopback.
        config.proxy_url = None;
        Ok(config)
    }

    /// The configuration of an administrator's client at `url`.
    pub(crate) async fn config(&self, url: &str) -> Result<Config> {
        self.config_as(url, &Credential::Certificate(&self.admin)).await
    }

    /// An administrator's client at `url`.
    pub(crate) async fn client(&self, url: &str) -> Result<Client> {
        client(self.config(url).await?)
    }
}

/// A client with this configuration.
pub(crate) fn client(config: Config) -> Result<Client> {
    Client::try_from(config).map_err(Error::api("making a client"))
}

impl ControlPlane {
    /// Starts one and waits until it is ready.
    pub async fn start(options: ControlPlaneOptions) -> Result<Self> {
        let started = Instant::now();
        let dir = Scratch::new()?;
        let loopback = LoopbackAddr::claim()?;
        let authority = Authority::new()?;
        let (signing, verifying) = pki::signing_key()?;
        dir.write("ca.crt", authority.cert())?;
        dir.write("sa.key", signing)?;
        dir.write("sa.pub", verifying)?;
        let shared = Arc::new(Shared {
            assets: Assets::find(),
            admin: authority.user("admin", &["system:masters"])?,
            authority,
            etcd_url: format!("http://{}", loopback.free_socket()?),
            controller_manager: options.controller_manager,
            real_node: options.real_node,
            chosen: options.chosen.clone(),
            apiservers: AtomicUsize::new(0),
            loopback,
            dir,
        });

        // Both at once: the API server waits for etcd anyway.
        let etcd = start_etcd(&shared)?;
        let apiserver = ApiServer::start(&shared, &shared.etcd_url, &options.apiserver_args).await?;
        let kubeconfig = shared.kubeconfig(apiserver.url(), &Credential::Certificate(&shared.admin));
        let kubeconfig = shared.dir.write("kubeconfig", kubeconfig.to_string())?;
        let kubectl = Kubectl::new(&shared.assets, kubeconfig, shared.dir.path().to_owned())?;

        let mut plane =
            Self { apiserver, controller_manager: None, etcd, kubectl, options, ready_after: Duration::ZERO, shared };
        plane.etcd.wait_ready().await?;
        plane.apiserver.wait_ready().await?;
        plane.prepare().await?;
        plane.ready_after = started.elapsed();
        Ok(plane)
    }

    /// What is there shortly after readiness, and what nobody else creates.
    async fn prepare(&mut self) -> Result<()> {
        if self.options.controller_manager {
            self.controller_manager = Some(start_controller_manager(&self.shared, self.apiserver.url())?);
        }
        let namespaces = Api::<Namespace>::all(self.client());
        eventually(STEP, "the namespace default exists", async || namespaces.get("default").await.ok()).await?;
        // A kubelet registers its own.
        if !self.options.real_node {
            let node = Node {
                metadata: kube::core::ObjectMeta { name: Some(NODE.into()), ..Default::default() },
                ..Default::default()
            };
            let created = Api::<Node>::all(self.client()).create(&kube::api::PostParams::default(), &node).await;
            created.map_err(Error::api("creating the node of the pods"))?;
        }
        if self.options.controller_manager {
            let accounts = Api::<ServiceAccount>::namespaced(self.client(), "default");
            eventually(STEP, "the controller manager works", async || accounts.get("default").await.ok()).await?;
        }
        Ok(())
    }

    /// Starts another API server on the same etcd, with a URL and an audit log of its own, and waits until it is ready.
    /// It ends when the value is dropped.
    pub async fn start_second_apiserver(&self) -> Result<ApiServer> {
        self.second_apiserver(&self.shared.etcd_url).await
    }

    /// The same, but it reaches etcd through this proxy: when that is silent, it goes on with what it knows, and is stale.
    pub async fn start_second_apiserver_behind(&self, etcd: &TcpProxy) -> Result<ApiServer> {
        self.second_apiserver(&format!("http://{}", etcd.address())).await
    }

    async fn second_apiserver(&self, etcd_url: &str) -> Result<ApiServer> {
        let second = ApiServer::start(&self.shared, etcd_url, &self.options.apiserver_args).await?;
        second.wait_ready().await?;
        Ok(second)
    }

    /// etcd.
    pub fn etcd(&self) -> &Component {
        &self.etcd
    }

    /// The API server.
    pub fn apiserver(&self) -> &ApiServer {
        &self.apiserver
    }

    /// kube-controller-manager, when it was asked for.
    pub fn controller_manager(&self) -> Option<&Process> {
        self.controller_manager.as_ref()
    }

    /// The requests that the API server has answered.
    pub fn audit(&self) -> &AuditLog {
        self.apiserver.audit()
    }

    /// How long the start took, until everything was ready.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The temporary folder with all files; more may be put there.
    pub fn dir(&self) -> &Path {
        self.shared.dir.path()
    }

    /// The URL of the API server.
    pub fn url(&self) -> &str {
        self.apiserver.url()
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.apiserver.client()
    }

    /// The configuration of a client with all rights.
    pub async fn admin_config(&self) -> Result<Config> {
        self.shared.config(self.url()).await
    }

    /// The same at another URL: another API server, or a [`TcpProxy`](crate::TcpProxy) in front of one.
    pub async fn admin_config_at(&self, url: &str) -> Result<Config> {
        self.shared.config(url).await
    }

    /// A client with all rights at another URL.
    pub async fn client_at(&self, url: &str) -> Result<Client> {
        self.shared.client(url).await
    }

    /// A kubeconfig file with all rights.
    pub fn kubeconfig_path(&self) -> &Path {
        self.kubectl.kubeconfig()
    }

    /// The file with the certificate of the authority that signed the API server's.
    pub fn ca_path(&self) -> PathBuf {
        self.shared.dir.join("ca.crt")
    }

    pub(crate) fn kubectl_runner(&self) -> &Kubectl {
        &self.kubectl
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.controller_manager.iter().for_each(Process::print_if_panicking);
        self.apiserver.print_if_panicking();
        self.etcd.print_if_panicking();
    }
}

fn start_etcd(shared: &Arc<Shared>) -> Result<Component> {
    let peer = format!("http://{}", shared.loopback.free_socket()?);
    let url = &shared.etcd_url;
    let args = vec![
        "--name=default".into(),
        format!("--data-dir={}", shared.dir.join("etcd").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // No test needs data that survives a crash of the machine; a kill of the process loses nothing.
        "--unsafe-no-fsync".into(),
        // A member that is alone elects itself: the default only makes it wait a second longer.
        "--heartbeat-interval=20".into(),
        "--election-timeout=200".into(),
        "--log-level=warn".into(),
    ];
    let uri = url.parse().map_err(|e| Error::Malformed(format!("{url}: {e}")))?;
    let program = shared.assets.program("etcd")?;
    let log = shared.dir.join("etcd.log");
    Component::start("etcd", url.clone(), program, args, log, "/health", client(Config::new(uri))?)
}

fn start_controller_manager(shared: &Arc<Shared>, url: &str) -> Result<Process> {
    let user = shared.authority.user("system:kube-controller-manager", &[])?;
    let kubeconfig = shared.kubeconfig(url, &Credential::Certificate(&user)).to_string();
    let kubeconfig = shared.dir.write("controller-manager.kubeconfig", kubeconfig)?;
    let address = shared.loopback.free_socket()?;
    // Without a kubelet that keeps the node of the pods alive, these would delete them.
    let without_node = "*,-node-lifecycle-controller,-pod-garbage-collector-controller,-taint-eviction-controller";
    let controllers = if shared.real_node { "*" } else { without_node };
    Process::builder("kube-controller-manager", shared.assets.program("kube-controller-manager")?)
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--bind-address={}", address.ip()))
        .arg(format!("--secure-port={}", address.port()))
        .arg(format!("--cert-dir={}", shared.dir.join("controller-manager").display()))
        .arg(format!("--service-account-private-key-file={}", shared.dir.join("sa.key").display()))
        .arg(format!("--root-ca-file={}", shared.dir.join("ca.crt").display()))
        .arg(format!("--controllers={controllers}"))
        .args(["--leader-elect=false", "--use-service-account-credentials=true", "--profiling=false"])
        .log(shared.dir.join("controller-manager.log"))
        .spawn()
}
