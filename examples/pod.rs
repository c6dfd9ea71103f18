//! A pod of a vMCP server, as far as its sessions go: a process that uses the cache library, and is driven over HTTP by
//! tests, by the demo and by people with curl.
//!
//! | request | what it does |
//! |---|---|
//! | `GET /sessions/NAME` | `get`: metadata, uid, generation, resourceVersion, and where it came from |
//! | `POST /sessions/NAME` | `create` from a map; `?idle=SECONDS&lifetime=SECONDS` |
//! | `PUT /sessions/NAME` | `update` to this whole map, from what this pod was last given or wrote |
//! | `PATCH /sessions/NAME` | `update` of these keys, null to remove one |
//! | `DELETE /sessions/NAME` | `delete` of what this pod was last given or wrote |
//! | `PUT /local/NAME/KEY` | keeps the body as a pod-local value beside the copy |
//! | `GET /local/NAME` | the pod-local values |
//! | `GET /held` | all copies, and whether each could be served at this instant |
//! | `GET /evictions?after=N` | evictions after the one numbered N, one JSON object a line |
//! | `GET /state` | streams, leases, counters |
//!
//! Writes take `?visibility=everywhere`.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use clap::Parser;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use vmcp_session::cache::{
    Cache, CacheConfig, Cause, CreateOptions, Event, GetError, Metadata, Session, Visibility, WriteError, WriteOptions,
};
use vmcp_session::runtime::kube_client::{KubeArgs, Timeouts};
use vmcp_session::runtime::shutdown::Signals;
use vmcp_session::runtime::telemetry::{self, LogArgs};

/// Evictions that are kept for those who ask.
const MAX_EVICTIONS: usize = 100_000;
/// Sessions whose last state is remembered as the base of an update.
const MAX_BASES: usize = 100_000;

/// Serves sessions from a cache, and is driven over HTTP.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Args {
    /// Where to be driven.
    #[arg(long, env = "VMCP_POD_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Replicas of the controller, as host:port, separated by commas.
    #[arg(long, env = "VMCP_CONTROLLERS", value_name = "ADDRESSES", value_delimiter = ',')]
    controllers: Vec<String>,

    /// Namespace of the sessions.
    #[arg(long, env = "VMCP_NAMESPACE", value_name = "NAME", default_value = "default")]
    namespace: String,

    /// The vMCP server that this is a pod of: spec.server of new sessions.
    #[arg(long, env = "VMCP_SERVER", value_name = "NAME")]
    server: Option<String>,

    /// Name of this pod.
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "pod")]
    pod_name: String,

    /// File with the token to show to the controller.
    #[arg(long, env = "VMCP_TOKEN_FILE", value_name = "PATH")]
    token_file: Option<PathBuf>,

    /// File with the authorities, as PEM, that the controller's certificate is signed by.
    #[arg(long, env = "VMCP_CA_FILE", value_name = "PATH")]
    ca_file: Option<PathBuf>,

    /// Copies to keep, at most.
    #[arg(long, env = "VMCP_CACHE_ENTRIES", value_name = "NUMBER")]
    entries: Option<usize>,

    /// No replica of the controller grants longer leases, in seconds.
    #[arg(long, env = "VMCP_LEASE_UPPER_BOUND", value_name = "SECONDS", default_value_t = 15.0)]
    lease_upper_bound: f64,

    #[command(flatten)]
    kube: KubeArgs,

    #[command(flatten)]
    log: LogArgs,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    telemetry::init(&args.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let shutdown = CancellationToken::new();
    let ended = runtime.block_on(async {
        let signals = Signals::install()?;
        Ok::<_, std::io::Error>(signals.run(&shutdown, serve(args, shutdown.clone())).await)
    })?;
    runtime.shutdown_background();
    match ended {
        Ok(served) => served.map(|()| ExitCode::SUCCESS),
        Err(aborted) => Ok(ExitCode::from(aborted.exit_code())),
    }
}

async fn serve(args: Args, shutdown: CancellationToken) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(args.listen).await?;
    let client = args.kube.client(Timeouts::default()).await?;
    let mut config = CacheConfig {
        controllers: args.controllers,
        token_file: args.token_file,
        ca_file: args.ca_file,
        server: args.server,
        lease_upper_bound: Duration::try_from_secs_f64(args.lease_upper_bound)?,
        ..CacheConfig::new(args.namespace, &args.pod_name)
    };
    config.entries = args.entries.unwrap_or(config.entries);
    let cache = Cache::connect(client, config)?;
    let pod = Arc::new(Pod { evictions: Mutex::default(), bases: Mutex::default(), cache });
    let mut evictions = pod.cache.subscribe();
    let taking = pod.clone();
    tokio::spawn(async move {
        while let Some(event) = evictions.next().await {
            taking.evictions.lock().push(&event);
        }
    });

    println!("ready http://{}", listener.local_addr()?);
    let routes = Router::new()
        .route("/sessions/{name}", get(read).post(create).put(replace).patch(merge).delete(delete))
        .route("/local/{name}/{key}", put(set_local))
        .route("/local/{name}", get(local))
        .route("/held", get(held))
        .route("/evictions", get(evictions_after))
        .route("/state", get(state))
        .layer(DefaultBodyLimit::max(4 << 20))
        .with_state(pod.clone());
    let end = shutdown.clone();
    axum::serve(listener, routes).with_graceful_shutdown(async move { end.cancelled().await }).await?;
    pod.cache.shutdown().await;
    Ok(())
}

