//! One long story on a real node: the chart is installed, pods hold sessions, things change, and everything goes again.
//!
//! It is one story, since a node and an installation take long to make: each step builds on the one before, and says its name.
//! `make e2e` runs it in namespaces of its own, with the images that it builds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod changes;
mod injection;
mod install;
mod load;
mod rights;
mod scene;
mod story;
mod uninstall;
mod upgrade;
mod workload;

use scene::Scene;
use story::Story;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut story = Story::default();
    story.step("a node starts");
    let mut scene = Scene::start().await;
    story.note(&format!("ready after {:.1?}", scene.node.ready_after()));

    upgrade::install_previous(&mut story, &scene).await;
    install::works(&mut story, &scene).await;
    install::a_session(&mut story, &scene).await;
    workload::deploy(&mut story, &scene).await;
    workload::a_client(&mut story, &scene).await;
    upgrade::there_and_back(&mut story, &scene).await;
    injection::by_webhook(&mut story, &scene).await;
    changes::operator(&mut story, &scene).await;
    changes::workload(&mut story, &scene).await;
    changes::kubelet(&mut story, &mut scene).await;
    rights::are_enough(&mut story, &scene).await;
    uninstall::chart(&mut story, &scene).await;
}
