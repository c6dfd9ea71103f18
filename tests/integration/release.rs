//! `vmcp-session release`, which Helm runs before it uninstalls.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{ControlPlane, ControlPlaneOptions, Process, eventually, policy_rule};

const SOON: Duration = Duration::from_secs(30);
const CRD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/vmcpsessions.vmcp.dev.yaml");
const OURS: &str = "vmcp.dev/confirm-eviction";
const FOREIGN: &str = "example.com/mine";

struct Setup {
    plane: ControlPlane,
    kubeconfig: String,
}

impl Setup {
    /// An API server, and an account with just the rights that the chart gives to the hook.
    async fn new() -> Self {
        let plane = ControlPlane::start(ControlPlaneOptions::default()).await.unwrap();
        plane.apply_crds(CRD).await.unwrap();
        plane.create_service_account("default", "release").await.unwrap();
        let rules = vec![policy_rule("vmcp.dev", &["vmcpsessions"], &["list", "patch"])];
        plane.bind_cluster_role("default", "release", rules).await.unwrap();
        let token = plane.token_for_account("default", "release", &[], Duration::from_hours(1)).await.unwrap();
        let access = plane.kubeconfig_for_token("release", plane.url(), &token).unwrap();
        let may = ["auth", "can-i", "-q", "list", "vmcps", "-A", "--as=system:serviceaccount:default:release"];
        eventually(SOON, "the rights are in force", async || {
            plane.kubectl_output(&may, None).await.ok()?.status.success().then_some(())
        })
        .await
        .unwrap();
        Self { kubeconfig: access.kubeconfig.display().to_string(), plane }
    }

    async fn session(&self, name: &str, finalizers: &[&str]) {
        let object = json!({
            "apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
            "metadata": {"name": name, "finalizers": finalizers}, "spec": {"metadata": {"k": "canary"}},
        });
        self.plane.kubectl_with_input(&["create", "-f", "-"], &object.to_string()).await.unwrap();
    }

    /// What a session has; nothing if it is gone.
    async fn finalizers(&self, name: &str) -> Option<Value> {
        let args = ["get", "vmcps", name, "--ignore-not-found", "-o", "json"];
        let text = self.plane.kubectl(&args).await.unwrap();
        (!text.is_empty()).then(|| serde_json::from_str::<Value>(&text).unwrap()["metadata"]["finalizers"].clone())
    }

    fn release(&self, patience: &str) -> Process {
        release_with(&["--patience", patience], &self.kubeconfig)
    }
}

fn release_with(args: &[&str], kubeconfig: &str) -> Process {
    let release = Process::builder("release", crate::programs().session).arg("release");
    release.args(args).env("KUBECONFIG", kubeconfig).spawn().unwrap()
}

/// Only what is ours goes, and from all sessions; values are not even asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_takes_our_finalizer_off_and_no_other() {
    let setup = Setup::new().await;
    setup.session("plain", &[]).await;
    setup.session("foreign", &[FOREIGN, OURS]).await;
    // More than a page.
    let many: Vec<Value> = (0..600)
        .map(|n| {
            let metadata = json!({"name": format!("s{n}"), "finalizers": [OURS]});
            json!({"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession", "metadata": metadata,
                   "spec": {"metadata": {}}})
        })
        .collect();
    let many = json!({"apiVersion": "v1", "kind": "List", "items": many}).to_string();
    setup.plane.kubectl_with_input(&["create", "-f", "-"], &many).await.unwrap();

    let release = setup.release("0");
    assert!(release.wait(SOON).await.unwrap().success(), "{}", release.log());
    assert_eq!(setup.finalizers("plain").await, Some(Value::Null));
    assert_eq!(setup.finalizers("foreign").await, Some(json!([FOREIGN])));
    let left =
        setup.plane.kubectl(&["get", "vmcps", "-o", "jsonpath={.items[*].metadata.finalizers[*]}"]).await.unwrap();
    assert_eq!(left, FOREIGN);
    assert!(!release.log().contains("canary"), "{}", release.log());
}

