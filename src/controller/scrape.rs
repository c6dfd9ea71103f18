//! `/metrics` for those who may read it: over TLS, with the certificate of the streams, to who shows a token whose owner may
//! `get` the path `/metrics`. Prometheus and its operator can do so with every service account.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReviewSpec};
use kube::Client;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::auth::question;
use super::auth::reviews::{Busy, Reviews};
use super::auth::token::Token;
use crate::runtime::admin::{self, CONNECTION_TIMEOUT, MAX_CONNECTIONS};
use crate::runtime::api_error::ApiError;
use crate::runtime::bounded::{self, BoundedListener, Remote};
use crate::runtime::listen::Listen;
use crate::runtime::tls::listener::TlsListener;

const PATH: &str = "/metrics";

/// Metrics cannot be served.
#[derive(Debug, Error)]
pub enum ScrapeError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address} for metrics: {source}")]
    Bind {
        /// The address.
        address: Listen,
        /// What the system said.
        source: io::Error,
    },
}

/// The endpoint, bound but not served yet.
pub struct Bound {
    listener: TcpListener,
}

impl Bound {
    /// Binds the address.
    pub async fn bind(address: Listen) -> Result<Self, ScrapeError> {
        let failed = |source| ScrapeError::Bind { address, source };
        Ok(Self { listener: address.bind().await.map_err(failed)? })
    }

    /// Serves until `shutdown`.
    pub async fn serve(
        self,
        registry: Arc<Registry>,
        client: Client,
        tls: Arc<ServerConfig>,
        shutdown: CancellationToken,
    ) -> Result<(), ScrapeError> {
        let gate = Arc::new(Gate { client, reviews: Reviews::of_few() });
        let router = Router::new()
            .route(PATH, get(admin::metrics))
            .with_state(registry)
            .layer(middleware::from_fn_with_state(gate, admit));
        let listener = BoundedListener::new(self.listener, MAX_CONNECTIONS, CONNECTION_TIMEOUT);
        bounded::serve(TlsListener::new(listener, tls), router, &shutdown).await;
        Ok(())
    }
}

/// Knows who may read metrics: what the API server has said is used for a few seconds, and asked for at a bounded rate.
struct Gate {
    client: Client,
    /// Whether the token's owner may.
    reviews: Reviews<bool>,
}

/// Why somebody is not let in.
#[derive(Debug, Error)]
enum Refused {
    #[error("a token is expected as 'Authorization: Bearer TOKEN'")]
    NoToken,
    #[error("the API server does not accept the token")]
    NotAccepted,
    #[error("the owner of the token may not get /metrics")]
    NotAllowed,
    #[error("the token cannot be checked now: {0}")]
    Unchecked(#[from] ApiError),
    #[error("too many tokens are being checked: try again later")]
    Busy,
}

impl From<Busy> for Refused {
    fn from(_: Busy) -> Self {
        Self::Busy
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let text = self.to_string();
        match self {
            Self::NoToken | Self::NotAccepted => {
                (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], text).into_response()
            }
            Self::NotAllowed => (StatusCode::FORBIDDEN, text).into_response(),
            Self::Unchecked(_) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
            Self::Busy => (StatusCode::TOO_MANY_REQUESTS, text).into_response(),
        }
    }
}

impl Gate {
    async fn check(&self, headers: &HeaderMap, from: IpAddr) -> Result<(), Refused> {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(Token::bearer).ok_or(Refused::NoToken)?;
        let allowed = self
            .reviews
            .who(&token, from, |allowed| allowed.then(|| "".into()), async || self.ask(token.reveal()).await)
            .await?;
        match allowed {
            Some(true) => Ok(()),
            Some(false) => Err(Refused::NotAllowed),
            None => Err(Refused::NotAccepted),
        }
    }

    async fn ask(&self, token: &str) -> Result<Option<bool>, Refused> {
        let Some(user) = question::owner(&self.client, token, None).await? else {
            return Ok(None);
        };
        let attributes = NonResourceAttributes { path: Some(PATH.to_owned()), verb: Some("get".to_owned()) };
        let what =
            SubjectAccessReviewSpec { non_resource_attributes: Some(attributes), ..SubjectAccessReviewSpec::default() };
        Ok(Some(question::may(&self.client, user, what).await?))
    }
}

async fn admit(
    State(gate): State<Arc<Gate>>,
    ConnectInfo(Remote(from)): ConnectInfo<Remote>,
    request: Request,
    next: Next,
) -> Response {
    match gate.check(request.headers(), from.ip()).await {
        Ok(()) => next.run(request).await,
        Err(refused) => {
            debug!(reason = %refused, "somebody may not read the metrics");
            refused.into_response()
        }
    }
}
