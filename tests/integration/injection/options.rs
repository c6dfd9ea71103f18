//! What annotations say to the agent.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::admitted::{Admission, agent_of, asking, named, plain, variable, with};
use crate::chart::file;

/// An option, what it is set to, and where that shows: a variable of the agent, or a place in the pod.
const SHOWS: [(&str, &str, &str); 27] = [
    ("server", "weather", "VMCP_SERVER"),
    ("key-prefix", "mcp:session:", "VMCP_KEY_PREFIX"),
    ("pod-local-keys", "conn.*,local-?", "VMCP_POD_LOCAL_KEYS"),
    ("visibility", "committed", "VMCP_VISIBILITY"),
    ("listen", "[::1]:65535", "VMCP_AGENT_LISTEN"),
    ("admin-listen", ":65535", "VMCP_ADMIN_LISTEN"),
    ("unix-socket", "true", "/volumes/vmcp-agent-socket/emptyDir/medium=Memory"),
    ("unix-socket-mode", "660", "VMCP_AGENT_UNIX_SOCKET_MODE"),
    ("password-secret", "redis.auth", "/volumes/vmcp-agent-password/secret/secretName"),
    ("hash-session-ids-secret", "ids", "/volumes/vmcp-agent-hash-key/secret/secretName"),
    ("max-clients", "10", "VMCP_MAX_CLIENTS"),
    ("client-timeout", "0", "VMCP_CLIENT_TIMEOUT"),
    ("client-output-limit", "65536", "VMCP_CLIENT_OUTPUT_LIMIT"),
    ("clients-memory", "4194304", "VMCP_CLIENTS_MEMORY"),
    ("tracking-table-max-keys", "1000", "VMCP_TRACKING_TABLE_MAX_KEYS"),
    ("cache-entries", "1000", "VMCP_CACHE_ENTRIES"),
    ("cache-bytes", "1048576", "VMCP_CACHE_BYTES"),
    ("lease-upper-bound", "300", "VMCP_LEASE_UPPER_BOUND"),
    ("log-level", "info,vmcp_session::cache=debug", "VMCP_LOG_LEVEL"),
    ("log-format", "text", "VMCP_LOG_FORMAT"),
    ("image", "registry.example:5000/vmcp@sha256:00", "/agent/image"),
    ("image-pull-policy", "Always", "/agent/imagePullPolicy"),
    ("run-as-user", "1000", "/agent/securityContext/runAsUser"),
    ("cpu-request", "50m", "/agent/resources/requests/cpu"),
    ("cpu-limit", "2", "/agent/resources/limits/cpu"),
    ("memory-request", "65Mi", "/agent/resources/requests/memory"),
    ("memory-limit", "1Gi", "/agent/resources/limits/memory"),
];
/// Those that say more about another one.
const MORE: [(&str, &str, &str); 2] = [
    ("password-key", "secret", "/volumes/vmcp-agent-password/secret/items/0/key"),
    ("hash-session-ids-key", "hmac.key", "/volumes/vmcp-agent-hash-key/secret/items/0/key"),
];

/// All there are, as the chart has them.
fn options() -> Vec<Value> {
    serde_norway::from_str(&file("charts/vmcp-session-operator/files/agent-options.yaml")).unwrap()
}