/// A deletion that is under way is the controllers' as long as there is patience: it promises that no pod serves the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_leaves_a_deletion_to_the_controllers_for_a_while() {
    let setup = Setup::new().await;
    setup.session("deleted", &[OURS]).await;
    setup.plane.kubectl(&["delete", "vmcps", "deleted", "--wait=false"]).await.unwrap();

    let patient = setup.release("3600");
    setup.session("other", &[OURS]).await;
    eventually(SOON, "the other one is released", async || {
        (setup.finalizers("other").await == Some(Value::Null)).then_some(())
    })
    .await
    .unwrap();
    assert!(patient.is_running());
    assert_eq!(setup.finalizers("deleted").await, Some(json!([OURS])));

    let impatient = setup.release("0");
    assert!(impatient.wait(SOON).await.unwrap().success(), "{}", impatient.log());
    assert_eq!(setup.finalizers("deleted").await, None);
    assert!(patient.wait(SOON).await.unwrap().success(), "{}", patient.log());
}

/// The API server lists nothing there, which looks as if all were released. Whoever may not ask, as the chart's Job, is not told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_does_not_exist_is_named() {
    let setup = Setup::new().await;
    setup.session("s", &[OURS]).await;
    let admin = setup.plane.kubeconfig_path().display().to_string();
    let typo = release_with(&["--namespaces=default,typo-ns"], &admin);
    assert!(!typo.wait(SOON).await.unwrap().success(), "{}", typo.log());
    assert!(typo.log().contains("there is no namespace 'typo-ns'"), "{}", typo.log());
    assert_eq!(setup.finalizers("s").await, Some(json!([OURS])), "nothing is done by half");
    let ignorant = release_with(&["--namespaces=default,typo-ns"], &setup.kubeconfig);
    assert!(ignorant.wait(SOON).await.unwrap().success(), "{}", ignorant.log());
    assert_eq!(setup.finalizers("s").await, Some(Value::Null));
}

/// Whoever has deleted the definition has deleted all sessions, and can still uninstall.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_definition_there_is_nothing_to_release() {
    let setup = Setup::new().await;
    setup.plane.kubectl(&["delete", "crd", "vmcpsessions.vmcp.dev", "--wait"]).await.unwrap();
    let release = setup.release("0");
    assert!(release.wait(SOON).await.unwrap().success(), "{}", release.log());
}

/// Nobody can mend that by waiting, and it is no reason to leave the others behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_told_when_all_others_are_released() {
    let setup = Setup::new().await;
    for name in ["a", "refused", "z"] {
        setup.session(name, &[OURS]).await;
    }
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "refused"}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": ["vmcp.dev"], "apiVersions": ["*"], "operations": ["UPDATE"],
                "resources": ["vmcpsessions"]}]},
            "validations": [{"expression": "object.metadata.name != 'refused'"}]}});
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "refused"}, "spec": {"policyName": "refused", "validationActions": ["Deny"]}});
    for object in [policy, binding] {
        setup.plane.apply_yaml(&object.to_string()).await.unwrap();
    }
    let patch = ["annotate", "vmcps", "refused", "x=y", "--dry-run=server", "--overwrite"];
    eventually(SOON, "the policy is in force", async || {
        (!setup.plane.kubectl_output(&patch, None).await.ok()?.status.success()).then_some(())
    })
    .await
    .unwrap();
    let release = setup.release("0");
    assert!(!release.wait(SOON).await.unwrap().success(), "{}", release.log());
    for (name, finalizers) in [("a", Value::Null), ("refused", json!([OURS])), ("z", Value::Null)] {
        assert_eq!(setup.finalizers(name).await, Some(finalizers), "{name}: {}", release.log());
    }
    let told = |release: &Process| release.log().lines().any(|line| line.contains("error") && line.contains("refused"));
    assert!(told(&release), "{}", release.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_away_is_waited_for() {
    let setup = Setup::new().await;
    setup.session("s", &[OURS]).await;
    setup.plane.apiserver().kill9().await.unwrap();
    let release = setup.release("0");
    let told = async || release.log().contains("sessions could not be listed; trying again").then_some(());
    eventually(SOON, "it says that it waits", told).await.unwrap();
    setup.plane.apiserver().launch().await.unwrap();
    assert!(release.wait(SOON).await.unwrap().success(), "{}", release.log());
    assert_eq!(setup.finalizers("s").await, Some(Value::Null));
}
