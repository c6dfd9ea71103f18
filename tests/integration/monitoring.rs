//! Alerts and dashboard: in promtool, and in a real Prometheus that scrapes real programs.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use testkit::{AgentOptions, ClusterOptions, LoopbackAddr, Process, RespClient, eventually};

use crate::agent::redis::tool;
use crate::world::{PATIENCE, World};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const ALERTS: &str = "charts/vmcp-session-operator/files/alerts.yaml";
const DASHBOARD: &str = "charts/vmcp-session-operator/files/dashboard.json";
const ALERT_TESTS: &str = "tests/prometheus/alerts.yaml";
const RUNBOOKS: &str = "https://github.com/vmcp-dev/vmcp-session-operator/blob/main/docs/alerts.md#";

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// The rules of all groups.
fn alerts() -> Vec<Value> {
    let all: Value = serde_norway::from_str(&file(ALERTS)).unwrap();
    array(&all["groups"]).flat_map(|group| array(&group["rules"])).cloned().collect()
}

/// What promtool says, and whether it is content.
async fn promtool(args: &[&str]) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("output");
    let tool = Process::builder("promtool", tool("prometheus/bin/promtool")).args(args).stdout(&said).spawn().unwrap();
    let status = tool.wait(PATIENCE).await.unwrap();
    let said = fs::read_to_string(said).unwrap();
    if status.success() { (said, true) } else { (said + &tool.log(), false) }
}

/// A Prometheus that asks programs every second.
pub(crate) struct Prometheus {
    url: String,
    process: Process,
    _folder: tempfile::TempDir,
    _ip: LoopbackAddr,
}

impl Prometheus {
    /// Each target is a job, a pod, and an address. They get the labels that monitors of the Prometheus operator give.
    fn start(targets: &[(&str, &str, SocketAddr)]) -> Self {
        let job = |(job, pod, address): &(&str, &str, SocketAddr)| {
            let labels = json!({"job": job, "pod": pod, "namespace": "n", "container": "c", "endpoint": "metrics"});
            json!({"job_name": pod, "static_configs": [{"targets": [address.to_string()], "labels": labels}]})
        };
        Self::with_jobs(&targets.iter().map(job).collect::<Vec<_>>())
    }

    /// Jobs as in `scrape_configs`.
    pub(crate) fn with_jobs(jobs: &[Value]) -> Self {
        let (folder, ip) = (tempfile::tempdir().unwrap(), LoopbackAddr::claim().unwrap());
        let address = ip.free_socket().unwrap();
        let config = json!({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs});
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config.to_string()).unwrap();
        let process = Process::builder("prometheus", tool("prometheus/bin/prometheus"))
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            // Why a target is down is told at this level.
            .arg("--log.level=debug")
            .spawn()
            .unwrap();
        Self { url: format!("http://{address}"), process, _folder: folder, _ip: ip }
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Asks until there is an answer that is not empty.
    pub(crate) async fn answers(&self, query: &str) {
        let what = format!("there is an answer to {query}");
        eventually(PATIENCE, &what, async || {
            let (said, well) = promtool(&["query", "instant", "--format=json", &self.url, query]).await;
            assert!(well || !said.contains("parse error"), "{query}: {said}");
            let samples = serde_json::from_str::<Value>(&said).ok()?;
            (well && !samples.as_array()?.is_empty()).then_some(())
        })
        .await
        .unwrap();
    }
}

/// What chooses series of ours in a query: `name{matchers}`.
fn selectors(query: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in query.match_indices("vmcp_") {
        let before = query[..at].chars().next_back();
        if before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == '"') {
            continue;
        }
        let name =
            query[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(query.len(), |end| at + end);
        let end = if query[name..].starts_with('{') { name + query[name..].find('}').unwrap() + 1 } else { name };
        found.push(&query[at..end]);
    }
    found
}

/// The same selector for each alternative of its patterns: each of them must be there.
fn alternatives(selector: &str) -> Vec<String> {
    let Some((head, (pattern, tail))) =
        selector.split_once("=~\"").and_then(|(head, rest)| Some((head, rest.split_once('"')?)))
    else {
        return vec![selector.to_owned()];
    };
    let tails = alternatives(tail);
    let one = |value: &str| tails.iter().map(|tail| format!("{head}=~'{value}'{tail}")).collect::<Vec<_>>();
    pattern.split('|').flat_map(one).collect()
}

/// Labels that a query groups or matches by.
fn labels(query: &str) -> BTreeSet<&str> {
    let lists = ["by (", "on (", "ignoring (", "without ("].iter().flat_map(|word| query.split(word).skip(1));
    let names = lists.flat_map(|rest| rest.split(')').next().unwrap().split(','));
    names.map(str::trim).collect()
}

fn with_label(selector: &str, label: &str) -> String {
    let matchers = selector.strip_suffix('}').map_or_else(|| format!("{selector}{{"), |head| format!("{head},"));
    format!("{matchers}{label}!=''}}")
}

