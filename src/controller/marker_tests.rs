//! The marker at API servers that answer, refuse or are silent.

use futures::FutureExt;
use kube::client::Body;

use super::*;
use crate::controller::tests::Nobody;
use crate::core::replica::{Config, Replica};
use crate::runtime::health::Health;

/// One that is written through this client, and the collection that it proves.
fn marker(client: Client) -> (Marker, ScopeId) {
    let replica = Replica::new(Config::default(), &[]);
    let scope = replica.scopes().next().unwrap().0;
    let lease = Duration::from_hours(1);
    let ledger = Arc::new(Ledger::new("own", lease, lease, Box::new(Nobody)));
    let marker = Marker {
        client,
        scope,
        namespace: "ns".into(),
        name: "own".into(),
        address: String::new(),
        lease,
        shared: Arc::new(Shared::new(replica, ledger.clone())),
        ledger,
        distrust: Arc::default(),
        heartbeat: Health::default().heartbeat("marker", lease),
    };
    (marker, scope)
}

#[tokio::test]
async fn a_watch_that_never_showed_a_marker_is_distrusted_like_one_that_fell_silent() {
    let nowhere = kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"));
    let (marker, scope) = marker(Client::try_from(nowhere).unwrap());
    let distrusted = || marker.distrust.notified().now_or_never().is_some();
    marker.check_watch();
    assert!(distrusted(), "nothing is proven");
    marker.shared.with(|replica, now| {
        replica.relist(scope, Vec::new(), ResourceVersion(5), now).unwrap();
        replica.marker_answered(scope, now, ResourceVersion(5), ResourceVersion(5), now).unwrap();
    });
    marker.check_watch();
    assert!(!distrusted(), "proven a moment ago");
}

/// An API server that answers each write with this resourceVersion.
fn answering(resource_version: u64) -> Client {
    let mut written = VmcpSession::new("own", VmcpSessionSpec::default());
    written.metadata.resource_version = Some(resource_version.to_string());
    let answer = serde_json::to_vec(&written).unwrap();
    let service = tower::service_fn(move |_: http::Request<Body>| {
        let answer = http::Response::new(Body::from(answer.clone()));
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    Client::new(service, "ns")
}

/// Each time, the watch would be begun anew for it: all the time, in a namespace that refuses its marker.
#[tokio::test]
async fn a_refusal_is_told_to_the_watch_once() {
    let written = VmcpSession::new("own", VmcpSessionSpec::default());
    let mut written = serde_json::to_value(&written).unwrap();
    written["metadata"]["resourceVersion"] = json!("7");
    let (refused, away) = (json!({"code": 403, "reason": "Forbidden"}), json!({"code": 503}));
    let answers = [(403, refused.clone()), (403, refused.clone()), (503, away), (201, written)];
    let mut answers = answers.into_iter().chain([(403, refused.clone()), (403, refused)]);
    let service = tower::service_fn(move |_: http::Request<Body>| {
        let (code, body) = answers.next().unwrap();
        let answer = http::Response::builder().status(code).body(Body::from(serde_json::to_vec(&body).unwrap()));
        async move { Ok::<_, std::convert::Infallible>(answer.unwrap()) }
    });
    let (marker, scope) = marker(Client::new(service, "ns"));
    let mut writing = Writing::default();
    let mut told = Vec::new();
    for _ in 0..6 {
        let _ = marker.write(&mut writing).await;
        told.push(marker.distrust.notified().now_or_never().is_some());
        assert!(marker.shared.with(|replica, _| replica.is_refused(scope) || replica.is_marked(scope)));
    }
    assert_eq!(told, [true, false, false, true, true, false], "and that it is there");
}

/// Somebody sets or strips what a write changes.
#[tokio::test]
async fn a_write_that_changes_nothing_proves_nothing() {
    let (marker, scope) = marker(answering(7));
    let mut writing = Writing::default();
    marker.write(&mut writing).await.unwrap();
    let proven = || {
        marker
            .shared
            .with(|replica, now| now.saturating_since(Time::ZERO).saturating_sub(replica.age_of(scope, now).unwrap()))
    };
    marker.shared.with(|replica, now| replica.relist(scope, Vec::new(), ResourceVersion(7), now).unwrap());
    let first = proven();
    let again = marker.write_upon_what_is(&mut writing).await;
    assert!(matches!(again, Err(MarkerError::Unchanged)), "{again:?}");
    assert_eq!(proven(), first, "the watch has shown that already");
}

#[tokio::test]
async fn what_was_listed_before_the_first_marker_is_listed_again() {
    let (marker, scope) = marker(answering(7));
    marker.shared.with(|replica, now| replica.relist(scope, Vec::new(), ResourceVersion(7), now).unwrap());
    marker.write(&mut Writing::default()).await.unwrap();
    marker.shared.with(|replica, now| {
        assert!(replica.must_list(scope) && replica.is_marked(scope));
        assert_eq!(replica.age_of(scope, now), None, "what was lost by then is not known");
    });
    assert!(marker.distrust.notified().now_or_never().is_some());
}

#[test]
fn a_version_that_is_no_number_is_none() {
    let mut written = VmcpSession::new("m", VmcpSessionSpec::default());
    for (given, expected) in [(None, None), (Some("x7"), None), (Some("7"), Some(ResourceVersion(7)))] {
        written.metadata.resource_version = given.map(str::to_owned);
        assert_eq!(version(&written).ok(), expected, "{given:?}");
    }
}

#[test]
fn the_time_is_that_of_our_own_last_write() {
    let mut written = VmcpSession::new("m", VmcpSessionSpec::default());
    assert_eq!(written_at(&written), None);
    let entry = |manager: &str, operation: &str, second| json!({"manager": manager, "operation": operation, "time": format!("2026-01-01T00:00:0{second}Z")});
    let entries = json!([
        entry(FIELD_MANAGER, "Update", 1), entry(FIELD_MANAGER, "Update", 3), entry("kubectl", "Update", 9),
        entry(FIELD_MANAGER, "Apply", 9), {"manager": FIELD_MANAGER, "operation": "Update"},
    ]);
    written.metadata.managed_fields = Some(serde_json::from_value(entries).unwrap());
    assert_eq!(written_at(&written), Some("2026-01-01T00:00:03Z".parse().unwrap()));
}

#[test]
fn only_the_namespace_itself_refuses_a_marker() {
    let kinds = [ApiErrorKind::Forbidden, ApiErrorKind::Invalid, ApiErrorKind::NotFound];
    assert!(kinds.iter().all(|kind| is_refusal(*kind, false)));
    assert!(!is_refusal(ApiErrorKind::NotFound, true), "it may have been removed");
    for kind in
        [ApiErrorKind::Timeout, ApiErrorKind::Unreachable, ApiErrorKind::ServerError, ApiErrorKind::Unauthorized]
    {
        assert!(!is_refusal(kind, false), "{kind:?}");
    }
}