/// What is at `place` of the pod.
fn shown(pod: &Value, place: &str) -> Value {
    let Some(path) = place.strip_prefix('/') else {
        return variable(pod, place).map_or(Value::Null, Value::from);
    };
    let (in_what, rest) = path.split_once('/').unwrap();
    let (object, rest) = if in_what == "agent" {
        (agent_of(pod), rest)
    } else {
        let (name, rest) = rest.split_once('/').unwrap();
        (named(&pod["spec"][in_what], name), rest)
    };
    object.and_then(|object| object.pointer(&format!("/{rest}"))).cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_option_is_where_the_agent_looks_for_it() {
    let cluster = Admission::start(&["controller.leaseSeconds=20"]).await;
    let shows: Vec<_> = SHOWS.iter().chain(&MORE).collect();
    let tried: BTreeSet<&str> = shows.iter().map(|(name, ..)| *name).collect();
    let options = options();
    let there: BTreeSet<&str> = options.iter().map(|option| option["name"].as_str().unwrap()).collect();
    assert_eq!(tried, there);

    let bare = cluster.admit("asking", &asking(&[])).await.unwrap();
    let needed = [("password-secret", "p"), ("hash-session-ids-secret", "h")];
    let all: Vec<(&str, &str)> = shows.iter().map(|(name, value, _)| (*name, *value)).collect();
    let full = cluster.admit("asking", &asking(&all)).await.unwrap();
    for (name, value, place) in shows {
        let (place, wanted) = place.split_once('=').unwrap_or((place, value));
        let mut annotations = vec![(*name, *value)];
        annotations.extend(needed.iter().filter(|(other, _)| name.ends_with("-key") && other[..4] == name[..4]));
        let alone = cluster.admit("asking", &asking(&annotations)).await.unwrap();
        for pod in [&alone, &full] {
            let is = shown(pod, place);
            assert_eq!(is.as_str().map_or(is.to_string(), str::to_owned), wanted, "{name}: {place}");
        }
        assert_ne!(shown(&bare, place), shown(&alone, place), "{name}");
    }
    assert_eq!(variable(&full, "VMCP_PASSWORD_FILE"), Some("/etc/vmcp/password/password"));
    assert_eq!(variable(&full, "VMCP_HASH_SESSION_IDS"), Some("/etc/vmcp/hash-session-ids/key"));
    assert_eq!(variable(&full, "VMCP_AGENT_UNIX_SOCKET"), Some("/var/run/vmcp/agent.sock"));
    assert_eq!(agent_of(&full).unwrap()["volumeMounts"].as_array().unwrap().len(), 5);
    // As long as the controller's leases are.
    assert_eq!(variable(&bare, "VMCP_LEASE_UPPER_BOUND"), Some("20"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_could_not_use_is_refused_with_what_would_be_right() {
    let cluster = Admission::start(&[]).await;
    let wrong = |name: &str| match name {
        "server" => "Weather",
        "key-prefix" => "too-long".repeat(33).leak(),
        "image" => "a b",
        "pod-local-keys" => "a,,b",
        "listen" => "0.0.0.0:6379",
        "password-secret" | "hash-session-ids-secret" => "Secret_1",
        "password-key" | "hash-session-ids-key" => "a/b",
        "log-level" => "warning",
        "max-clients" => "10001",
        "client-output-limit" | "clients-memory" => "65535",
        "cpu-request" | "memory-limit" => "-1",
        "unix-socket-mode" => "666",
        "memory-request" => "1K",
        "run-as-user" => "0",
        "cache-bytes" => "99999999999999999999999",
        _ => "wrong",
    };
    let mut unclear = Vec::new();
    for option in options() {
        let (name, expected) = (option["name"].as_str().unwrap(), option["expected"].as_str().unwrap());
        let refused = cluster.admit("asking", &asking(&[(name, wrong(name))])).await.unwrap_err();
        let says = format!("annotation vmcp.dev/agent-{name} is '{}': expected {expected}", wrong(name));
        if !refused.contains(&says) {
            unclear.push(format!("{name}: {refused}"));
        }
        // Who has switched it off may leave what he likes.
        let mut off = asking(&[(name, wrong(name))]);
        off["metadata"]["labels"]["vmcp.dev/agent"] = json!("disabled");
        cluster.admit("given", &off).await.unwrap();
    }
    assert!(unclear.is_empty(), "{unclear:#?}");
    for (name, value, says) in [
        (
            "servr",
            "weather",
            "there is no annotation vmcp.dev/agent-servr: expected vmcp.dev/agent- with one of admin-listen, ",
        ),
        ("listen", "none", "nobody could connect"),
        ("listen", "127.0.0.1:65536", "agent-listen is '127.0.0.1:65536': expected a loopback address"),
        ("admin-listen", ":65536", "agent-admin-listen is ':65536': expected an address with a port"),
        ("admin-listen", "300.1.1.1:80", "agent-admin-listen is '300.1.1.1:80': expected an address with a port"),
    ] {
        let refused = cluster.admit("asking", &asking(&[(name, value)])).await.unwrap_err();
        assert!(refused.contains(says), "{refused}");
        let by_namespace =
            with(&plain(), "/metadata/annotations", asking(&[(name, value)])["metadata"]["annotations"].clone());
        let refused = cluster.admit("given", &by_namespace).await.unwrap_err();
        assert!(refused.contains(says), "{refused}");
    }
    let both = cluster.admit("asking", &asking(&[("visibility", "a"), ("server", "B")])).await.unwrap_err();
    assert!(both.contains("agent-server is 'B'") && both.contains("agent-visibility is 'a'"), "{both}");
}

/// Whoever is on the node has its loopback addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_not_open_to_a_whole_node() {
    let cluster = Admission::start(&[]).await;
    // Where pod security does not forbid it anyway.
    cluster.plane.create_namespace("open").await.unwrap();
    cluster.plane.create_service_account("open", "vmcp-server").await.unwrap();
    let with_host = |annotations| with(&asking(annotations), "/spec/hostNetwork", json!(true));
    let refused = cluster.admit("open", &with_host(&[("unix-socket", "true")])).await.unwrap_err();
    assert!(refused.contains("set vmcp.dev/agent-listen to none"), "{refused}");
    cluster.admit("open", &with_host(&[("unix-socket", "true"), ("listen", "none")])).await.unwrap();
    let mut off = with_host(&[]);
    off["metadata"]["labels"]["vmcp.dev/agent"] = json!("disabled");
    cluster.admit("open", &off).await.unwrap();
}
