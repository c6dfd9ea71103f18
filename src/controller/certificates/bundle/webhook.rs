//! The bundle in a `MutatingWebhookConfiguration`: whom the API server believes when it asks which pods get an agent.

use std::fmt;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::{CALL_DEADLINE, FIELD_MANAGER, Place, PlaceError};
use crate::runtime::api_error::deadline;

/// Each webhook of one `MutatingWebhookConfiguration`.
#[derive(Clone)]
pub struct BundleOfWebhook {
    /// The API server.
    pub client: Client,
    /// Name of the configuration.
    pub name: String,
}

impl BundleOfWebhook {
    async fn make(&self, pem: &str) -> Result<bool, PlaceError> {
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let is = deadline(CALL_DEADLINE, api.get(&self.name)).await?;
        let Some(patch) = difference(&is, pem) else {
            return Ok(false);
        };
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        deadline(CALL_DEADLINE, api.patch(&self.name, &params, &Patch::Strategic(patch))).await?;
        Ok(true)
    }
}

impl fmt::Display for BundleOfWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MutatingWebhookConfiguration {}", self.name)
    }
}

impl Place for BundleOfWebhook {
    fn publish<'a>(&'a self, pem: &'a str) -> BoxFuture<'a, Result<bool, PlaceError>> {
        self.make(pem).boxed()
    }
}

/// What must change for each webhook to have this bundle.
fn difference(is: &MutatingWebhookConfiguration, pem: &str) -> Option<Value> {
    let bundle = ByteString(pem.as_bytes().to_vec());
    let webhooks = is.webhooks.as_deref().unwrap_or_default();
    let wrong = webhooks.iter().filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&bundle));
    let wrong: Vec<Value> =
        wrong.map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}})).collect();
    (!wrong.is_empty()).then(|| json!({"webhooks": wrong}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_and_only_the_bundle() {
        let webhook = |name: &str, bundle: &str| {
            let service = json!({"name": "s", "namespace": "n"});
            let config = json!({"service": service, "caBundle": ByteString(bundle.as_bytes().to_vec())});
            json!({"name": name, "clientConfig": config, "admissionReviewVersions": ["v1"], "sideEffects": "None"})
        };
        let is: MutatingWebhookConfiguration =
            serde_json::from_value(json!({"webhooks": [webhook("a", "new"), webhook("b", "old")]})).unwrap();
        let patch = difference(&is, "new").unwrap();
        assert_eq!(patch, json!({"webhooks": [{"name": "b", "clientConfig": {"caBundle": "bmV3"}}]}));
        let is = serde_json::from_value(json!({"webhooks": [webhook("a", "new")]})).unwrap();
        assert_eq!(difference(&is, "new"), None);
        assert_eq!(difference(&MutatingWebhookConfiguration::default(), "new"), None);
    }
}
