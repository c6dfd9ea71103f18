//! Uses an agent, or a Redis server, as a vMCP server written in Rust would, with redis-rs.
//!
//! A line is printed for each check: "ok NAME", or "FAILED NAME: why". The exit code is 1 when one has failed.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::caching::CacheConfig;
use redis::{AsyncCommands, AsyncConnectionConfig, Client, ErrorKind, Expiry, InfoDict, SetExpiry, SetOptions};
use redis::{ExistenceCheck, ServerErrorKind, pipe};

/// Longer than anything takes that works, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
const TTL: u64 = 1800;
/// Asks whoever runs this program to kill the server with SIGKILL, and to start it again.
const KILL_ME: &str = "kill the server";

/// Checks a server of sessions with redis-rs.
#[derive(Parser)]
struct Options {
    /// HOST:PORT of the server.
    #[arg(long)]
    address: String,
    /// A second server of the same sessions.
    #[arg(long)]
    other: Option<String>,
    /// Prefix of the keys.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Password, if one is needed.
    #[arg(long)]
    password: Option<String>,
    /// The server is Redis: it forgets all when it is killed.
    #[arg(long)]
    plain: bool,
}

/// Why a check failed.
struct Failed(String);

impl<E: Display> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

type Checked = Result<(), Failed>;

fn same<T: PartialEq + Debug>(what: &str, got: &T, want: &T) -> Checked {
    if got == want { Ok(()) } else { Err(Failed(format!("{what}: got {got:?}, want {want:?}"))) }
}

