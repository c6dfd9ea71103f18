//! Who adds agents is found out where nobody says it.

use testkit::{ControlPlane, ControlPlaneOptions};

use crate::chart::CHART;

/// What Helm would install in this cluster, and its notes.
async fn installed(plane: &ControlPlane) -> String {
    plane.create_namespace("vmcp-system").await.unwrap();
    let args = ["install", "release", CHART, "--namespace=vmcp-system", "--dry-run=server"];
    plane.helm(&args).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_can_does_it_by_itself() {
    let plane = ControlPlane::start(ControlPlaneOptions::default()).await.unwrap();
    let all = installed(&plane).await;
    assert!(all.contains("kind: MutatingAdmissionPolicy\n") && all.contains("by a policy in the API server"), "{all}");
    for of_webhook in ["kind: MutatingWebhookConfiguration", "VMCP_INJECTION", "mutatingwebhookconfigurations", "9443"]
    {
        assert!(!all.contains(of_webhook), "{of_webhook}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_asks_a_controller() {
    let off = "--runtime-config=admissionregistration.k8s.io/v1/mutatingadmissionpolicies=false,\
               admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings=false";
    let admission = "--disable-admission-plugins=MutatingAdmissionPolicy";
    let options = ControlPlaneOptions::default().with_apiserver_arg(off).with_apiserver_arg(admission);
    let plane = ControlPlane::start(options).await.unwrap();
    let all = installed(&plane).await;
    assert!(all.contains("by a webhook of the controllers (failurePolicy: Fail)"), "{all}");
    assert!(!all.contains("kind: MutatingAdmissionPolicy"));
    for of_webhook in ["kind: MutatingWebhookConfiguration", "VMCP_INJECTION", "mutatingwebhookconfigurations", "9443"]
    {
        assert!(all.contains(of_webhook), "{of_webhook}");
    }
}
