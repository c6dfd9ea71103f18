//! What the API server refuses for us, with the policies that the chart installs. They are there in all other tests too, which
//! shows that they stop nobody who is right.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{ClusterOptions, ControlPlaneOptions, KubectlOutput, TokenAccess, eventually};

use crate::world::{PATIENCE, World};

const FINALIZER: &str = "vmcp.dev/confirm-eviction";

/// A cluster in which the policies are in force, which they are a moment after they were written.
async fn start(options: ClusterOptions) -> World {
    let world = World::start(options).await;
    in_force(&world).await;
    world
}

/// Waits until the API server refuses what the policies refuse.
async fn in_force(world: &World) {
    let wrong =
        [session("replica-x", json!({"labels": marked()})), session("s", json!({"annotations": expiring("soon")}))];
    for object in wrong {
        eventually(PATIENCE, "the policy is in force", async || {
            let args = ["create", "--dry-run=server", "--filename=-"];
            let tried = world.plane.kubectl_output(&args, Some(&object.to_string())).await.unwrap();
            (!tried.status.success()).then_some(())
        })
        .await
        .unwrap();
    }
}

fn marked() -> Value {
    json!({"vmcp.dev/replica": "true"})
}

fn expiring(at: &str) -> Value {
    json!({"vmcp.dev/expires-at": at})
}

fn session(name: &str, mut metadata: Value) -> Value {
    metadata["name"] = json!(name);
    metadata["namespace"] = json!("vmcp");
    json!({"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession", "metadata": metadata, "spec": {"metadata": {"n": "0"}}})
}

async fn create(world: &World, object: &Value) -> KubectlOutput {
    world.plane.kubectl_output(&["create", "--filename=-"], Some(&object.to_string())).await.unwrap()
}

/// Patches the metadata of a session.
async fn patch(world: &World, as_whom: &str, namespace: &str, name: &str, metadata: &Value) -> KubectlOutput {
    let patch = json!({"metadata": metadata}).to_string();
    let args = ["patch", "vmcps", name, "--namespace", namespace, "--type=merge", "--patch", &patch, as_whom];
    world.plane.kubectl_output(&args, None).await.unwrap()
}

#[track_caller]
fn allowed(tried: &KubectlOutput) {
    assert!(tried.status.success(), "{tried:?}");
}

#[track_caller]
fn refused(tried: &KubectlOutput, why: &str) {
    assert!(!tried.status.success() && tried.stderr.contains(why), "{tried:?}");
}

/// An argument with which kubectl acts as administrator.
fn admin(world: &World) -> String {
    format!("--kubeconfig={}", world.plane.kubeconfig_path().display())
}

/// The same with the token of an account.
async fn kubeconfig(world: &World, (namespace, account): (&str, &str)) -> String {
    let token = world.plane.token_for_account(namespace, account, &[], Duration::from_hours(1)).await.unwrap();
    let access: TokenAccess = world.plane.kubeconfig_for_token(account, world.plane.url(), &token).unwrap();
    format!("--kubeconfig={}", access.kubeconfig.display())
}

const WHY_NO_MARKER: &str = "is a marker of the session controller: only the controller writes and deletes it";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_is_written_by_the_controller_alone() {
    let mut world = start(ClusterOptions::default().size(2, 1)).await;
    let admin = admin(&world);
    world.wait_registered(2).await;

    refused(&create(&world, &session("replica-forged", json!({"labels": marked()}))).await, WHY_NO_MARKER);
    allowed(&create(&world, &session("replica-named", json!({}))).await);
    refused(&patch(&world, &admin, "vmcp", "replica-named", &json!({"labels": marked()})).await, WHY_NO_MARKER);
    allowed(&create(&world, &session("labelled", json!({"labels": marked()}))).await);

    println!("those that there are");
    let list = ["get", "vmcps", "--namespace=vmcp-system", "--output=jsonpath={.items[0].metadata.name}"];
    let marker = world.plane.kubectl(&list).await.unwrap();
    let no_label = json!({"labels": {"vmcp.dev/replica": null}});
    refused(&patch(&world, &admin, "vmcp-system", &marker, &no_label).await, WHY_NO_MARKER);
    let elsewhere = json!({"annotations": {"vmcp.dev/address": "127.0.0.1:1"}});
    refused(&patch(&world, &admin, "vmcp-system", &marker, &elsewhere).await, WHY_NO_MARKER);
    let all = ["delete", "vmcps", "--all", "--all-namespaces"];
    refused(&world.plane.kubectl_output(&all, None).await.unwrap(), WHY_NO_MARKER);
    world.wait_registered(2).await;
    let left = world.kubectl(&["get", "vmcps", "--output=name"]).await.unwrap();
    assert_eq!(left, "", "sessions are deleted all the same");

    println!("and the controllers' own business goes on");
    world.controllers[1].process.kill9().await.unwrap();
    world.wait_registered(1).await;
    world.fence().await;
}

