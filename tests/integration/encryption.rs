//! Encryption at rest, as docs/install.md shows it.

use data_encoding::BASE64;
use serde_json::{Value, json};
use testkit::{ControlPlane, ControlPlaneOptions};

const CANARY: &str = "canary-at-rest";

/// The example of the document, with a key in it.
fn configuration() -> String {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/install.md")).unwrap();
    let blocks = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let example = blocks.into_iter().find(|block| block.contains("kind: EncryptionConfiguration")).unwrap();
    assert!(example.contains("BASE64"));
    example.replace("BASE64", &BASE64.encode(&[7; 32]))
}

/// What etcd holds under a key.
async fn in_etcd(plane: &ControlPlane, key: &str) -> String {
    let etcd = kube::Client::try_from(kube::Config::new(plane.etcd().url().parse().unwrap())).unwrap();
    let body = json!({"key": BASE64.encode(key.as_bytes())}).to_string();
    let request = http::Request::post("/v3/kv/range").body(body.into_bytes()).unwrap();
    let answer: Value = etcd.request(request).await.unwrap();
    let value = answer["kvs"][0]["value"].as_str().unwrap_or_else(|| panic!("no {key}: {answer}"));
    String::from_utf8_lossy(&BASE64.decode(value.as_bytes()).unwrap()).into_owned()
}

async fn apply(plane: &ControlPlane) -> String {
    let session = json!({"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
        "metadata": {"name": "s", "namespace": "default"}, "spec": {"metadata": {"user": CANARY}}});
    plane.apply_crds(crate::programs().crd).await.unwrap();
    plane.apply_yaml(&session.to_string()).await.unwrap();
    in_etcd(plane, "/registry/vmcp.dev/vmcpsessions/default/s").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_encrypted_in_etcd_if_it_is_configured_as_the_document_says() {
    let plane = ControlPlane::start(ControlPlaneOptions::default()).await.unwrap();
    assert!(apply(&plane).await.contains(CANARY), "in the clear, without a configuration");
    drop(plane);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("encryption.yaml");
    std::fs::write(&file, configuration()).unwrap();
    let option = format!("--encryption-provider-config={}", file.display());
    let plane = ControlPlane::start(ControlPlaneOptions::default().with_apiserver_arg(option)).await.unwrap();
    let kept = apply(&plane).await;
    assert!(kept.starts_with("k8s:enc:secretbox:v1:key1:") && !kept.contains(CANARY));
    let read = plane.kubectl(&["get", "vmcps", "s", "--output=jsonpath={.spec.metadata.user}"]).await.unwrap();
    assert_eq!(read, CANARY);
}
