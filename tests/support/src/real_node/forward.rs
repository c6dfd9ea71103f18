//! A port of a pod, reached as people reach it.

use super::RealNode;
use crate::{Error, Process, Result, eventually};
use std::{net::SocketAddr, time::Duration};

/// How long kubectl may take to listen.
const LISTENS: Duration = Duration::from_secs(20);

/// `kubectl port-forward`, while the value lives.
pub struct Forward {
    address: SocketAddr,
    _kubectl: Process,
}

impl Forward {
    /// Where the port of the pod is reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl RealNode {
    /// Makes a port reachable on which something listens in a pod, on loopback too.
    pub async fn forward(&self, namespace: &str, pod: &str, port: u16) -> Result<Forward> {
        let kubectl = Process::builder(format!("port-forward {pod}"), self.shared().assets.program("kubectl")?)
            .args(["port-forward", &format!("--namespace={namespace}"), pod, &format!(":{port}")])
            .env("KUBECONFIG", self.kubeconfig_path())
            .env("HOME", self.dir())
            .spawn()?;
        let what = format!("port {port} of {pod} is forwarded");
        let address = eventually(LISTENS, &what, async || {
            if kubectl.exit_status().is_some() {
                return Some(Err(Error::Malformed(format!("port-forward to {pod} ended:\n{}", kubectl.log_tail()))));
            }
            let log = kubectl.log();
            let line = log.lines().find_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:"))?;
            let local = line.split(' ').next()?.parse::<u16>().ok()?;
            Some(Ok(SocketAddr::from(([127, 0, 0, 1], local))))
        });
        Ok(Forward { address: address.await??, _kubectl: kubectl })
    }
}
