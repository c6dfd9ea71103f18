//! Creates, updates and deletes, as far as they need no controller.

use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use testkit::AuditEntry;
use vmcp_session::api::{VmcpSession, VmcpSessionSpec};
use vmcp_session::cache::{Cache, CreateOptions, DropReason, GetError, Metadata, Origin, WriteError, WriteOptions};

use super::{CANARY, HOUR, cache, map, next, objects, without_controller};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_created_read_changed_and_deleted() {
    let cluster = without_controller().await;
    let (a, b) = (cache(&cluster, "a").await, cache(&cluster, "b").await);
    let options = CreateOptions {
        server: Some("weather".into()),
        idle_timeout: Some(Duration::from_mins(1)),
        max_lifetime: Some(HOUR),
        ..CreateOptions::default()
    };
    let created = a.create("s1", map([("k", "1"), ("gone", "x")]), options).await.unwrap();
    assert_eq!((created.origin(), created.generation()), (Origin::Written, 1));
    let object = objects(&cluster).get("s1").await.unwrap();
    assert_eq!(object.spec.server.as_deref(), Some("weather"));
    assert_eq!((object.spec.idle_timeout_seconds, object.spec.max_lifetime_seconds), (Some(60), Some(3_600)));
    let manager = object.metadata.managed_fields.unwrap()[0].manager.clone();
    assert_eq!(manager.as_deref(), Some("vmcp/a"), "managedFields name the pod");
    assert_eq!(a.create("s1", Metadata::new(), CreateOptions::default()).await.unwrap_err(), WriteError::AlreadyExists);

    let restored = b.get("s1").await.unwrap();
    assert_eq!((restored.origin(), restored.uid()), (Origin::Restored, created.uid()));
    assert_eq!(b.get("s1").await.unwrap().origin(), Origin::Validated, "without a lease each get asks");
    assert!(b.hit("s1").is_none());

    let mut evictions = b.subscribe();
    let updated = a.update(&created, map([("k", "2"), ("new", "y")]), WriteOptions::default()).await.unwrap();
    assert_eq!(*updated.metadata(), map([("k", "2"), ("new", "y")]));
    let seen = b.get("s1").await.unwrap();
    assert_eq!((seen.origin(), seen.metadata(), seen.generation()), (Origin::Restored, updated.metadata(), 2));
    assert_eq!(next(&mut evictions).await, ("s1".into(), DropReason::Stale));

    b.delete(&seen, WriteOptions::default()).await.unwrap();
    assert_eq!(next(&mut evictions).await, ("s1".into(), DropReason::Gone));
    assert_eq!(a.get("s1").await.unwrap_err(), GetError::NotFound);
    assert_eq!(b.get("s1").await.unwrap_err(), GetError::NotFound);
    assert_eq!(a.delete(&updated, WriteOptions::default()).await.unwrap_err(), WriteError::NotFound);
    for name in ["", "..", "a/b", "UPPER", "s1?watch=1"] {
        assert_eq!(a.get(name).await.unwrap_err(), GetError::NotFound, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_of_different_keys_lose_nothing() {
    const ROUNDS: usize = 100;
    let cluster = without_controller().await;
    let (a, b) = (cache(&cluster, "a").await, cache(&cluster, "b").await);
    let created = a.create("s", map([("shared", "x")]), CreateOptions::default()).await.unwrap();
    let write = async |cache: &Cache, key: &str| {
        let mut base = created.clone();
        for round in 0..ROUNDS {
            let mut metadata = base.metadata().to_map();
            metadata.insert(format!("{key}{}", round % 10), round.to_string());
            base = cache.update(&base, metadata, WriteOptions::default()).await.unwrap();
        }
    };
    tokio::join!(write(&a, "a"), write(&b, "b"));
    let end = a.get("s").await.unwrap();
    let mut expected = map([("shared", "x")]);
    for digit in 0..10 {
        for key in ["a", "b"] {
            expected.insert(format!("{key}{digit}"), (ROUNDS - 10 + digit).to_string());
        }
    }
    assert_eq!(*end.metadata(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_write_never_touches_a_successor_and_brings_nothing_back() {
    let cluster = without_controller().await;
    let a = cache(&cluster, "a").await;
    let api = objects(&cluster);
    let old = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    api.delete("s", &DeleteParams::default()).await.unwrap();
    let spec = VmcpSessionSpec { metadata: map([("k", "1")]), ..VmcpSessionSpec::default() };
    api.create(&PostParams::default(), &VmcpSession::new("s", spec.clone())).await.unwrap();

    let late = a.update(&old, map([("k", "late")]), WriteOptions::default()).await;
    assert_eq!(late.unwrap_err(), WriteError::Replaced);
    assert_eq!(a.delete(&old, WriteOptions::default()).await.unwrap_err(), WriteError::Replaced);
    assert_eq!(
        a.update(&old, old.metadata().to_map(), WriteOptions::default()).await.unwrap_err(),
        WriteError::Replaced
    );
    assert_eq!(api.get("s").await.unwrap().spec, spec, "the successor is untouched");

    api.delete("s", &DeleteParams::default()).await.unwrap();
    for metadata in [map([("k", "late")]), old.metadata().to_map()] {
        let late = a.update(&old, metadata, WriteOptions::default()).await;
        assert_eq!(late.unwrap_err(), WriteError::NotFound);
    }
    assert_eq!(a.delete_uid("s", old.uid(), WriteOptions::default()).await.unwrap_err(), WriteError::NotFound);
    assert!(api.get_opt("s").await.unwrap().is_none(), "nothing came back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_being_deleted_counts_as_not_found() {
    let cluster = without_controller().await;
    let a = cache(&cluster, "a").await;
    let api = objects(&cluster);
    let session = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    let finalizer = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    api.patch("s", &PatchParams::default(), &Patch::Merge(finalizer)).await.unwrap();
    a.delete(&session, WriteOptions::default()).await.unwrap();
    assert!(api.get("s").await.unwrap().metadata.deletion_timestamp.is_some(), "it is still there");

    assert_eq!(a.get("s").await.unwrap_err(), GetError::NotFound);
    let late = a.update(&session, map([("k", "2")]), WriteOptions::default()).await;
    assert_eq!(late.unwrap_err(), WriteError::NotFound);
    let again = a.create("s", Metadata::new(), CreateOptions::default()).await;
    assert_eq!(again.unwrap_err(), WriteError::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_nothing_sends_nothing() {
    let cluster = without_controller().await;
    let a = cache(&cluster, "a").await;
    let session = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    cluster.patch("s", &json!({"theirs": "x"})).await.unwrap();
    cluster.plane.apiserver().audit_flush().await.unwrap();
    let mark = cluster.plane.audit().mark().unwrap();
    let same = a.update(&session, session.metadata().to_map(), WriteOptions::default()).await.unwrap();
    assert_eq!(*same.metadata(), map([("k", "1"), ("theirs", "x")]), "the answer is the session as it is now");
    cluster.plane.apiserver().audit_flush().await.unwrap();
    let writes = cluster.plane.audit().count_since(mark, AuditEntry::is_write).unwrap();
    assert_eq!(writes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_name_fields_and_never_values() {
    let cluster = without_controller().await;
    let a = cache(&cluster, "a").await;
    let session = a.create("s", map([("k", CANARY)]), CreateOptions::default()).await.unwrap();
    let shown = format!("{session:?} {:?} {a:?}", a.state());
    assert!(!shown.contains(CANARY), "{shown}");
    let long = CANARY.repeat(6_000);
    let bad = [map([("", CANARY)]), map([("k", &long)]), (0..300).map(|n| (n.to_string(), CANARY.into())).collect()];
    for metadata in bad {
        for error in [
            a.create("bad", metadata.clone(), CreateOptions::default()).await.unwrap_err(),
            a.update(&session, metadata.clone(), WriteOptions::default()).await.unwrap_err(),
        ] {
            assert!(matches!(error, WriteError::Invalid { .. }), "{error}");
            let text = format!("{error} {error:?}");
            assert!(text.contains("spec.metadata") && !text.contains(CANARY), "{text}");
        }
    }
    let other = CreateOptions { server: Some(format!("Not-{CANARY}")), ..CreateOptions::default() };
    let error = a.create("bad", Metadata::new(), other).await.unwrap_err();
    assert!(matches!(error, WriteError::Invalid { .. }), "{error}");
}
