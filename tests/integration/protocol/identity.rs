//! Who may open a stream, and how often it is asked.

use std::time::{Duration, Instant};

use serde_json::json;
use testkit::{AuditMark, ClusterOptions, eventually, policy_rule};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use vmcp_session::controller::auth::reviews::FRESH;
use vmcp_session::proto::v1;
use vmcp_session::proto::v1::coherence_client::CoherenceClient;

use super::client::{Agent, connect, endpoint, instance, request};
use super::setup::{CANARY, PATIENCE, Shared, on_shared, soon};
use crate::world::World;

/// A stream ends so soon after its pod.
const ENDS: Duration = Duration::from_secs(45);

/// Asserts that a stream is refused like this, with a text that repeats nothing.
async fn refused(shared: &Shared, authorization: Option<&str>, code: Code, text: &str) {
    let status = Agent::open(connect(shared.address()).await, authorization).await.err().expect("it must be refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(text) && !status.message().contains(CANARY), "{status:?}");
}

#[test]
fn only_a_pods_own_token_for_this_audience_opens_a_stream() {
    on_shared(async |shared| {
        let bearer = |token: &str| format!("Bearer {token}");
        let pod = shared.pod(shared.namespace()).await;
        let no_token = "expected as metadata 'authorization: Bearer TOKEN'";
        for authorization in [None, Some(""), Some("Bearer "), Some(CANARY), Some(&*format!("Basic {}", pod.token))] {
            refused(shared, authorization, Code::Unauthenticated, no_token).await;
        }
        let not_accepted = "not made for audience 'vmcp.dev'";
        let forged = format!("{}{CANARY}", pod.token);
        let own_audience = shared.token_for(&pod, &[]).await;
        let other_audience = shared.token_for(&pod, &["other.example"]).await;
        for token in [CANARY, "a.b.c", &forged, &own_audience, &other_audience] {
            refused(shared, Some(&bearer(token)), Code::Unauthenticated, not_accepted).await;
        }
        let unbound = shared.unbound_token(&["vmcp.dev"]).await;
        refused(shared, Some(&bearer(&unbound)), Code::PermissionDenied, "not bound to a pod").await;

        // The good one is good, until its pod is gone: what is known of it is not used for long.
        let mut agent = Agent::connect(shared.address(), &pod.token).await;
        agent.leased().await;
        shared.delete_pod(&pod).await;
        let deleted = Instant::now();
        while Agent::open_with(shared.address(), &pod.token).await.is_ok() {
            assert!(deleted.elapsed() < PATIENCE, "a token of a deleted pod still opens streams");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        refused(shared, Some(&bearer(&pod.token)), Code::Unauthenticated, not_accepted).await;
    });
}

/// An open stream is looked at again: it ends with its pod, and with the right of its account to read sessions.
#[test]
fn a_stream_ends_with_its_pod_and_with_its_right() {
    on_shared(async |shared| {
        let (plane, namespace, account) = (&shared.world.plane, shared.namespace(), "reader");
        plane.create_service_account(namespace, account).await.unwrap();
        let reader = shared.pod_of(namespace, "reader", account).await;
        let not_allowed = format!("{namespace}:{account} may not get vmcpsessions in namespace {namespace}");
        refused(shared, Some(&format!("Bearer {}", reader.token)), Code::PermissionDenied, &not_allowed).await;
        let rule = policy_rule("vmcp.dev", &["vmcpsessions"], &["get"]);
        plane.bind_role(namespace, account, vec![rule]).await.unwrap();
        let agent = eventually(PATIENCE, "who may read is let in", async || {
            Agent::open_with(shared.address(), &reader.token).await.ok()
        });
        let mut reads = agent.await.unwrap().greeted(instance()).await;
        reads.leased().await;
        let pod = shared.pod(namespace).await;
        let mut lives = Agent::connect(shared.address(), &pod.token).await;
        lives.leased().await;

        let bindings = plane.kubectl(&["get", "rolebinding", "-n", namespace, "-o", "name"]).await.unwrap();
        let binding = bindings.lines().find(|name| name.contains("/reader-")).unwrap();
        plane.kubectl(&["delete", "-n", namespace, binding]).await.unwrap();
        shared.delete_pod(&pod).await;
        let ended = async |agent: &mut Agent| {
            let ended =
                tokio::time::timeout(ENDS + PATIENCE, agent.ended_though_alive()).await.expect("the stream ends");
            (ended, Instant::now())
        };
        let begun = Instant::now();
        let ((right, right_at), (life, life_at)) = tokio::join!(ended(&mut reads), ended(&mut lives));
        assert!(right.code() == Code::PermissionDenied && right.message().contains(&not_allowed), "{right:?}");
        assert_eq!(life.code(), Code::Unauthenticated, "{life:?}");
        for at in [right_at, life_at] {
            assert!(at - begun < ENDS, "it was open for {:?}", at - begun);
        }
    });
}

#[test]
fn a_pods_token_opens_no_peer_stream() {
    on_shared(async |shared| {
        let pod = shared.pod(shared.namespace()).await;
        // Not even if it is known already.
        Agent::connect(shared.address(), &pod.token).await.leased().await;
        let mut client = CoherenceClient::new(connect(shared.address()).await);
        let hello = tokio_stream::iter([v1::PeerRequest::default()]);
        let status = client.peer(request(hello, Some(&format!("Bearer {}", pod.token)))).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert!(status.message().contains("only replicas of the controller"), "{status:?}");
    });
}

/// The stream of a replica ends with its pod, as that of an agent does: whoever has its token then is no replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_stream_ends_with_its_pod() {
    let mut world = World::start(ClusterOptions::default().size(0, 0)).await;
    let (plane, operator, account) = (&world.plane, "vmcp-system", "vmcp-session-controller");
    // Somebody else leads for good: a replica that leads ends the streams of others, and so would the leader's own.
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": account, "namespace": operator},
        "spec": {"holderIdentity": "another", "leaseDurationSeconds": 3600, "renewTime": "2100-01-01T00:00:00.000000Z"},
    });
    plane.kubectl_with_input(&["create", "--filename=-"], &lease.to_string()).await.unwrap();
    let pod = plane.create_pod(operator, "another-replica", account, [127, 0, 0, 1].into()).await.unwrap();
    let hour = Duration::from_hours(1);
    let token = plane.token_for_pod(operator, account, &pod, &["vmcp.dev"], hour).await.unwrap();
    world.add_controller().await.unwrap();
    world.controllers[0].wait_ready().await.unwrap();

    let (outbox, messages) = tokio::sync::mpsc::channel(1);
    let hello = v1::PeerHello { lowest_version: 1, replica: "replica-another".to_owned(), ..Default::default() };
    outbox.send(v1::PeerRequest { message: Some(v1::peer_request::Message::Hello(hello)) }).await.unwrap();
    let mut client = CoherenceClient::new(connect(world.controllers[0].address).await);
    let opened = client.peer(request(ReceiverStream::new(messages), Some(&format!("Bearer {token}"))));
    let mut inbound = opened.await.unwrap().into_inner();
    assert!(matches!(soon("it is served", inbound.message()).await, Ok(Some(_))));
    let delete = ["delete", "pod", "-n", operator, "another-replica", "--grace-period=0", "--force", "--wait=true"];
    world.plane.kubectl(&delete).await.unwrap();
    let ends = async {
        loop {
            if let Err(status) = inbound.message().await {
                return status;
            }
        }
    };
    let status = tokio::time::timeout(ENDS, ends).await.expect("the stream ends in time");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
}

