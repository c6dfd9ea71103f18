//! A plain round-robin proxy: each request goes to the next pod, whoever sent it. It knows nothing of sessions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use reqwest::Client;
use reqwest::redirect::Policy;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::Failed;

/// The body of a request is held in memory, so that the next pod can have it when one does not answer the door.
const MAX_BODY: usize = 4 << 20;
/// How long a pod may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// Headers that are about one connection, and end with it.
const OF_ONE_CONNECTION: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What the proxy is started with.
#[derive(clap::Args)]
pub struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// The pods, separated by commas.
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',', required = true)]
    pods: Vec<SocketAddr>,
}

struct Proxy {
    client: Client,
    pods: Vec<SocketAddr>,
    turn: AtomicUsize,
}

/// Serves until `shutdown`.
pub async fn run(Args { listen, pods }: Args, shutdown: CancellationToken) -> Result<(), Failed> {
    let listener = TcpListener::bind(listen).await?;
    // A connection for each request: one that is kept may be that of a pod that is gone.
    let client = Client::builder().http1_only().connect_timeout(CONNECT).pool_max_idle_per_host(0);
    let client = client.redirect(Policy::none()).no_proxy().build()?;
    println!("ready http://{}", listener.local_addr()?);
    let proxy = Arc::new(Proxy { client, pods, turn: AtomicUsize::new(0) });
    let routes = Router::new().fallback(forward).with_state(proxy);
    // Streams to clients are open as long as they like: they are cut.
    tokio::select! {
        served = axum::serve(listener, routes) => served?,
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

async fn forward(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    strip(&mut parts.headers);
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    for _ in &proxy.pods {
        let pod = proxy.pods[proxy.turn.fetch_add(1, Ordering::Relaxed) % proxy.pods.len()];
        let request = proxy.client.request(parts.method.clone(), format!("http://{pod}{path}"));
        match request.headers(parts.headers.clone()).body(body.clone()).send().await {
            Ok(answer) => return answered(answer),
            // Nobody is there, so nothing was asked: the next one may be.
            Err(error) if error.is_connect() => {}
            Err(_) => break,
        }
    }
    StatusCode::BAD_GATEWAY.into_response()
}

fn answered(answer: reqwest::Response) -> Response {
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    strip(&mut headers);
    let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn strip(headers: &mut HeaderMap) {
    for name in OF_ONE_CONNECTION {
        headers.remove(name);
    }
}
