//! A control plane with a node that is real: scheduler, kubelet, containerd, kube-proxy and cluster DNS.
//!
//! All of it runs where `tests/realnode/enter.sh` has brought this process: in network, mount and PID namespaces of its
//! own. So ports and folders are fixed, nothing touches the machine, and what containers leave behind ends with the
//! namespaces, however this process ends. `hack/e2e.sh` does all that has to be done before.

mod diagnosis;
mod forward;

pub use forward::Forward;

use crate::{
    ControlPlane, ControlPlaneOptions, Error, Process, Result,
    control_plane::{Credential, Shared},
    eventually,
    pki::Identity,
};
use serde_json::Value;
use std::{
    env,
    ffi::OsString,
    fs,
    ops::Deref,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The node's name.
pub const NODE: &str = "node1";
/// Its address, which `tests/realnode/init.sh` sets.
const NODE_IP: &str = "198.18.0.1";
/// Addresses of Services; the first one is the API server's.
const SERVICES: &str = "198.18.2.0/24";
/// What pods call the API server by, and the node.
pub(crate) const API_SERVER_NAMES: [&str; 5] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc.cluster.local", NODE_IP, "198.18.2.1"];
/// Set by init.sh: the folder for what the node keeps.
const FOLDER: &str = "VMCP_E2E";
/// containerd's name for what belongs to the kubelet.
const CRI: &str = "k8s.io";
/// How long a part may take until it works.
const READY: Duration = Duration::from_mins(1);

/// A control plane with one real node. It is a [`ControlPlane`], and ends with this process.
pub struct RealNode {
    // Before the control plane, since they talk to it until they end.
    kubelet: Option<Process>,
    _parts: Vec<Process>,
    folder: PathBuf,
    ready_after: Duration,
    plane: ControlPlane,
}

impl RealNode {
    /// Starts it with these images, each an archive in OCI's layout, and waits until pods can run on it.
    pub async fn start(images: &[&Path]) -> Result<Self> {
        let started = Instant::now();
        let folder = folder()?;
        let options = ControlPlaneOptions { controller_manager: true, real_node: true, ..Default::default() };
        let plane = ControlPlane::start(options).await?;
        // Under a name that the files in tests/realnode know.
        symlink(plane.dir(), folder.join("state")).map_err(Error::io("naming the folder of the control plane"))?;

        let shared = plane.shared();
        let api = plane.url();
        let user = |name: &str, groups: &[&str]| shared.authority.user(name, groups);
        let kubeconfigs = [
            ("kube-scheduler", user("system:kube-scheduler", &[])?),
            ("kube-proxy", user("system:kube-proxy", &[])?),
            ("dns", user("dns", &["system:masters"])?),
            ("kubelet", user(&format!("system:node:{NODE}"), &["system:nodes"])?),
        ];
        for (name, identity) in &kubeconfigs {
            let kubeconfig = shared.kubeconfig(api, &Credential::Certificate(identity)).to_string();
            write(&folder.join(format!("{name}.kubeconfig")), &kubeconfig)?;
        }
        let Identity { cert, key } = shared.authority.server(NODE, &[NODE, NODE_IP])?;
        for (name, text) in [("ca.crt", shared.authority.cert()), ("kubelet.crt", &cert), ("kubelet.key", &key)] {
            write(&folder.join(name), text)?;
        }

        let scheduler = {
            let kubeconfig = folder.join("kube-scheduler.kubeconfig").display().to_string();
            let flags = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"];
            let args = flags.map(|flag| format!("--{flag}={kubeconfig}"));
            let program = shared.assets.program("kube-scheduler")?;
            part(&plane, "kube-scheduler", program, &args, &["--leader-elect=false", "--cert-dir=/run/kube-scheduler"])?
        };
        let dns = part(&plane, "coredns", shared.assets.program("coredns")?, &["-conf".into(), file("Corefile")], &[])?;
        let containerd = part(&plane, "containerd", "containerd", &["--config".into(), file("containerd.toml")], &[])?;
        let proxy = {
            let args = [format!("--config={}", file("kube-proxy.yaml")), format!("--hostname-override={NODE}")];
            part(&plane, "kube-proxy", shared.assets.program("kube-proxy")?, &args, &["--v=1"])?
        };

        let parts = vec![scheduler, dns, containerd, proxy];
        let mut node = Self { kubelet: None, _parts: parts, folder, ready_after: Duration::ZERO, plane };
        eventually(READY, "containerd answers", async || node.ctr(&["version"]).await.ok()).await?;
        for image in images {
            node.import(image).await?;
        }
        node.start_kubelet().await?;
        let ready = "http://127.0.0.1:8181/ready";
        eventually(READY, "cluster DNS is ready", async || answers(ready).await.then_some(())).await?;
        node.ready_after = started.elapsed();
        Ok(node)
    }

    /// How long the start took, images included.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Makes the images of an archive available to pods.
    pub async fn import(&self, archive: &Path) -> Result<()> {
        if !archive.exists() {
            return Err(Error::Malformed(format!("there is no {}: run `make e2e`", archive.display())));
        }
        self.ctr(&["images", "import", &archive.display().to_string()]).await.map(drop)
    }

    /// Kills the kubelet, as it is when it is upgraded or crashes, starts it again, and waits until the node is ready.
    /// Containers run on meanwhile.
    pub async fn restart_kubelet(&mut self) -> Result<()> {
        if let Some(kubelet) = self.kubelet.take() {
            kubelet.kill9().await?;
        }
        self.start_kubelet().await
    }

    /// What `kubectl get ARGS -o json` prints.
    pub async fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output=json"], args].concat()).await?;
        serde_json::from_str(&text).map_err(|e| Error::Malformed(format!("kubectl get {}: {e}", args.join(" "))))
    }

    /// Starts the kubelet, and waits until it has said that its node is ready.
    async fn start_kubelet(&mut self) -> Result<()> {
        let before = self.renewed().await;
        let args = [
            format!("--config={}", file("kubelet.yaml")),
            format!("--kubeconfig={}", self.folder.join("kubelet.kubeconfig").display()),
            format!("--root-dir={}", self.folder.join("kubelet").display()),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={NODE_IP}"),
        ];
        let program = self.plane.shared().assets.program("kubelet")?;
        let kubelet = part(&self.plane, "kubelet", program, &args, &["--v=2"])?;
        let ready = async || {
            let conditions = self.get(&["node", NODE]).await.ok()?["status"]["conditions"].take();
            let ready = conditions.as_array()?.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            (ready && self.renewed().await != before).then_some(())
        };
        let gone = async || kubelet.exit_status();
        tokio::select! {
            ready = eventually(READY, "the node is ready", ready) => ready?,
            Ok(status) = eventually(READY * 2, "the kubelet ends", gone) => {
                return Err(Error::Exited { name: "kubelet".into(), status, log: kubelet.log_tail() });
            }
        }
        self.kubelet = Some(kubelet);
        Ok(())
    }

    /// When a kubelet has last shown that it lives: each does when it starts, and then every ten seconds.
    async fn renewed(&self) -> Option<String> {
        let lease = ["get", "lease", NODE, "--namespace=kube-node-lease", "--output=jsonpath={.spec.renewTime}"];
        self.plane.kubectl(&lease).await.ok()
    }

    async fn ctr(&self, args: &[&str]) -> Result<String> {
        self.plane.tool("ctr", &[&["--namespace", CRI], args].concat()).await
    }
}

