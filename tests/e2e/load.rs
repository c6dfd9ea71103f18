//! Clients that go on while something is replaced. Every answer is looked at: none may fail, and none may be older than what
//! was written before it was asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};
use testkit::{Forward, McpClient, Resp, RespClient};
use tokio::task::JoinHandle;

use crate::scene::{self, Scene, TEAM};
use crate::workload::{self, URL};

const KEY: &str = "mcp:under-load";
/// Answers that each client must have seen before and after whatever is done.
const SOME: u64 = 20;

/// A task that asks, and how many answers it has had.
struct Client {
    name: String,
    answers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<(), String>>,
}

/// Clients that ask until they are told to stop.
#[derive(Default)]
pub struct Load {
    clients: Vec<Client>,
    forwards: Vec<Forward>,
}

impl Load {
    /// Clients that speak MCP through the Service, each in one session, as fast as they are answered: one that keeps its connection,
    /// and one that comes to another pod with each request.
    #[must_use]
    pub async fn mcp(mut self, scene: &Scene) -> Self {
        for spread in [false, true] {
            let name = if spread { "MCP client of all pods" } else { "MCP client of one pod" };
            let mut client = workload::client(scene, &name.replace(' ', "-")).await;
            let opened = if spread { client.open_spread(URL).await } else { client.open(URL).await };
            opened.unwrap().ok().unwrap();
            self.spawn(name, async move |go_on| {
                while go_on() {
                    one_call(&mut client).await?;
                }
                client.close().await.map_err(|e| e.to_string())?.ok().map(drop).map_err(|e| e.to_string())
            });
        }
        self.some("MCP clients are answered").await;
        self
    }

    /// Someone who writes through one agent, and readers at each agent, that speak the Redis protocol.
    #[must_use]
    pub async fn agents(mut self, scene: &Scene) -> Self {
        let written = Arc::new(AtomicU64::new(0));
        let mut clients = BTreeMap::new();
        for name in workload::agents(scene).await.into_keys() {
            let forward = scene.node.forward(TEAM, &name, 6379).await.unwrap();
            clients.insert(name, forward.address());
            self.forwards.push(forward);
        }
        let (_, first) = clients.first_key_value().unwrap();
        let mut writer = RespClient::connect(*first).await.unwrap();
        set(&mut writer, 0).await.unwrap();
        for (name, address) in &clients {
            let (mut reader, written) = (RespClient::connect(*address).await.unwrap(), written.clone());
            self.spawn(&format!("reader at {name}"), async move |go_on| {
                while go_on() {
                    let least = written.load(Ordering::SeqCst);
                    let read = reader.call(&["GET", KEY]).await.map_err(|e| e.to_string())?;
                    let number = number(&read).ok_or_else(|| format!("GET is answered {read:?}"))?;
                    if number < least {
                        return Err(format!("stale: {number} was read after {least} had been written"));
                    }
                }
                Ok(())
            });
        }
        self.spawn("writer", async move |go_on| {
            while go_on() {
                let next = written.load(Ordering::SeqCst) + 1;
                set(&mut writer, next).await?;
                written.store(next, Ordering::SeqCst);
            }
            let deleted = writer.call(&["DEL", KEY]).await.map_err(|e| e.to_string())?;
            if deleted == Resp::Int(1) { Ok(()) } else { Err(format!("DEL is answered {deleted:?}")) }
        });
        self.some("agents answer").await;
        self
    }

    fn spawn<F>(&mut self, name: &str, work: impl FnOnce(Box<dyn Fn() -> bool + Send + Sync>) -> F)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (stop.clone(), answers.clone());
        let go_on = Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            !stopped.load(Ordering::Relaxed)
        });
        self.clients.push(Client { name: name.to_owned(), answers, stop, task: tokio::spawn(work(go_on)) });
    }

    /// Waits until each client has had some more answers.
    pub async fn some(&mut self, what: &str) {
        for client in &mut self.clients {
            let least = client.answers.load(Ordering::Relaxed) + SOME;
            let (answers, task) = (&client.answers, &client.task);
            let what = format!("{what}: {}", client.name);
            let came = scene::comes_to(&what, async || {
                (answers.load(Ordering::Relaxed) >= least || task.is_finished()).then_some(())
            });
            came.await.unwrap();
            assert!(!client.task.is_finished(), "{what}: it has ended: {:?}", (&mut client.task).await);
        }
    }

    /// Stops all clients, one after the other as they began: whoever reads has ended before the writer deletes. Says how many answers there were, all of them right.
    pub async fn end(mut self) -> Value {
        self.some("after all").await;
        let mut answers = serde_json::Map::new();
        for client in self.clients {
            client.stop.store(true, Ordering::Relaxed);
            let ended = client.task.await.unwrap();
            assert_eq!(ended, Ok(()), "{}, after {} answers", client.name, client.answers.load(Ordering::Relaxed));
            answers.insert(client.name, json!(client.answers.load(Ordering::Relaxed)));
        }
        Value::Object(answers)
    }
}

async fn one_call(client: &mut McpClient) -> Result<(), String> {
    let answer = client.call("weather_forecast", &json!({"city": "Bern"})).await.map_err(|e| e.to_string())?;
    let right = json!({"failed": false, "text": "Bern: sunny, as always"});
    if answer.outcome == Ok(right) { Ok(()) } else { Err(format!("a call is answered {answer:?}")) }
}

async fn set(writer: &mut RespClient, number: u64) -> Result<(), String> {
    let value = json!({"n": number.to_string()}).to_string();
    let answer = writer.call(&["SET", KEY, &value]).await.map_err(|e| e.to_string())?;
    if answer.is("OK") { Ok(()) } else { Err(format!("SET is answered {answer:?}")) }
}

fn number(read: &Resp) -> Option<u64> {
    serde_json::from_str::<Value>(read.text()?).ok()?["n"].as_str()?.parse().ok()
}
