//! The bundle in a `ConfigMap`. The kubelet puts it into the volumes of its namespace's pods; they need no right for that.

use std::collections::BTreeMap;
use std::fmt;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};

use super::{CALL_DEADLINE, FIELD_MANAGER, Place, PlaceError};
use crate::runtime::api_error::deadline;

/// The key of the `ConfigMap`, and so the name of the file in a volume.
pub const KEY: &str = "ca.crt";

/// A `ConfigMap`.
pub struct BundleConfigMap {
    api: Api<ConfigMap>,
    name: String,
    namespace: String,
}

impl BundleConfigMap {
    /// The `ConfigMap` `name` in `namespace`.
    pub fn new(client: Client, name: String, namespace: String) -> Self {
        Self { api: Api::namespaced(client, &namespace), name, namespace }
    }

    async fn make(&self, pem: &str) -> Result<bool, PlaceError> {
        let is = deadline(CALL_DEADLINE, self.api.get_opt(&self.name)).await?;
        if is.and_then(|map| map.data).and_then(|mut data| data.remove(KEY)).is_some_and(|is| is == pem) {
            return Ok(false);
        }
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(KEY.to_owned(), pem.to_owned())])),
            ..ConfigMap::default()
        };
        // Whoever has changed it meanwhile was mistaken.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        deadline(CALL_DEADLINE, self.api.patch(&self.name, &params, &Patch::Apply(&map))).await?;
        Ok(true)
    }
}

impl fmt::Display for BundleConfigMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigMap {} in namespace {}", self.name, self.namespace)
    }
}

impl Place for BundleConfigMap {
    fn publish<'a>(&'a self, pem: &'a str) -> BoxFuture<'a, Result<bool, PlaceError>> {
        self.make(pem).boxed()
    }
}