/// Every query of the dashboard, its variables among them.
fn dashboard_queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&file(DASHBOARD)).unwrap();
    let panels =
        array(&dashboard["panels"]).flat_map(|panel| array(&panel["targets"])).map(|t| text(t, "expr").to_owned());
    let variables = array(&dashboard["templating"]["list"]).filter_map(|variable| variable["definition"].as_str());
    let variables = variables.map(|definition| {
        let call = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
        let (metric, label) = call.split_once(", ").unwrap();
        format!("count by ({label}) ({metric})")
    });
    let all: Vec<String> = panels.chain(variables).collect();
    let chosen = |query: &String| {
        let query = query.replace("$__rate_interval", "30s");
        query.replace("$namespace", ".*").replace("$agents", ".*")
    };
    all.iter().map(chosen).collect()
}

async fn say(client: &mut RespClient, commands: &[&str]) {
    for command in commands {
        client.call(&command.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_asks_for_what_the_programs_tell() {
    let mut world = World::start(ClusterOptions::default().size(2, 1)).await;
    let agent = world.agent("agent", AgentOptions::default()).await.unwrap();
    agent.wait_leases(2).await.unwrap();
    let mut client = agent.client3().await.unwrap();
    say(&mut client, &["HSET s n 0", "GET s", "NOSUCH"]).await;
    world.hold("s", &[0]).await;
    world.merge("s", &json!({"n": "1"})).await;
    world.fence().await;
    let [one, two] = &world.controllers[..] else { panic!("two") };
    let targets = [
        ("controllers", &*one.name, one.admin),
        ("controllers", &two.name, two.admin),
        ("agents", "agent", agent.admin),
    ];
    let prometheus = Prometheus::start(&targets);

    let dashboard = dashboard_queries();
    assert!(dashboard.len() > 40, "the dashboard has {} queries", dashboard.len());
    for query in &dashboard {
        prometheus.answers(query).await;
    }
    // Alerts have no answer while all is well; what they choose from must be there.
    let alerts: Vec<String> = alerts().iter().map(|alert| text(alert, "expr").to_owned()).collect();
    for query in alerts.iter().chain(&dashboard) {
        let selectors = selectors(query);
        assert!(!selectors.is_empty(), "{query} asks for nothing of ours");
        for selector in selectors.iter().flat_map(|selector| alternatives(selector)) {
            prometheus.answers(&selector).await;
        }
        for label in labels(query) {
            let any: Vec<String> = selectors.iter().map(|selector| with_label(selector, label)).collect();
            prometheus.answers(&any.join(" or ")).await;
        }
    }
}

#[tokio::test]
async fn each_alert_has_a_test_for_when_it_fires_and_when_not_and_a_runbook() {
    let (said, well) = promtool(&["check", "rules", &format!("{ROOT}/{ALERTS}")]).await;
    assert!(well, "{said}");
    let (said, well) = promtool(&["test", "rules", &format!("{ROOT}/{ALERT_TESTS}")]).await;
    assert!(well, "{said}");

    let tests: Value = serde_norway::from_str(&file(ALERT_TESTS)).unwrap();
    let tested = |firing: bool| -> BTreeSet<String> {
        let all = array(&tests["tests"]).flat_map(|test| array(&test["alert_rule_test"]));
        let these = all.filter(|test| array(&test["exp_alerts"]).next().is_some() == firing);
        these.map(|test| text(test, "alertname").to_owned()).collect()
    };
    let alerts = alerts();
    let names: BTreeSet<String> = alerts.iter().map(|alert| text(alert, "alert").to_owned()).collect();
    assert_eq!(tested(true), names, "alerts that fire in a test, and those that there are");
    assert_eq!(tested(false), names, "alerts that are quiet in a test, and those that there are");

    let runbooks = file("docs/alerts.md");
    for alert in &alerts {
        let name = text(alert, "alert");
        assert_eq!(text(&alert["annotations"], "runbook_url"), format!("{RUNBOOKS}{}", name.to_lowercase()));
        assert!(runbooks.contains(&format!("\n### {name}\n")), "docs/alerts.md says nothing of {name}");
    }
    let titles = runbooks.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect();
    assert_eq!(names, titles, "docs/alerts.md speaks of these");
}

#[test]
fn selectors_and_labels_are_found() {
    let query = r#"sum by (a, b) (rate(vmcp_x_total{r=~"p|q",s="t"}[5m])) / on (c) vmcp_y > vector(1)"#;
    assert_eq!(selectors(query), [r#"vmcp_x_total{r=~"p|q",s="t"}"#, "vmcp_y"]);
    assert_eq!(labels(query), BTreeSet::from(["a", "b", "c"]));
    assert_eq!(alternatives(selectors(query)[0]), [r#"vmcp_x_total{r=~'p',s="t"}"#, r#"vmcp_x_total{r=~'q',s="t"}"#]);
    assert_eq!(with_label("vmcp_y", "a"), "vmcp_y{a!=''}");
}
