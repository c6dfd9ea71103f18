//! Tells the pods whom to believe: a `ConfigMap` with the bundle in each namespace whose pods connect. The kubelet puts it into
//! their volumes; they need no right for that.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use thiserror::Error;

use crate::runtime::api_error::{ApiError, deadline};

const CALL_DEADLINE: Duration = Duration::from_secs(5);
const FIELD_MANAGER: &str = "vmcp-session-controller";
/// The key of the `ConfigMap`, and so the name of the file in a volume.
pub const KEY: &str = "ca.crt";

/// A namespace has not been told.
#[derive(Debug, Error)]
#[error("cannot write the bundle to ConfigMap {name} in namespace {namespace}: {source}")]
pub struct PublishError {
    name: String,
    namespace: String,
    source: ApiError,
}

/// Where the bundle is published.
#[derive(Clone)]
pub struct Publisher {
    /// The API server.
    pub client: Client,
    /// Name of the `ConfigMap`s.
    pub name: String,
    /// Their namespaces.
    pub namespaces: Vec<String>,
}

impl Publisher {
    /// Makes every bundle be `pem`. One that is so already is not written. All are tried; the first failure is returned.
    pub async fn publish(&self, pem: &str) -> Result<(), PublishError> {
        let mut failed = Ok(());
        for namespace in &self.namespaces {
            let published = self.publish_in(namespace, pem).await;
            let error = |source| PublishError { name: self.name.clone(), namespace: namespace.clone(), source };
            failed = failed.and(published.map_err(error));
        }
        failed
    }

    async fn publish_in(&self, namespace: &str, pem: &str) -> Result<(), ApiError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let is = deadline(CALL_DEADLINE, api.get_opt(&self.name)).await?;
        if is.and_then(|map| map.data).and_then(|mut data| data.remove(KEY)).is_some_and(|is| is == pem) {
            return Ok(());
        }
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(KEY.to_owned(), pem.to_owned())])),
            ..ConfigMap::default()
        };
        // Whoever has changed it meanwhile was mistaken.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        deadline(CALL_DEADLINE, api.patch(&self.name, &params, &Patch::Apply(&map))).await.map(drop)
    }
}
