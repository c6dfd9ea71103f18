//! The story while nothing is broken.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Cluster, eventually};

use crate::Failed;
use crate::measure::Change;
use crate::story::Story;

/// Far longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(20);
/// A key that no code knows, and a value that must be seen nowhere but in the object and in the copies.
const KEY: &str = "colour-of-the-day";
const VALUE: &str = "vermilion";

/// Names of the sessions.
pub const SESSIONS: [&str; 3] = ["alice", "bob", "carol"];

/// What was started.
pub async fn cluster(cluster: &Cluster, took: Duration, story: &mut Story) -> Result<(), Failed> {
    let version: Value = serde_json::from_str(&cluster.plane.kubectl(&["version", "-o", "json"]).await?)?;
    let version = version["serverVersion"]["gitVersion"].as_str().unwrap_or("unknown").to_owned();
    story.check_timed(&format!("Kubernetes {version} is up, RBAC on"), version.starts_with("v1."), took);
    let mut ready = 0;
    for controller in &cluster.controllers {
        ready += usize::from(controller.wait_ready().await.is_ok());
    }
    story.check(&format!("{ready} controllers are ready; both serve, one leads"), ready == 2);
    let mut leased = 0;
    for pod in &cluster.pods {
        leased += usize::from(pod.leases().await? == cluster.controllers.len());
    }
    story.check(&format!("{leased} pods have a cache lease from both"), leased == 3);
    Ok(())
}

fn manifests() -> String {
    let sessions = SESSIONS.map(|name| {
        format!(
            "apiVersion: vmcp.dev/v1alpha1\nkind: VmcpSession\nmetadata:\n  name: {name}\n  finalizers: \
             [vmcp.dev/confirm-eviction]\nspec:\n  server: demo\n  metadata:\n    user: {name}\n    backends: weather,search\n"
        )
    });
    sessions.join("---\n")
}

/// Sessions are applied, and each pod comes to serve them from its cache.
pub async fn sessions(cluster: &Cluster, story: &mut Story) -> Result<(), Failed> {
    story.chapter("2. Three sessions, served from the pods' caches");
    let text = manifests();
    story.quote(text.split("---\n").next().unwrap_or_default());
    let namespace = cluster.options.namespace.as_str();
    let args = ["-n", namespace, "apply", "--server-side", "-f", "-"];
    story.command("kubectl apply --server-side -f sessions.yaml");
    let output = cluster.plane.kubectl_with_input(&args, &text).await?;
    story.quote(&output);
    story.check("kubectl applied all three", output.lines().filter(|l| l.contains("serverside-applied")).count() == 3);

    let expected = |name: &str| json!({"user": name, "backends": "weather,search"});
    let (mut restored, mut right) = (0, 0);
    for pod in &cluster.pods {
        for name in SESSIONS {
            let reply = pod.get(name).await?;
            restored += usize::from(reply.from() == "restored");
            right += usize::from(reply.metadata() == Some(expected(name)));
        }
    }
    story.check("asked for the first time, each pod restores each session", restored == 9 && right == 9);

    let asked = reads_by_pods(cluster).await?;
    let (mut cached, mut right) = (0, 0);
    for pod in &cluster.pods {
        for name in SESSIONS {
            for _ in 0..10 {
                let reply = pod.get(name).await?;
                cached += usize::from(reply.from() == "cache");
                right += usize::from(reply.metadata() == Some(expected(name)));
            }
        }
    }
    story.check("asked 90 times more, they serve from their caches", cached == 90 && right == 90);
    let asked = reads_by_pods(cluster).await? - asked;
    let found = format!("{asked} requests");
    story.check_found("and the API server was not asked once (its audit log says so)", asked == 0, &found);
    Ok(())
}

/// Requests for sessions that pods have sent to the API server so far.
async fn reads_by_pods(cluster: &Cluster) -> Result<usize, Failed> {
    cluster.plane.apiserver().audit_flush().await?;
    let is_read = |user: &str, resource: &str| user.ends_with(":vmcp-server") && resource == "vmcpsessions";
    Ok(cluster.plane.audit().count_since(testkit::AuditMark::default(), |e| is_read(&e.user, &e.resource))?)
}

/// A key is changed that no code has ever heard of.
pub async fn unknown_key(cluster: &Cluster, story: &mut Story) -> Result<(), Failed> {
    story.chapter("3. Somebody changes a key that no code has ever heard of");
    let patch = json!({"spec": {"metadata": {KEY: VALUE}}}).to_string();
    let args = ["patch", "vmcps", "alice", "--type=merge", "-p", &patch];
    story.command(&format!("kubectl patch vmcps alice --type=merge \\\n  -p '{patch}'"));
    Change::make(cluster, "patch", "alice", &args).await?.tell(story);

    let (mut new, mut untouched) = (0, 0);
    for pod in &cluster.pods {
        let reply = pod.get("alice").await?;
        new += usize::from(reply.metadata().is_some_and(|m| m[KEY] == VALUE));
        for other in ["bob", "carol"] {
            untouched += usize::from(pod.get(other).await?.from() == "cache");
        }
    }
    story.check("asked again, every pod serves the new state", new == 3);
    story.check("bob and carol were left alone: still served from every cache", untouched == 6);
    Ok(())
}

