//! What a person wants to see when a test on a real node has failed.

use crate::ControlPlane;
use serde_json::Value;
use std::process::Command;

/// Lines of each container's log.
const TAIL: &str = "--tail=20";

/// Prints pods, events and the logs of containers. It is called while a test panics, so nothing here may.
pub(super) fn print(plane: &ControlPlane) {
    let Ok(program) = plane.shared().assets.program("kubectl") else {
        return;
    };
    let kubectl = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).arg("--request-timeout=5s").env("KUBECONFIG", plane.kubeconfig_path());
        command.env("HOME", plane.dir()).output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
    };
    let show = |what: &str, args: &[&str]| {
        let said = kubectl(args).unwrap_or_else(|e| e.to_string());
        if !said.trim().is_empty() {
            eprintln!("--- {what} ---\n{}", said.trim_end());
        }
    };
    show("pods", &["get", "pods", "--all-namespaces", "--output=wide"]);
    show("sessions", &["get", "vmcpsessions", "--all-namespaces", "--output=wide"]);
    show("events", &["get", "events", "--all-namespaces", "--sort-by=.metadata.creationTimestamp"]);
    let pods = kubectl(&["get", "pods", "--all-namespaces", "--output=json"]).unwrap_or_default();
    let pods: Value = serde_json::from_str(&pods).unwrap_or_default();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let text = |at: &str| pod.pointer(at).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let at = format!("--namespace={namespace}");
        let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
        if !conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True") {
            show(&format!("{namespace}/{name} is not ready"), &["describe", "pod", name, &at]);
        }
        show(&format!("log of {namespace}/{name}"), &["logs", name, &at, TAIL, "--all-containers", "--prefix"]);
    }
}
