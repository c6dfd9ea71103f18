//! The fixture itself, tested on what it starts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod control_plane;
mod identities;
mod outlive;
mod process;
mod proxy;
mod requests;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, api::PostParams};
use serde_json::json;
use std::time::Duration;
use testkit::{ControlPlane, ControlPlaneOptions};

const SOON: Duration = Duration::from_secs(20);
/// Long enough for an answer that comes, short enough to wait for one that does not.
const SILENCE: Duration = Duration::from_millis(500);

async fn control_plane() -> ControlPlane {
    ControlPlane::start(ControlPlaneOptions::default()).await.unwrap()
}

fn config_maps(client: Client) -> Api<ConfigMap> {
    Api::namespaced(client, "default")
}

async fn create_config_map(api: &Api<ConfigMap>, name: &str) -> kube::Result<ConfigMap> {
    let object = serde_json::from_value(json!({ "metadata": { "name": name }, "data": { "k": "v" } })).unwrap();
    api.create(&PostParams::default(), &object).await
}