/// The event, the status, the table.
pub async fn what_kubernetes_shows(cluster: &Cluster, story: &mut Story) -> Result<(), Failed> {
    story.chapter("4. What Kubernetes shows of it");
    let args = ["wait", "--for=condition=Synced", "vmcps/alice", "--timeout=20s"];
    story.command("kubectl wait --for=condition=Synced vmcps/alice");
    let output = cluster.kubectl(&args).await?;
    story.quote(&output);
    story.check("kubectl wait returns", output.contains("condition met"));

    let status = eventually(PATIENCE, "alice has the status of generation 2", async || {
        let status = status_of(cluster, "alice").await.ok()?;
        (status["observedGeneration"] == 2 && status["lastEviction"]["pods"] == 3).then_some(status)
    });
    let status = status.await?;
    story.command("kubectl get vmcps alice -o jsonpath='{.status.lastEviction}'");
    story.quote(&status["lastEviction"].to_string());
    let eviction = &status["lastEviction"];
    story.check("the status names the key and counts the pods", eviction["changedKeys"] == json!([KEY]));

    let columns = "custom-columns=TYPE:.type,REASON:.reason,NOTE:.note";
    let args = ["get", "events.events.k8s.io", "--field-selector=reason=MetadataChanged", "-o", columns];
    let event = eventually(PATIENCE, "there is an event", async || {
        let events = cluster.kubectl(&args).await.ok()?;
        events.contains(KEY).then_some(events)
    });
    let event = event.await?;
    story.command("kubectl get events.events.k8s.io --field-selector=reason=MetadataChanged");
    story.quote(&event);
    story.check("an event tells which key changed, and how long it took", event.contains("3 pods"));
    let told = event.contains(VALUE) || status.to_string().contains(VALUE);
    let logged = cluster.controllers.iter().any(|c| c.process.log().contains(VALUE));
    story.check("the value is in no event, no status and no log of a controller", !told && !logged);

    story.command("kubectl get vmcps");
    let table = cluster.kubectl(&["get", "vmcps"]).await?;
    story.quote(&table);
    let alice = table.lines().find(|line| line.starts_with("alice")).unwrap_or_default();
    let cells: Vec<&str> = alice.split_whitespace().collect();
    let expected = ["alice", "demo", "True", "2", "3"];
    story.check("kubectl get shows it in columns", cells.get(..5) == Some(&expected));
    Ok(())
}

/// The session's status as it stands.
pub async fn status_of(cluster: &Cluster, session: &str) -> Result<Value, Failed> {
    let object: Value = serde_json::from_str(&cluster.kubectl(&["get", "vmcps", session, "-o", "json"]).await?)?;
    Ok(object["status"].clone())
}

/// What is no metadata evicts nobody.
pub async fn label(cluster: &Cluster, story: &mut Story) -> Result<(), Failed> {
    story.chapter("5. A label is no metadata: nobody drops anything");
    let mut before = Vec::new();
    for pod in &cluster.pods {
        before.push(pod.last_eviction().await?);
    }
    story.command("kubectl label vmcps alice bob carol team=blue");
    let labelled = cluster.kubectl(&["label", "vmcps", "alice", "bob", "carol", "team=blue"]).await?;
    story.check("kubectl labelled all three", labelled.lines().filter(|l| l.ends_with(" labeled")).count() == 3);

    // A write that is confirmed everywhere has been seen by both controllers, and the label before it.
    let written = std::time::Instant::now();
    let reply = cluster.pods[0].create("dave", &json!({"user": "dave"}), "everywhere").await?;
    let took = written.elapsed();
    let confirmed = (200..300).contains(&reply.status);
    story.check_timed("both controllers have seen it: they confirmed a later write", confirmed, took);

    let (mut dropped, mut cached) = (0, 0);
    for (pod, before) in cluster.pods.iter().zip(before) {
        dropped += pod.evictions(before).await?.len();
        for name in SESSIONS {
            cached += usize::from(pod.get(name).await?.from() == "cache");
        }
    }
    story.check_found("no pod dropped a copy", dropped == 0, &format!("{dropped} dropped"));
    story.check_found("all are still served from the caches", cached == 9, &format!("{cached} of 9"));
    Ok(())
}
