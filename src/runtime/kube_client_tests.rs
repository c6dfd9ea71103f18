//! Tests of the configuration, and of a client against servers that misbehave.

use std::path::Path;

use clap::Parser;
use kube::Api;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::api_error::{ApiErrorKind, deadline};
use super::*;
use crate::api::VmcpSession;

const PEM: &str = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
const CANARY: &str = "canary-4b1d";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    kube: KubeArgs,
}

fn args(given: &[&str]) -> Result<KubeArgs, String> {
    let parsed = Cli::try_parse_from(std::iter::once(&"test").chain(given));
    parsed.map(|cli| cli.kube).map_err(|e| e.to_string())
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn explicit_settings_are_taken_with_rotating_files_and_timeouts() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, token) = (write(dir.path(), "ca", PEM), write(dir.path(), "token", "t"));
    let given = ["--kube-api-server=https://127.0.0.1:6443", "--kube-ca-file", &ca, "--kube-token-file", &token];
    let timeouts = Timeouts::default();
    let config = args(&given).unwrap().config(timeouts).await.unwrap();
    assert_eq!(config.cluster_url.to_string(), "https://127.0.0.1:6443/");
    assert_eq!(config.root_cert_file.as_deref(), Some(Path::new(&ca)));
    assert_eq!(config.auth_info.token_file.as_deref(), Some(token.as_str()));
    assert!(config.auth_info.token.is_none(), "a token that is read once does not rotate");
    assert_eq!(config.connect_timeout, Some(timeouts.connect));
    assert_eq!(config.read_timeout, Some(timeouts.read));
    assert_eq!(config.write_timeout, Some(timeouts.write));
    assert!(config.reset_reader_on_write && !config.default_retry && !config.accept_invalid_certs);
    assert!(config.headers.contains(&(USER_AGENT, PROGRAM)), "an audit log should tell who asked");
}

#[tokio::test]
async fn explicit_settings_that_cannot_work_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = write(dir.path(), "ca", PEM);
    let missing = dir.path().join("none").to_str().unwrap().to_owned();
    let given = ["--kube-api-server=https://h", "--kube-ca-file", &ca, "--kube-token-file", &missing];
    let error = args(&given).unwrap().config(Timeouts::default()).await.unwrap_err();
    assert!(error.to_string().contains(&missing), "{error}");
    let given = ["--kube-api-server=http://h", "--kube-ca-file", &ca, "--kube-token-file", &ca];
    let error = args(&given).unwrap().config(Timeouts::default()).await.unwrap_err();
    assert!(error.to_string().contains("https://"), "{error}");
    let empty = write(dir.path(), "empty", "\n");
    for (ca, token, words) in [(&ca, &empty, "empty holds no token"), (&empty, &ca, "empty holds no PEM certificate")] {
        let given = ["--kube-api-server=https://h", "--kube-ca-file", ca, "--kube-token-file", token];
        let error = args(&given).unwrap().config(Timeouts::default()).await.unwrap_err();
        assert!(error.to_string().ends_with(words), "{error}");
    }
    let broken = write(dir.path(), "broken", "token\n");
    let given = ["--kube-api-server=https://h", "--kube-ca-file", &ca, "--kube-token-file", &broken];
    let error = args(&given).unwrap().config(Timeouts::default()).await.unwrap_err();
    assert!(error.to_string().ends_with("broken holds no token without blanks or line breaks around it"), "{error}");
    let error = args(&["--kube-api-server=https://h"]).unwrap_err();
    assert!(error.contains("--kube-ca-file"), "{error}");
    let error = args(&["--kube-token-file=x"]).unwrap_err();
    assert!(error.contains("--kube-api-server"), "{error}");
}

fn kubeconfig(server: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: k, cluster: {{server: '{server}'}}}}], \
        users: [{{name: u, user: {{token: t}}}}], contexts: [{{name: c, context: {{cluster: k, user: u, namespace: n}}}}]}}"
    )
}

#[tokio::test]
async fn kubeconfigs_are_merged_like_kubectl_does() {
    let dir = tempfile::tempdir().unwrap();
    let first = write(dir.path(), "a", &kubeconfig("https://first"));
    let second = write(dir.path(), "b", &kubeconfig("https://second"));
    let paths = format!("{}/none:{first}::{second}", dir.path().display());
    let config = args(&["--kubeconfig", &paths]).unwrap().config(Timeouts::default()).await.unwrap();
    assert_eq!(config.cluster_url.to_string(), "https://first/");
    assert_eq!(config.default_namespace, "n");
    assert_eq!(config.read_timeout, Some(Timeouts::default().read));
}

