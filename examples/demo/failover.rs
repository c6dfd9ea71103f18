//! The story of a revocation, of a leader that is killed, and of a revocation without it.

use std::time::{Duration, Instant};

use serde_json::json;
use testkit::{Cluster, Controller, eventually};

use crate::Failed;
use crate::chapters::status_of;
use crate::measure::Change;
use crate::story::Story;

/// A lease of the dead leader ends, and then somebody else takes over.
const TAKEOVER: Duration = Duration::from_secs(40);

/// Who holds the Lease of the controller.
async fn holder(cluster: &Cluster) -> Result<String, Failed> {
    let jsonpath = "jsonpath={.items[*].spec.holderIdentity}";
    let args = ["-n", "vmcp-system", "get", "leases.coordination.k8s.io", "-o", jsonpath];
    Ok(cluster.plane.kubectl(&args).await?)
}

fn leader<'a>(cluster: &'a Cluster, holder: &str) -> Option<&'a Controller> {
    cluster.controllers.iter().find(|c| !c.name.is_empty() && holder.contains(c.name.as_str()))
}

/// The leading replica is killed, and a session is changed before another one leads.
pub async fn leader_killed(cluster: &Cluster, story: &mut Story) -> Result<(), Failed> {
    story.chapter("7. The leading controller is killed, and a session changes right after");
    let before = holder(cluster).await?;
    story.command("kubectl -n vmcp-system get lease -o jsonpath='{.items[*].spec.holderIdentity}'");
    story.quote(&before);
    let leading = leader(cluster, &before).ok_or("no controller holds the Lease")?;
    story.check(&format!("{} leads", leading.name), leading.process.is_running());
    story.command(&format!("kill -9 {}", leading.process.pid()));
    leading.process.kill9().await?;
    story.check("it is gone", !leading.process.is_running());

    let patch = json!({"spec": {"metadata": {"backends": "weather"}}}).to_string();
    story.command(&format!("kubectl patch vmcps alice --type=merge -p '{patch}'"));
    let args = ["patch", "vmcps", "alice", "--type=merge", "-p", &patch];
    Change::make(cluster, "patch", "alice", &args).await?.tell(story);
    story.check("nobody leads yet: the signals came from the other controller", holder(cluster).await? == before);
    let mut new = 0;
    for pod in &cluster.pods {
        new += usize::from(pod.get("alice").await?.metadata().is_some_and(|m| m["backends"] == "weather"));
    }
    story.check("every pod serves the new state", new == 3);

    story.text("a leader is needed only to write status and events; waiting for the next one ...");
    let started = Instant::now();
    let next = eventually(TAKEOVER, "another controller leads", async || {
        let now = holder(cluster).await.ok()?;
        let other = leader(cluster, &now).filter(|next| next.name != leading.name)?;
        Some(other.name.clone())
    });
    let next = next.await?;
    story.check_timed(&format!("{next} leads"), next != leading.name, started.elapsed());
    let status = eventually(TAKEOVER, "the status follows", async || {
        let status = status_of(cluster, "alice").await.ok()?;
        (status["observedGeneration"] == 3).then_some(status)
    });
    let status = status.await?;
    let keys = &status["lastEviction"]["changedKeys"];
    story.check_found("the status has caught up", *keys == json!(["backends"]), &status.to_string());
    Ok(())
}

/// A session is deleted while all is well.
pub async fn revoked(cluster: &Cluster, story: &mut Story) -> Result<(), Failed> {
    story.chapter("6. A session is revoked");
    story.text(
        "the sessions carry the finalizer vmcp.dev/confirm-eviction: kubectl returns when no pod can serve them.",
    );
    delete(cluster, "bob", &["alice", "carol"], story).await.map(drop)
}

/// A session is deleted while a controller is dead that cannot be asked any more.
pub async fn revoked_without_one(cluster: &Cluster, story: &mut Story) -> Result<(), Failed> {
    story.chapter("8. A session is revoked while a controller is dead");
    story.text("the pods drop it at once; kubectl waits for the leases that the dead controller may have granted ...");
    let took = delete(cluster, "alice", &["carol"], story).await?;
    let lease = cluster.options.lease;
    let claim = format!("nothing hangs: it took a lease ({} s) at most, and a little", lease.as_secs());
    story.check_timed(&claim, took < lease + Duration::from_secs(15), took);
    Ok(())
}

/// Deletes a session, which no pod serves then. Returns how long kubectl took.
async fn delete(cluster: &Cluster, session: &str, others: &[&str], story: &mut Story) -> Result<Duration, Failed> {
    story.command(&format!("kubectl delete vmcps {session}"));
    let change = Change::make(cluster, "delete", session, &["delete", "vmcps", session]).await?;
    let mut refused = 0;
    for pod in &cluster.pods {
        refused += usize::from(pod.get(session).await?.status == 404);
    }
    change.tell(story);
    let before_return = change.drops.iter().all(|d| d.after_start < change.kubectl);
    story.check("all of that before kubectl returned", before_return);
    story.check(&format!("asked for {session}, every pod says 404"), refused == cluster.pods.len());
    let mut cached = 0;
    for pod in &cluster.pods {
        for name in others {
            cached += usize::from(pod.get(name).await?.from() == "cache");
        }
    }
    let all = cached == cluster.pods.len() * others.len();
    story.check(&format!("still served from every cache: {}", others.join(", ")), all);
    Ok(change.kubectl)
}
