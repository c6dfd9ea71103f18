//! One look at the session for each HTTP request, before anything else sees it: no such session is a 404, after which
//! clients begin a new one; not to know is a 503, after which they try again.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::warn;

use crate::server::Shared;
use crate::store::{Held, StoreError};

/// The client's name for its session.
const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Which pod answered: clients do not care, tests do.
const POD: HeaderName = HeaderName::from_static("x-vmcp-pod");
/// Ids are shorter. What is longer is nobody's.
const MAX_ID: usize = 253;

/// Lets requests in that belong to a session, with the session; and those that belong to none, which may open one.
pub async fn gate(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut response = pass(&shared, request, next).await;
    response.headers_mut().insert(POD, shared.pod.clone());
    response
}

async fn pass(shared: &Shared, mut request: Request, next: Next) -> Response {
    let Some(id) = request.headers().get(SESSION_ID) else {
        return next.run(request).await;
    };
    let session = match id.to_str() {
        Ok(id) if id.len() <= MAX_ID => shared.store.get_to_use(&id.into()).await,
        _ => Ok(None),
    };
    let session = match session {
        Ok(Some(session)) => session,
        Ok(None) => {
            if let Ok(id) = id.to_str() {
                shared.forget(&id.into()).await;
            }
            return (StatusCode::NOT_FOUND, "no such session").into_response();
        }
        Err(error) => return not_now(&error),
    };
    match *request.method() {
        Method::DELETE => end(shared, &session).await,
        Method::GET => stream(shared, session, request, next).await,
        _ => {
            request.extensions_mut().insert(session);
            next.run(request).await
        }
    }
}

/// The client is done with its session. When it has the answer, no pod serves it.
async fn end(shared: &Shared, session: &Held) -> Response {
    match shared.store.delete(session.id()).await {
        Ok(()) => {
            shared.forget(session.id()).await;
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => not_now(&error),
    }
}

/// The client wants to be told things. If it had a stream before, then maybe to another pod: what that one had to say
/// cannot be said again here, but that something may have changed.
async fn stream(shared: &Shared, session: Held, mut request: Request, next: Next) -> Response {
    let again = request.headers_mut().remove(LAST_EVENT_ID).is_some();
    let id = session.id().clone();
    request.extensions_mut().insert(session);
    let response = next.run(request).await;
    if again && response.status().is_success() {
        shared.tell(&id).await;
    }
    response
}

fn not_now(error: &StoreError) -> Response {
    warn!(%error, "a request is turned away");
    let later = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
    (StatusCode::SERVICE_UNAVAILABLE, later, "sessions cannot be served now").into_response()
}
