//! A whole cluster: a control plane, replicas of the controller, and pods, each a process of its own with an account
//! that may do just what it must.

use crate::{
    AgentOptions, AgentPod, ControlPlane, ControlPlaneOptions, Controller, Error, Result, StreamFiles, VmcpPod,
    eventually, policy_rule, rendered_chart,
};
use k8s_openapi::api::core::v1::Pod;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Namespace of the controller.
pub(crate) const OPERATOR: &str = "vmcp-system";
/// Account of the controller, as the manifest with its rights names it.
pub(crate) const CONTROLLER_ACCOUNT: &str = "vmcp-session-controller";
/// Account of the pods.
pub(crate) const POD_ACCOUNT: &str = "vmcp-server";

/// How long it may take until rights are in force.
const RIGHTS: Duration = Duration::from_secs(30);
/// How long the first bundle of authorities may take.
const BUNDLE: Duration = Duration::from_secs(30);

/// The programs that run in a cluster, and what must be installed for them.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `vmcp-session`.
    pub session: PathBuf,
    /// The example `pod`.
    pub pod: PathBuf,
    /// The generated `CustomResourceDefinition`.
    pub crd: PathBuf,
    /// The controller's account and rights.
    pub rbac: PathBuf,
    /// What the API server is to refuse.
    pub policy: PathBuf,
    /// The project, with its chart.
    pub root: PathBuf,
}

impl Programs {
    /// The programs that cargo built beside the running test, example or benchmark. `root` is the folder of the
    /// project.
    pub fn beside_this_one(root: &str) -> Result<Self> {
        let this = std::env::current_exe().map_err(Error::io("looking for the running program"))?;
        let mut folder = this.parent();
        // Tests run from target/PROFILE/deps, examples from target/PROFILE/examples.
        if folder.is_some_and(|f| f.ends_with("deps") || f.ends_with("examples")) {
            folder = folder.and_then(std::path::Path::parent);
        }
        let folder = folder.ok_or_else(|| Error::Malformed("the running program has no folder".into()))?;
        let programs = Self {
            session: folder.join("vmcp-session"),
            pod: folder.join("examples/pod"),
            crd: PathBuf::from(root).join("crds/vmcpsessions.vmcp.dev.yaml"),
            rbac: PathBuf::from(root).join("deploy/rbac/controller.yaml"),
            policy: PathBuf::from(root).join("deploy/policy/sessions.yaml"),
            root: PathBuf::from(root),
        };
        for program in [&programs.session, &programs.pod] {
            if !program.exists() {
                let what = format!("{} is not built: run `cargo build --bins --examples`", program.display());
                return Err(Error::Malformed(what));
            }
        }
        Ok(programs)
    }
}

/// What a cluster has.
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Replicas of the controller.
    pub controllers: usize,
    /// Pods.
    pub pods: usize,
    /// Length of a lease.
    pub lease: Duration,
    /// Namespace of the pods and their sessions.
    pub namespace: String,
    /// Whether each process reaches the API server through a proxy of its own, which can be made hostile.
    pub api_proxies: bool,
    /// Where those proxies lead: the API server, unless it is said otherwise. It counts for what is started afterwards.
    pub api_server: Option<SocketAddr>,
    /// Whether each pod reaches each replica through a proxy of its own.
    pub stream_proxies: bool,
    /// Whether replicas listen on all addresses, and say that they are at one of IPv6.
    pub ipv6: bool,
    /// The namespaces that the controllers watch, with just the rights that the chart grants them then. Empty: all.
    pub chosen: Vec<String>,
    /// More arguments for each replica.
    pub controller_args: Vec<String>,
    /// Whether the controllers make their certificate themselves. Then [`Cluster::streams`] must be told of the authority before
    /// pods connect: [`Cluster::sync_bundle`] does what a kubelet would.
    pub own_certificates: bool,
    /// More variables of each replica's environment.
    pub controller_env: Vec<(String, String)>,
    /// Whether the API server refuses what the chart's policies say. It is optional there, so some tests are without.
    pub policies: bool,
    /// What the controllers and the pods log.
    pub log_level: String,
    /// How long tokens last. Nobody renews them.
    pub token_lifetime: Duration,
    /// What the tokens that processes start with are bound to.
    pub tokens: TokensOf,
    /// The control plane's options.
    pub plane: ControlPlaneOptions,
}

