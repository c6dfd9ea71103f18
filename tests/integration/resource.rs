//! What the API server makes of sessions: which it takes, which it refuses, and in what words.
//!
//! The definition is all that stands between a typing error and every pod, so each rule is tried on a real API server with
//! a real kubectl.

use serde_json::{Value, json};
use testkit::{ControlPlane, ControlPlaneOptions};

const CRD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/vmcpsessions.vmcp.dev.yaml");

async fn plane() -> ControlPlane {
    let plane = ControlPlane::start(ControlPlaneOptions::default()).await.unwrap();
    plane.apply_crds(CRD).await.unwrap();
    plane
}

/// What became of a command: whether it went well, and all that kubectl said.
struct Outcome {
    accepted: bool,
    text: String,
}

async fn kubectl(plane: &ControlPlane, args: &[&str], input: Option<&Value>) -> Outcome {
    let input = input.map(Value::to_string);
    let output = plane.kubectl_output(args, input.as_deref()).await.unwrap();
    Outcome { accepted: output.status.success(), text: output.stdout + &output.stderr }
}

fn session(spec: &Value) -> Value {
    json!({"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession", "metadata": {"name": "s"}, "spec": spec})
}

/// Applies a session of this spec and takes it away again.
async fn try_spec(plane: &ControlPlane, spec: &Value, validate: &str) -> Outcome {
    let outcome = kubectl(plane, &["create", validate, "-f", "-"], Some(&session(spec))).await;
    if outcome.accepted {
        plane.kubectl(&["delete", "vmcps", "s"]).await.unwrap();
    }
    outcome
}

async fn spec_of(plane: &ControlPlane) -> Value {
    let text = plane.kubectl(&["get", "vmcps", "s", "-o", "json"]).await.unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["spec"].take()
}

/// `count` keys with the same value.
fn keys(count: usize, value: &str) -> Value {
    (0..count).map(|i| (format!("k{i:03}"), json!(value))).collect::<serde_json::Map<_, _>>().into()
}

/// 16 keys of 4 characters whose values fill `spec.metadata` up to 1 MiB, and `more` bytes.
fn one_mib(more: usize) -> Value {
    let mut map = keys(16, &"x".repeat(65_536 - 4));
    map["k000"] = json!("x".repeat(65_536 - 4 + more));
    map
}

