//! Metrics for those only who may read them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::rbac::v1::PolicyRule;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use testkit::{AuditMark, ClusterOptions, LoopbackAddr, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::chart::{objects, rendered};
use crate::monitoring::Prometheus;
use crate::world::{PATIENCE, World};

/// For how long an answer of the API server is used, and how long that takes to notice a change.
const USED: Duration = Duration::from_secs(15);
const READER: (&str, &str) = ("monitoring", "prometheus");

/// A cluster with one replica that serves metrics at an address of its own.
struct Scraped {
    world: World,
    address: SocketAddr,
    _ip: LoopbackAddr,
}

impl Scraped {
    async fn start() -> Self {
        let ip = LoopbackAddr::claim().unwrap();
        let address = ip.free_socket().unwrap();
        let listen = format!("--metrics-listen={address}");
        let options = ClusterOptions { own_certificates: true, ..ClusterOptions::default() };
        let world = World::start(options.size(1, 0).controller_args(&[&listen])).await;
        world.sync_bundle().await.unwrap();
        world.plane.create_namespace(READER.0).await.unwrap();
        world.plane.create_service_account(READER.0, READER.1).await.unwrap();
        Self { world, address, _ip: ip }
    }

    /// Asks as Prometheus does: with the bundle of authorities, and the name of the Service. The status, and the whole answer.
    async fn ask(&self, authorization: Option<&str>) -> (u16, String) {
        let mut roots = RootCertStore::empty();
        let authorities = CertificateDer::pem_file_iter(&self.world.streams.ca).unwrap();
        authorities.for_each(|authority| roots.add(authority.unwrap()).unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("vmcp-session-controller.vmcp-system.svc").unwrap();
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let header = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
        let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        (status.unwrap_or_else(|| panic!("no answer: {text}")), text)
    }

    async fn token(&self, audiences: &[&str]) -> String {
        let hour = Duration::from_hours(1);
        let token = self.world.plane.token_for_account(READER.0, READER.1, audiences, hour).await.unwrap();
        format!("Bearer {token}")
    }

    async fn wait_status(&self, authorization: &str, wanted: u16) -> String {
        eventually(PATIENCE, &format!("the answer is {wanted}"), async || {
            let (status, text) = self.ask(Some(authorization)).await;
            (status == wanted).then_some(text)
        })
        .await
        .unwrap()
    }

    /// How often the API server was asked about somebody since then.
    async fn reviews_since(&self, mark: AuditMark) -> usize {
        self.world.plane.apiserver().audit_flush().await.unwrap();
        let reviews = |entry: &testkit::AuditEntry| entry.resource.ends_with("reviews");
        self.world.plane.audit().count_since(mark, reviews).unwrap()
    }
}

/// The chart's `ClusterRole`.
fn may_read() -> PolicyRule {
    PolicyRule {
        non_resource_urls: Some(vec!["/metrics".to_owned()]),
        verbs: vec!["get".to_owned()],
        ..PolicyRule::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_read_metrics_is_what_the_api_server_says() {
    let scraped = Scraped::start().await;
    let plane = &scraped.world.plane;
    let token = scraped.token(&[]).await;

    println!("without a token, or with one that is for somebody else");
    let other = scraped.token(&["vmcp.dev"]).await;
    for nobody in [None, Some("Bearer "), Some("Basic YTpi"), Some("Bearer canary"), Some(&*other)] {
        let (status, text) = scraped.ask(nobody).await;
        let told = text.to_lowercase().contains("www-authenticate: bearer");
        assert!(status == 401 && told && !text.contains("canary"), "{nobody:?}: {text}");
    }
    println!("without the right");
    assert_eq!(scraped.ask(Some(&token)).await.0, 403);
    println!("with the right");
    plane.bind_cluster_role(READER.0, READER.1, vec![may_read()]).await.unwrap();
    let text = scraped.wait_status(&token, 200).await;
    assert!(text.contains("vmcp_session_is_leader"), "{text}");

    println!("probes are open, and metrics are not there");
    let admin = scraped.world.controllers[0].admin;
    for (path, status) in [("livez", 200), ("readyz", 200), ("metrics", 404)] {
        let url = format!("http://{admin}/{path}");
        let probe = std::process::Command::new(crate::programs().session).args(["probe", &url]).output().unwrap();
        let said = String::from_utf8(probe.stderr).unwrap();
        assert!(probe.status.success() == (status == 200), "{path}: {said}");
        assert!(status == 200 || said.contains("404"), "{path}: {said}");
    }

    println!("a right that is taken away ends soon");
    let bindings = plane.kubectl(&["get", "clusterrolebinding", "-o", "name"]).await.unwrap();
    let binding = bindings.lines().find(|name| name.contains("/monitoring-prometheus-")).unwrap();
    plane.kubectl(&["delete", binding]).await.unwrap();
    let begun = Instant::now();
    scraped.wait_status(&token, 403).await;
    assert!(begun.elapsed() < USED, "it ended after {:?}", begun.elapsed());
    println!("and so does an account");
    plane.kubectl(&["delete", "serviceaccount", "-n", READER.0, READER.1]).await.unwrap();
    scraped.wait_status(&token, 401).await;
    let log = scraped.world.controllers[0].process.log();
    assert!(!log.contains("canary") && !log.contains(token.trim_start_matches("Bearer ")), "a token is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_scrapes_is_no_flood_on_the_api_server() {
    let scraped = Scraped::start().await;
    let token = scraped.token(&[]).await;
    scraped.world.plane.bind_cluster_role(READER.0, READER.1, vec![may_read()]).await.unwrap();
    scraped.wait_status(&token, 200).await;
    let (mark, begun) = (scraped.world.plane.audit().mark().unwrap(), Instant::now());
    let mut busy = 0;
    for n in 0..200 {
        let (status, _) = scraped.ask(Some(&format!("Bearer made-up-{n}"))).await;
        busy += usize::from(status == 429);
        assert!(status == 429 || status == 401, "{status}");
        // Who was let in before is let in all the while.
        if n % 20 == 0 {
            assert_eq!(scraped.ask(Some(&token)).await.0, 200);
        }
    }
    let reviews = scraped.reviews_since(mark).await;
    // Ten at once and two in a second; two for the good token in five seconds; and the replica's own.
    let most = 20 + begun.elapsed().as_secs() * 3;
    println!("200 made-up tokens: {reviews} reviews in {:?}, {busy} refused without", begun.elapsed());
    assert!(u64::try_from(reviews).unwrap() < most, "{reviews} reviews, at most {most} expected");
    assert!(busy > 0, "the flood was too slow to be one");
}

/// What the Prometheus operator makes of the endpoint of a `ServiceMonitor`: what it names is read from the cluster, and a file.
async fn job(scraped: &Scraped, name: &str, endpoint: &Value, folder: &Path) -> Value {
    let written = |file: String, text: String| {
        std::fs::write(folder.join(&file), text).unwrap();
        folder.join(file).display().to_string()
    };
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("a text is missing in {endpoint}")).to_owned();
    let named = async |kind: &str, at: &Value| {
        let object = ["get", kind, &text(&at["name"]), "--namespace=vmcp-system", "--output=json"];
        let object: Value = serde_json::from_str(&scraped.world.plane.kubectl(&object).await.unwrap()).unwrap();
        text(&object["data"][text(&at["key"])])
    };
    let tls = &endpoint["tlsConfig"];
    let authorities = named("configmap", &tls["ca"]["configMap"]).await;
    let token = if endpoint["authorization"].is_null() {
        assert_eq!(endpoint["bearerTokenFile"], "/var/run/secrets/kubernetes.io/serviceaccount/token");
        scraped.token(&[]).await.trim_start_matches("Bearer ").to_owned()
    } else {
        let token = named("secret", &endpoint["authorization"]["credentials"]).await;
        String::from_utf8(data_encoding::BASE64.decode(token.as_bytes()).unwrap()).unwrap()
    };
    json!({
        "job_name": name,
        "scheme": endpoint["scheme"],
        "metrics_path": endpoint["path"],
        "tls_config": {"server_name": tls["serverName"], "ca_file": written(format!("{name}-ca"), authorities)},
        "authorization": {"credentials_file": written(format!("{name}-token"), token)},
        "static_configs": [{"targets": [scraped.address.to_string()]}],
    })
}

/// With the account's own token, and with one in a Secret: both are refused, until the account gets the right as docs/install.md says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_reads_them_as_the_chart_tells_it_to() {
    let scraped = Scraped::start().await;
    let plane = &scraped.world.plane;
    let token = format!("--from-literal=token={}", scraped.token(&[]).await.trim_start_matches("Bearer "));
    plane.kubectl(&["create", "secret", "generic", "prometheus-token", "-n", "vmcp-system", &token]).await.unwrap();
    let (folder, mut jobs, mut role) = (tempfile::tempdir().unwrap(), Vec::new(), Value::Null);
    for (name, more) in [("own", ""), ("secret", "prometheus-token")] {
        let secret = format!("metrics.serviceMonitor.tokenSecret.name={more}");
        let values = ["metrics.auth=true", "metrics.serviceMonitor.create=true", &secret];
        let all = objects(&rendered(plane, &values).await);
        let monitor = all.iter().find(|object| object["kind"] == "ServiceMonitor").unwrap();
        jobs.push(job(&scraped, name, &monitor["spec"]["endpoints"][0], folder.path()).await);
        let reader = |object: &&Value| object["metadata"]["name"] == "vmcp-session-controller-metrics-reader";
        role = all.iter().find(reader).unwrap().clone();
    }
    let prometheus = Prometheus::with_jobs(&jobs);
    prometheus.answers("count(up == 0) == 2").await;
    let why = async || prometheus.log().contains("server returned HTTP status 403").then_some(());
    eventually(PATIENCE, "the right is what is missing", why).await.unwrap();

    plane.kubectl_with_input(&["create", "--filename=-"], &role.to_string()).await.unwrap();
    let (role, account) = (role["metadata"]["name"].as_str().unwrap(), format!("{}:{}", READER.0, READER.1));
    let binding = [&format!("--clusterrole={role}"), &format!("--serviceaccount={account}")];
    plane.kubectl(&["create", "clusterrolebinding", "vmcp-metrics", binding[0], binding[1]]).await.unwrap();
    prometheus.answers("count(up == 1) == 2").await;
    prometheus.answers("count(vmcp_session_is_leader) == 2").await;
}
