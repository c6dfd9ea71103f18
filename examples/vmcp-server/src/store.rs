//! The sessions, from the cache library in this process or from the session agent beside it.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline, ProtocolVersion,
    PushInfo, PushKind, RedisError, RedisResult, ServerErrorKind, Value,
};
use thiserror::Error;
use tokio::sync::{Mutex, broadcast};
use tracing::warn;
use vmcp_session::cache::{
    Cache, CreateOptions, DropReason, Event, Fields, GetError, Metadata, Session, Subscription, WriteError,
    WriteOptions,
};

/// How long the agent may take to accept a connection, and to answer.
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(30);
/// Changes that wait for whoever follows them; who falls behind is told that something was missed.
const BACKLOG: usize = 1_024;

/// A session could not be read or written.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// Neither whether there is one nor what is in it can be said now.
    #[error("sessions cannot be served now: {0}")]
    Unavailable(String),
    /// It would be no valid session.
    #[error("the session was refused: {0}")]
    Refused(String),
}

/// A session as this pod sees it now.
#[derive(Clone, Debug)]
pub struct Held {
    id: Arc<str>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Copy(Session),
    Value(Fields),
}

impl Held {
    fn value(id: &Arc<str>, metadata: &Metadata) -> Self {
        Self { id: id.clone(), state: State::Value(Fields::of(metadata)) }
    }

    /// What the client knows it by.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// What it is.
    pub fn metadata(&self) -> &Fields {
        match &self.state {
            State::Copy(session) => session.metadata(),
            State::Value(metadata) => metadata,
        }
    }

    /// Whether what was made from the one can go on to be used with the other.
    pub fn is_like(&self, other: &Self) -> bool {
        let same_object = match (&self.state, &other.state) {
            (State::Copy(one), State::Copy(other)) => one.uid() == other.uid(),
            _ => true,
        };
        same_object && self.metadata() == other.metadata()
    }
}

/// What is not any more as it was.
#[derive(Clone, Debug)]
pub enum Change {
    /// This session.
    Of(Arc<str>),
    /// Any of them: what came in between was missed.
    OfAny,
}

/// Where the sessions are.
pub enum Store {
    /// Copies in this process; misses and writes go to the API server.
    Library(Cache),
    /// Copies in the agent of this pod.
    Agent(Box<Agent>),
}

impl Store {
    /// The session, if there is one, for whoever uses it now: it then ends that much later.
    pub async fn get_to_use(&self, id: &Arc<str>) -> Result<Option<Held>, StoreError> {
        match self {
            // There each look is a use.
            Self::Library(_) => self.get(id).await,
            Self::Agent(agent) => Ok(agent.get_to_use(id).await?.map(|metadata| Held::value(id, &metadata))),
        }
    }

    /// The session, if there is one.
    pub async fn get(&self, id: &Arc<str>) -> Result<Option<Held>, StoreError> {
        match self {
            Self::Library(cache) => match cache.get(id).await {
                Ok(session) => Ok(Some(Held { id: id.clone(), state: State::Copy(session) })),
                Err(GetError::NotFound) => Ok(None),
                Err(error) => Err(StoreError::Unavailable(error.to_string())),
            },
            Self::Agent(agent) => Ok(agent.get(id).await?.map(|metadata| Held::value(id, &metadata))),
        }
    }

    /// Makes a session, which nobody has asked for yet: its id is new.
    pub async fn create(&self, id: &str, metadata: Metadata, idle: Duration) -> Result<(), StoreError> {
        match self {
            Self::Library(cache) => {
                let options = CreateOptions { idle_timeout: Some(idle), ..CreateOptions::default() };
                cache.create(id, metadata, options).await.map(drop).map_err(|error| match error {
                    WriteError::Invalid { .. } | WriteError::AlreadyExists => StoreError::Refused(error.to_string()),
                    error => StoreError::Unavailable(error.to_string()),
                })
            }
            Self::Agent(agent) => agent.create(id, &metadata, idle).await,
        }
    }

