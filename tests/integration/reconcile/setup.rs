//! Replicas of the controller as processes, with no rights but those of deploy/rbac.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{
    AuditMark, ControlPlane, ControlPlaneOptions, LoopbackAddr, Process, StreamFiles, Verb, eventually, policy_rule,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::agent::Agent;

/// How long anything may take that should take a moment.
pub const SOON: Duration = Duration::from_secs(30);
const CRD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/vmcpsessions.vmcp.dev.yaml");
const RBAC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rbac/controller.yaml");
const OPERATOR: &str = "vmcp-system";
const ACCOUNT: &str = "vmcp-session-controller";

/// A replica.
pub struct Replica {
    pub process: Process,
    pub address: SocketAddr,
    admin: SocketAddr,
    _ip: LoopbackAddr,
}

impl Replica {
    /// The text of an admin endpoint, headers included.
    async fn ask(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    /// A number of its metrics, with its labels if it has any.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.ask("/metrics").await?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    pub async fn metrics(&self) -> String {
        self.ask("/metrics").await.unwrap()
    }

    pub async fn leads(&self) -> bool {
        self.metric("vmcp_session_is_leader").await == Some(1.0)
    }

    pub async fn ready(&self) {
        let ready = async || self.ask("/readyz").await.filter(|text| text.starts_with("HTTP/1.1 200")).map(drop);
        eventually(SOON, "the replica is ready", ready).await.unwrap();
    }
}

/// A control plane and replicas.
pub struct Setup {
    pub plane: ControlPlane,
    pub replicas: Vec<Replica>,
    args: Vec<String>,
    agents: usize,
    start: AuditMark,
}

impl Setup {
    /// So many replicas, ready and with a leader, which grant leases of so many seconds.
    pub async fn new(replicas: usize, lease: u64, args: &[&str]) -> Self {
        let plane = ControlPlane::start(ControlPlaneOptions::default()).await.unwrap();
        plane.apply_crds(CRD).await.unwrap();
        plane.create_namespace(OPERATOR).await.unwrap();
        plane.apply_yaml(&std::fs::read_to_string(RBAC).unwrap()).await.unwrap();
        plane.create_service_account("default", "vmcp").await.unwrap();
        let pod = vec![policy_rule("vmcp.dev", &["vmcpsessions"], &["get"])];
        plane.bind_role("default", "vmcp", pod).await.unwrap();
        let mut own: Vec<String> = args.iter().map(ToString::to_string).collect();
        own.push(format!("--lease-seconds={lease}"));
        own.push("--renewal-seconds=1".to_owned());
        let start = plane.audit().mark().unwrap();
        let mut setup = Self { plane, replicas: Vec::new(), args: own, agents: 0, start };
        for _ in 0..replicas {
            setup.add_replica().await;
        }
        for replica in &setup.replicas {
            replica.ready().await;
        }
        setup.leader().await;
        setup
    }

    pub async fn add_replica(&mut self) {
        let name = format!("controller-{}", self.replicas.len());
        let ip = LoopbackAddr::claim().unwrap();
        let (address, admin) = (ip.free_socket().unwrap(), ip.free_socket().unwrap());
        let pod = self.plane.create_pod(OPERATOR, &name, ACCOUNT, ip.ip()).await.unwrap();
        let hour = Duration::from_hours(1);
        let token = self.plane.token_for_pod(OPERATOR, ACCOUNT, &pod, &[], hour).await.unwrap();
        let access = self.plane.kubeconfig_for_token(&name, self.plane.url(), &token).unwrap();
        let peer = self.plane.token_for_pod(OPERATOR, ACCOUNT, &pod, &["vmcp.dev"], hour).await.unwrap();
        let peer = self.plane.kubeconfig_for_token(&format!("{name}-peer"), self.plane.url(), &peer).unwrap();
        let process = Process::builder(&name, env!("CARGO_BIN_EXE_vmcp-session"))
            .arg("controller")
            .args([format!("--listen={address}"), format!("--admin-listen={admin}")])
            .args([format!("--operator-namespace={OPERATOR}"), format!("--replica-name={name}")])
            .arg(format!("--peer-token-file={}", peer.token_file.display()))
            .args(["--leader-lease-seconds=3", "--leader-renew-deadline-seconds=2", "--leader-retry-seconds=0.5"])
            .args(StreamFiles::write(self.plane.dir()).unwrap().controller_args())
            .args(&self.args)
            .env("KUBECONFIG", &access.kubeconfig)
            .env("VMCP_LOG_LEVEL", "info,vmcp_session=debug")
            .spawn()
            .unwrap();
        self.replicas.push(Replica { process, address, admin, _ip: ip });
    }

    /// The number of the replica that leads.
    pub async fn leader(&self) -> usize {
        let leads = async || {
            for (number, replica) in self.replicas.iter().enumerate() {
                if replica.process.is_running() && replica.leads().await {
                    return Some(number);
                }
            }
            None
        };
        eventually(SOON, "a replica leads", leads).await.unwrap()
    }

    /// An agent in a pod of its own that has a lease of this replica.
    pub async fn agent(&mut self, replica: usize, obedient: bool) -> Agent {
        self.agent_in("default", replica, obedient).await
    }

