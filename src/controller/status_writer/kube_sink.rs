//! Patches the status subresource of `VmcpSession` objects.

use std::time::Duration;

use http::HeaderValue;
use http::header::{ACCEPT, CONTENT_TYPE};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::{PartialObjectMeta, Request, Status};
use serde_json::json;

use crate::api::VmcpSession;
use crate::controller::election::FIELD_MANAGER;
use crate::controller::object;
use crate::controller::status_writer::{StatusPatch, StatusSink};
use crate::core::session::ResourceVersion;
use crate::core::session_ref::SessionRef;
use crate::runtime::api_error::{ApiError, deadline};

/// What a leader has sent ends before the next leader starts: all requests that a status may take fit into the margin
/// between the default renew deadline and lease duration.
const DEADLINE: Duration = Duration::from_secs(5);
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
        let sent = deadline(DEADLINE, async {
            if !payload.has_foreign_conditions() {
                match self.client.request(operations(key, payload, payload.is_first(), None)?).await {
                    // The object is another one, or its status is not what it was when this was offered.
                    Err(error) if is_untrue(&error) => {}
                    answer => return answer,
                }
            }
            self.patch_what_is(key, payload).await
        })
        .await?;
        Ok(sent.metadata.resource_version.and_then(|version| version.parse().ok()))
    }
}

impl KubeStatus {
    /// Somebody else may have conditions here, and the list is replaced as a whole. So it must be the one that was read.
    async fn patch_what_is(&self, key: &SessionRef, payload: &StatusPatch) -> kube::Result<PartialObjectMeta> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), key.key.namespace(), &ApiResource::erase::<VmcpSession>(&()));
        let mut attempt = 0;
        loop {
            let live = api.get(key.key.name()).await?;
            let status: object::Status = serde_json::from_value(live.data["status"].clone()).unwrap_or_default();
            let first = live.data["status"].is_null();
            let is_ours = live.metadata.uid.is_some_and(|uid| uid == key.uid.to_string());
            let version = live.metadata.resource_version.unwrap_or_default();
            let request = operations(key, &payload.beside(&status.conditions), first, Some(&version))?;
            attempt += 1;
            match self.client.request(request).await {
                Err(error) if is_untrue(&error) && is_ours && attempt < ATTEMPTS => {}
                answer => return answer,
            }
        }
    }
}

/// Whether a test of a JSON patch has failed, or the patch cannot be applied. Who names what is wrong has applied it, and refuses what
/// came of it: however the object is by now, that does not pass.
fn is_untrue(error: &kube::Error) -> bool {
    let names_none = |refused: &Status| refused.details.as_ref().is_none_or(|details| details.causes.is_empty());
    matches!(error, kube::Error::Api(refused) if refused.code == 422 && names_none(refused))
}

