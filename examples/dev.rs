//! `make dev`: the demo's cluster, left running. Prints what to try, and writes what another terminal or a script needs
//! to `target/dev/env`. Ctrl-C ends it, and everything that it started.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use testkit::{AgentOptions, AgentPod, Cluster, ClusterOptions, LoopbackAddr, Programs};
use tokio::signal::unix::{SignalKind, signal};

/// Anything that ends this before its end.
type Failed = Box<dyn std::error::Error>;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Longer than anybody leaves it running.
const TOKENS: Duration = Duration::from_hours(30 * 24);
/// The pod that nobody has started yet: yours.
const YOURS: &str = "yours";

/// Runs a whole cluster on this machine until it is told to end.
#[derive(Parser)]
struct Options {
    /// Where the agents of two more pods listen.
    #[arg(long, value_delimiter = ',', num_args = 1.., default_value = "127.0.0.1:6390,127.0.0.1:6391")]
    agents: Vec<SocketAddr>,
    /// The file to write for other terminals.
    #[arg(long, default_value_os_t = Path::new(ROOT).join("target/dev/env"))]
    env_file: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dev: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Failed> {
    let Options { agents, env_file } = Options::parse();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let ended = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let mut ended = std::pin::pin!(ended);
    check(&agents)?;
    println!("starting etcd, kube-apiserver, two controllers, three pods and two agents ...");
    let programs = Programs::beside_this_one(ROOT)?;
    let options = ClusterOptions { token_lifetime: TOKENS, ..ClusterOptions::default() };
    let cluster = tokio::select! {
        cluster = Cluster::start(programs.clone(), options) => cluster?,
        () = &mut ended => return Ok(()),
    };
    println!("their logs, until this ends: {} (TESTKIT_KEEP=1 keeps them)", cluster.plane.dir().display());
    let address = LoopbackAddr::claim()?;
    let guest = Guest::admit(&cluster, &address, &programs).await?;
    let agents = tokio::select! {
        started = start_agents(&cluster, &agents) => started?,
        () = &mut ended => return Ok(()),
    };
    let env = EnvFile::write(env_file, &cluster, &guest, &agents)?;
    print!("{}", help(&cluster, &agents, &env.0));
    ended.await;
    println!("\nending");
    drop(env);
    Ok(())
}

/// Refuses addresses that are in use: the agents would only be waited for in vain.
fn check(agents: &[SocketAddr]) -> Result<(), Failed> {
    for address in agents {
        TcpListener::bind(address).map_err(|error| {
            let program = std::env::args().next().unwrap_or_default();
            format!(
                "no agent can listen on {address}: {error}. Give other addresses: \
                 {program} --agents 127.0.0.1:16390,127.0.0.1:16391"
            )
        })?;
    }
    Ok(())
}

/// Pods with an agent each.
async fn start_agents(cluster: &Cluster, addresses: &[SocketAddr]) -> Result<Vec<AgentPod>, Failed> {
    let mut agents = Vec::new();
    for (at, address) in addresses.iter().enumerate() {
        let options = AgentOptions { listen: Some(*address), ..AgentOptions::default() };
        agents.push(cluster.agent(&format!("agent-{}", at + 1), options).await?);
    }
    for agent in &agents {
        agent.wait_leases(cluster.controllers.len()).await?;
    }
    Ok(agents)
}

/// A pod that the cluster knows and that does not run: whoever has its tokens can be it.
struct Guest {
    program: PathBuf,
    listen: String,
    kubeconfig: PathBuf,
    token_file: PathBuf,
}

impl Guest {
    async fn admit(cluster: &Cluster, address: &LoopbackAddr, programs: &Programs) -> Result<Self, Failed> {
        let (plane, namespace) = (&cluster.plane, &cluster.options.namespace);
        let account = "vmcp-server";
        let pod = plane.create_pod(namespace, YOURS, account, address.ip()).await?;
        let token = plane.token_for_pod(namespace, account, &pod, &[], TOKENS).await?;
        let api = plane.kubeconfig_for_token(YOURS, plane.url(), &token)?;
        let token = plane.token_for_pod(namespace, account, &pod, &["vmcp.dev"], TOKENS).await?;
        let stream = plane.kubeconfig_for_token(&format!("{YOURS}-stream"), plane.url(), &token)?;
        let listen = address.free_socket()?.to_string();
        let program = programs.pod.clone();
        Ok(Self { program, listen, kubeconfig: api.kubeconfig, token_file: stream.token_file })
    }
}

/// What other terminals read. It goes when the cluster goes.
struct EnvFile(PathBuf);

impl EnvFile {
    fn write(path: PathBuf, cluster: &Cluster, guest: &Guest, agents: &[AgentPod]) -> Result<Self, Failed> {
        fs::create_dir_all(path.with_file_name(""))?;
        let pods: Vec<String> = cluster.pods.iter().map(|p| p.address.to_string()).collect();
        let admin: Vec<String> = cluster.controllers.iter().map(|c| c.admin.to_string()).collect();
        let sidecars: Vec<String> = agents.iter().map(|a| a.address.to_string()).collect();
        let sidecars_admin: Vec<String> = agents.iter().map(|a| a.admin.to_string()).collect();
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let variables = [
            ("KUBECONFIG", "administrator of the cluster", cluster.plane.kubeconfig_path().display().to_string()),
            ("VMCP_NAMESPACE", "where the pods and their sessions are", cluster.options.namespace.clone()),
            ("VMCP_CONTROLLERS", "where agents connect", controllers(cluster)),
            ("VMCP_CONTROLLERS_ADMIN", "their /readyz and /metrics", admin.join(",")),
            ("VMCP_PODS", "the pods' HTTP", pods.join(",")),
            ("VMCP_AGENTS", "the agents: speak Redis to them", sidecars.join(",")),
            ("VMCP_AGENTS_ADMIN", "their /readyz and /metrics", sidecars_admin.join(",")),
            ("VMCP_POD_NAME", "a pod that you can run yourself", YOURS.to_owned()),
            ("VMCP_POD_LISTEN", "its address", guest.listen.clone()),
            ("VMCP_POD_KUBECONFIG", "its rights at the API server", guest.kubeconfig.display().to_string()),
            ("VMCP_TOKEN_FILE", "its token for the controllers", guest.token_file.display().to_string()),
            ("VMCP_CA_FILE", "whom to believe that they are the controllers", cluster.streams.ca.display().to_string()),
            ("VMCP_POD_PROGRAM", "the example pod", guest.program.display().to_string()),
        ];
        let mut text = "# Made by `make dev`, gone when it ends. Read it into a shell with `.`\n".to_owned();
        for (name, what, value) in variables {
            writeln!(text, "# {what}\nexport {name}={}", quoted(&value))?;
        }
        // Behind everything else: a kubectl of one's own goes first.
        let built = quoted(&Path::new(ROOT).join("target/controlplane").display().to_string());
        writeln!(text, "# a kubectl, where there is none\nexport PATH=\"$PATH:\"{built}")?;
        fs::write(&path, text)?;
        Ok(Self(path))
    }
}

impl Drop for EnvFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn controllers(cluster: &Cluster) -> String {
    let addresses: Vec<String> = cluster.controllers.iter().map(|c| c.address.to_string()).collect();
    addresses.join(",")
}

fn help(cluster: &Cluster, agents: &[AgentPod], env_file: &Path) -> String {
    let here = env_file.strip_prefix(ROOT).unwrap_or(env_file).display();
    // The first and the last: what one writes, the other one reads.
    let redis_cli = |agent: Option<&AgentPod>| match agent.map(|a| a.address) {
        Some(address) if address.ip() == Ipv4Addr::LOCALHOST => format!("redis-cli -p {}", address.port()),
        Some(address) => format!("redis-cli -h {} -p {}", address.ip(), address.port()),
        None => String::new(),
    };
    let (one, other) = (redis_cli(agents.first()), redis_cli(agents.last()));
    let namespace = &cluster.options.namespace;
    let kubeconfig = cluster.plane.kubeconfig_path().display();
    let pod = cluster.pods.first().map_or_else(String::new, |p| p.address.to_string());
    let admin = cluster.controllers.first().map_or_else(String::new, |c| c.admin.to_string());
    let controllers = cluster.controllers.iter().map(|c| (&c.name, c.process.pid(), c.address.to_string()));
    let pods = cluster.pods.iter().map(|p| (&p.name, p.process.pid(), format!("http://{}", p.address)));
    let sidecars = agents.iter().map(|a| (&a.name, a.process.pid(), format!("redis://{}", a.address)));
    let line = |(name, pid, address)| format!("  {name:<14} pid {pid:<8} {address}\n");
    let running: String = controllers.chain(pods).chain(sidecars).map(line).collect();
    format!(
        r#"
the cluster is running:
{running}
in another terminal, from this folder:

  . {here}          # or: export KUBECONFIG={kubeconfig}

make a session, and read it from a pod (twice: the second time it comes from the cache):

  echo '{{"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession", "metadata": {{"name": "erin"}},
    "spec": {{"metadata": {{"backends": "weather,search"}}}}}}' | kubectl -n {namespace} apply --server-side -f -
  curl -s http://{pod}/sessions/erin

change it, and see that the pod dropped its copy:

  kubectl -n {namespace} patch vmcps erin --type=merge -p '{{"spec":{{"metadata":{{"backends":"weather"}}}}}}'
  curl -s 'http://{pod}/evictions?after=0'
  curl -s http://{pod}/sessions/erin

write through a pod, answered when no pod can serve the old state any more:

  curl -s -X PATCH 'http://{pod}/sessions/erin?visibility=everywhere' -d '{{"backends":"search"}}'

the same through the Redis protocol, with the agents of two more pods:

  {one} hset frank backends weather
  {other} get frank
  {other} -3 subscribe __redis__:invalidate    # or: client tracking on, get frank, and change it elsewhere

look around:

  kubectl -n {namespace} get vmcps
  kubectl -n {namespace} get events
  curl -s http://{pod}/held
  curl -s http://{pod}/state
  curl -s http://{admin}/metrics

run a pod of your own:

  KUBECONFIG=$VMCP_POD_KUBECONFIG $VMCP_POD_PROGRAM --pod-name=$VMCP_POD_NAME

kill a controller, stop a pod (kill -STOP), and see what happens. ctrl-C ends it all.
"#
    )
}
