//! A vMCP server that speaks MCP, in a cluster: backends, pods, a proxy without affinity before them, and a client of
//! another make.

use crate::{
    AgentOptions, AgentPod, Cluster, Error, LoopbackAddr, Process, Result, TokenAccess, cluster::POD_ACCOUNT,
    controller::Launch, eventually, free_port, vmcp_pod::http,
};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep, timeout},
};

const READY: Duration = Duration::from_secs(30);
/// Longer than the client itself waits for anything.
const ANSWER: Duration = Duration::from_mins(2);
/// How long to pause between two looks at what happened.
const POLL: Duration = Duration::from_millis(10);
/// The backends, by the names that sessions know them by.
pub const BACKENDS: [&str; 2] = ["search", "weather"];

/// The programs of an [`McpScene`].
#[derive(Debug, Clone)]
pub struct McpPrograms {
    server: PathBuf,
    python: PathBuf,
    client: PathBuf,
}

impl McpPrograms {
    /// The programs that cargo and `hack/mcp-client.sh` made. `root` is the folder of the project, `beside` a program
    /// that cargo built. The error says what is missing, and how to get it.
    pub fn find(root: &str, beside: &Path) -> Result<Self> {
        let server = beside.with_file_name("vmcp-server");
        if !server.exists() {
            let what = "the vMCP server is not built: run `cargo build --package vmcp-example-server`";
            return Err(Error::Malformed(what.into()));
        }
        Self::client_only(root).map(|programs| Self { server, ..programs })
    }

    /// What a client of a server that runs elsewhere needs.
    pub fn client_only(root: &str) -> Result<Self> {
        let root = Path::new(root);
        let python = root.join("target/clients/mcp/bin/python");
        let client = root.join("tests/clients/mcp/client.py");
        if !root.join("target/clients/mcp/stamp").exists() {
            let what = "there is no Python MCP client: run `hack/mcp-client.sh`, which says what it needs";
            return Err(Error::Malformed(what.into()));
        }
        Ok(Self { server: PathBuf::new(), python, client })
    }
}

/// Where the pods of an [`McpScene`] have their sessions from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum McpSessions {
    /// The cache library, in the server's process.
    Library,
    /// The agent, a process of its own in each pod, through a Redis client.
    Agent,
}

/// A vMCP server with its pods, what is behind them and before them.
pub struct McpScene {
    /// The pods.
    pub pods: Vec<McpPod>,
    /// Where clients connect: the proxy.
    pub url: String,
    programs: McpPrograms,
    _proxy: Process,
    _backends: Vec<Process>,
    _ip: LoopbackAddr,
}

impl McpScene {
    /// Starts it with a pod for each of `sessions`, and waits until all are ready.
    pub async fn start(cluster: &Cluster, programs: &McpPrograms, sessions: &[McpSessions]) -> Result<Self> {
        Self::start_with(cluster, programs, sessions, &[]).await
    }

    /// The same, with more arguments for the server of each pod.
    pub async fn start_with(
        cluster: &Cluster,
        programs: &McpPrograms,
        sessions: &[McpSessions],
        more: &[&str],
    ) -> Result<Self> {
        let ip = LoopbackAddr::claim()?;
        let log = |name: &str| cluster.plane.dir().join(format!("mcp-{name}.log"));
        let run = |name: &str, args: &[String]| {
            let process = Process::builder(format!("mcp-{name}"), &programs.server);
            process.args(args).log(log(name)).spawn()
        };
        let mut backends = Vec::new();
        let mut server_args = Vec::new();
        for name in BACKENDS {
            let address = ip.free_socket()?;
            backends.push(run(name, &["backend".into(), name.into(), format!("--listen={address}")])?);
            listens(name, address).await?;
            server_args.push(format!("--backend={name}=http://{address}/mcp"));
        }
        server_args.extend(more.iter().map(ToString::to_string));
        let address = ip.free_socket()?;
        let mut pods = Vec::new();
        for (number, sessions) in sessions.iter().enumerate() {
            let name = format!("mcp-{}", number + 1);
            let sessions = match sessions {
                McpSessions::Library => Sidecar::none(cluster, &name).await?,
                McpSessions::Agent => Sidecar::agent(cluster, &name).await?,
            };
            pods.push(McpPod::start(cluster, programs, &name, &server_args, address, sessions)?);
        }
        for pod in &pods {
            pod.wait_ready().await?;
        }
        let to: Vec<String> = pods.iter().map(|pod| pod.address.to_string()).collect();
        let args = ["proxy".into(), format!("--listen={address}"), format!("--pods={}", to.join(","))];
        let proxy = run("proxy", &args)?;
        listens("proxy", address).await?;
        let url = format!("http://{address}/mcp");
        Ok(Self { pods, url, programs: programs.clone(), _proxy: proxy, _backends: backends, _ip: ip })
    }

    /// A client that has no session yet.
    pub async fn client(&self, cluster: &Cluster) -> Result<McpClient> {
        McpClient::start(&self.programs, &cluster.plane.dir().join("mcp-client.log")).await
    }

