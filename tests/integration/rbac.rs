//! Who may do what.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;
use testkit::{
    AuditEntry, AuditMark, ClusterOptions, ControlPlane, ControlPlaneOptions, KubectlOutput, eventually, rendered_chart,
};

use crate::world::{PATIENCE, World};

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
            &["create", "pods"],
            &["create", "roles"],
            &["create", "rolebindings"],
            &["create", "clusterroles"],
            &["create", "clusterrolebindings"],
            &["escalate", "clusterroles"],
            &["bind", "clusterroles"],
            &["impersonate", "serviceaccounts"],
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

/// What kubectl gets with somebody's kubeconfig.
async fn with(world: &World, kubeconfig: &Path, args: &[&str]) -> KubectlOutput {
    let config = format!("--kubeconfig={}", kubeconfig.display());
    world.plane.kubectl_output(&[&[&*config], args].concat(), None).await.unwrap()
}

async fn forbidden(world: &World, kubeconfig: &Path, args: &[&str]) {
    let tried = with(world, kubeconfig, args).await;
    assert!(!tried.status.success() && tried.stderr.contains("(Forbidden)"), "{args:?}: {tried:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_reads_no_secret_but_its_own() {
    let world = World::start(ClusterOptions::default().size(1, 0)).await;
    let controller = &world.controllers[0].access.kubeconfig;
    for namespace in ["vmcp-system", "vmcp", "default"] {
        world
            .plane
            .kubectl(&["create", "secret", "generic", "others", "-n", namespace, "--from-literal=a=b"])
            .await
            .unwrap();
        forbidden(&world, controller, &["get", "secret", "others", "-n", namespace]).await;
        forbidden(&world, controller, &["get", "secrets", "-n", namespace]).await;
        forbidden(&world, controller, &["get", "secrets", "-n", namespace, "--watch-only", "--request-timeout=10s"])
            .await;
    }
    forbidden(&world, controller, &["get", "secrets", "--all-namespaces"]).await;
    let own = ["create", "secret", "generic", "vmcp-session-controller-tls", "-n", "vmcp-system", "--from-literal=a=b"];
    world.plane.kubectl(&own).await.unwrap();
    let own = with(&world, controller, &["get", "secret", "vmcp-session-controller-tls", "-n", "vmcp-system"]).await;
    assert!(own.status.success(), "{own:?}");
    // One of the same name somewhere else is another one.
    forbidden(&world, controller, &["get", "secret", "vmcp-session-controller-tls", "-n", "vmcp"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_token_lists_and_watches_nothing_and_sees_nothing_of_another_namespace() {
    let world = World::start(ClusterOptions::default().size(1, 1)).await;
    let pod = &world.pods[0].access.kubeconfig;
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    let other = json!({"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
        "metadata": {"name": "s", "namespace": "default"}, "spec": {"metadata": {"n": "0"}}});
    world.plane.apply_yaml(&other.to_string()).await.unwrap();

    let own = with(&world, pod, &["get", "vmcps", "s", "-n", "vmcp"]).await;
    assert!(own.status.success(), "{own:?}");
    for namespace in ["vmcp", "default", "vmcp-system"] {
        forbidden(&world, pod, &["get", "vmcps", "-n", namespace]).await;
        forbidden(&world, pod, &["get", "vmcps", "-n", namespace, "--watch-only", "--request-timeout=10s"]).await;
        forbidden(&world, pod, &["delete", "vmcps", "--all", "-n", namespace]).await;
    }
    forbidden(&world, pod, &["get", "vmcps", "--all-namespaces"]).await;
    forbidden(&world, pod, &["get", "vmcps", "s", "-n", "default"]).await;
    forbidden(&world, pod, &["delete", "vmcps", "s", "-n", "default"]).await;
    forbidden(&world, pod, &["patch", "vmcps", "s", "-n", "default", "--type=merge", "-p", "{}"]).await;
}

const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// What somebody may do with sessions in team-a.
async fn may(plane: &ControlPlane, user: &str) -> Vec<&'static str> {
    let mut may = Vec::new();
    for verb in VERBS {
        let args = ["auth", "can-i", "-q", verb, "vmcpsessions.vmcp.dev", "-n", "team-a", "--as", user];
        if plane.kubectl_output(&args, None).await.unwrap().status.success() {
            may.push(verb);
        }
    }
    may
}

/// Metadata may be personal, so that whoever may view a namespace sees sessions only where the administrator says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_who_may_view_or_edit_see_sessions_only_if_the_chart_is_told_so() {
    let plane = ControlPlane::start(ControlPlaneOptions::default().with_controller_manager()).await.unwrap();
    plane.apply_crds(crate::programs().crd).await.unwrap();
    plane.create_namespace("team-a").await.unwrap();
    let users = ["view", "edit", "admin"];
    for role in users {
        let binding = [
            "create",
            "rolebinding",
            role,
            "-n",
            "team-a",
            &format!("--clusterrole={role}"),
            &format!("--user={role}"),
        ];
        plane.kubectl(&binding).await.unwrap();
    }
    // Of anything else, so that it is known that the bindings are in force.
    for user in users {
        let args = ["auth", "can-i", "-q", "list", "pods", "-n", "team-a", "--as", user];
        eventually(PATIENCE, &format!("the binding of {user} is in force"), async || {
            plane.kubectl_output(&args, None).await.ok()?.status.success().then_some(())
        })
        .await
        .unwrap();
    }
    let (read, all) = (&VERBS[..3], &VERBS[..]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (values, expected) in [(&[][..], [&[][..], &[], &[]]), (&["roles.aggregate=true"], [read, all, all])] {
        let objects = rendered_chart(root, values).unwrap();
        let roles: Vec<_> = objects.into_iter().filter(|object| object["kind"] == "ClusterRole").collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": roles}).to_string();
        plane.kubectl_with_input(&["apply", "--filename=-"], &list).await.unwrap();
        for (user, expected) in users.into_iter().zip(expected) {
            eventually(PATIENCE, &format!("{user} may {expected:?}"), async || {
                (may(&plane, user).await == expected).then_some(())
            })
            .await
            .unwrap();
        }
    }
}