struct Pod {
    cache: Cache,
    evictions: Mutex<Evictions>,
    /// What this pod was last given or wrote: an update is the difference to it.
    bases: Mutex<HashMap<String, Session>>,
}

impl Pod {
    fn remember(&self, session: &Session) {
        let mut bases = self.bases.lock();
        if bases.len() >= MAX_BASES && !bases.contains_key(session.name()) {
            bases.clear();
        }
        bases.insert(session.name().to_owned(), session.clone());
    }

    /// The state that an update starts from.
    async fn base(&self, name: &str) -> Result<Session, Answer> {
        let known = self.bases.lock().get(name).cloned();
        match known {
            Some(session) => Ok(session),
            None => self.cache.get(name).await.map_err(|e| failed(&e.into())),
        }
    }

    fn written(&self, written: Result<Session, WriteError>) -> Answer {
        match written {
            Ok(session) => {
                self.remember(&session);
                shown(&session)
            }
            Err(error) => failed(&error),
        }
    }
}

#[derive(Default)]
struct Evictions {
    last: u64,
    lines: VecDeque<(u64, String)>,
}

impl Evictions {
    fn push(&mut self, event: &Event) {
        self.last += 1;
        let sequence = self.last;
        let line = match event {
            Event::Evicted(e) => json!({
                "sequence": sequence, "name": &*e.name, "uid": e.uid.to_string(), "generation": e.generation,
                "reason": e.reason.as_str(), "at": e.at.as_nanos(),
            }),
            Event::Missed(missed) => json!({ "sequence": sequence, "missed": missed }),
            // What later versions of the library may tell is nothing that this one shows.
            _ => json!({ "sequence": sequence }),
        };
        if self.lines.len() == MAX_EVICTIONS {
            self.lines.pop_front();
        }
        self.lines.push_back((sequence, line.to_string()));
    }
}

type Answer = (StatusCode, String);

fn shown(session: &Session) -> Answer {
    let body = json!({
        "name": session.name(),
        "metadata": session.metadata(),
        "uid": session.uid().to_string(),
        "generation": session.generation(),
        "resourceVersion": session.resource_version().0,
        "from": session.origin().as_str(),
    });
    (StatusCode::OK, body.to_string())
}

fn told(status: StatusCode, error: &dyn std::fmt::Display) -> Answer {
    (status, json!({ "error": error.to_string() }).to_string())
}