    /// The pod of this name.
    pub fn pod(&self, name: &str) -> Result<&McpPod> {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found.ok_or_else(|| Error::Malformed(format!("there is no pod {name}")))
    }
}

async fn listens(what: &str, address: SocketAddr) -> Result<()> {
    eventually(READY, &format!("{what} listens"), async || tokio::net::TcpStream::connect(address).await.ok())
        .await
        .map(drop)
}

/// What a server has its sessions from, in its pod.
struct Sidecar {
    ip: Option<LoopbackAddr>,
    agent: Option<AgentPod>,
    access: TokenAccess,
    args: Vec<String>,
}

impl Sidecar {
    async fn none(cluster: &Cluster, name: &str) -> Result<Self> {
        let ip = LoopbackAddr::claim()?;
        let (plane, options) = (&cluster.plane, &cluster.options);
        let namespace = &options.namespace;
        let pod = plane.create_pod(namespace, name, POD_ACCOUNT, ip.ip()).await?;
        let token = plane.token_for_pod(namespace, POD_ACCOUNT, &pod, &[], options.token_lifetime).await?;
        let access = plane.kubeconfig_for_token(name, plane.url(), &token)?;
        let token = plane.token_for_pod(namespace, POD_ACCOUNT, &pod, &["vmcp.dev"], options.token_lifetime).await?;
        let stream = plane.kubeconfig_for_token(&format!("{name}-stream"), plane.url(), &token)?;
        let controllers: Vec<String> = cluster.controllers.iter().map(|c| c.address.to_string()).collect();
        let args = vec![
            format!("--controllers={}", controllers.join(",")),
            format!("--namespace={namespace}"),
            "--server=demo".to_owned(),
            format!("--lease-upper-bound={}", options.lease.as_secs_f64()),
            format!("--token-file={}", stream.token_file.display()),
            format!("--ca-file={}", cluster.streams.ca.display()),
        ];
        Ok(Self { ip: Some(ip), agent: None, access, args })
    }

    async fn agent(cluster: &Cluster, name: &str) -> Result<Self> {
        let agent = cluster.agent(name, AgentOptions::default().args(&["--key-prefix=mcp:"])).await?;
        let args = vec![format!("--agent=redis://{}", agent.address), "--key-prefix=mcp:".to_owned()];
        Ok(Self { ip: None, access: agent.access.clone(), agent: Some(agent), args })
    }
}

/// A pod of the server.
pub struct McpPod {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The process of the server.
    pub process: Process,
    /// Its agent, if it has its sessions from one.
    pub agent: Option<AgentPod>,
    launch: Launch,
    _ip: Option<LoopbackAddr>,
}

impl McpPod {
    fn start(
        cluster: &Cluster,
        programs: &McpPrograms,
        name: &str,
        more: &[String],
        proxy: SocketAddr,
        Sidecar { ip, agent, access, args: sessions }: Sidecar,
    ) -> Result<Self> {
        let own = agent.as_ref().map(|agent| agent.address.ip()).or(ip.as_ref().map(LoopbackAddr::ip));
        let own = own.ok_or_else(|| Error::Malformed(format!("{name} has no address")))?;
        let address = SocketAddr::new(own, free_port(own)?);
        let mut args = vec![
            "serve".to_owned(),
            format!("--listen={address}"),
            format!("--allowed-hosts={}", proxy.ip()),
            format!("--pod-name={name}"),
        ];
        args.extend(sessions);
        args.extend_from_slice(more);
        let launch = Launch::new(cluster, &format!("{name}-server"), &programs.server, args, &access);
        let process = launch.spawn()?;
        Ok(Self { name: name.to_owned(), address, process, agent, launch, _ip: ip })
    }

    /// Kills all of its processes with SIGKILL.
    pub async fn kill9(&self) -> Result<()> {
        if let Some(agent) = &self.agent {
            agent.process.kill9().await?;
        }
        self.process.kill9().await
    }

    /// Starts its processes again, after they have ended.
    pub async fn restart(&mut self) -> Result<()> {
        if let Some(agent) = &mut self.agent {
            agent.restart().await?;
        }
        self.process = self.launch.spawn()?;
        self.wait_ready().await
    }

    async fn wait_ready(&self) -> Result<()> {
        let ready = async || {
            let reply = http(self.address, "GET", "/readyz", None).await.ok()?;
            (reply.status == 200).then_some(())
        };
        eventually(READY, &format!("{} is ready", self.name), ready).await
    }
}

/// A client, of the official Python SDK, that does what it is told.
pub struct McpClient {
    process: Process,
    requests: OwnedWriteHalf,
    answers: BufReader<OwnedReadHalf>,
    stream: Option<String>,
}

/// What the client answers.
#[derive(Debug, Clone)]
pub struct McpAnswer {
    /// The result, or the error's code and message.
    pub outcome: std::result::Result<Value, Value>,
    /// The HTTP requests that were answered since the last one: method, status, pod.
    pub http: Vec<Exchange>,
    /// How often the server has said that the tools changed.
    pub changed: u64,
    /// The pod that gave it its last stream. It may be gone.
    pub stream: Option<String>,
}

