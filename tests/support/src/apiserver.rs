//! One kube-apiserver.

use crate::{AuditLog, Component, Error, Result, control_plane::Shared, real_node, rights};
use kube::{Client, Config};
use std::{
    fs,
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Every request once, when it is answered (a watch also when it starts). What the API server asks itself is left out.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ['system:apiserver']
  verbs: [get, list, watch]
- level: None
  nonResourceURLs: ['/readyz*', '/livez*', '/healthz*', '/openapi*']
- level: Metadata
";

/// A kube-apiserver with its own port and its own audit log. It stops when the value is dropped.
///
/// What can be done to its process is in [`Component`].
pub struct ApiServer {
    component: Component,
    address: SocketAddr,
    audit: AuditLog,
    client: Client,
    shared: Arc<Shared>,
}

impl ApiServer {
    /// Starts one, without waiting until it is ready.
    pub(crate) async fn start(shared: &Arc<Shared>, etcd_url: &str, extra: &[String]) -> Result<Self> {
        let name = format!("kube-apiserver-{}", shared.apiservers.fetch_add(1, Ordering::Relaxed) + 1);
        let address = shared.loopback.free_socket()?;
        let url = format!("https://{address}");
        let client = shared.client(&url).await?;

        let dir = shared.dir.join(&name);
        fs::create_dir_all(&dir).map_err(Error::io(format!("creating {}", dir.display())))?;
        let audit = AuditLog::new(dir.join("audit.log"));
        let policy = shared.dir.write("audit-policy.yaml", AUDIT_POLICY)?;
        let ip = address.ip().to_string();
        let mut names = vec!["127.0.0.1", "localhost", "kubernetes.default.svc", &ip];
        if shared.real_node {
            names.extend(real_node::API_SERVER_NAMES);
        }
        let serving = shared.authority.server("kube-apiserver", &names)?;
        let cert = shared.dir.write(format!("{name}/tls.crt"), &serving.cert)?;
        let key = shared.dir.write(format!("{name}/tls.key"), &serving.key)?;

        let mut args = vec![
            format!("--etcd-servers={etcd_url}"),
            format!("--bind-address={}", address.ip()),
            format!("--advertise-address={}", address.ip()),
            format!("--secure-port={}", address.port()),
            format!("--cert-dir={}", dir.display()),
            format!("--tls-cert-file={}", cert.display()),
            format!("--tls-private-key-file={}", key.display()),
            format!("--client-ca-file={}", shared.dir.join("ca.crt").display()),
            format!("--authorization-mode={}", if shared.real_node { "Node,RBAC" } else { "RBAC" }),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", shared.dir.join("sa.pub").display()),
            format!("--service-account-signing-key-file={}", shared.dir.join("sa.key").display()),
            "--service-cluster-ip-range=10.0.0.0/24".into(),
            // Nobody reaches it by the Service "kubernetes", and a loopback address is refused in its endpoints.
            "--endpoint-reconciler-type=none".into(),
            format!("--audit-log-path={}", audit.path().display()),
            format!("--audit-policy-file={}", policy.display()),
            // One file, however long: tests count in it.
            "--audit-log-maxsize=0".into(),
            "--profiling=false".into(),
        ];
        if !shared.controller_manager {
            // Nobody creates the account "default" in each namespace, and the plugin refuses pods without it.
            args.push("--disable-admission-plugins=ServiceAccount".into());
        }
        if shared.real_node {
            args.extend(real_node::apiserver_args(shared)?);
        }
        args.extend_from_slice(extra);
        let component = Component::start(
            &name,
            url,
            shared.assets.program("kube-apiserver")?,
            args,
            dir.join("output.log"),
            "/readyz",
            client.clone(),
        )?;
        Ok(Self { component, address, audit, client, shared: Arc::clone(shared) })
    }

    /// Where it listens, as the target of a [`TcpProxy`](crate::TcpProxy).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client of this API server, with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The configuration of a client of this API server, with all rights.
    pub async fn admin_config(&self) -> Result<Config> {
        self.shared.config(self.component.url()).await
    }

    /// The requests that it has answered.
    pub fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// Waits until the audit log has all requests that were answered before this call. An entry is written around
    /// the time its answer is sent, so whoever shows that something was NOT written waits for this first.
    pub async fn audit_flush(&self) -> Result<()> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let uri = format!("/version?testkit-flush={}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mark = self.audit.mark()?;
        let request = http::Request::get(&uri).body(Vec::new());
        let request = request.map_err(|e| Error::Malformed(format!("{uri}: {e}")))?;
        self.client.request_text(request).await.map_err(Error::api("asking for a line in the audit log"))?;
        let found = crate::eventually(Duration::from_secs(10), "the audit log is written", async || {
            self.audit
                .requests_since(mark)
                .map(|entries| entries.iter().any(|e| e.uri == uri).then_some(()))
                .transpose()
        });
        found.await?
    }
}

impl Deref for ApiServer {
    type Target = Component;

    fn deref(&self) -> &Component {
        &self.component
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        rights::leave(&self.audit, &self.component.restarts(), &self.shared.chosen);
    }
}
