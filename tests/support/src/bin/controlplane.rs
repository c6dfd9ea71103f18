//! Starts a control plane, prints its kubeconfig, and keeps it until standard input ends.

use std::io::{self, Read, Write};
use testkit::{ControlPlane, ControlPlaneOptions};

#[tokio::main]
async fn main() -> testkit::Result<()> {
    let plane = ControlPlane::start(ControlPlaneOptions::default()).await?;
    println!("export KUBECONFIG={}", plane.kubeconfig_path().display());
    let _ = io::stdout().flush();
    let _ = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await;
    Ok(())
}