/// One request over HTTP, as the client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The method.
    pub method: String,
    /// The status of the answer.
    pub status: u64,
    /// The pod that answered.
    pub pod: String,
}

impl McpAnswer {
    /// The result, where there must be one.
    pub fn ok(&self) -> Result<&Value> {
        self.outcome.as_ref().map_err(|error| Error::Malformed(format!("the MCP client: {error}")))
    }

    /// The pod that answered the last POST.
    pub fn pod(&self) -> &str {
        self.http.iter().rfind(|e| e.method == "POST").map_or("", |e| &e.pod)
    }

    /// The status of the last POST.
    pub fn status(&self) -> u64 {
        self.http.iter().rfind(|e| e.method == "POST").map_or(0, |e| e.status)
    }
}

impl McpClient {
    /// Starts one that has no session yet.
    pub async fn start(programs: &McpPrograms, log: &Path) -> Result<Self> {
        let failed = "waiting for the MCP client";
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(Error::io(failed))?;
        let address = listener.local_addr().map_err(Error::io(failed))?;
        let process = Process::builder("mcp-client", &programs.python)
            .arg(&programs.client)
            .arg(address.to_string())
            .env_remove("PYTHONPATH")
            .env_remove("HTTP_PROXY")
            .env_remove("http_proxy")
            .env_remove("ALL_PROXY")
            .env_remove("all_proxy")
            .log(log)
            .spawn()?;
        let late = Error::Deadline { what: "the MCP client connects".into(), waited: READY };
        let ended = || Error::Malformed(format!("the MCP client ended while it started:\n{}", process.log_tail()));
        let (stream, _) = tokio::select! {
            accepted = timeout(READY, listener.accept()) => accepted.map_err(|_| late)?.map_err(Error::io(failed))?,
            Ok(_) = process.wait(READY * 2) => return Err(ended()),
        };
        let (answers, requests) = stream.into_split();
        Ok(Self { process, requests, answers: BufReader::new(answers), stream: None })
    }

    /// Begins a session, and ends the one before.
    pub async fn open(&mut self, url: &str) -> Result<McpAnswer> {
        self.ask(&json!({"do": "open", "url": url, "reuse": true})).await
    }

    /// The same with a new connection for each request: behind a Service, which balances connections, the requests come to
    /// all pods.
    pub async fn open_spread(&mut self, url: &str) -> Result<McpAnswer> {
        self.ask(&json!({"do": "open", "url": url, "reuse": false})).await
    }

    /// Lists the tools.
    pub async fn tools(&mut self) -> Result<McpAnswer> {
        self.ask(&json!({"do": "tools"})).await
    }

    /// Calls a tool.
    pub async fn call(&mut self, tool: &str, arguments: &Value) -> Result<McpAnswer> {
        self.ask(&json!({"do": "call", "tool": tool, "arguments": arguments})).await
    }

    /// Ends the session.
    pub async fn close(&mut self) -> Result<McpAnswer> {
        self.ask(&json!({"do": "close"})).await
    }

    /// Waits until this is so, without asking the server anything.
    pub async fn comes_to(&mut self, what: &str, holds: impl Fn(&McpAnswer) -> bool) -> Result<McpAnswer> {
        let end = Instant::now() + READY;
        loop {
            let seen = self.ask(&json!({"do": "look"})).await?;
            if holds(&seen) {
                return Ok(seen);
            }
            if Instant::now() >= end {
                return Err(Error::Deadline { what: format!("the MCP client comes to {what}"), waited: READY });
            }
            sleep(POLL).await;
        }
    }

    async fn ask(&mut self, request: &Value) -> Result<McpAnswer> {
        let ended = |process: &Process| Error::Malformed(format!("the MCP client is gone:\n{}", process.log_tail()));
        let mut line = String::new();
        let asked = async {
            self.requests.write_all(format!("{request}\n").as_bytes()).await?;
            self.answers.read_line(&mut line).await
        };
        let late = Error::Deadline { what: format!("the MCP client answers {request}"), waited: ANSWER };
        let read = timeout(ANSWER, asked).await.map_err(|_| late)?;
        if read.unwrap_or(0) == 0 {
            return Err(ended(&self.process));
        }
        let mut answer: Value = serde_json::from_str(&line).unwrap_or_default();
        let exchanges = answer["http"].as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let exchange = |e: &Value| Exchange {
            method: text(&e["method"]),
            status: e["status"].as_u64().unwrap_or(0),
            pod: text(&e["pod"]),
        };
        let http: Vec<_> = exchanges.iter().map(exchange).collect();
        if let Some(stream) = http.iter().rfind(|e| e.method == "GET" && e.status == 200) {
            self.stream = Some(stream.pod.clone());
        }
        let changed = answer["changed"].as_u64().unwrap_or(0);
        let outcome = if answer["ok"].is_null() { Err(answer["error"].take()) } else { Ok(answer["ok"].take()) };
        Ok(McpAnswer { outcome, http, changed, stream: self.stream.clone() })
    }
}
