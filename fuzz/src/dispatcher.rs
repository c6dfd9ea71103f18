//! Any requests at all, answered by a real agent.
//!
//! Its API server is a map with two sessions, `s:1` and `s:2`, and `s:failing`, of which nobody can say whether it was
//! written. Everything else is what it is in a pod: reading requests, finding commands, their options and their refusals,
//! what they do to sessions, transactions, subscriptions, tracking. Nobody grants a lease, so each read is asked for.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::runtime::Runtime;
use vmcp_session::agent::Agent;
use vmcp_session::agent::command::{self, Client, ServerSettings};
use vmcp_session::agent::pubsub::PubSub;
use vmcp_session::agent::server::{Address, Clients, Flow, Room};
use vmcp_session::agent::sessions::{Sessions, SessionsConfig};
use vmcp_session::agent::tracking::Tracking;
use vmcp_session::cache::{CacheConfig, Visibility};
use vmcp_session::resp::{Limits, Parser};

use super::api::Api;
use super::well_formed;

/// Requests of one input that are answered. More would find nothing else.
const REQUESTS: usize = 64;
/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_mins(1);

struct Bench {
    runtime: Runtime,
    agent: Arc<Agent>,
    api: Api,
}

/// One input comes after the other: there is one API server.
fn bench() -> MutexGuard<'static, Bench> {
    static BENCH: OnceLock<Mutex<Bench>> = OnceLock::new();
    let bench = BENCH.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let api = Api::default();
        let agent = runtime.block_on(async { agent(&api) });
        Mutex::new(Bench { runtime, agent, api })
    });
    bench.lock().unwrap_or_else(PoisonError::into_inner)
}

fn agent(api: &Api) -> Arc<Agent> {
    let cache = CacheConfig {
        call_deadline: Duration::from_millis(100),
        // What is answered must not depend on how fast inputs come.
        unknown_per_second: 1_000_000,
        unknown_burst: 1_000_000,
        ..CacheConfig::new("fuzz", "fuzz")
    };
    let sessions = SessionsConfig {
        prefix: "s:".to_owned(),
        pod_local_keys: vec!["local-*".to_owned()],
        hash_key_file: None,
        // Nobody could confirm anything: each write would wait for a lease.
        visibility: Visibility::Committed,
    };
    let clients = Arc::new(Clients::new(Room { clients: 8, output: 1 << 20, memory: 8 << 20 }));
    let limit = 1 << 20;
    let settings = ServerSettings { output_limit: limit, max_bulk: limit, ..ServerSettings::default() };
    Arc::new(Agent {
        sessions: Sessions::connect(api.client(), cache, &sessions).expect("sessions"),
        commands: command::Server::new(settings),
        tracking: Tracking::new(64, Arc::clone(&clients)),
        clients,
        pubsub: PubSub::default(),
    })
}

/// Whatever is asked, each request has one answer, or as many as its flow says, and they are replies of the protocol that is
/// spoken. Nothing stays when the client has gone, and no session is what none can be.
pub fn check(data: &[u8]) {
    answers(data);
}

/// The same, and what was answered.
pub fn answers(data: &[u8]) -> BytesMut {
    let Bench { runtime, agent, api } = &*bench();
    runtime.block_on(async {
        api.begin();
        let mut all = BytesMut::new();
        let unix = Address::Unix(Arc::default());
        let handle = agent.clients.register(unix.clone(), unix).expect("room for a client");
        let mut client = Client::new(Arc::clone(&handle), false);
        let mut parser = Parser::new(Limits::default());
        let mut buf = BytesMut::from(data);
        for _ in 0..REQUESTS {
            let Ok(Some(request)) = parser.next(&mut buf) else { break };
            let answer = tokio::time::timeout(PATIENCE, command::execute(agent, &mut client, request));
            let flow = answer.await.expect("an answer");
            let (replies, ends) = match flow {
                Flow::Reply(reply) => (vec![reply], false),
                Flow::Replies(replies) => (replies, false),
                Flow::None => (Vec::new(), false),
                Flow::TooLarge => (Vec::new(), true),
                Flow::Close(reply) => (reply.into_iter().collect(), true),
            };
            let mut out = BytesMut::new();
            for reply in &replies {
                reply.encode(handle.protocol(), &mut out);
            }
            assert_eq!(well_formed::replies(&out, handle.protocol()), replies.len());
            all.extend_from_slice(&out);
            if ends {
                break;
            }
        }
        agent.clients.unregister(handle.id());
        command::disconnected(agent, &mut client);
        assert_eq!(agent.pubsub.counts(), (0, 0), "subscriptions stay");
        api.check();
        all
    })
}