/// How many tokens the replica has had checked since then.
async fn reviews_since(shared: &Shared, mark: AuditMark) -> usize {
    shared.world.plane.apiserver().audit_flush().await.unwrap();
    let reviews = shared
        .world
        .plane
        .audit()
        .count_since(mark, |entry| entry.stage == "ResponseComplete" && entry.resource == "tokenreviews");
    reviews.unwrap()
}

#[test]
fn a_flood_of_tokens_is_no_flood_on_the_api_server() {
    on_shared(async |shared| {
        let mark = shared.world.plane.audit().mark().unwrap();
        let known = shared.pod(shared.namespace()).await;
        let mut agent = Agent::connect(shared.address(), &known.token).await;
        agent.leased().await;
        let begun = Instant::now();

        // Made-up tokens, all different, on several connections at once, from a pod that has an address of its own.
        let hostile = || endpoint(shared.address()).local_address(Some([127, 0, 7, 7].into()));
        let flood = async |part: usize| {
            let channel = hostile().connect().await.unwrap();
            let mut busy = 0;
            for n in 0..500 {
                let authorization = format!("Bearer {CANARY}-{part}-{n}");
                let status = Agent::open(channel.clone(), Some(&authorization)).await.err().unwrap();
                assert!(!status.message().contains(CANARY), "{status:?}");
                busy += usize::from(status.code() == Code::Unavailable);
            }
            busy
        };
        let floods = futures::future::join_all((0..4).map(flood));
        // Who was let in before comes back all the same, when what was known of it is too old to be used.
        let comes_back = async {
            drop(agent);
            tokio::time::sleep(FRESH + Duration::from_secs(1)).await;
            Agent::connect(shared.address(), &known.token).await.leased().await;
            // And so does who comes with a new token.
            shared.agent(shared.namespace()).await.leased().await;
        };
        let (busy, ()) = tokio::join!(floods, comes_back);
        let busy: usize = busy.into_iter().sum();

        let reviews = reviews_since(shared, mark).await;
        let most = 110 + begun.elapsed().as_millis() / 50;
        println!("2,000 made-up tokens: {reviews} reviews in {:?}, {busy} refused without", begun.elapsed());
        assert!(u128::try_from(reviews).unwrap() < most, "{reviews} reviews, at most {most} expected");
        assert!(busy > 0, "the flood was too slow to be one");

        // A bad token that comes again and again is asked for once in a few seconds.
        let mark = shared.world.plane.audit().mark().unwrap();
        let begun = Instant::now();
        let channel = connect(shared.address()).await;
        for _ in 0..300 {
            let _ = Agent::open(channel.clone(), Some("Bearer again")).await.err().unwrap();
        }
        let reviews = reviews_since(shared, mark).await;
        let most = 3 + begun.elapsed().as_secs() / 5;
        assert!(u64::try_from(reviews).unwrap() <= most, "{reviews} reviews of one token, at most {most} expected");
    });
}

#[test]
fn a_pod_has_a_few_streams_and_others_have_theirs() {
    on_shared(async |shared| {
        let pod = shared.pod(shared.namespace()).await;
        let mut agents = Vec::new();
        for _ in 0..8 {
            agents.push(Agent::connect(shared.address(), &pod.token).await);
        }
        let status = Agent::open_with(shared.address(), &pod.token).await.err().expect("the ninth must be refused");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("the pod has as many as one may have"), "{status:?}");
        shared.agent(shared.namespace()).await.leased().await;
        agents.pop();
        let again = async {
            loop {
                if let Ok(agent) = Agent::open_with(shared.address(), &pod.token).await {
                    return agent;
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        soon("one that has ended makes room", again).await.greeted(instance()).await.leased().await;
    });
}
