//! Takes the finalizer `vmcp.dev/confirm-eviction` off all sessions, for when there will be no controller to do it: without one, a
//! session that has it can never be deleted, nor can its namespace.
//!
//! `helm uninstall` runs it before it removes the controllers. A deletion that is under way is left to them as long as they may
//! take: it promises that no pod serves the session when it is done.

use std::time::Duration;

use clap::Args;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use serde_json::json;
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::{FINALIZER_CONFIRM_EVICTION, VmcpSession};
use crate::core::names::is_namespace;
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};
use crate::runtime::kube_client::{KubeArgs, KubeConfigError, Timeouts};

/// Deadline of a call.
const CALL: Duration = Duration::from_secs(30);
/// Objects in one page of a list. Their values are not asked for, but annotations alone may have 256 KiB.
const PAGE: u32 = 50;
/// Patches at once. An API server lets one client have more than that.
const AT_ONCE: usize = 16;
/// When to look again at what is left.
const AGAIN: Duration = Duration::from_millis(500);
/// Looks in a row in which something was refused, before that is taken for good: ten seconds.
const REFUSALS: u32 = 20;
/// Who takes the finalizer off, as the object's `managedFields` tell it.
const FIELD_MANAGER: &str = "vmcp-session-release";

/// What to release, and how patiently.
#[derive(Args, Clone, Debug)]
pub struct UninstallArgs {
    /// Namespaces, separated by commas. Default: all.
    #[arg(long, env = "VMCP_NAMESPACES", value_name = "NAMES", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// How long, in seconds, deletions that are under way may wait for their confirmation.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub patience: u32,

    /// How the Kubernetes API is reached.
    #[command(flatten)]
    pub kube: KubeArgs,
}

/// Sessions may be left that cannot be deleted.
#[derive(Debug, Error)]
pub enum UninstallError {
    /// The API server would take it for a namespace in which there is nothing.
    #[error("--namespaces: no namespace can be called '{0}'")]
    NoName(String),
    /// The API server lists nothing there, as in one without sessions.
    #[error("--namespaces: there is no namespace '{0}'")]
    NoNamespace(String),
    /// The API client cannot be configured.
    #[error(transparent)]
    Kube(#[from] KubeConfigError),
    /// The API server did not do it.
    #[error("cannot take the finalizer {FINALIZER_CONFIRM_EVICTION} off all sessions: {0}")]
    Api(#[from] ApiError),
    /// It was ended before.
    #[error("ended before all sessions were released")]
    Ended,
}

impl UninstallArgs {
    /// The namespaces that are named; none means all.
    fn chosen(&self) -> Result<Vec<&str>, UninstallError> {
        // An empty variable means that nothing is set.
        let named = self.namespaces.iter().map(String::as_str).filter(|name| !name.is_empty());
        named
            .map(|name| if is_namespace(name) { Ok(name) } else { Err(UninstallError::NoName(name.to_owned())) })
            .collect()
    }
}

/// What one look at all sessions came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pass {
    released: usize,
    left: usize,
}

/// Releases all sessions, or fails.
pub async fn run(args: UninstallArgs, shutdown: CancellationToken) -> Result<(), UninstallError> {
    let chosen = args.chosen()?;
    let client = args.kube.client(Timeouts::default()).await?;
    let work = release_all(&client, chosen, Duration::from_secs(args.patience.into()));
    shutdown.run_until_cancelled(work).await.unwrap_or(Err(UninstallError::Ended))
}

async fn release_all(client: &kube::Client, chosen: Vec<&str>, patience: Duration) -> Result<(), UninstallError> {
    let mut scopes: Vec<Api<VmcpSession>> = chosen.iter().map(|name| Api::namespaced(client.clone(), name)).collect();
    if scopes.is_empty() {
        scopes.push(Api::all(client.clone()));
    }
    // Whether a namespace exists the chart's Job has no right to ask. So it says where it looked.
    let namespaces = if chosen.is_empty() { "all".to_owned() } else { chosen.join(",") };
    let force = Instant::now() + patience;
    let (mut released, mut refusals) = (0, 0);
    let mut unsure = chosen;
    loop {
        // Before all were looked at nothing is released: there may be a mistake in their names.
        if !are_there(client, &mut unsure).await? {
            sleep(AGAIN).await;
            continue;
        }
        let patient = Instant::now() < force;
        let (mut left, mut refused) = (0, None);
        for scope in &scopes {
            match release(client, scope, patient).await {
                Ok(pass) => {
                    released += pass.released;
                    left += pass.left;
                }
                Err(error) => _ = refused.get_or_insert(error),
            }
        }
        // An API server that has just begun may not know yet what we may do.
        refusals = if refused.is_some() { refusals + 1 } else { 0 };
        if let Some(error) = refused {
            if refusals >= REFUSALS {
                return Err(error.into());
            }
            warn!(%error, "not all sessions could be released; trying again");
        } else if left == 0 {
            info!(namespaces, released, "no session there has the finalizer any more");
            return Ok(());
        }
        sleep(AGAIN).await;
    }
}

/// Whether all of these namespaces were looked at. Those of which the API server says something else than that they do not exist, if
/// only that one may not ask, are not asked for again: one that is gone later was there.
async fn are_there(client: &kube::Client, unsure: &mut Vec<&str>) -> Result<bool, UninstallError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    while let Some(name) = unsure.last() {
        match deadline(CALL, namespaces.get_metadata(name)).await {
            Err(error) if error.kind() == ApiErrorKind::NotFound => {
                return Err(UninstallError::NoNamespace((*name).to_owned()));
            }
            Err(error) if error.kind().passes() => {
                warn!(namespace = name, %error, "it is not known whether the namespace exists; trying again");
                return Ok(false);
            }
            Ok(_) | Err(_) => _ = unsure.pop(),
        }
    }
    Ok(true)
}