/// Whose the tokens of a process are: they end with this pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokensOf {
    /// The pod of the process.
    Process,
    /// A pod of their own, called after that of the process with `-tokens` behind: it can be deleted, and the process stays.
    Another,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            controllers: 2,
            pods: 3,
            lease: Duration::from_secs(15),
            namespace: "vmcp".into(),
            api_proxies: false,
            api_server: None,
            stream_proxies: false,
            ipv6: false,
            chosen: Vec::new(),
            controller_args: Vec::new(),
            controller_env: Vec::new(),
            own_certificates: false,
            policies: true,
            log_level: "info,vmcp_session=debug".into(),
            token_lifetime: Duration::from_hours(1),
            tokens: TokensOf::Process,
            plane: ControlPlaneOptions::default(),
        }
    }
}

impl ClusterOptions {
    /// With leases of this length.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// With so many replicas and pods.
    #[must_use]
    pub fn size(mut self, controllers: usize, pods: usize) -> Self {
        (self.controllers, self.pods) = (controllers, pods);
        self
    }

    /// With proxies before the API server and the replicas, for each process its own.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        (self.api_proxies, self.stream_proxies) = (true, true);
        self
    }

    /// With replicas that listen on all addresses, of IPv6 and IPv4, and that are reached by IPv6.
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    /// With controllers that watch these namespaces only.
    #[must_use]
    pub fn chosen(mut self, namespaces: &[&str]) -> Self {
        self.chosen = namespaces.iter().map(ToString::to_string).collect();
        self
    }

    /// Without the chart's policies: for what somebody may write where they are not installed.
    #[must_use]
    pub fn without_policies(mut self) -> Self {
        self.policies = false;
        self
    }

    /// With more arguments for each replica.
    #[must_use]
    pub fn controller_args(mut self, args: &[&str]) -> Self {
        self.controller_args.extend(args.iter().map(ToString::to_string));
        self
    }
}

/// A cluster. Everything in it ends when it is dropped.
pub struct Cluster {
    /// Replicas of the controller.
    pub controllers: Vec<Controller>,
    /// Pods.
    pub pods: Vec<VmcpPod>,
    /// The control plane.
    pub plane: ControlPlane,
    /// What it was started with.
    pub options: ClusterOptions,
    /// The certificate of the streams.
    pub streams: StreamFiles,
    pub(crate) programs: Programs,
    started: usize,
}

impl Cluster {
    /// Starts a cluster, and waits until every replica is ready and every pod has a lease of each of them.
    pub async fn start(programs: Programs, options: ClusterOptions) -> Result<Self> {
        let plane = ControlPlaneOptions { chosen: options.chosen.clone(), ..options.plane.clone() };
        let plane = Box::pin(ControlPlane::start(plane)).await?;
        plane.apply_crds(&programs.crd).await?;
        plane.create_namespace(OPERATOR).await?;
        plane.create_namespace(&options.namespace).await?;
        for namespace in options.chosen.iter().filter(|namespace| **namespace != options.namespace) {
            plane.create_namespace(namespace).await?;
        }
        plane.create_service_account(&options.namespace, POD_ACCOUNT).await?;
        let streams = StreamFiles::write(plane.dir())?;
        let mut cluster = Self { controllers: vec![], pods: vec![], plane, options, streams, programs, started: 0 };
        // Each is large, and this one is awaited in many tests.
        tokio::try_join!(Box::pin(cluster.grant()), Box::pin(cluster.first_write()))?;
        for _ in 0..cluster.options.controllers {
            cluster.add_controller().await?;
        }
        for controller in &cluster.controllers {
            controller.wait_ready().await?;
        }
        for _ in 0..cluster.options.pods {
            cluster.add_pod().await?;
        }
        for pod in &cluster.pods {
            pod.wait_leases(cluster.controllers.len()).await?;
        }
        Ok(cluster)
    }

    /// The first write of a new resource takes an API server two seconds, longer than a replica with short leases waits.
    async fn first_write(&self) -> Result<()> {
        self.apply("first", &serde_json::json!({})).await?;
        self.kubectl(&["delete", "vmcps", "first"]).await.map(drop)
    }

    /// Puts the authorities that the controllers have published into the file that pods read. Waits, as a kubelet does, for
    /// the `ConfigMap`: a replica is ready as soon as it has a certificate, and its authority may be published a moment later.
    pub async fn sync_bundle(&self) -> Result<()> {
        let namespace = format!("--namespace={OPERATOR}");
        let published = ["get", "configmap", "vmcp-session-ca", &namespace, r"--output=jsonpath={.data.ca\.crt}"];
        let bundle = eventually(BUNDLE, "the bundle of authorities is published", async || {
            self.plane.kubectl(&published).await.ok()
        });
        let bundle = bundle.await?;
        let (new, failed) = (self.streams.ca.with_extension("new"), || Error::io("the bundle of authorities"));
        std::fs::write(&new, bundle).map_err(failed())?;
        std::fs::rename(&new, &self.streams.ca).map_err(failed())
    }

