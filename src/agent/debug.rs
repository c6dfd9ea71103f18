//! `vmcp-session agent get|ls|holders`: a look into a running agent, for whoever debugs inside a pod. It is started with the
//! agent's own arguments, or, in its container, with its environment.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use thiserror::Error;

use super::config::{AgentArgs, ArgsError};
use super::sessions::NameError;
use crate::api::{LastEviction, VmcpSession};
use crate::runtime::api_error::ApiError;
use crate::runtime::kube_client::{KubeConfigError, Timeouts};

/// How long an answer may take: a write that must be visible everywhere may wait for a lease.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest answer: no session is larger.
const LONGEST: usize = 4 << 20;
/// Deepest answer.
const DEEPEST: usize = 8;

/// The help of a look shows what is its own: all settings of the agent beside that would hide it.
const HELP: &str = "\
{about}

{usage-heading} {usage}

Arguments:
{positionals}

The agent is found by its own options, which may stand before or behind, or by their variables:
`vmcp-session agent --help` shows them. (Those of the Kubernetes API stand before.)
";

/// Serves the sessions of a namespace in the Redis protocol, or looks into an agent that does.
#[derive(Args, Clone, Debug)]
// Settings are understood behind the name of a look too, where everybody writes them.
// Not so those of the API server, which need or exclude each other: that is judged before what stands on either side comes together.
#[command(mut_args(|arg| if arg.get_id().as_str().starts_with("kube") { arg } else { arg.global(true) }))]
pub struct AgentCommand {
    /// The agent's settings.
    #[command(flatten)]
    pub args: AgentArgs,

    /// What to look at, instead of serving.
    #[command(subcommand)]
    pub look: Option<Look>,
}

/// What to look at.
#[derive(Clone, Debug, Subcommand)]
pub enum Look {
    /// Show a session: its fields, how it was written, how long it still lives.
    #[command(help_template = HELP)]
    Get {
        /// The key: prefix and session id.
        key: String,
    },
    /// List the keys of the sessions that the agent holds.
    #[command(help_template = HELP)]
    Ls {
        /// Only those that match this pattern (`*`, `?`, `[a-z]`).
        pattern: Option<String>,
    },
    /// Show what the controller has written into the session's object: whether pods still hold an older state, as of which generation.
    #[command(help_template = HELP)]
    Holders {
        /// The key: prefix and session id.
        key: String,
    },
}

