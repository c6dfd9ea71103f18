//! A command of kubectl, and what happened meanwhile: in the API server by its audit log, in the pods by their own clock.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use testkit::{Cluster, VmcpPod, eventually};
use vmcp_session::runtime::clock::boottime_nanos;

use crate::Failed;
use crate::story::{Story, human};

/// Far longer than anything takes: what is measured is shown, this only ends the wait.
const PATIENCE: Duration = Duration::from_secs(20);

/// When a pod dropped its copy.
pub struct Drop {
    /// The pod's name.
    pub pod: String,
    /// After kubectl was started.
    pub after_start: Duration,
    /// After the API server had received the request; zero if the clocks disagree by less than that.
    pub after_request: Duration,
    /// Copies of this session that the pod dropped since the command began.
    pub times: usize,
}

/// What a change did.
pub struct Change {
    /// How long kubectl ran.
    pub kubectl: Duration,
    /// How long kubectl needed until the API server had its request.
    pub before_request: Duration,
    /// How long the API server worked on it.
    pub request: Duration,
    /// What the pods did, in their order.
    pub drops: Vec<Drop>,
}

impl Change {
    /// Runs kubectl, which changes or deletes `session`, and waits until each pod has dropped its copy.
    pub async fn make(cluster: &Cluster, verb: &str, session: &str, args: &[&str]) -> Result<Self, Failed> {
        let mut seen = Vec::new();
        for pod in &cluster.pods {
            seen.push(pod.last_eviction().await?);
        }
        // The audit log has the time of day, the pods count from the start of the machine.
        let (started_at, started) = (Timestamp::now(), boottime_nanos());
        cluster.kubectl(args).await?;
        let kubectl = since(started, boottime_nanos());

        let mut drops = Vec::new();
        for (pod, seen) in cluster.pods.iter().zip(seen) {
            drops.push((pod.name.clone(), dropped(pod, seen, session).await?));
        }
        let (received, answered) = request(cluster, verb, session, started_at).await?;
        let from_start = |at: Timestamp| Duration::try_from(at.duration_since(started_at)).unwrap_or_default();
        let before_request = from_start(received);
        let drops = drops.into_iter().map(|(pod, stamps)| {
            let first = stamps.iter().copied().min().unwrap_or_default();
            let after_start = since(started, first);
            Drop { pod, after_start, after_request: after_start.saturating_sub(before_request), times: stamps.len() }
        });
        Ok(Self {
            kubectl,
            before_request,
            request: from_start(answered).saturating_sub(before_request),
            drops: drops.collect(),
        })
    }

    /// Shows the times, and checks that each pod dropped its copy once and soon.
    pub fn tell(&self, story: &mut Story) {
        let both = |request: Duration| [human(self.before_request + request), human(request)];
        let row = |name: &str, [a, b]: [String; 2]| story.row(name, [&a, &b]);
        story.row("", ["since kubectl started", "since the request came"]);
        row("the API server answers", both(self.request));
        for drop in &self.drops {
            row(&format!("{} drops its copy", drop.pod), [human(drop.after_start), human(drop.after_request)]);
        }
        story.row("kubectl ends", [&human(self.kubectl), ""]);
        let once = self.drops.iter().all(|d| d.times == 1);
        story.check("every pod dropped its copy, once", once && !self.drops.is_empty());
        let slowest = self.drops.iter().map(|d| d.after_request).max().unwrap_or_default();
        let soon = slowest < Duration::from_secs(1);
        story.check_timed("the last one within a second of the request", soon, slowest);
    }
}

/// When the pod dropped copies of the session since the eviction numbered `seen`; waits for the first one.
async fn dropped(pod: &VmcpPod, seen: u64, session: &str) -> Result<Vec<u64>, Failed> {
    let what = format!("{} drops its copy of {session}", pod.name);
    let stamps = async || {
        let evictions = pod.evictions(seen).await.ok()?;
        let of_session = evictions.iter().filter(|e| e["name"] == session);
        let stamps: Vec<u64> = of_session.filter_map(|e| e["at"].as_u64()).collect();
        (!stamps.is_empty()).then_some(stamps)
    };
    Ok(eventually(PATIENCE, &what, stamps).await?)
}

/// When the API server received kubectl's request for this session and when it had answered it.
async fn request(
    cluster: &Cluster,
    verb: &str,
    session: &str,
    started: Timestamp,
) -> Result<(Timestamp, Timestamp), Failed> {
    cluster.plane.apiserver().audit_flush().await?;
    let log = std::fs::read_to_string(cluster.plane.audit().path())?;
    let time = |entry: &Value, field: &str| entry[field].as_str().and_then(|t| t.parse::<Timestamp>().ok());
    let wanted = |entry: &Value| {
        entry["verb"] == verb
            && entry["stage"] == "ResponseComplete"
            && entry["objectRef"]["resource"] == "vmcpsessions"
            && entry["objectRef"]["name"] == session
            && entry["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kubectl"))
    };
    let entries = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    entries
        .filter(wanted)
        .find_map(|entry| {
            let received = time(&entry, "requestReceivedTimestamp")?;
            (received >= started).then(|| time(&entry, "stageTimestamp").map(|answered| (received, answered)))?
        })
        .ok_or_else(|| format!("the audit log has no {verb} of {session}").into())
}

fn since(start: u64, end: u64) -> Duration {
    Duration::from_nanos(end.saturating_sub(start))
}