#[tokio::test]
async fn a_kubeconfig_that_does_not_serve_is_refused_without_quoting_it() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none").to_str().unwrap().to_owned();
    let error = args(&["--kubeconfig", &none]).unwrap().config(Timeouts::default()).await.unwrap_err();
    assert!(error.to_string().contains(&none), "{error}");
    let bad = write(dir.path(), "bad", &format!("users: {{token: {CANARY}\n  - [{CANARY}"));
    let error = args(&["--kubeconfig", &bad]).unwrap().config(Timeouts::default()).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains(CANARY), "{error:?}");
    let good = write(dir.path(), "good", &kubeconfig("https://h"));
    let other = ["--kubeconfig", &good, "--kube-context", "nowhere"];
    let error = args(&other).unwrap().config(Timeouts::default()).await.unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

/// Each request would fail, with words that name neither the file nor what is wrong with it.
#[tokio::test]
async fn a_token_file_of_a_kubeconfig_is_looked_at_too() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text, words) in [
        ("good", CANARY.to_owned(), None),
        ("broken", format!("{CANARY}\n"), Some("broken holds no token without blanks or line breaks around it")),
        ("empty", String::new(), Some("empty holds no token")),
    ] {
        let token = write(dir.path(), name, &text);
        let config = kubeconfig("https://h").replace("{token: t}", &format!("{{tokenFile: '{token}'}}"));
        let path = write(dir.path(), "kubeconfig", &config);
        let error = args(&["--kubeconfig", &path]).unwrap().config(Timeouts::default()).await.err();
        let error = error.map(|error| error.to_string());
        assert_eq!(error, words.map(|words| format!("{}/{words}", dir.path().display())));
    }
    let both = kubeconfig("https://h").replace("{token: t}", "{token: t, tokenFile: /nowhere}");
    let path = write(dir.path(), "both", &both);
    assert!(args(&["--kubeconfig", &path]).unwrap().config(Timeouts::default()).await.is_ok(), "the file is not used");
}

/// A server that answers every request with the same bytes, or never.
async fn server(answer: Option<String>) -> (Api<VmcpSession>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            if let Some(answer) = &answer {
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            open.push(stream);
        }
    });
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = Config::new(format!("http://{address}").parse().unwrap());
    config.read_timeout = Some(Timeouts::default().read);
    config.default_retry = false;
    (Api::namespaced(Client::try_from(config).unwrap(), "n"), task)
}

fn response(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn an_object_that_does_not_decode_is_not_quoted() {
    let body = format!(
        r#"{{"apiVersion":"vmcp.dev/v1alpha1","kind":"VmcpSession","metadata":{{"name":"s"}},
        "spec":{{"metadata":{{"k":"{CANARY}"}},"idleTimeoutSeconds":"{CANARY}"}}}}"#
    );
    let (api, task) = server(Some(response("200 OK", &body))).await;
    let error = deadline(PATIENCE, api.get("s")).await.unwrap_err();
    assert_eq!(error.kind(), ApiErrorKind::Undecodable);
    assert!(error.to_string().contains("line 2 column"), "{error}");
    assert!(!format!("{error} {error:?}").contains(CANARY), "{error:?}");
    task.abort();
}

#[tokio::test]
async fn an_answer_of_a_proxy_is_not_quoted() {
    let (api, task) = server(Some(response("502 Bad Gateway", CANARY))).await;
    let error = deadline(PATIENCE, api.get("s")).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ApiErrorKind::ServerError, Some(502)));
    assert!(!format!("{error} {error:?}").contains(CANARY), "{error:?}");
    task.abort();
}

#[tokio::test]
async fn a_broken_answer_is_a_transport_error_and_not_quoted() {
    let (api, task) = server(Some(format!("HTTP/1.1 {CANARY}\r\n\r\n"))).await;
    let error = deadline(PATIENCE, api.get("s")).await.unwrap_err();
    assert_eq!(error.kind(), ApiErrorKind::Unreachable);
    assert!(!format!("{error} {error:?}").contains(CANARY), "{error:?}");
    task.abort();
}

#[tokio::test]
async fn a_silent_server_ends_at_the_deadline() {
    let (api, task) = server(None).await;
    let error = deadline(Duration::from_millis(50), api.get("s")).await.unwrap_err();
    assert_eq!(error.kind(), ApiErrorKind::Timeout);
    task.abort();
}

#[tokio::test]
async fn a_closed_port_is_unreachable_and_says_so() {
    let (api, task) = server(None).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let error = deadline(PATIENCE, api.get("s")).await.unwrap_err();
    assert_eq!(error.to_string(), "the API server cannot be reached: connection refused");
}