    /// Ends a session. When this returns, no pod serves it any more.
    pub async fn delete(&self, id: &str) -> Result<(), StoreError> {
        match self {
            Self::Library(cache) => {
                let deleted = match cache.get(id).await {
                    Ok(session) => cache.delete(&session, WriteOptions::EVERYWHERE).await,
                    Err(error) => Err(error.into()),
                };
                match deleted {
                    Ok(()) | Err(WriteError::NotFound | WriteError::Replaced) => Ok(()),
                    Err(error) => Err(StoreError::Unavailable(error.to_string())),
                }
            }
            Self::Agent(agent) => agent.delete(id).await,
        }
    }

    /// What changes from now on, of the sessions that this pod has asked for.
    pub fn changes(&self) -> Changes {
        match self {
            Self::Library(cache) => Changes::Evictions(cache.subscribe()),
            Self::Agent(agent) => Changes::Invalidations(agent.changes.subscribe()),
        }
    }

    /// Whether sessions can be served.
    pub async fn is_ready(&self) -> bool {
        match self {
            Self::Library(cache) => cache.state().leased_for.is_some(),
            Self::Agent(agent) => agent.ask::<Value>(&redis::cmd("PING")).await.is_ok(),
        }
    }

    /// Gives back what the controllers think this pod has.
    pub async fn shutdown(&self) {
        if let Self::Library(cache) = self {
            cache.shutdown().await;
        }
    }
}

/// Changes as they come.
pub enum Changes {
    /// Copies that the library dropped.
    Evictions(Subscription),
    /// Keys that the agent called invalid.
    Invalidations(broadcast::Receiver<Change>),
}

impl Changes {
    /// The next change; none when there will be no more.
    pub async fn next(&mut self) -> Option<Change> {
        match self {
            Self::Evictions(evictions) => loop {
                match evictions.next().await? {
                    // Nothing has changed, there was only no room for it.
                    Event::Evicted(eviction) if eviction.reason == DropReason::Capacity => {}
                    Event::Evicted(eviction) => return Some(Change::Of(eviction.name)),
                    // Some were missed, or it is something that is not known here.
                    _ => return Some(Change::OfAny),
                }
            },
            Self::Invalidations(changes) => match changes.recv().await {
                Ok(change) => Some(change),
                Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::OfAny),
                Err(broadcast::error::RecvError::Closed) => None,
            },
        }
    }
}

/// The agent of this pod, through the Redis client. The client keeps nothing: a GET over loopback is cheap, and the agent
/// has the copy. Tracking is on, so that the agent says when a session that was asked for has changed.
pub struct Agent {
    client: Client,
    prefix: String,
    idle: Duration,
    connection: Mutex<Option<MultiplexedConnection>>,
    changes: broadcast::Sender<Change>,
}

impl Agent {
    /// An agent at `redis://…` or `unix://…`. Connects when it is first asked something. Sessions that are used last for
    /// `idle` from then on.
    pub fn new(url: &str, prefix: String, idle: Duration) -> Result<Self, RedisError> {
        let info = url.into_connection_info()?;
        // Invalidations come in the same connection as answers only in RESP3.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings))?;
        Ok(Self { client, prefix, idle, connection: Mutex::default(), changes: broadcast::Sender::new(BACKLOG) })
    }

    fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    async fn get(&self, id: &str) -> Result<Option<Metadata>, StoreError> {
        parsed(self.ask(redis::cmd("GET").arg(self.key(id))).await?)
    }

    /// A GET is no use of a session, as in Redis. GETEX is one, but no read that is tracked, so it takes both.
    async fn get_to_use(&self, id: &str) -> Result<Option<Metadata>, StoreError> {
        let key = self.key(id);
        let mut both = redis::pipe();
        both.cmd("EXPIRE").arg(&key).arg(self.idle.as_secs()).cmd("GET").arg(&key).ignore_errors();
        let (renewed, value): (RedisResult<i64>, RedisResult<Option<String>>) = self.ask_all(&both).await?;
        // Whoever can be served is served. The next use renews it, or it ends as if this one had not been.
        if let Err(error) = renewed {
            warn!(%error, "a session is not renewed");
        }
        parsed(value.map_err(|error| failed(&error))?)
    }

