//! `make demo`: a real control plane, two replicas of the controller, three pods. Sessions are changed with kubectl, and
//! the pods follow. Nobody is asked anything, everything that is claimed is checked, and it ends by itself.

mod chapters;
mod failover;
mod mcp;
mod measure;
mod story;

use std::process::ExitCode;
use std::time::Instant;

use story::Story;
use testkit::{Cluster, ClusterOptions, Programs};

/// Anything that ends the demo before its end.
type Failed = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    let mut story = Story::new();
    match tell(&mut story).await {
        Ok(()) if story.end() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            story.check(&format!("the demo comes to its end: {error}"), false);
            story.end();
            ExitCode::FAILURE
        }
    }
}

async fn tell(story: &mut Story) -> Result<(), Failed> {
    println!("A session is one object in Kubernetes. Pods keep copies of it in memory, and serve them without asking.");
    println!("When the object changes, every pod must drop its copy at once. Watch.");

    let programs = Programs::beside_this_one(env!("CARGO_MANIFEST_DIR"))?;
    story.chapter("1. A cluster");
    story.text("starting etcd, kube-apiserver, two controllers and three pods, each a process of its own ...");
    let started = Instant::now();
    // Another leader takes over in 6 seconds instead of 15, so that nobody has to wait for it. All else is the default.
    let leader = ["--leader-lease-seconds=6", "--leader-renew-deadline-seconds=4", "--leader-retry-seconds=1"];
    let session = programs.session.clone();
    let cluster = Cluster::start(programs, ClusterOptions::default().controller_args(&leader)).await?;
    let outcome = match in_cluster(&cluster, started, story).await {
        Ok(()) => mcp::server(&cluster, &session, story).await,
        failed => failed,
    };
    if outcome.is_err() {
        for process in cluster.controllers.iter().map(|c| &c.process).chain(cluster.pods.iter().map(|p| &p.process)) {
            eprintln!("--- the end of the log of {} ---\n{}", process.name(), process.log_tail());
        }
    }
    outcome
}

async fn in_cluster(cluster: &Cluster, started: Instant, story: &mut Story) -> Result<(), Failed> {
    chapters::cluster(cluster, started.elapsed(), story).await?;
    chapters::sessions(cluster, story).await?;
    chapters::unknown_key(cluster, story).await?;
    chapters::what_kubernetes_shows(cluster, story).await?;
    chapters::label(cluster, story).await?;
    failover::revoked(cluster, story).await?;
    failover::leader_killed(cluster, story).await?;
    failover::revoked_without_one(cluster, story).await
}