    /// The pod that the tokens of the process in `pod` are bound to.
    pub(crate) async fn token_holder(&self, pod: &Pod, account: &str, ip: IpAddr) -> Result<Pod> {
        if self.options.tokens == TokensOf::Process {
            return Ok(pod.clone());
        }
        let of = |name: &Option<String>| name.clone().unwrap_or_default();
        let name = format!("{}-tokens", of(&pod.metadata.name));
        self.plane.create_pod(&of(&pod.metadata.namespace), &name, account, ip).await
    }

    /// Just what each account needs, and what nobody may do.
    async fn grant(&self) -> Result<()> {
        if self.options.policies {
            self.plane.kubectl(&["apply", "-f", &self.programs.policy.display().to_string()]).await?;
        }
        if self.options.chosen.is_empty() {
            self.plane.kubectl(&["apply", "-f", &self.programs.rbac.display().to_string()]).await?;
        } else {
            let values = format!("controller.namespaces={{{}}}", self.options.chosen.join(","));
            let mut objects = rendered_chart(&self.programs.root, &[&values])?;
            objects.retain(|object| {
                let kind = object["kind"].as_str().unwrap_or_default();
                let right =
                    ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"].contains(&kind);
                right && object["metadata"]["name"] == CONTROLLER_ACCOUNT
            });
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
            self.plane.apply_yaml(&list.to_string()).await?;
        }
        let verbs = &["get", "create", "patch", "delete"];
        let pod = vec![policy_rule("vmcp.dev", &["vmcpsessions"], verbs)];
        self.plane.bind_role(&self.options.namespace, POD_ACCOUNT, pod).await?;
        // One right of each role: the API server learns of roles by a watch.
        let account = format!("--as=system:serviceaccount:{OPERATOR}:{CONTROLLER_ACCOUNT}");
        for what in ["leases.coordination.k8s.io", "tokenreviews.authentication.k8s.io"] {
            let may = ["auth", "can-i", "-q", "create", what, "-n", OPERATOR, &account];
            eventually(RIGHTS, &format!("the controller may create {what}"), async || {
                self.plane.kubectl_output(&may, None).await.ok()?.status.success().then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// Starts another replica. It may not be ready yet.
    pub async fn add_controller(&mut self) -> Result<&Controller> {
        self.started += 1;
        let name = format!("controller-{}", self.started);
        let controller = Controller::start(self, &name).await?;
        self.controllers.push(controller);
        Ok(&self.controllers[self.controllers.len() - 1])
    }

    /// Starts another pod, which connects to all replicas that there are now. It may have no lease yet.
    pub async fn add_pod(&mut self) -> Result<&VmcpPod> {
        let all: Vec<usize> = (0..self.controllers.len()).collect();
        self.add_pod_reaching(&all).await
    }

    /// Starts another pod, which connects to these replicas only.
    pub async fn add_pod_reaching(&mut self, controllers: &[usize]) -> Result<&VmcpPod> {
        self.started += 1;
        let name = format!("pod-{}", self.pods.len() + 1);
        let pod = VmcpPod::start(self, &name, controllers).await?;
        self.pods.push(pod);
        Ok(&self.pods[self.pods.len() - 1])
    }

    /// Starts a pod whose sidecar is the agent. It may have no lease yet.
    pub async fn agent(&self, name: &str, options: AgentOptions) -> Result<AgentPod> {
        AgentPod::start(self, name, options).await
    }

    /// Runs kubectl in the namespace of the sessions.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.plane.kubectl(&[&["-n", &self.options.namespace], args].concat()).await
    }

    /// Applies a session with this metadata with kubectl.
    pub async fn apply(&self, name: &str, metadata: &serde_json::Value) -> Result<String> {
        let object = serde_json::json!({
            "apiVersion": "vmcp.dev/v1alpha1",
            "kind": "VmcpSession",
            "metadata": {"name": name, "namespace": self.options.namespace},
            "spec": {"metadata": metadata},
        });
        self.plane.apply_yaml(&object.to_string()).await
    }

    /// Patches `spec.metadata` of a session with kubectl.
    pub async fn patch(&self, name: &str, metadata: &serde_json::Value) -> Result<String> {
        let patch = serde_json::json!({"spec": {"metadata": metadata}}).to_string();
        self.kubectl(&["patch", "vmcps", name, "--type=merge", "-p", &patch]).await
    }
}