/// Specs that must be refused, and words that the refusal must have.
fn bad_specs() -> Vec<(&'static str, Value, &'static [&'static str])> {
    let metadata = |map: Value| json!({ "metadata": map });
    let timeouts =
        |idle: Value, life: Value| json!({"metadata": {}, "idleTimeoutSeconds": idle, "maxLifetimeSeconds": life});
    let server = |name: &str| json!({"metadata": {}, "server": name});
    let label = &["spec.server", "must be a DNS label"];
    let keys_of = &["spec.metadata", "each key must have 1 to 253 characters"];
    vec![
        ("no metadata", json!({}), &["spec.metadata", "Required value"]),
        ("null metadata", metadata(Value::Null), &["spec.metadata", "Required value"]),
        ("metadata that is no map", metadata(json!("a")), &["spec.metadata", "must be of type object"]),
        ("a number as value", metadata(json!({"k": 5})), &["spec.metadata.k", "must be of type string"]),
        ("a boolean as value", metadata(json!({"k": true})), &["spec.metadata.k", "must be of type string"]),
        ("a list as value", metadata(json!({"k": ["a"]})), &["spec.metadata.k", "must be of type string"]),
        ("a map as value", metadata(json!({"k": {"in": "a"}})), &["spec.metadata.k", "must be of type string"]),
        ("an empty key", metadata(json!({"": "a"})), keys_of),
        ("a key of 254 characters", metadata(json!({"k".repeat(254): "a"})), keys_of),
        ("257 keys", metadata(keys(257, "a")), &["spec.metadata", "Too many: 257", "at most 256 items"]),
        ("a value of 65537 characters", metadata(json!({"k": "x".repeat(65_537)})), &["spec.metadata.k", "Too long"]),
        ("one byte over 1 MiB", metadata(one_mib(1)), &["spec.metadata", "at most 1048576 bytes (1 MiB)"]),
        ("over 1 MiB in UTF-8 only", metadata(keys(10, &"ü".repeat(60_000))), &["at most 1048576 bytes (1 MiB)"]),
        ("a server with a capital", server("weaTher"), label),
        ("a server with a dash last", server("weather-"), label),
        ("a server with a line break", server("weather\n"), label),
        ("an empty server", server(""), label),
        ("a server of 64 characters", server(&"a".repeat(64)), &["spec.server", "Too long"]),
        ("no idle time", timeouts(json!(0), json!(1)), &["spec.idleTimeoutSeconds", "greater than or equal to 1"]),
        (
            "negative idle time",
            timeouts(json!(-1), json!(1)),
            &["spec.idleTimeoutSeconds", "greater than or equal to 1"],
        ),
        ("too much idle time", timeouts(json!(31_536_001), json!(1)), &["spec.idleTimeoutSeconds", "31536000"]),
        ("a fraction of a second", timeouts(json!(1.5), json!(1)), &["spec.idleTimeoutSeconds", "must be of type int"]),
        ("idle time as text", timeouts(json!("5"), json!(1)), &["spec.idleTimeoutSeconds", "must be of type integer"]),
        ("no lifetime", timeouts(json!(1), json!(0)), &["spec.maxLifetimeSeconds", "greater than or equal to 1"]),
        (
            "negative lifetime",
            timeouts(json!(1), json!(-1)),
            &["spec.maxLifetimeSeconds", "greater than or equal to 1"],
        ),
        ("too long a lifetime", timeouts(json!(1), json!(31_536_001)), &["spec.maxLifetimeSeconds", "31536000"]),
    ]
}

#[tokio::test]
async fn bad_sessions_are_refused_in_words_that_people_understand() {
    let plane = plane().await;
    for (name, spec, words) in bad_specs() {
        // kubectl's strict validation would refuse the map as value in other words (see below).
        let outcome = try_spec(&plane, &spec, "--validate=ignore").await;
        assert!(!outcome.accepted, "{name} was accepted");
        for word in words {
            assert!(outcome.text.contains(word), "{name}: no '{word}' in {}", outcome.text);
        }
    }
}

#[tokio::test]
async fn sessions_at_the_limits_are_accepted() {
    let plane = plane().await;
    let good = [
        ("an empty map", json!({"metadata": {}})),
        ("256 keys", json!({"metadata": keys(256, "a")})),
        ("a key of 253 characters", json!({"metadata": {"k".repeat(253): "a"}})),
        ("any character in a key", json!({"metadata": {"a key/with.dots \n ü": "a"}})),
        ("an empty value", json!({"metadata": {"k": ""}})),
        ("a value of 65536 characters", json!({"metadata": {"k": "x".repeat(65_536)}})),
        ("a value of 65536 two-byte characters", json!({"metadata": {"k": "ü".repeat(65_536)}})),
        ("exactly 1 MiB", json!({"metadata": one_mib(0)})),
        ("a server of 63 characters", json!({"metadata": {}, "server": "a".repeat(63)})),
        ("the shortest timeouts", json!({"metadata": {}, "idleTimeoutSeconds": 1, "maxLifetimeSeconds": 1})),
        (
            "the longest timeouts",
            json!({"metadata": {}, "idleTimeoutSeconds": 31_536_000, "maxLifetimeSeconds": 31_536_000}),
        ),
    ];
    for (name, spec) in good {
        let outcome = try_spec(&plane, &spec, "--validate=strict").await;
        assert!(outcome.accepted, "{name}: {}", outcome.text);
    }
}

#[tokio::test]
async fn unknown_fields_are_refused_and_nulls_are_absent() {
    let plane = plane().await;
    // Strict validation is kubectl's default.
    let outcome = try_spec(&plane, &json!({"metadata": {}, "servr": "a"}), "--validate").await;
    assert!(!outcome.accepted && outcome.text.contains("unknown field \"spec.servr\""), "{}", outcome.text);
    let outcome = try_spec(&plane, &json!({"metadata": {"k": {"in": "a"}}}), "--validate").await;
    assert!(!outcome.accepted && outcome.text.contains("unknown field \"spec.metadata.k.in\""), "{}", outcome.text);

    let nulls = json!({"metadata": {"a": null, "b": "1"}, "server": null, "idleTimeoutSeconds": null});
    plane.kubectl_with_input(&["create", "-f", "-"], &session(&nulls).to_string()).await.unwrap();
    assert_eq!(spec_of(&plane).await, json!({"metadata": {"b": "1"}}));
    let patch = json!({"spec": {"metadata": {"b": null, "c": "2"}}}).to_string();
    plane.kubectl(&["patch", "vmcps", "s", "--type=merge", "-p", &patch]).await.unwrap();
    assert_eq!(spec_of(&plane).await, json!({"metadata": {"c": "2"}}));
}

#[tokio::test]
async fn the_server_can_be_set_once() {
    let plane = plane().await;
    let patch = async |spec: Value| {
        let patch = json!({ "spec": spec }).to_string();
        kubectl(&plane, &["patch", "vmcps", "s", "--type=merge", "-p", &patch], None).await
    };
    plane.kubectl_with_input(&["create", "-f", "-"], &session(&json!({"metadata": {}})).to_string()).await.unwrap();
    assert!(patch(json!({"metadata": {"k": "1"}})).await.accepted, "unset may stay unset");
    assert!(patch(json!({"server": "weather"})).await.accepted, "unset may be set");
    assert!(patch(json!({"server": "weather", "metadata": {"k": "2"}})).await.accepted, "the same may be said again");
    for (name, server) in [("changed", json!("maps")), ("removed", Value::Null), ("emptied", json!(""))] {
        let outcome = patch(json!({ "server": server })).await;
        assert!(!outcome.accepted, "{name}");
        assert!(outcome.text.contains("spec.server"), "{name}: {}", outcome.text);
        if name != "emptied" {
            assert!(outcome.text.contains("cannot be changed or removed once it is set"), "{name}: {}", outcome.text);
        }
    }
    assert_eq!(spec_of(&plane).await, json!({"metadata": {"k": "2"}, "server": "weather"}));
}

#[tokio::test]
async fn the_status_is_a_subresource_that_is_checked_too() {
    let plane = plane().await;
    plane.kubectl_with_input(&["create", "-f", "-"], &session(&json!({"metadata": {}})).to_string()).await.unwrap();
    let patch = async |status: Value, subresource: &[&str]| {
        let patch = json!({ "status": status }).to_string();
        let mut args = vec!["patch", "vmcps", "s", "--type=merge", "-p", &patch];
        args.extend(subresource);
        kubectl(&plane, &args, None).await
    };
    let condition = |status: &str| {
        json!({"type": "Synced", "status": status, "reason": "NoHolders", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let eviction = json!({"generation": 1, "pods": 2, "time": "2026-01-01T00:00:00Z", "changedKeys": ["a"]});
    let good = json!({"observedGeneration": 1, "conditions": [condition("True")], "lastEviction": eviction});
    let get_status = async || plane.kubectl(&["get", "vmcps", "s", "-o", "jsonpath={.status}"]).await.unwrap();

    assert!(patch(good.clone(), &[]).await.accepted);
    assert_eq!(get_status().await, "", "a write without the subresource leaves the status alone");
    let through = ["--subresource=status"];
    let outcome = patch(good.clone(), &through).await;
    assert!(outcome.accepted, "{}", outcome.text);
    assert_eq!(serde_json::from_str::<Value>(&get_status().await).unwrap(), good);
    plane.kubectl(&["wait", "--for=condition=Synced", "--timeout=10s", "vmcps/s"]).await.unwrap();

    let mut too_many = eviction.clone();
    too_many["changedKeys"] = (0..17).map(|i| json!(i.to_string())).collect();
    let mut negative = eviction;
    negative["pods"] = json!(-1);
    let bad = [
        ("two of a type", json!({"conditions": [condition("True"), condition("False")]}), "Duplicate value"),
        ("an unknown status", json!({"conditions": [condition("Perhaps")]}), "Unsupported value"),
        ("17 changed keys", json!({"lastEviction": too_many}), "Too many: 17"),
        ("a negative number", json!({"lastEviction": negative}), "greater than or equal to 0"),
        ("no time", json!({"lastRenewTime": "yesterday"}), "must be of type date-time"),
    ];
    for (name, status, words) in bad {
        let outcome = patch(status, &through).await;
        assert!(!outcome.accepted && outcome.text.contains(words), "{name}: {}", outcome.text);
    }
}

#[tokio::test]
async fn kubectl_shows_explains_and_selects_sessions() {
    let plane = plane().await;
    for (name, server) in [("a", "weather"), ("b", "maps")] {
        let mut object = session(&json!({"metadata": {}, "server": server}));
        object["metadata"]["name"] = json!(name);
        plane.kubectl_with_input(&["create", "-f", "-"], &object.to_string()).await.unwrap();
    }
    let table = plane.kubectl(&["get", "vmcps"]).await.unwrap();
    let header: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NAME", "SERVER", "SYNCED", "LAST-EVICTED", "PODS-EVICTED", "AGE"]);
    let names = async |args: &[&str]| {
        let all: Vec<_> = ["get"].into_iter().chain(args.iter().copied()).chain(["-o", "name"]).collect();
        plane.kubectl(&all).await.unwrap()
    };
    assert_eq!(names(&["vmcps", "--field-selector=spec.server=maps"]).await, "vmcpsession.vmcp.dev/b\n");
    assert_eq!(names(&["vmcp"]).await, "vmcpsession.vmcp.dev/a\nvmcpsession.vmcp.dev/b\n", "by category");

    let explain = async |path: &str| plane.kubectl(&["explain", path]).await.unwrap();
    let text = explain("vmcps.spec").await;
    assert!(text.contains("metadata\t<map[string]string> -required-"), "{text}");
    assert!(text.contains("server\t<string>\n") && text.contains("idleTimeoutSeconds\t<integer>\n"), "{text}");
    let text = explain("vmcps.spec.metadata").await;
    assert!(text.contains("At most 256 keys"), "{text}");
    let text = explain("vmcps.status.conditions").await;
    assert!(text.contains("enum: True, False, Unknown"), "{text}");
}

#[tokio::test]
async fn the_definition_is_taken_without_complaints() {
    let plane = plane().await;
    let path = "jsonpath={range .status.conditions[*]}{.type}={.status} {end}";
    let conditions = plane.kubectl(&["get", "crd", "vmcpsessions.vmcp.dev", "-o", path]).await.unwrap();
    assert!(conditions.contains("Established=True") && conditions.contains("NamesAccepted=True"), "{conditions}");
    // A schema that is not structural, or breaks a rule of style of the API, is told by a condition.
    assert!(!conditions.contains("NonStructuralSchema") && !conditions.contains("Violation"), "{conditions}");
    let output = plane.kubectl_output(&["apply", "--server-side", "-f", CRD], None).await.unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", output.stderr);
}