    async fn create(&self, id: &str, metadata: &Metadata, idle: Duration) -> Result<(), StoreError> {
        let value = serde_json::to_string(metadata).map_err(|error| StoreError::Refused(error.to_string()))?;
        let mut set = redis::cmd("SET");
        set.arg(self.key(id)).arg(value).arg("EX").arg(idle.as_secs()).arg("NX");
        let created: Option<String> = self.ask(&set).await?;
        created.map(drop).ok_or_else(|| StoreError::Refused("a session of that id exists".to_owned()))
    }

    async fn delete(&self, id: &str) -> Result<(), StoreError> {
        let _: i64 = self.ask(redis::cmd("DEL").arg(self.key(id))).await?;
        Ok(())
    }

    /// Asks the agent one thing.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let (answer,) = self.ask_all(redis::pipe().add_command(command.clone())).await?;
        Ok(answer)
    }

    /// Asks the agent, once more over a new connection if the old one was lost: the agent may have been started again.
    async fn ask_all<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, StoreError> {
        let mut lost = false;
        loop {
            let answer = match self.connection().await {
                Ok(mut connection) => commands.query_async(&mut connection).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_unrecoverable_error() && !lost => {
                    lost = true;
                    *self.connection.lock().await = None;
                }
                Err(error) => return Err(failed(&error)),
            }
        }
    }

    async fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held {
            return Ok(connection.clone());
        }
        let (changes, prefix) = (self.changes.clone(), self.prefix.clone());
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER))
            .set_push_sender(move |push: PushInfo| {
                for change in changed(&push, &prefix) {
                    // Fails when nobody follows, which is fine.
                    let _ = changes.send(change);
                }
                Ok::<_, std::convert::Infallible>(())
            });
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        // Of what it does itself it need not be told: else each renewal would be followed by another look.
        redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("NOLOOP").exec_async(&mut connection).await?;
        *held = Some(connection.clone());
        Ok(connection)
    }
}

fn parsed(value: Option<String>) -> Result<Option<Metadata>, StoreError> {
    let parsed = value.map(|value| serde_json::from_str(&value)).transpose();
    parsed.map_err(|_| StoreError::Unavailable("the agent's value is no JSON object of strings".to_owned()))
}

fn failed(error: &RedisError) -> StoreError {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::ResponseError) => StoreError::Refused(error.to_string()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

/// What a message of the agent says has changed.
fn changed(push: &PushInfo, prefix: &str) -> Vec<Change> {
    let of_key = |key: &Value| match key {
        Value::BulkString(key) => {
            let key = std::str::from_utf8(key).ok()?;
            Some(Change::Of(key.strip_prefix(prefix)?.into()))
        }
        _ => None,
    };
    match (&push.kind, push.data.first()) {
        (PushKind::Invalidate, Some(Value::Array(keys))) => keys.iter().filter_map(of_key).collect(),
        // All keys; and what was tracked over a connection is not tracked any more.
        (PushKind::Invalidate | PushKind::Disconnection, _) => vec![Change::OfAny],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalidations_are_told_by_session() {
        let key = |key: &str| Value::BulkString(key.as_bytes().to_vec());
        let told = |kind, data| {
            let changes = changed(&PushInfo { kind, data }, "vmcp:");
            let name = |change: &Change| match change {
                Change::Of(id) => id.to_string(),
                Change::OfAny => "any".to_owned(),
            };
            changes.iter().map(name).collect::<Vec<_>>()
        };
        let keys = Value::Array(vec![key("vmcp:a"), key("other:b"), key("vmcp:c")]);
        assert_eq!(told(PushKind::Invalidate, vec![keys]), ["a", "c"]);
        assert_eq!(told(PushKind::Invalidate, vec![Value::Nil]), ["any"]);
        assert_eq!(told(PushKind::Disconnection, vec![]), ["any"]);
        assert!(told(PushKind::Message, vec![key("x"), key("y")]).is_empty());
    }
}