/// Nothing can be shown.
#[derive(Debug, Error)]
pub enum LookError {
    /// The arguments make no sense.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// The agent cannot be reached.
    #[error("cannot reach the agent at {place}: {source}")]
    Unreachable {
        /// Where it was looked for.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// It was reached, and then not heard of any more.
    #[error("the agent does not answer: {0}")]
    Silent(#[from] io::Error),
    /// It answered something that is no answer.
    #[error("the agent's answer is not understood")]
    Malformed,
    /// It refused.
    #[error("the agent says: {0}")]
    Refused(String),
    /// The key can mean no session.
    #[error(transparent)]
    Key(#[from] NameError),
    /// The API client cannot be configured.
    #[error(transparent)]
    Kube(#[from] KubeConfigError),
    /// The API server does not give the session.
    #[error("cannot read the session: {0}")]
    Api(#[from] ApiError),
    /// There is nothing to show.
    #[error("there is no session with the key '{0}'")]
    NoSuchSession(String),
}

/// An answer, as far as it is needed here.
#[derive(Debug)]
enum Answer {
    Text(String),
    Int(i64),
    Null,
    List(Vec<Answer>),
}

impl Answer {
    fn text(self) -> Result<String, LookError> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(LookError::Malformed),
        }
    }

    fn list(self) -> Result<Vec<Self>, LookError> {
        match self {
            Self::List(list) => Ok(list),
            _ => Err(LookError::Malformed),
        }
    }
}

trait Duplex: Read + Write {}
impl<S: Read + Write> Duplex for S {}

/// A connection to an agent.
struct Connection(BufReader<Box<dyn Duplex>>);

impl Connection {
    /// Connects as the agent's arguments say, and shows the password.
    fn open(args: &AgentArgs) -> Result<Self, LookError> {
        let stream: Box<dyn Duplex> = match (&args.unix_socket, args.listen.0) {
            (Some(path), _) => Box::new(unix(path)?),
            (None, Some(address)) => {
                let unreachable = |source| LookError::Unreachable { place: address.to_string(), source };
                let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).map_err(unreachable)?;
                stream.set_read_timeout(Some(ANSWER))?;
                Box::new(stream)
            }
            (None, None) => return Err(ArgsError::Nowhere.into()),
        };
        let mut connection = Self(BufReader::new(stream));
        if let Some(password) = args.password_line()? {
            connection.call(&[b"AUTH", &password])?;
        }
        // What the pod's server writes next must not depend on who has looked at what.
        connection.call(&[b"CLIENT", b"NO-TOUCH", b"ON"])?;
        Ok(connection)
    }

    fn call(&mut self, args: &[&[u8]]) -> Result<Answer, LookError> {
        let mut frame = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            frame.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            frame.extend_from_slice(arg);
            frame.extend_from_slice(b"\r\n");
        }
        let stream = self.0.get_mut();
        stream.write_all(&frame)?;
        stream.flush()?;
        self.answer(0)
    }

    fn answer(&mut self, depth: usize) -> Result<Answer, LookError> {
        let mut line = String::new();
        (&mut self.0).take(LONGEST as u64).read_line(&mut line)?;
        let line = line.strip_suffix("\r\n").ok_or(LookError::Malformed)?;
        let (kind, rest) = line.split_at_checked(1).ok_or(LookError::Malformed)?;
        let number = || rest.parse::<i64>().map_err(|_| LookError::Malformed);
        match kind {
            "+" => Ok(Answer::Text(rest.to_owned())),
            "-" => Err(LookError::Refused(rest.to_owned())),
            ":" => Ok(Answer::Int(number()?)),
            "$" | "*" if rest == "-1" => Ok(Answer::Null),
            "$" => {
                let length = usize::try_from(number()?).ok().filter(|n| *n <= LONGEST).ok_or(LookError::Malformed)?;
                let mut text = vec![0; length + 2];
                self.0.read_exact(&mut text)?;
                text.truncate(length);
                Ok(Answer::Text(String::from_utf8_lossy(&text).into_owned()))
            }
            "*" if depth < DEEPEST => {
                let length = usize::try_from(number()?).ok().filter(|n| *n <= LONGEST).ok_or(LookError::Malformed)?;
                (0..length).map(|_| self.answer(depth + 1)).collect::<Result<_, _>>().map(Answer::List)
            }
            _ => Err(LookError::Malformed),
        }
    }
}

fn unix(path: &PathBuf) -> Result<UnixStream, LookError> {
    let unreachable = |source| LookError::Unreachable { place: path.display().to_string(), source };
    let stream = UnixStream::connect(path).map_err(unreachable)?;
    stream.set_read_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// Looks at what was asked for, and writes it to `out`.
pub fn look(args: &AgentArgs, look: &Look, out: &mut impl Write) -> Result<(), LookError> {
    match look {
        Look::Get { key } => get(&mut Connection::open(args)?, key, out),
        Look::Ls { pattern } => list(&mut Connection::open(args)?, pattern.as_deref().unwrap_or("*"), out),
        Look::Holders { key } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(holders(args, key, out))
        }
    }
}

/// What the controller has written into the session's object: the agent knows of itself only.
async fn holders(args: &AgentArgs, key: &str, out: &mut impl Write) -> Result<(), LookError> {
    let name = args.sessions().name(key.as_bytes())?;
    let sessions: Api<VmcpSession> = Api::namespaced(args.kube.client(Timeouts::default()).await?, &args.namespace);
    let found = tokio::time::timeout(ANSWER, sessions.get_opt(&name)).await.map_err(io::Error::from)?;
    let session = found.map_err(ApiError::from)?.ok_or_else(|| LookError::NoSuchSession(key.to_owned()))?;
    let generation = session.metadata.generation.unwrap_or_default();
    writeln!(out, "{key}  (vmcpsessions {name}, generation {generation})")?;
    let status = session.status.unwrap_or_default();
    match status.conditions.iter().find(|condition| condition.type_ == "Synced") {
        Some(synced) => writeln!(out, "  {}", told(synced, generation))?,
        None => writeln!(out, "  the controller has not said anything yet")?,
    }
    if let Some(LastEviction { generation, time, pods, changed_keys }) = status.last_eviction {
        let (at, keys) = (time.0, changed_keys.join(", "));
        writeln!(out, "  generation {generation} made {pods} pods drop their copies at {at}; changed keys: {keys}")?;
    }
    Ok(())
}

/// A condition with what it is of: it is written a little after a change, and not at all when pods only read.
fn told(synced: &Condition, generation: i64) -> String {
    let Condition { status, reason, message, last_transition_time, observed_generation, .. } = synced;
    let of = observed_generation.unwrap_or_default();
    let age = if of == generation { String::new() } else { format!(" (the object is at {generation}: out of date)") };
    let since = last_transition_time.0;
    format!("{reason}: {message}; as of generation {of}{age} (Synced is {status} since {since})")
}

fn get(agent: &mut Connection, key: &str, out: &mut impl Write) -> Result<(), LookError> {
    // These two ask the API server. Who looks because it is away still sees what the agent serves on its lease.
    let mut unasked = None;
    let form = match agent.call(&[b"TYPE", key.as_bytes()]) {
        Err(LookError::Refused(why)) => {
            unasked = Some(why);
            "type not known".to_owned()
        }
        form => form?.text()?,
    };
    if form == "none" {
        return Err(LookError::NoSuchSession(key.to_owned()));
    }
    let left = match agent.call(&[b"PTTL", key.as_bytes()]) {
        Err(LookError::Refused(why)) => {
            unasked = Some(why);
            "time left not known".to_owned()
        }
        left => match left? {
            Answer::Int(-1) => "no timeout".to_owned(),
            Answer::Int(left) => format!("{:?} left", Duration::from_millis(u64::try_from(left).unwrap_or_default())),
            _ => return Err(LookError::Malformed),
        },
    };
    let fields = agent.call(&[b"HGETALL", key.as_bytes()])?.list()?;
    if let Some(why) = unasked.take_if(|_| fields.is_empty()) {
        // There is no such session, perhaps, or it has no fields.
        return Err(LookError::Refused(why));
    }
    writeln!(out, "{key}  ({form}, {left}, {} fields)", fields.len() / 2)?;
    if let Some(why) = unasked {
        writeln!(out, "  (the fields are those of the agent's copy; the rest could not be asked: {why})")?;
    }
    let mut fields = fields.into_iter();
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        writeln!(out, "  {} = {}", field.text()?.escape_debug(), value.text()?.escape_debug())?;
    }
    Ok(())
}