/// What Kubernetes must be able to delete when a namespace goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_with_markers_does_not_hang_when_it_is_deleted() {
    let options =
        ClusterOptions { plane: ControlPlaneOptions::default().with_controller_manager(), ..ClusterOptions::default() };
    let world = start(options.size(1, 0)).await;
    world.controllers[0].process.kill9().await.unwrap();
    world.wait_registered(1).await;
    world.plane.kubectl(&["delete", "namespace", "vmcp-system", "--timeout=60s"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_controller_lets_go_of_a_session_that_is_being_deleted() {
    let world = start(ClusterOptions::default().size(0, 0)).await;
    let (pod, controller) = (("vmcp", "vmcp-server"), ("vmcp-system", "vmcp-session-controller"));
    let (pod, controller) = (kubeconfig(&world, pod).await, kubeconfig(&world, controller).await);
    let admin = admin(&world);
    let nothing = json!({"finalizers": null});
    for name in ["before", "by-controller", "by-admin"] {
        allowed(&create(&world, &session(name, json!({"finalizers": [FINALIZER, "example.com/other"]}))).await);
    }
    // Before it is deleted, nobody waits for it.
    allowed(&patch(&world, &pod, "vmcp", "before", &nothing).await);
    for (name, by) in [("by-controller", &controller), ("by-admin", &admin)] {
        world.kubectl(&["delete", "vmcps", name, "--wait=false"]).await.unwrap();
        let why = "is removed by the session controller, when no pod can serve the session any more";
        refused(&patch(&world, &pod, "vmcp", name, &nothing).await, why);
        allowed(&patch(&world, &pod, "vmcp", name, &json!({"finalizers": [FINALIZER]})).await);
        allowed(&patch(&world, by, "vmcp", name, &nothing).await);
    }
    assert_eq!(world.kubectl(&["get", "vmcps", "--output=name"]).await.unwrap(), "vmcpsession.vmcp.dev/before\n");
}

/// It may patch sessions for the sake of their finalizer. That is all that somebody gets who has its token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controllers_account_changes_no_session() {
    let world = start(ClusterOptions::default().size(0, 0)).await;
    let controller = kubeconfig(&world, ("vmcp-system", "vmcp-session-controller")).await;
    for name in ["s", "replica-s"] {
        allowed(&create(&world, &session(name, json!({"labels": {"team": "a"}, "annotations": {"note": "b"}}))).await);
        for patch in [
            json!({"spec": {"metadata": {"n": "1"}}}),
            json!({"spec": {"idleTimeoutSeconds": 1}}),
            json!({"metadata": {"labels": {"team": null}}}),
            json!({"metadata": {"annotations": {"vmcp.dev/expires-at": "1"}}}),
            json!({"metadata": {"labels": marked()}, "spec": {"metadata": {"n": "1"}}}),
        ] {
            let patch = patch.to_string();
            let args = ["patch", "vmcps", name, "--namespace=vmcp", "--type=merge", "--patch", &patch, &controller];
            refused(&world.plane.kubectl_output(&args, None).await.unwrap(), "it changes nothing else");
        }
    }
    let mut own = session("s", json!({}));
    own["metadata"]["namespace"] = json!("vmcp-system");
    let args = ["create", "--filename=-", &controller];
    refused(&world.plane.kubectl_output(&args, Some(&own.to_string())).await.unwrap(), "it changes nothing else");
    own["metadata"] = json!({"name": "replica-s", "namespace": "vmcp-system", "labels": marked()});
    allowed(&world.plane.kubectl_output(&args, Some(&own.to_string())).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annotations_that_would_be_passed_over_are_refused() {
    let world = start(ClusterOptions::default().size(0, 0)).await;
    let admin = admin(&world);
    let annotate =
        async |annotations: Value| patch(&world, &admin, "vmcp", "s", &json!({"annotations": annotations})).await;
    allowed(&create(&world, &session("s", json!({}))).await);
    for wrong in ["soon", "", "-1", "1.5", "2026-01-01T00:00:00Z", "18446744073709551616"] {
        refused(&annotate(expiring(wrong)).await, "a number of milliseconds since 1970");
        refused(&annotate(json!({"vmcp.dev/renewed-at": wrong})).await, "a number of milliseconds since 1970");
    }
    allowed(&annotate(expiring("1764000000000")).await);
    allowed(&annotate(json!({"vmcp.dev/expires-at": null, "example.com/own": "soon"})).await);

    let id = |id: Value| json!({"vmcp.dev/session-id": id});
    allowed(&annotate(id(json!("one"))).await);
    for other in [json!("two"), Value::Null] {
        refused(&annotate(id(other)).await, "cannot be changed or removed");
    }
    allowed(&annotate(json!({"example.com/own": null})).await);

    // Who lets the API server choose the name is not in the way.
    let mut unnamed = session("s", json!({"generateName": "s-", "labels": marked()}));
    unnamed["metadata"].as_object_mut().unwrap().remove("name");
    allowed(&create(&world, &unnamed).await);
    unnamed["metadata"]["generateName"] = json!("replica-");
    refused(&create(&world, &unnamed).await, WHY_NO_MARKER);
}

/// What was written before the policy came keeps nobody from anything else, the controller and `release` least of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_there_before_the_policy_can_be_changed_and_deleted() {
    let world = World::start(ClusterOptions::default().size(0, 0).without_policies()).await;
    let admin = admin(&world);
    let old = json!({"annotations": expiring("tomorrow"), "finalizers": ["vmcp.dev/confirm-eviction"]});
    allowed(&create(&world, &session("old", old)).await);
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/policy/sessions.yaml");
    world.plane.kubectl(&["apply", "--filename", policy]).await.unwrap();
    in_force(&world).await;
    refused(
        &patch(&world, &admin, "vmcp", "old", &json!({"annotations": expiring("next week")})).await,
        "milliseconds",
    );
    allowed(&patch(&world, &admin, "vmcp", "old", &json!({"labels": {"team": "a"}})).await);
    allowed(&patch(&world, &admin, "vmcp", "old", &json!({"finalizers": null})).await);
}
