//! Patches the status subresource of `VmcpSession` objects.

use std::time::Duration;

use http::HeaderValue;
use http::header::{ACCEPT, CONTENT_TYPE};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::{PartialObjectMeta, Request};
use serde_json::json;

use crate::api::VmcpSession;
use crate::controller::election::FIELD_MANAGER;
use crate::controller::object::Status;
use crate::controller::status_writer::{StatusPatch, StatusSink};
use crate::core::session::ResourceVersion;
use crate::core::session_ref::SessionRef;
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};

/// What a leader has sent ends before the next leader starts: both requests that a status may take fit into the margin
/// between the default renew deadline and lease duration.
const DEADLINE: Duration = Duration::from_millis(2500);
/// How often the list of conditions is read, at most, because somebody else writes the object.
const ATTEMPTS: u32 = 4;
/// The answer need not repeat the map: it may be a mebibyte, and its values are nobody's business here.
const METADATA_ONLY: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

const JSON_PATCH: HeaderValue = HeaderValue::from_static("application/json-patch+json");

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
        if payload.has_foreign_conditions() {
            return self.patch_beside_others(key, payload).await;
        }
        let first = payload.is_first();
        let answer = match self.send(key, payload, first).await {
            // Either the object is another one, or it has a status where none was expected, or the other way round.
            Err(error) if error.kind() == ApiErrorKind::Invalid => self.send(key, payload, !first).await?,
            answer => answer?,
        };
        Ok(answer.metadata.resource_version.and_then(|version| version.parse().ok()))
    }
}

impl KubeStatus {
    /// Somebody else has conditions here, and the list is replaced as a whole. So it must be the one that was read.
    async fn patch_beside_others(
        &self,
        key: &SessionRef,
        payload: &StatusPatch,
    ) -> Result<Option<ResourceVersion>, ApiError> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), key.key.namespace(), &ApiResource::erase::<VmcpSession>(&()));
        let mut attempt = 0;
        let sent: PartialObjectMeta = deadline(DEADLINE * 2, async {
            loop {
                let live = api.get(key.key.name()).await?;
                let status: Status = serde_json::from_value(live.data["status"].clone()).unwrap_or_default();
                let first = live.data["status"].is_null();
                let version = live.metadata.resource_version.unwrap_or_default();
                let request = operations(key, &payload.beside(&status.conditions), first, Some(&version))?;
                attempt += 1;
                match self.client.request(request).await {
                    Err(kube::Error::Api(refused)) if refused.code == 422 && attempt < ATTEMPTS => {}
                    answer => return answer,
                }
            }
        })
        .await?;
        Ok(sent.metadata.resource_version.and_then(|version| version.parse().ok()))
    }

    async fn send(&self, key: &SessionRef, payload: &StatusPatch, first: bool) -> Result<PartialObjectMeta, ApiError> {
        deadline(DEADLINE, async { self.client.request(operations(key, payload, first, None)?).await }).await
    }
}

/// A JSON patch, because it can test the uid: the status subresource takes nothing of the metadata from a merge patch,
/// so that a uid there is ignored, and the status of a successor of the same name would be overwritten.
fn operations(
    key: &SessionRef,
    payload: &StatusPatch,
    first: bool,
    version: Option<&str>,
) -> kube::Result<http::Request<Vec<u8>>> {
    let mut operations = vec![json!({"op": "test", "path": "/metadata/uid", "value": key.uid.to_string()})];
    operations.extend(version.map(|v| json!({"op": "test", "path": "/metadata/resourceVersion", "value": v})));
    if first {
        operations.push(json!({"op": "test", "path": "/status", "value": null}));
        operations.push(json!({"op": "add", "path": "/status", "value": payload.fields()}));
    } else {
        let set = |(field, value)| json!({"op": "add", "path": format!("/status/{field}"), "value": value});
        operations.extend(payload.fields().iter().map(set));
    }
    let (namespace, name) = (key.key.namespace(), key.key.name());
    let path = format!("/apis/vmcp.dev/v1alpha1/namespaces/{namespace}/vmcpsessions");
    let signed = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    // kube's own type for JSON patches comes with a feature, and a list serializes to the same.
    let mut request = Request::new(path)
        .patch_subresource("status", name, &signed, &Patch::Merge(operations))
        .map_err(kube::Error::BuildRequest)?;
    request.headers_mut().insert(CONTENT_TYPE, JSON_PATCH);
    request.headers_mut().insert(ACCEPT, METADATA_ONLY);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::core::session::{SessionKey, Uid};

    fn sent(first: bool) -> http::Request<Vec<u8>> {
        let key = SessionRef { key: SessionKey::new("ns", "s"), uid: Uid::from_u128(7) };
        let fields = [("observedGeneration".to_owned(), json!(2))];
        operations(&key, &StatusPatch::new(fields.into_iter().collect()), first, None).unwrap()
    }

    #[test]
    fn a_patch_tests_the_uid_names_the_manager_and_asks_for_no_map() {
        let request = sent(false);
        assert_eq!(request.method(), "PATCH");
        assert_eq!(request.uri().path(), "/apis/vmcp.dev/v1alpha1/namespaces/ns/vmcpsessions/s/status");
        assert_eq!(request.uri().query(), Some("&fieldManager=vmcp-session-controller"));
        assert_eq!(request.headers()["content-type"], "application/json-patch+json");
        assert_eq!(request.headers()["accept"], METADATA_ONLY);
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        let uid = json!({"op": "test", "path": "/metadata/uid", "value": "00000000-0000-0000-0000-000000000007"});
        assert_eq!(body, json!([uid, {"op": "add", "path": "/status/observedGeneration", "value": 2}]));
    }

    #[test]
    fn a_first_status_must_be_the_first() {
        let body: Value = serde_json::from_slice(sent(true).body()).unwrap();
        assert_eq!(body[1], json!({"op": "test", "path": "/status", "value": null}));
        assert_eq!(body[2], json!({"op": "add", "path": "/status", "value": {"observedGeneration": 2}}));
    }
}
