//! Programs under supervision, and addresses for them.

use crate::{SILENCE, SOON};
use std::{collections::HashSet, fs, net::TcpListener, os::unix::process::ExitStatusExt};
use testkit::{Error, LoopbackAddr, Process, eventually};

fn shell(script: &str) -> testkit::ProcessBuilder {
    Process::builder("script", "sh").args(["-c", script])
}

#[tokio::test]
async fn output_environment_and_exit_code_are_those_of_the_program() {
    let process = shell("echo out $A; echo err >&2; exit 3").env("A", "b").spawn().unwrap();
    assert_eq!(process.wait(SOON).await.unwrap().code(), Some(3));
    assert_eq!(process.log(), "out b\nerr\n");
    assert!(!process.is_running());
    process.kill9().await.unwrap();
    assert!(matches!(process.pause().await, Err(Error::NotRunning { .. })));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error() {
    let error = Process::builder("nothing", "/nowhere/nothing").spawn().unwrap_err();
    assert!(error.to_string().contains("/nowhere/nothing"), "{error}");
}

#[tokio::test]
async fn terminate_is_heard_and_enforced() {
    let polite = shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done").spawn().unwrap();
    let says_ready = |p: &Process| p.log().contains("ready").then_some(());
    eventually(SOON, "ready", async || says_ready(&polite)).await.unwrap();
    polite.pause().await.unwrap();
    assert_eq!(polite.terminate(SOON).await.unwrap().code(), Some(7), "also when it was paused");

    let deaf = shell("trap '' TERM; echo ready; while :; do sleep 0.01; done").spawn().unwrap();
    eventually(SOON, "ready", async || says_ready(&deaf)).await.unwrap();
    assert!(matches!(deaf.terminate(SILENCE).await, Err(Error::Deadline { .. })));
    assert_eq!(deaf.exit_status().unwrap().signal(), Some(9));
}

#[tokio::test]
async fn a_paused_process_stands_still() {
    let process = shell("i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done").spawn().unwrap();
    let size = || fs::metadata(process.log_path()).unwrap().len();
    eventually(SOON, "it writes", async || (size() > 0).then_some(())).await.unwrap();
    process.pause().await.unwrap();
    let before = size();
    let moved = eventually(SILENCE, "it writes", async || (size() > before).then_some(())).await;
    assert!(moved.is_err());
    process.resume().unwrap();
    eventually(SOON, "it writes again", async || (size() > before).then_some(())).await.unwrap();
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it() {
    let process = shell("sleep 86400 & echo $!").spawn().unwrap();
    process.wait(SOON).await.unwrap();
    let child = process.log().trim().to_owned();
    let stat = || fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    // A zombie counts as gone: whoever adopts orphans here may be slow to bury them.
    let gone = |stat: &str| stat.is_empty() || stat.contains(") Z");
    eventually(SOON, "it is gone", async || gone(&stat()).then_some(())).await.unwrap();
}

#[test]
fn addresses_are_unique_and_ports_free() {
    let addresses: Vec<_> = (0..50).map(|_| LoopbackAddr::claim().unwrap()).collect();
    let distinct: HashSet<_> = addresses.iter().map(LoopbackAddr::ip).collect();
    assert_eq!(distinct.len(), addresses.len());
    assert!(distinct.iter().all(std::net::IpAddr::is_loopback));
    // The claim does not stand in the way of servers.
    let socket = addresses[0].free_socket().unwrap();
    TcpListener::bind(socket).unwrap();
}