/// Nobody can say what the session is now. Who asks is told why, and so whether it may help to ask again, or another pod.
fn unavailable(cause: Cause, error: &dyn std::fmt::Display) -> Answer {
    (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": error.to_string(), "cause": cause.as_str() }).to_string())
}

fn not_read(error: &GetError) -> Answer {
    match error {
        GetError::NotFound => told(StatusCode::NOT_FOUND, error),
        GetError::Overloaded | GetError::TooManyUnknown => told(StatusCode::TOO_MANY_REQUESTS, error),
        GetError::Unavailable { cause, .. } => unavailable(*cause, error),
        _ => told(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

fn failed(error: &WriteError) -> Answer {
    let status = match error {
        WriteError::NotFound => StatusCode::NOT_FOUND,
        WriteError::Replaced => StatusCode::GONE,
        WriteError::AlreadyExists | WriteError::Changed => StatusCode::CONFLICT,
        WriteError::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        WriteError::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        WriteError::Unavailable { cause, .. } => return unavailable(*cause, error),
        WriteError::OutcomeUnknown { .. } => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    told(status, error)
}

/// A number or word of the query.
fn query<'a>(uri: &'a Uri, key: &str) -> Option<&'a str> {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key).map(|(_, value)| value)
}

fn visibility(uri: &Uri) -> Result<Visibility, Answer> {
    match query(uri, "visibility") {
        None | Some("committed") => Ok(Visibility::Committed),
        Some("everywhere") => Ok(Visibility::Everywhere),
        Some(_) => Err(told(StatusCode::BAD_REQUEST, &"visibility is committed or everywhere")),
    }
}

fn map(body: &[u8]) -> Result<Metadata, Answer> {
    serde_json::from_slice(body).map_err(|_| told(StatusCode::BAD_REQUEST, &"expected a JSON object of strings"))
}

async fn read(State(pod): State<Arc<Pod>>, Path(name): Path<String>) -> Answer {
    match pod.cache.get(&name).await {
        Ok(session) => {
            pod.remember(&session);
            shown(&session)
        }
        Err(error) => not_read(&error),
    }
}

async fn create(
    State(pod): State<Arc<Pod>>,
    Path(name): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Result<Answer, Answer> {
    let seconds = |key| query(&uri, key).and_then(|v| v.parse().ok()).map(Duration::from_secs);
    let options = CreateOptions {
        server: query(&uri, "server").map(str::to_owned),
        idle_timeout: seconds("idle"),
        max_lifetime: seconds("lifetime"),
        visibility: visibility(&uri)?,
        ..CreateOptions::default()
    };
    let created = pod.cache.create(&name, map(&body)?, options).await;
    Ok(pod.written(created))
}

async fn replace(
    State(pod): State<Arc<Pod>>,
    Path(name): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Result<Answer, Answer> {
    let options = WriteOptions { visibility: visibility(&uri)? };
    let base = pod.base(&name).await?;
    Ok(pod.written(pod.cache.update(&base, map(&body)?, options).await))
}

async fn merge(State(pod): State<Arc<Pod>>, Path(name): Path<String>, uri: Uri, body: Bytes) -> Result<Answer, Answer> {
    let options = WriteOptions { visibility: visibility(&uri)? };
    let keys: HashMap<String, Option<String>> = serde_json::from_slice(&body)
        .map_err(|_| told(StatusCode::BAD_REQUEST, &"expected a JSON object of strings and nulls"))?;
    let base = pod.base(&name).await?;
    let mut metadata = base.metadata().to_map();
    for (key, value) in keys {
        match value {
            Some(value) => _ = metadata.insert(key, value),
            None => _ = metadata.remove(&key),
        }
    }
    Ok(pod.written(pod.cache.update(&base, metadata, options).await))
}

async fn delete(State(pod): State<Arc<Pod>>, Path(name): Path<String>, uri: Uri) -> Result<Answer, Answer> {
    let options = WriteOptions { visibility: visibility(&uri)? };
    let base = pod.base(&name).await?;
    match pod.cache.delete(&base, options).await {
        Ok(()) => {
            pod.bases.lock().remove(&name);
            Ok((StatusCode::OK, "{}".to_owned()))
        }
        Err(error) => Err(failed(&error)),
    }
}

async fn set_local(
    State(pod): State<Arc<Pod>>,
    Path((name, key)): Path<(String, String)>,
    value: String,
) -> Result<Answer, Answer> {
    let session = pod.cache.get(&name).await.map_err(|e| failed(&e.into()))?;
    if pod.cache.set_local(&session, &key, &value) {
        Ok((StatusCode::OK, "{}".to_owned()))
    } else {
        Err(told(StatusCode::GONE, &"the copy is not held any more"))
    }
}

async fn local(State(pod): State<Arc<Pod>>, Path(name): Path<String>) -> Result<Answer, Answer> {
    let session = pod.cache.get(&name).await.map_err(|e| failed(&e.into()))?;
    let values = pod.cache.local(&session);
    Ok((StatusCode::OK, json!(values.as_deref().cloned().unwrap_or_default()).to_string()))
}

async fn held(State(pod): State<Arc<Pod>>) -> Answer {
    let held = pod.cache.held();
    let held = held.iter().map(|(session, servable)| {
        json!({
            "name": session.name(),
            "uid": session.uid().to_string(),
            "generation": session.generation(),
            "servable": servable,
        })
    });
    (StatusCode::OK, held.collect::<Value>().to_string())
}

async fn evictions_after(State(pod): State<Arc<Pod>>, uri: Uri) -> Response {
    let after = query(&uri, "after").and_then(|n| n.parse().ok()).unwrap_or(0);
    let evictions = pod.evictions.lock();
    let first = evictions.lines.partition_point(|(sequence, _)| *sequence <= after);
    let lines = evictions.lines.range(first..).flat_map(|(_, line)| [line.as_str(), "\n"]);
    ([(header::CONTENT_TYPE, "application/jsonl")], lines.collect::<String>()).into_response()
}

async fn state(State(pod): State<Arc<Pod>>) -> Answer {
    let state = pod.cache.state();
    let millis = |d: Option<Duration>| d.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    let streams = state.streams.iter().map(|stream| {
        json!({
            "address": stream.address.to_string(),
            "replica": stream.replica.as_deref(),
            "connected": stream.replica.is_some(),
            "leaseRemainingMillis": millis(stream.leased_for),
            "problem": stream.problem.as_deref(),
        })
    });
    let evictions: serde_json::Map<_, _> =
        state.evictions.iter().map(|(reason, count)| (reason.as_str().to_owned(), json!(count))).collect();
    let body = json!({
        "streams": streams.collect::<Value>(),
        "leaseRemainingMillis": millis(state.leased_for),
        "entries": state.entries,
        "bytes": state.bytes,
        "hits": state.hits,
        "validated": state.validated,
        "restored": state.restored,
        "notFound": state.not_found,
        "overloaded": state.overloaded,
        "unavailable": state.unavailable,
        "written": state.written,
        "writeErrors": state.write_errors,
        "evictions": evictions,
        "waiting": state.waiting,
        "confirmations": state.confirmations,
        "apiCalls": state.api_calls,
    });
    (StatusCode::OK, body.to_string())
}
