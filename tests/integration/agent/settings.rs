//! Settings by variables of the environment, as containers have them; readiness; who holds what.

use std::process::Command;

use super::*;

/// What an agent says that has no controllers to ask.
const WAITS: &str = "each write takes --lease-upper-bound";

#[tokio::test]
async fn what_clients_may_take_is_set_by_variables() {
    let world = World::start(ClusterOptions::default().size(0, 0)).await;
    let options = AgentOptions::default()
        .args(&["--visibility=committed"])
        .env("VMCP_MAX_CLIENTS", "3")
        .env("VMCP_CLIENT_OUTPUT_LIMIT", "65536")
        .env("VMCP_CLIENTS_MEMORY", "5000000")
        .env("VMCP_CLIENT_TIMEOUT", "2")
        // Empty ones are as good as none.
        .env("VMCP_POD_LOCAL_KEYS", "")
        .env("VMCP_KEY_PREFIX", "");
    let agent = world.agent("agent-1", options).await.unwrap();
    eventually(PATIENCE, "who looked whether it listens is gone", async || {
        (agent.metric("vmcp_agent_clients").await.ok()? < 1.0).then_some(())
    })
    .await
    .unwrap();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = agent.client().await.unwrap();
        ask(&mut client, &["PING"]).await;
        clients.push(client);
    }
    let mut one_too_many = agent.client().await.unwrap();
    assert_eq!(one_too_many.next().await.unwrap().error(), Some("ERR max number of clients reached"));

    // Nobody says anything for two seconds: then all are gone.
    for client in &mut clients {
        assert!(client.next().await.is_err(), "it was not closed");
    }
    let mut client = agent.client().await.unwrap();
    let limits = ask(&mut client, &["CONFIG", "GET", "client-output-buffer-limit"]).await;
    assert!(format!("{limits:?}").contains("normal 65536 0 0"), "{limits:?}");
    let memory = ask(&mut client, &["CONFIG", "GET", "maxmemory-clients"]).await;
    assert!(format!("{memory:?}").contains("5000000"), "{memory:?}");
    for field in ["a", "b"] {
        ask(&mut client, &["HSET", "s1", field, &"x".repeat(40_000)]).await;
    }
    assert_eq!(ask(&mut client, &["HGET", "s1", "a"]).await, "x".repeat(40_000).as_str().into());
    assert!(client.call(&["HGETALL", "s1"]).await.is_err(), "more than may wait for it");
    assert!(!agent.process.log().contains(WAITS), "{}", agent.process.log());
}

/// The variables that a subcommand knows, all of them empty.
fn empty_variables(subcommand: &str) -> Vec<(String, String)> {
    let help = Command::new(crate::programs().session).args([subcommand, "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let names = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap().to_owned());
    // These the test kit sets.
    let names = names.filter(|name| !["KUBECONFIG", "VMCP_LOG_LEVEL"].contains(&&**name));
    names.map(|name| (name, String::new())).collect()
}

/// Manifests and shells have no other way to unset what somebody else has set.
#[tokio::test]
async fn an_empty_variable_is_an_unset_one() {
    let world = World::start(ClusterOptions::default().size(0, 0)).await;
    let variables = empty_variables("agent");
    assert!(variables.len() > 25, "{variables:?}");
    let options = AgentOptions { env: variables, ..AgentOptions::default() };
    let agent = world.agent("agent-1", options).await.unwrap();
    let mut client = agent.client().await.unwrap();
    ask(&mut client, &["HSET", "s1", "user", "alice"]).await;
    assert_eq!(ask(&mut client, &["HGET", "s1", "user"]).await, "alice".into());
    let writer = ["get", "vmcps", "s1", "--show-managed-fields", "-o", "jsonpath={.metadata.managedFields[*].manager}"];
    assert_eq!(world.kubectl(&writer).await.unwrap(), "vmcp/agent-1");
    assert!(agent.process.log().contains(WAITS), "{}", agent.process.log());

    let variables = empty_variables("controller");
    assert!(variables.len() > 25, "{variables:?}");
    let options = ClusterOptions { controller_env: variables, ..ClusterOptions::default() };
    World::start(options.size(1, 1)).await;
}

#[tokio::test]
async fn an_agent_is_ready_with_an_api_server_and_without_a_lease() {
    let world = World::start(ClusterOptions::default().size(0, 0)).await;
    let agent = world.agent("agent-1", AgentOptions::default()).await.unwrap();
    let ready = async |wanted: u16| {
        eventually(PATIENCE, &format!("/readyz answers {wanted}"), async || {
            let (status, text) = agent.admin("/readyz").await.ok()?;
            (status == wanted).then_some(text)
        })
        .await
        .unwrap()
    };
    ready(200).await;
    let state =
        async |what: &str| agent.metric(&format!("vmcp_agent_reads_total{{outcome=\"{what}\"}}")).await.unwrap();
    assert!(state("not_found").await < 1.0, "to look at the API server is no read");
    world.plane.apiserver().kill9().await.unwrap();
    let text = ready(503).await;
    assert!(text.contains("no lease is held"), "{text}");
    world.plane.apiserver().restart().await.unwrap();
    ready(200).await;
}

#[tokio::test]
async fn who_holds_an_older_state_can_be_asked_for() {
    let world = world().await;
    let (first, second) = tokio::join!(
        agent(&world, "agent-1", AgentOptions::default()),
        agent(&world, "agent-2", AgentOptions::default())
    );
    let (mut a, mut b) = (first.client().await.unwrap(), second.client().await.unwrap());
    ask(&mut a, &["HSET", "s1", "user", "canary-7f3a"]).await;
    held(&first, &mut a, "s1").await;
    held(&second, &mut b, "s1").await;
    ask(&mut b, &["HSET", "s1", "color", "red"]).await;
    let (program, args) = &first.command;
    let holders = |key: &str| {
        let mut command = Command::new(program);
        let output = command.args(args).args(["holders", key]).env("KUBECONFIG", &first.access.kubeconfig).output();
        let output = output.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout) + &text(output.stderr))
    };
    let text = eventually(PATIENCE, "the controller has told of the change", async || {
        let (found, text) = holders("s1");
        assert!(found, "{text}");
        text.contains("generation 2 made").then_some(text)
    })
    .await
    .unwrap();
    assert!(text.starts_with("s1  (vmcpsessions s1, generation 2)\n"), "{text}");
    // The writer may count as one of them: its new copy has replaced an older one.
    assert!(text.contains(" pods drop their copies at ") && text.contains("changed keys: color"), "{text}");
    assert!(text.contains("NoHolders: ") || text.contains("AllPodsCurrent: "), "{text}");
    assert!(!text.contains("canary"), "{text}");
    let (found, text) = holders("none");
    assert!(!found && text.contains("there is no session"), "{text}");
}
