//! Nothing outlives the process that started it.

use crate::{SILENCE, SOON};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::{Command, Stdio},
    thread,
};
use testkit::{Process, eventually};

/// Processes that have `text` in their command line.
fn processes_with(text: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|p| fs::read(p.path().join("cmdline")).ok());
    lines.map(|l| String::from_utf8_lossy(&l).replace('\0', " ")).filter(|l| l.contains(text)).collect()
}

#[tokio::test]
async fn a_killed_process_takes_its_control_plane_along() {
    let mut holder =
        Command::new(env!("CARGO_BIN_EXE_controlplane")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let kubeconfig = Path::new(line.trim().strip_prefix("export KUBECONFIG=").unwrap());
    let dir = kubeconfig.parent().unwrap().to_owned();
    let text = dir.display().to_string();
    assert_eq!(processes_with(&text).len(), 2, "etcd and an API server: {:?}", processes_with(&text));

    holder.kill().unwrap();
    assert_eq!(holder.wait().unwrap().signal(), Some(9));
    let gone = eventually(SOON, "no process is left", async || processes_with(&text).is_empty().then_some(())).await;
    let left = processes_with(&text);
    fs::remove_dir_all(&dir).unwrap();
    gone.unwrap_or_else(|e| panic!("{e}: {left:?}"));
}

#[tokio::test]
async fn a_panic_takes_the_processes_along() {
    let mark = format!("86400.{}", std::process::id());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _sleep = Process::builder("sleep", "sleep").arg(&mark).spawn().unwrap();
        let seen = || processes_with(&mark).iter().any(|l| l.starts_with("sleep"));
        while !seen() {
            thread::yield_now();
        }
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(processes_with(&mark), Vec::<String>::new());
}

#[test]
fn processes_outlive_the_thread_that_started_them() {
    let start = || {
        let process = Process::builder("sleep", "sh").args(["-c", "echo ready; exec sleep 86400"]).spawn().unwrap();
        // The kernel has been asked by then to tie it to the thread that forked.
        while !process.log().contains("ready") {
            thread::yield_now();
        }
        process
    };
    let process = thread::spawn(start).join().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async { process.wait(SILENCE).await });
    assert!(ended.is_err(), "{ended:?}");
}
