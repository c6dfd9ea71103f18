//! `make dev`: what it prints can be done, and it leaves nothing behind.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use testkit::{LoopbackAddr, PodClient, Process, eventually};

use crate::world::PATIENCE;

/// A whole cluster starts.
const START: Duration = Duration::from_mins(2);
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A shell of another terminal; what it printed.
async fn shell(env_file: &Path, script: &str) -> String {
    let redis = Path::new(ROOT).join("target/tools/redis/bin");
    let script = format!("set -eu; . '{}'; PATH=$PATH:{}; {script}", env_file.display(), redis.display());
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &script]).current_dir(ROOT).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{out}\n{err}");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_make_dev_tells_to_try_works_and_nothing_stays_behind() {
    let folder = tempfile::tempdir().unwrap();
    let env_file = folder.path().join("env");
    let printed = folder.path().join("printed");
    let ip = LoopbackAddr::claim().unwrap();
    let (first, second) = (ip.free_socket().unwrap(), ip.free_socket().unwrap());
    let program = Path::new(env!("CARGO_BIN_EXE_vmcp-session")).with_file_name("examples").join("dev");
    let dev = Process::builder("dev", &program)
        .arg(format!("--agents={first},{second}"))
        .arg("--env-file")
        .arg(&env_file)
        .stdout(&printed)
        .spawn()
        .unwrap();
    let text = eventually(START, "the cluster is running", async || {
        assert!(dev.is_running(), "{}", dev.log_tail());
        std::fs::read_to_string(&printed).ok().filter(|text| text.contains("ctrl-C ends it all"))
    })
    .await
    .unwrap();

    // Where the agents are, another one says so at once, and starts nothing.
    let mut other = tokio::process::Command::new(&program);
    other.arg(format!("--agents={second}")).stdin(Stdio::null()).kill_on_drop(true);
    let other = tokio::time::timeout(PATIENCE, other.output()).await.expect("it ends at once").unwrap();
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && said.contains(&format!("no agent can listen on {second}")), "{said}");
    assert!(said.contains("--agents") && other.stdout.is_empty(), "{said}");

    // Each line that is a command, as it is printed, in one shell after the other.
    let commands = text.split("from this folder:").nth(1).unwrap();
    let commands: Vec<&str> = commands.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let script = commands
        .join("\n")
        .lines()
        .filter(|line| {
            !line.trim_start().starts_with(". ") && !line.contains("subscribe") && !line.contains("POD_PROGRAM")
        })
        .collect::<Vec<_>>()
        .join("\n");
    let said = shell(&env_file, &script).await;
    assert!(said.contains("vmcpsession.vmcp.dev/erin serverside-applied"), "{said}");
    assert!(said.contains(r#"{"backends":"weather"}"#), "{said}");

    // A pod of one's own joins, and serves what the others wrote.
    let own = shell(&env_file, "echo $VMCP_POD_LISTEN; echo $VMCP_POD_PROGRAM; echo $VMCP_POD_KUBECONFIG").await;
    let [listen, program, kubeconfig]: [&str; 3] = own.lines().collect::<Vec<_>>().try_into().unwrap();
    let variables = shell(&env_file, "env").await;
    let variables =
        variables.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| name.starts_with("VMCP_"));
    let mut yours = Process::builder("yours", program).arg("--pod-name=yours").env("KUBECONFIG", kubeconfig);
    for (name, value) in variables {
        yours = yours.env(name, value);
    }
    let yours = yours.spawn().unwrap();
    let client = PodClient { name: "yours".into(), address: listen.parse().unwrap() };
    eventually(PATIENCE, "the pod of one's own serves a session from its cache", async || {
        assert!(yours.is_running(), "{}", yours.log_tail());
        let reply = client.get("erin").await.ok()?;
        (reply.json()["from"] == "cache").then_some(())
    })
    .await
    .unwrap();

    // Every process that it told of goes with it, and so does the file.
    let pids: Vec<&str> = text.lines().filter_map(|l| l.split("pid ").nth(1)?.split_whitespace().next()).collect();
    assert!(pids.len() >= 7, "{text}");
    yours.kill9().await.unwrap();
    let ended = dev.terminate(PATIENCE).await.unwrap();
    assert!(ended.success(), "{}", dev.log_tail());
    for pid in pids {
        assert!(!Path::new("/proc").join(pid).exists(), "process {pid} is still there");
    }
    assert!(!env_file.exists());
}
