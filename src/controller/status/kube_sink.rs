//! Patches the status subresource of `VmcpSession` objects.

use std::time::Duration;

use http::HeaderValue;
use http::header::ACCEPT;
use kube::Client;
use kube::api::{Patch, PatchParams};
use kube::core::{PartialObjectMeta, Request};
use serde_json::json;

use crate::controller::leader::FIELD_MANAGER;
use crate::controller::status::{StatusPatch, StatusSink};
use crate::core::session::ResourceVersion;
use crate::core::session_ref::SessionRef;
use crate::runtime::api_error::{ApiError, deadline};

/// What a leader has sent ends before the next leader starts: this is no more than the margin between the default
/// renew deadline and lease duration.
const DEADLINE: Duration = Duration::from_secs(5);
/// The answer need not repeat the map: it may be a mebibyte, and its values are nobody's business here.
const METADATA_ONLY: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// The API server as a place for statuses.
#[derive(Clone)]
pub struct KubeStatus {
    client: Client,
}

impl KubeStatus {
    /// Writes through this client.
    pub const fn new(client: Client) -> Self {
        Self { client }
    }
}

impl std::fmt::Debug for KubeStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KubeStatus")
    }
}

impl StatusSink<SessionRef, StatusPatch> for KubeStatus {
    async fn patch(&self, key: &SessionRef, payload: &StatusPatch) -> Result<Option<ResourceVersion>, ApiError> {
        let request = request(key, payload)?;
        let answer: PartialObjectMeta = deadline(DEADLINE, self.client.request(request)).await?;
        Ok(answer.metadata.resource_version.and_then(|version| version.parse().ok()))
    }
}

/// The uid in the patch makes sure that a successor of the same name is not meant: the server answers 422.
fn request(key: &SessionRef, payload: &StatusPatch) -> Result<http::Request<Vec<u8>>, ApiError> {
    let (namespace, name) = (key.key.namespace(), key.key.name());
    let body = json!({"metadata": {"uid": key.uid.to_string()}, "status": payload.fields()});
    let path = format!("/apis/vmcp.dev/v1alpha1/namespaces/{namespace}/vmcpsessions");
    let signed = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let mut request = Request::new(path)
        .patch_subresource("status", name, &signed, &Patch::Merge(body))
        .map_err(|error| ApiError::from(kube::Error::BuildRequest(error)))?;
    request.headers_mut().insert(ACCEPT, METADATA_ONLY);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::core::session::{SessionKey, Uid};

    #[test]
    fn a_patch_names_the_uid_and_the_manager_and_asks_for_no_map() {
        let key = SessionRef { key: SessionKey::new("ns", "s"), uid: Uid::from_u128(7) };
        let Value::Object(fields) = json!({"observedGeneration": 2}) else {
            return;
        };
        let request = request(&key, &StatusPatch::new(fields)).unwrap();
        assert_eq!(request.method(), "PATCH");
        let path = "/apis/vmcp.dev/v1alpha1/namespaces/ns/vmcpsessions/s/status";
        assert_eq!(request.uri().path(), path);
        assert_eq!(request.uri().query(), Some("&fieldManager=vmcp-session-controller"));
        assert_eq!(request.headers()["content-type"], "application/merge-patch+json");
        assert_eq!(request.headers()["accept"], METADATA_ONLY);
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        assert_eq!(
            body,
            json!({"metadata": {"uid": "00000000-0000-0000-0000-000000000007"}, "status": {"observedGeneration": 2}})
        );
    }
}