/// A JSON patch, because it can test the uid: the status subresource takes nothing of the metadata from a merge patch,
/// so that a uid there is ignored, and the status of a successor of the same name would be overwritten.
///
/// Without the `version` of what was read, only our own condition is replaced, where it is the first: others may have come since.
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
        for (field, value) in payload.fields() {
            let path = format!("/status/{field}");
            if let ("conditions", Some([own]), None) = (&**field, value.as_array().map(Vec::as_slice), version) {
                let path = format!("{path}/0");
                operations.push(json!({"op": "test", "path": format!("{path}/type"), "value": own["type"]}));
                operations.push(json!({"op": "replace", "path": path, "value": own}));
            } else {
                operations.push(json!({"op": "add", "path": path, "value": value}));
            }
        }
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
    use std::sync::Arc;

    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::CONDITION_SYNCED;
    use crate::core::session::{SessionKey, Uid};
    use crate::runtime::api_error::ApiErrorKind;

    fn key() -> SessionRef {
        SessionRef { key: SessionKey::new("ns", "s"), uid: Uid::from_u128(7) }
    }

    /// What is sent to set the field, on its way to an object of which this version was read, if any.
    fn sent(field: &str, value: Value, first: bool, version: Option<&str>) -> (http::Request<Vec<u8>>, Value) {
        let fields = [(field.to_owned(), value)];
        let request = operations(&key(), &StatusPatch::new(fields.into_iter().collect()), first, version).unwrap();
        let body = serde_json::from_slice(request.body()).unwrap();
        (request, body)
    }

    /// The methods of the requests that are sent where each patch is refused with these details.
    async fn refused(details: Value) -> Vec<http::Method> {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let noted = sent.clone();
        let key = SessionRef { key: SessionKey::new("ns", "s"), uid: Uid::from_u128(7) };
        let live = json!({
            "apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
            "metadata": {"name": "s", "namespace": "ns", "uid": key.uid.to_string(), "resourceVersion": "1"},
        });
        let service = tower::service_fn(move |request: http::Request<Body>| {
            noted.lock().push(request.method().clone());
            let (code, body) = match *request.method() {
                http::Method::GET => (200, live.clone()),
                _ => (422, json!({"code": 422, "status": "Failure", "reason": "Invalid", "details": details})),
            };
            let mut answer = http::Response::new(Body::from(serde_json::to_vec(&body).unwrap()));
            *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        let sink = KubeStatus::new(Client::new(service, "ns"));
        let payload = StatusPatch::new([("observedGeneration".to_owned(), json!(1))].into_iter().collect());
        assert_eq!(sink.patch(&key, &payload).await.unwrap_err().kind(), ApiErrorKind::Invalid);
        sent.lock().clone()
    }

    #[tokio::test]
    async fn what_is_untrue_is_read_a_few_times_and_what_is_invalid_is_sent_once() {
        let untrue = refused(json!({})).await;
        let patches = untrue.iter().filter(|method| *method == http::Method::PATCH).count();
        assert_eq!((patches, untrue.len()), (1 + ATTEMPTS as usize, 1 + 2 * ATTEMPTS as usize));
        let causes = json!({"causes": [{"reason": "FieldValueInvalid", "message": "", "field": "spec.metadata"}]});
        assert_eq!(refused(causes).await, [http::Method::PATCH]);
    }

    fn generation(first: bool) -> (http::Request<Vec<u8>>, Value) {
        sent("observedGeneration", json!(2), first, None)
    }

    #[test]
    fn a_patch_tests_the_uid_names_the_manager_and_asks_for_no_map() {
        let (request, body) = generation(false);
        assert_eq!(request.method(), "PATCH");
        assert_eq!(request.uri().path(), "/apis/vmcp.dev/v1alpha1/namespaces/ns/vmcpsessions/s/status");
        assert_eq!(request.uri().query(), Some("&fieldManager=vmcp-session-controller"));
        assert_eq!(request.headers()["content-type"], "application/json-patch+json");
        assert_eq!(request.headers()["accept"], METADATA_ONLY);
        let uid = json!({"op": "test", "path": "/metadata/uid", "value": "00000000-0000-0000-0000-000000000007"});
        assert_eq!(body, json!([uid, {"op": "add", "path": "/status/observedGeneration", "value": 2}]));
    }

    #[test]
    fn a_first_status_must_be_the_first() {
        let (_, body) = generation(true);
        assert_eq!(body[1], json!({"op": "test", "path": "/status", "value": null}));
        assert_eq!(body[2], json!({"op": "add", "path": "/status", "value": {"observedGeneration": 2}}));
    }

    /// Somebody else puts a condition there after the list was read.
    #[tokio::test]
    async fn a_list_that_has_changed_since_it_was_read_is_read_again() {
        let condition = |name: &str| json!({"type": name, "status": "True"});
        let conditions = [condition("First"), condition("Second"), condition(CONDITION_SYNCED)];
        let (sent, mut reads) = (Arc::new(Mutex::new(Vec::new())), 0);
        let (noted, others) = (sent.clone(), conditions.clone());
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let read = request.method() == "GET";
            reads += usize::from(read);
            let metadata = json!({"name": "s", "resourceVersion": reads.to_string(), "uid": key().uid.to_string()});
            let (code, answer) = match (read, reads) {
                (true, _) => (200, json!({"metadata": metadata, "status": {"conditions": others[..reads]}})),
                (false, 1) => (422, json!({"code": 422, "reason": "Invalid"})),
                (false, _) => (200, json!({"metadata": metadata})),
            };
            let noted = noted.clone();
            async move {
                let body = request.into_body().collect_bytes().await.unwrap();
                noted.lock().extend(serde_json::from_slice::<Value>(&body));
                let body = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap())
            }
        });
        let offered = json!([condition("First"), condition(CONDITION_SYNCED)]);
        let offered = StatusPatch::new([("conditions".to_owned(), offered)].into_iter().collect());
        let written = KubeStatus::new(Client::new(service, "ns")).patch(&key(), &offered).await.unwrap();
        assert_eq!(written, Some(ResourceVersion(2)));
        let upon = |version: &str| json!({"op": "test", "path": "/metadata/resourceVersion", "value": version});
        let sent = sent.lock();
        assert_eq!((sent.len(), &sent[0][1], &sent[1][1]), (2, &upon("1"), &upon("2")));
        assert_eq!(sent[1][2]["value"], json!(conditions));
    }

    #[test]
    fn a_list_is_replaced_only_if_it_was_read() {
        let conditions = json!([{"type": "Synced", "status": "True"}]);
        let (_, body) = sent("conditions", conditions.clone(), false, None);
        assert_eq!(body[1], json!({"op": "test", "path": "/status/conditions/0/type", "value": "Synced"}));
        assert_eq!(body[2], json!({"op": "replace", "path": "/status/conditions/0", "value": conditions[0]}));
        let (_, body) = sent("conditions", conditions.clone(), false, Some("9"));
        assert_eq!(body[1], json!({"op": "test", "path": "/metadata/resourceVersion", "value": "9"}));
        assert_eq!(body[2], json!({"op": "add", "path": "/status/conditions", "value": conditions}));
    }
}