/// Calls `check` until it returns true; errors are passed over.
async fn eventually(what: &str, mut check: impl AsyncFnMut() -> Result<bool, Failed>) -> Checked {
    let end = Instant::now() + PATIENCE;
    let mut last = String::new();
    while Instant::now() < end {
        match check().await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(Failed(why)) => last = why,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(Failed(format!("{what}: not within {PATIENCE:?}; last error: {last}")))
}

struct Checks {
    options: Options,
    client: Client,
    connection: ConnectionManager,
    other: MultiplexedConnection,
}

impl Checks {
    async fn start(options: Options) -> Result<Self, Failed> {
        let login = options.password.as_ref().map_or_else(String::new, |password| format!(":{password}@"));
        let open = |address: &str| Client::open(format!("redis://{login}{address}/?protocol=resp3"));
        let client = open(&options.address)?;
        let other = open(options.other.as_deref().unwrap_or(&options.address))?;
        let patient = ConnectionManagerConfig::new().set_response_timeout(Some(PATIENCE));
        let connection = client.get_connection_manager_with_config(patient).await?;
        let patient = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let other = other.get_multiplexed_async_connection_with_config(&patient).await?;
        Ok(Self { options, client, connection, other })
    }

    fn key(&self, name: &str) -> String {
        format!("{}redis-rs-{name}", self.options.prefix)
    }

    /// A key that does not exist.
    async fn fresh(&self, name: &str) -> Result<String, Failed> {
        let key = self.key(name);
        let () = self.connection.clone().del(&key).await?;
        Ok(key)
    }

    async fn life_cycle(&self) -> Checked {
        let (mut here, mut there) = (self.connection.clone(), self.other.clone());
        let key = self.fresh("life").await?;
        let placeholder = SetOptions::default().conditional_set(ExistenceCheck::NX).with_expiration(SetExpiry::EX(TTL));
        let created: Option<String> = here.set_options(&key, "{}", placeholder.clone()).await?;
        same("placeholder", &created.as_deref(), &Some("OK"))?;
        let created: Option<String> = there.set_options(&key, "{}", placeholder).await?;
        same("placeholder again, elsewhere", &created, &None)?;
        let update = SetOptions::default().conditional_set(ExistenceCheck::XX).with_expiration(SetExpiry::EX(TTL));
        let updated: Option<String> = here.set_options(&key, r#"{"a":"b"}"#, update.clone()).await?;
        same("XX", &updated.as_deref(), &Some("OK"))?;
        let value: Option<String> = there.get_ex(&key, Expiry::EX(TTL)).await?;
        same("read and renewed elsewhere", &value.as_deref(), &Some(r#"{"a":"b"}"#))?;
        let old: Option<String> = here.set_options(&key, r#"{"a":"c"}"#, SetOptions::default().get(true)).await?;
        same("SET GET", &old.as_deref(), &Some(r#"{"a":"b"}"#))?;
        let deleted: u64 = there.del(&key).await?;
        same("deleted", &deleted, &1)?;
        let gone: Option<String> = here.get(&key).await?;
        same("gone", &gone, &None)?;
        let updated: Option<String> = here.set_options(&key, "{}", update).await?;
        same("XX without a session", &updated, &None)
    }

    async fn timeouts(&self) -> Checked {
        let mut here = self.connection.clone();
        let key = self.fresh("ttl").await?;
        let ttl = async |here: &mut ConnectionManager| redis::cmd("TTL").arg(&key).query_async::<i64>(here).await;
        same("TTL of nothing", &ttl(&mut here).await?, &-2)?;
        let () = here.set(&key, "{}").await?;
        same("TTL of a session without", &ttl(&mut here).await?, &-1)?;
        same("EXPIRE", &here.expire::<_, bool>(&key, 100).await?, &true)?;
        same("TTL", &(30..=100).contains(&ttl(&mut here).await?), &true)?;
        same("PERSIST", &here.persist::<_, bool>(&key).await?, &true)?;
        same("TTL after PERSIST", &ttl(&mut here).await?, &-1)?;
        let (before, short) = (Instant::now(), Duration::from_millis(400));
        same("PEXPIRE", &here.pexpire::<_, bool>(&key, 400).await?, &true)?;
        let mut there = self.other.clone();
        eventually("it ends", async || Ok(here.get::<_, Option<String>>(&key).await?.is_none())).await?;
        eventually("it ends elsewhere", async || Ok(there.get::<_, Option<String>>(&key).await?.is_none())).await?;
        same("not before its time", &(before.elapsed() >= short), &true)
    }

    async fn hash(&self) -> Checked {
        let (mut here, mut there) = (self.connection.clone(), self.other.clone());
        let key = self.fresh("hash").await?;
        let () = here.hset_multiple(&key, &[("b", "2"), ("a", "1")]).await?;
        let fields: BTreeMap<String, String> = there.hgetall(&key).await?;
        let want = [("a", "1"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        same("HGETALL elsewhere", &fields, &BTreeMap::from(want))?;
        same("HINCRBY", &there.hincr::<_, _, _, i64>(&key, "a", -3).await?, &-2)?;
        same("HMGET", &here.hmget(&key, &["a", "c"]).await?, &vec![Some("-2".to_owned()), None])?;
        same("HDEL", &here.hdel::<_, _, u64>(&key, &["a", "b", "c"]).await?, &2)?;
        same("gone", &here.exists::<_, bool>(&key).await?, &false)
    }

    async fn pipeline(&self) -> Checked {
        let mut here = self.connection.clone();
        let value = |n: usize| format!(r#"{{"n":"{n}"}}"#);
        let mut commands = pipe();
        for n in 0..20 {
            let key = self.key(&format!("pipe-{n}"));
            commands.set(&key, value(n)).ignore().get(&key).del(&key).ignore();
        }
        let values: Vec<String> = commands.query_async(&mut here).await?;
        same("answers", &values, &(0..20).map(value).collect())?;
        // Many requests that wait at once share a connection.
        let keys: Vec<String> = (0..20).map(|n| self.key(&format!("many-{n}"))).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for key in keys.clone() {
            let mut here = here.clone();
            tasks.spawn(async move {
                let value = format!(r#"{{"key":"{key}"}}"#);
                here.set::<_, _, ()>(&key, &value).await?;
                Ok::<_, redis::RedisError>(here.get::<_, String>(&key).await? == value)
            });
        }
        for done in tasks.join_all().await {
            same("its own value", &done?, &true)?;
        }
        same("DEL", &here.del::<_, u64>(&keys).await?, &20)
    }

    async fn transaction(&self) -> Checked {
        let mut here = self.connection.clone();
        let key = self.fresh("tx").await?;
        let mut commands = pipe();
        commands.atomic().set(&key, r#"{"n":"1"}"#).ignore().expire(&key, 100).get(&key);
        let (expires, value): (bool, String) = commands.query_async(&mut here).await?;
        same("EXPIRE", &expires, &true)?;
        same("its own write", &value.as_str(), &r#"{"n":"1"}"#)?;
        same("DEL", &here.del::<_, u64>(&key).await?, &1)
    }

    async fn errors(&self) -> Checked {
        let mut here = self.connection.clone();
        let answer = redis::cmd("NOSUCH").arg("a").query_async::<()>(&mut here).await;
        let Err(error) = answer else { return Err(Failed("an unknown command was taken".into())) };
        same("kind", &error.kind(), &ErrorKind::Server(ServerErrorKind::ResponseError))?;
        let text = "unknown command 'NOSUCH', with args beginning with: 'a' ";
        same("text", &error.detail(), &Some(text))?;
        if self.options.plain {
            return Ok(());
        }
        let key = self.fresh("errors").await?;
        for value in ["text", r#"{"n":1}"#, "[]", r#"{"a":{}}"#] {
            same("refused", &here.set::<_, _, ()>(&key, value).await.is_err(), &true)?;
            same("nothing has changed", &here.exists::<_, bool>(&key).await?, &false)?;
        }
        Ok(())
    }

    /// A copy in the client's memory is dropped when another client writes.
    async fn tracking(&self) -> Checked {
        let key = self.fresh("tracking").await?;
        let caching =
            AsyncConnectionConfig::new().set_cache_config(CacheConfig::new()).set_response_timeout(Some(PATIENCE));
        let mut here = self.client.get_multiplexed_async_connection_with_config(&caching).await?;
        let mut there = self.other.clone();
        let () = there.set(&key, r#"{"n":"1"}"#).await?;
        let hits = |here: &MultiplexedConnection| here.get_cache_statistics().map_or(0, |s| s.hit);
        eventually("the client keeps a copy", async || {
            let before = hits(&here);
            let value: String = here.get(&key).await?;
            Ok(value == r#"{"n":"1"}"# && hits(&here) > before)
        })
        .await?;
        let () = there.set(&key, r#"{"n":"2"}"#).await?;
        eventually("the copy is dropped", async || Ok(here.get::<_, String>(&key).await? == r#"{"n":"2"}"#)).await?;
        same("DEL", &there.del::<_, u64>(&key).await?, &1)?;
        eventually("the copy is dropped", async || Ok(here.get::<_, Option<String>>(&key).await?.is_none())).await
    }

    async fn reconnect(&self) -> Checked {
        let mut here = self.connection.clone();
        let key = self.fresh("reconnect").await?;
        let () = here.set(&key, r#"{"n":"1"}"#).await?;
        let process = async |here: &mut ConnectionManager| {
            let info: InfoDict = redis::cmd("INFO").arg("server").query_async(here).await?;
            info.get::<u64>("process_id").ok_or_else(|| Failed("INFO server names no process".into()))
        };
        let before = process(&mut here).await?;
        println!("{KILL_ME}");
        eventually("another process answers", async || Ok(process(&mut here).await? != before)).await?;
        if self.options.plain {
            return Ok(here.set(&key, "{}").await?);
        }
        let mut session = None;
        eventually("the session is answered", async || {
            session = here.get_ex::<_, Option<String>>(&key, Expiry::EX(TTL)).await?;
            Ok(true)
        })
        .await?;
        same("the session", &session.as_deref(), &Some(r#"{"n":"1"}"#))?;
        same("DEL", &here.del::<_, u64>(&key).await?, &1)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let checks = match Checks::start(Options::parse()).await {
        Ok(checks) => checks,
        Err(Failed(why)) => {
            println!("FAILED connect: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    let mut tell = |name: &str, checked: Checked| match checked {
        Ok(()) => println!("ok {name}"),
        Err(Failed(why)) => {
            println!("FAILED {name}: {why}");
            code = ExitCode::FAILURE;
        }
    };
    tell("life cycle", checks.life_cycle().await);
    tell("timeouts", checks.timeouts().await);
    tell("hash", checks.hash().await);
    tell("pipeline", checks.pipeline().await);
    tell("transaction", checks.transaction().await);
    tell("errors", checks.errors().await);
    tell("tracking", checks.tracking().await);
    tell("reconnect", checks.reconnect().await);
    code
}