    /// The same in a namespace where there is the account of the pods.
    pub async fn agent_in(&mut self, namespace: &str, replica: usize, obedient: bool) -> Agent {
        self.agents += 1;
        let name = format!("pod-{}", self.agents);
        let ip = LoopbackAddr::claim().unwrap();
        let pod = self.plane.create_pod(namespace, &name, "vmcp", ip.ip()).await.unwrap();
        let hour = Duration::from_hours(1);
        let token = self.plane.token_for_pod(namespace, "vmcp", &pod, &["vmcp.dev"], hour).await.unwrap();
        let access = self.plane.kubeconfig_for_token(&name, self.plane.url(), &token).unwrap();
        let address = self.replicas[replica].address.to_string();
        let agent = Agent::connect(&address, access.token_file, self.agents as u128, obedient).await;
        let leased = async || (agent.heard.lock().leases > 0).then_some(());
        eventually(SOON, "the agent has a lease", leased).await.unwrap();
        agent
    }

    /// Creates a session with this metadata, and whatever else is given of the spec and of the metadata.
    pub async fn create(&self, name: &str, metadata: Value, spec: Value, meta: Value) -> Value {
        let mut object = json!({
            "apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession", "metadata": meta, "spec": spec,
        });
        object["metadata"]["name"] = json!(name);
        object["spec"]["metadata"] = metadata;
        let args = ["create", "-o", "json", "-f", "-"];
        let created = self.plane.kubectl_with_input(&args, &object.to_string()).await.unwrap();
        serde_json::from_str(&created).unwrap()
    }

    pub async fn patch(&self, name: &str, patch: &Value) -> Value {
        let patch = patch.to_string();
        let args = ["patch", "vmcps", name, "--type=merge", "-o", "json", "-p", &patch];
        serde_json::from_str(&self.plane.kubectl(&args).await.unwrap()).unwrap()
    }

    pub async fn change(&self, name: &str, key: &str, value: &str) -> Value {
        self.patch(name, &json!({"spec": {"metadata": {key: value}}})).await
    }

    pub async fn get(&self, name: &str) -> Option<Value> {
        let args = ["get", "vmcps", name, "-o", "json", "--ignore-not-found"];
        serde_json::from_str(&self.plane.kubectl(&args).await.unwrap()).ok()
    }

    /// Waits until the status speaks of this generation.
    pub async fn status(&self, name: &str, generation: u64) -> Value {
        let what = format!("the status of {name} speaks of generation {generation}");
        let current = async || {
            let status = self.get(name).await?["status"].take();
            (status["observedGeneration"] == generation).then_some(status)
        };
        eventually(SOON, &what, current).await.unwrap()
    }

    pub async fn gone(&self, name: &str, patience: Duration) {
        let gone = async || self.get(name).await.is_none().then_some(());
        eventually(patience, &format!("{name} is gone"), gone).await.unwrap();
    }

    /// Waits until our finalizer is removed, and no other.
    pub async fn let_go(&self, name: &str) {
        let let_go = async || {
            let finalizers = self.get(name).await?["metadata"]["finalizers"].take();
            (finalizers == json!(["example.com/other"])).then_some(())
        };
        eventually(SOON, &format!("the deletion of {name} is confirmed"), let_go).await.unwrap();
    }

    /// Names of the markers.
    pub async fn markers(&self) -> Vec<String> {
        let args = ["get", "vmcps", "-n", OPERATOR, "-l", "vmcp.dev/replica", "-o", "name"];
        self.plane.kubectl(&args).await.unwrap().lines().map(str::to_owned).collect()
    }

    /// Notes of events with this reason.
    pub async fn events(&self, reason: &str) -> Vec<String> {
        let events = self.plane.kubectl(&["get", "events.events.k8s.io", "-o", "json"]).await.unwrap();
        let mut events: Value = serde_json::from_str(&events).unwrap();
        let items = events["items"].as_array_mut().unwrap();
        let ours = items.iter().filter(|event| event["reason"] == reason);
        ours.map(|event| event["note"].as_str().unwrap().to_owned()).collect()
    }

    /// How many statuses the controller has patched, and that none was refused.
    pub async fn status_patches(&self) -> usize {
        self.plane.apiserver().audit_flush().await.unwrap();
        let requests = self.plane.audit().requests_since(self.start).unwrap();
        let ours = requests.iter().filter(|request| request.is_by(OPERATOR, ACCOUNT));
        let patches = ours.filter(|request| request.verb == Verb::Patch && request.subresource == "status");
        patches.inspect(|patch| assert!(patch.is_success(), "{patch:?}")).count()
    }

    /// Requests of the controller that were not allowed.
    pub async fn forbidden(&self) -> Vec<String> {
        self.plane.apiserver().audit_flush().await.unwrap();
        let requests = self.plane.audit().requests_since(self.start).unwrap();
        let refused = requests.iter().filter(|r| r.is_by(OPERATOR, ACCOUNT) && matches!(r.code, 401 | 403));
        refused.map(|r| format!("{:?} {}", r.verb, r.uri)).collect()
    }
}
