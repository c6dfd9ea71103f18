//! Counting in the audit log.

use crate::{config_maps, control_plane, create_config_map};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use std::time::Duration;
use testkit::{LoopbackAddr, Verb, policy_rule};

#[tokio::test]
async fn requests_are_counted_by_who_asked_for_what() {
    let plane = control_plane().await;
    plane.create_service_account("default", "writer").await.unwrap();
    let rule = policy_rule("", &["configmaps"], &["create", "get", "list", "patch"]);
    plane.bind_role("default", "writer", vec![rule]).await.unwrap();
    let token = plane.token_for_account("default", "writer", &[], Duration::from_mins(10)).await.unwrap();
    let theirs: Api<ConfigMap> = config_maps(plane.client_for_token(plane.url(), &token).await.unwrap());
    let ours = config_maps(plane.client());

    let mark = plane.audit().mark().unwrap();
    for i in 0..5 {
        create_config_map(&theirs, &format!("theirs-{i}")).await.unwrap();
        create_config_map(&ours, &format!("ours-{i}")).await.unwrap();
    }
    theirs.list(&ListParams::default()).await.unwrap();
    let patch = Patch::Merge(json!({ "data": { "k": "w" } }));
    theirs.patch("theirs-1", &PatchParams::default(), &patch).await.unwrap();
    theirs.delete("theirs-1", &DeleteParams::default()).await.unwrap_err();
    let address = LoopbackAddr::claim().unwrap();
    plane.create_pod("default", "p", "writer", address.ip()).await.unwrap();
    plane.apiserver().audit_flush().await.unwrap();

    let count = |wanted: &dyn Fn(&testkit::AuditEntry) -> bool| plane.audit().count_since(mark, wanted).unwrap();
    assert_eq!(count(&|e| e.is_by("default", "writer") && e.is_write() && e.is_success()), 6);
    assert_eq!(count(&|e| e.is_by("default", "writer") && e.verb == Verb::Create), 5);
    assert_eq!(count(&|e| e.is_by("default", "writer") && e.verb == Verb::List && e.resource == "configmaps"), 1);
    assert_eq!(count(&|e| e.is_by("default", "writer") && e.code == 403), 1);
    assert_eq!(count(&|e| e.user == "admin" && e.resource == "configmaps" && e.is_write()), 5);
    assert_eq!(count(&|e| e.name == "p" && e.resource == "pods" && e.subresource == "status"), 1);
    assert_eq!(count(&|e| e.name == "theirs-1" && e.namespace == "default"), 3);
}