async fn release(client: &kube::Client, scope: &Api<VmcpSession>, patient: bool) -> Result<Pass, ApiError> {
    let (mut pass, mut refused) = (Pass::default(), None);
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = match deadline(CALL, scope.list_metadata(&page)).await {
            // The definition is gone, and all sessions with it.
            Err(error) if error.kind() == ApiErrorKind::NotFound => return Ok(pass),
            Err(error) if error.kind().passes() || error.kind() == ApiErrorKind::Gone => {
                warn!(%error, "sessions could not be listed; trying again");
                return Ok(Pass { left: pass.left.max(1), ..pass });
            }
            list => list?,
        };
        let held = |session: &&PartialObjectMeta<VmcpSession>| {
            session.finalizers().iter().any(|f| f == FINALIZER_CONFIRM_EVICTION)
        };
        let mut released = stream::iter(list.items.iter().filter(held))
            .map(async |session| {
                // A deletion that is under way is left to the controllers for a while.
                let waits = patient && session.metadata.deletion_timestamp.is_some();
                if waits { Ok(false) } else { let_go(client, session).await }
            })
            .buffer_unordered(AT_ONCE);
        while let Some(released) = released.next().await {
            match released {
                Ok(true) => pass.released += 1,
                Ok(false) => pass.left += 1,
                Err(error) if error.kind().passes() => {
                    warn!(%error, "a session could not be released; trying again");
                    pass.left += 1;
                }
                // The others must not wait for it.
                Err(error) => _ = refused.get_or_insert(error),
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return refused.map_or(Ok(pass), Err),
        }
    }
}

/// Says whether it is off. If not, the object has changed, and is to be read again.
async fn let_go(client: &kube::Client, session: &PartialObjectMeta<VmcpSession>) -> Result<bool, ApiError> {
    let api: Api<VmcpSession> = Api::namespaced(client.clone(), &session.namespace().unwrap_or_default());
    let mut finalizers = session.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != FINALIZER_CONFIRM_EVICTION);
    // A list is replaced as a whole, so it must be the one that was read.
    let patch = json!({"metadata": {
        "uid": session.metadata.uid, "resourceVersion": session.metadata.resource_version, "finalizers": finalizers,
    }});
    let signed = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match deadline(CALL, api.patch_metadata(&session.name_any(), &signed, &Patch::Merge(patch))).await {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            ApiErrorKind::NotFound => Ok(true),
            ApiErrorKind::Conflict | ApiErrorKind::UidMismatch => Ok(false),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::client::Body;
    use parking_lot::Mutex;

    use super::*;

    /// The first look at `b` fails for a moment only, and `a` does not exist.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_released_before_all_namespaces_were_looked_at() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let mut noted = noted.lock();
            noted.push(request.uri().path().to_owned());
            let (code, body) = match (request.uri().path(), noted.len()) {
                ("/api/v1/namespaces/b", 1) => (503, json!({"code": 503, "reason": "ServiceUnavailable"})),
                ("/api/v1/namespaces/b", _) => (200, json!({"metadata": {"name": "b"}})),
                ("/api/v1/namespaces/a", _) => (404, json!({"code": 404, "reason": "NotFound"})),
                _ => (200, json!({"metadata": {}, "items": []})),
            };
            let mut answer = http::Response::new(Body::from(serde_json::to_vec(&body).unwrap()));
            *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        let released = release_all(&kube::Client::new(service, "ns"), vec!["a", "b"], Duration::ZERO).await;
        assert!(matches!(&released, Err(UninstallError::NoNamespace(name)) if name == "a"), "{released:?}");
        let looks = ["b", "b", "a"].map(|name| format!("/api/v1/namespaces/{name}"));
        assert_eq!(*asked.lock(), looks);
    }

    #[test]
    fn what_no_namespace_can_be_called_is_refused_since_there_is_nothing_in_it() {
        let chosen = |names: &[&str]| {
            let namespaces = names.iter().map(ToString::to_string).collect();
            let args = UninstallArgs { namespaces, patience: 0, kube: KubeArgs::default() };
            args.chosen().map(|names| names.len()).map_err(|error| error.to_string())
        };
        assert_eq!((chosen(&[]), chosen(&[""]), chosen(&["a", "team-b"])), (Ok(0), Ok(0), Ok(2)));
        for bad in ["A_B", "a.b", " a"] {
            let error = chosen(&["a", bad]).unwrap_err();
            assert!(error.contains("--namespaces") && error.contains(&format!("'{bad}'")), "{error}");
        }
    }
}
