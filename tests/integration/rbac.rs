//! Who may do what.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;
use testkit::{AuditEntry, AuditMark, ClusterOptions};

use crate::world::World;

const CONTROLLER: (&str, &str) = ("vmcp-system", "vmcp-session-controller");
const POD: (&str, &str) = ("vmcp", "vmcp-server");

async fn can_i(world: &World, kubeconfig: &Path, namespace: &str, what: &[&str]) -> bool {
    let config = format!("--kubeconfig={}", kubeconfig.display());
    let args = [&[&*config, "auth", "can-i", "-q", "-n", namespace], what].concat();
    world.plane.kubectl_output(&args, None).await.unwrap().status.success()
}

/// 20. The controller and the pods run with service accounts and minimal RBAC, never as administrator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_runs_with_an_account_that_may_do_what_it_must_and_no_more() {
    let mut world = World::start(ClusterOptions::default().lease(std::time::Duration::from_secs(3))).await;

    println!("who they are, and what they may not do");
    let controllers = world.controllers.iter().map(|c| (&c.access.kubeconfig, CONTROLLER));
    let pods = world.pods.iter().map(|p| (&p.access.kubeconfig, POD));
    for (kubeconfig, (namespace, account)) in controllers.chain(pods) {
        let config = format!("--kubeconfig={}", kubeconfig.display());
        let whoami = world.plane.kubectl(&[&config, "auth", "whoami", "-o", "json"]).await.unwrap();
        let who: serde_json::Value = serde_json::from_str(&whoami).unwrap();
        assert_eq!(who["status"]["userInfo"]["username"], format!("system:serviceaccount:{namespace}:{account}"));
        let anything: &[&[&str]] = &[
            &["*", "*"],
            &["get", "secrets"],
            &["list", "pods"],
            &["create", "serviceaccounts", "--subresource=token"],
        ];
        for what in anything {
            assert!(!can_i(&world, kubeconfig, namespace, what).await, "{account} may {what:?}");
        }
    }
    let (controller, pod) = (&world.controllers[0].access.kubeconfig, &world.pods[0].access.kubeconfig);
    for verb in ["list", "watch", "update", "deletecollection"] {
        assert!(!can_i(&world, pod, "vmcp", &[verb, "vmcpsessions"]).await, "a pod may {verb} sessions");
    }
    for verb in ["get", "create", "patch", "delete"] {
        assert!(can_i(&world, pod, "vmcp", &[verb, "vmcpsessions"]).await, "a pod may not {verb} sessions");
        assert!(!can_i(&world, pod, "default", &[verb, "vmcpsessions"]).await, "a pod may {verb} others' sessions");
    }
    let status = ["patch", "vmcpsessions", "--subresource=status"];
    assert!(can_i(&world, controller, "vmcp", &status).await, "the controller may not write status");
    assert!(!can_i(&world, pod, "vmcp", &status).await, "a pod may write status");
    for what in [["create", "vmcpsessions"], ["update", "vmcpsessions"]] {
        assert!(!can_i(&world, controller, "vmcp", &what).await, "the controller may {what:?} in the pods' namespace");
    }

    println!("what they do");
    for n in 0..3 {
        let reply = world.pods[0].create("s", &json!({"a": "1"}), "everywhere").await.unwrap();
        assert!((200..300).contains(&reply.status), "{reply:?}");
        world.hold("s", &[0, 1, 2]).await;
        world.pods[1].patch("s", &json!({"a": n.to_string()}), "everywhere").await.unwrap();
        let reply = world.pods[2].delete("s", "everywhere").await.unwrap();
        assert!((200..300).contains(&reply.status), "{reply:?}");
    }
    world.fence().await;
    world.plane.apiserver().audit_flush().await.unwrap();
    let entries = world.plane.audit().entries_since(AuditMark::default()).unwrap();
    for (namespace, account) in [CONTROLLER, POD] {
        let by: Vec<&AuditEntry> = entries.iter().filter(|e| e.is_by(namespace, account)).collect();
        assert!(!by.is_empty(), "{account} asked for nothing");
        let refused: BTreeSet<_> = by.iter().filter(|e| e.code == 403).map(|e| &e.uri).collect();
        assert!(refused.is_empty(), "{account} was refused {refused:?}");
    }
}