fn list(agent: &mut Connection, pattern: &str, out: &mut impl Write) -> Result<(), LookError> {
    let mut cursor = "0".to_owned();
    let mut keys = std::collections::BTreeSet::new();
    loop {
        let page = agent.call(&[b"SCAN", cursor.as_bytes(), b"MATCH", pattern.as_bytes(), b"COUNT", b"1000"])?;
        let mut page = page.list()?.into_iter();
        let (Some(next), Some(found)) = (page.next(), page.next()) else {
            return Err(LookError::Malformed);
        };
        for key in found.list()? {
            keys.insert(key.text()?);
        }
        cursor = next.text()?;
        if cursor == "0" {
            break;
        }
    }
    for key in keys {
        writeln!(out, "{}", key.escape_debug())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        agent: AgentCommand,
    }

    #[test]
    fn settings_may_stand_before_a_look_and_behind_it() {
        let settings = ["--listen=127.0.0.1:7001", "--namespace=team-a"];
        for args in [
            ["test", settings[0], settings[1], "ls", "mcp:*"],
            ["test", settings[0], "ls", settings[1], "mcp:*"],
            ["test", "ls", "mcp:*", settings[0], settings[1]],
        ] {
            let AgentCommand { args: agent, look } = Command::try_parse_from(args).unwrap().agent;
            assert_eq!(agent.listen.0, Some("127.0.0.1:7001".parse().unwrap()), "{args:?}");
            assert_eq!(agent.namespace, "team-a", "{args:?}");
            assert!(matches!(look, Some(Look::Ls { pattern: Some(pattern) }) if pattern == "mcp:*"), "{args:?}");
        }
        // Those need each other, wherever one of them comes from.
        let api = ["--kube-api-server=https://h", "--kube-ca-file=c", "--kube-token-file=t"];
        let before = Command::try_parse_from(["test"].into_iter().chain(api).chain(["get", "k"])).unwrap().agent;
        assert!(before.args.kube.kube_api_server.is_some() && before.look.is_some());
        assert!(Command::try_parse_from(["test", "get", "k"].into_iter().chain(api)).is_err());
        let serves = Command::try_parse_from(["test", settings[0]]).unwrap().agent;
        assert!(serves.look.is_none() && serves.args.listen.0 == Some("127.0.0.1:7001".parse().unwrap()));
    }

    #[test]
    fn the_help_of_a_look_shows_what_is_its_own() {
        let mut command = Command::command();
        command.build();
        for (look, argument) in [("get", "<KEY>"), ("ls", "[PATTERN]"), ("holders", "<KEY>")] {
            let help = command.find_subcommand_mut(look).unwrap().render_long_help().to_string();
            assert!(help.contains(&format!(" {look} [OPTIONS] {argument}\n")), "{help}");
            assert!(help.contains(&format!("\n  {argument}\n")) && !help.contains("--cache-bytes"), "{help}");
        }
    }

    /// An agent that has these answers, whatever it is asked.
    struct Scripted(io::Cursor<Vec<u8>>);

    impl Read for Scripted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Scripted {
        fn write(&mut self, request: &[u8]) -> io::Result<usize> {
            Ok(request.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shown(answers: &str) -> Result<String, LookError> {
        let agent = Scripted(io::Cursor::new(answers.as_bytes().to_vec()));
        let mut out = Vec::new();
        get(&mut Connection(BufReader::new(Box::new(agent))), "s", &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn what_is_served_on_a_lease_is_shown_while_the_api_server_is_away() {
        let fields = "*2\r\n$1\r\na\r\n$1\r\n1\r\n";
        let all = shown(&format!("+hash\r\n:-1\r\n{fields}")).unwrap();
        assert_eq!(all, "s  (hash, no timeout, 1 fields)\n  a = 1\n");
        let away = "-TRYAGAIN no answer\r\n";
        let copy = shown(&format!("{away}{away}{fields}")).unwrap();
        let expected = "s  (type not known, time left not known, 1 fields)\n  (the fields are those of the agent's copy; the \
            rest could not be asked: TRYAGAIN no answer)\n  a = 1\n";
        assert_eq!(copy, expected);
        for fields in [away, "*0\r\n"] {
            let nothing = shown(&format!("{away}{away}{fields}"));
            assert!(matches!(nothing, Err(LookError::Refused(_))), "{nothing:?}");
        }
        assert!(matches!(shown("+none\r\n"), Err(LookError::NoSuchSession(_))));
    }

    #[test]
    fn what_the_controller_told_of_an_older_generation_is_not_shown_as_if_of_now() {
        let condition: Condition = serde_json::from_value(serde_json::json!({
            "type": "Synced", "status": "True", "reason": "NoHolders", "message": "no pod held a copy",
            "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 3,
        }))
        .unwrap();
        let now = "NoHolders: no pod held a copy; as of generation 3 (Synced is True since 2026-01-02T03:04:05Z)";
        assert_eq!(told(&condition, 3), now);
        assert!(told(&condition, 5).contains("as of generation 3 (the object is at 5: out of date) (Synced"));
    }
}