impl Deref for RealNode {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        &self.plane
    }
}

impl Drop for RealNode {
    fn drop(&mut self) {
        if thread::panicking() {
            diagnosis::print(&self.plane);
        }
    }
}

/// Where the node keeps its things, if this process is where a node can run.
fn folder() -> Result<PathBuf> {
    let folder = env::var_os(FOLDER).map(PathBuf::from).filter(|folder| folder.is_dir());
    let outside = "this is not in the namespaces of tests/realnode/enter.sh, which a node needs: run `make e2e`";
    folder.ok_or_else(|| Error::Malformed(outside.into()))
}

/// A file of tests/realnode.
fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../realnode").join(name).display().to_string()
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("writing {}", path.display())))
}

/// Starts a part of the node, whose log is beside those of the control plane.
fn part(
    plane: &ControlPlane,
    name: &str,
    program: impl Into<OsString>,
    args: &[String],
    more: &[&str],
) -> Result<Process> {
    let log = plane.dir().join(format!("{name}.log"));
    Process::builder(name, program.into()).args(args).args(more).log(log).spawn()
}

async fn answers(url: &str) -> bool {
    let Ok(address) = url.trim_start_matches("http://").split('/').next().unwrap_or_default().parse() else {
        return false;
    };
    crate::vmcp_pod::http(address, "GET", "/ready", None).await.is_ok_and(|reply| reply.status == 200)
}

/// What an API server needs so that pods reach it, and it reaches the kubelet.
pub(crate) fn apiserver_args(shared: &Shared) -> Result<Vec<String>> {
    let Identity { cert, key } = shared.authority.user("kube-apiserver-kubelet-client", &["system:masters"])?;
    let cert = shared.dir.write("kubelet-client.crt", cert)?;
    let key = shared.dir.write("kubelet-client.key", key)?;
    Ok(vec![
        "--bind-address=0.0.0.0".into(),
        format!("--advertise-address={NODE_IP}"),
        "--endpoint-reconciler-type=lease".into(),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!("--kubelet-certificate-authority={}", shared.dir.join("ca.crt").display()),
        format!("--kubelet-client-certificate={}", cert.display()),
        format!("--kubelet-client-key={}", key.display()),
    ])
}
