//! A client of the Redis protocol that shows everything: the order of answers and of what comes unasked.

use crate::{Error, Result};
use std::{collections::VecDeque, fmt, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_mins(1);
/// Deepest nesting of an answer.
const DEEPEST: usize = 32;

/// A value as it came.
#[derive(Debug, Clone, PartialEq)]
pub enum Resp {
    /// `+`
    Simple(String),
    /// `-`
    Error(String),
    /// `:`
    Int(i64),
    /// `$`, `=` (without its format)
    Text(String),
    /// `$-1`, `*-1`, `_`
    Null,
    /// `*`, `~`
    Array(Vec<Resp>),
    /// `%`
    Map(Vec<(Resp, Resp)>),
    /// `>`
    Push(Vec<Resp>),
    /// `,`, `#`
    Other(String),
}

impl Resp {
    /// The text of a bulk or simple string.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Simple(text) | Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is this text.
    pub fn is(&self, text: &str) -> bool {
        self.text() == Some(text)
    }

    /// The error's text.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Error(text) => Some(text),
            _ => None,
        }
    }
}

impl From<&str> for Resp {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection.
pub struct RespClient {
    stream: BufReader<Box<dyn Stream>>,
    /// What came unasked while an answer was awaited.
    pushes: VecDeque<Resp>,
}

impl fmt::Debug for RespClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RespClient").field("pushes", &self.pushes).finish_non_exhaustive()
    }
}

impl RespClient {
    /// Connects, without a word.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.map_err(Error::io(format!("connecting to {address}")))?;
        stream.set_nodelay(true).map_err(Error::io("setting up a connection"))?;
        Ok(Self::over(stream))
    }

    /// Connects to a Unix socket.
    pub async fn connect_unix(path: &std::path::Path) -> Result<Self> {
        let what = || format!("connecting to {}", path.display());
        Ok(Self::over(UnixStream::connect(path).await.map_err(Error::io(what()))?))
    }

    fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: BufReader::new(Box::new(stream)), pushes: VecDeque::new() }
    }

    /// Connects, and speaks RESP3.
    pub async fn connect3(address: SocketAddr) -> Result<Self> {
        let mut client = Self::connect(address).await?;
        match client.call(&["HELLO", "3"]).await? {
            Resp::Error(error) => Err(Error::Malformed(error)),
            _ => Ok(client),
        }
    }

    /// Sends a command and waits for its answer.
    pub async fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Resp> {
        self.send(args).await?;
        self.answer().await
    }

    /// Sends a command.
    pub async fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<()> {
        let mut frame = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            let arg = arg.as_ref();
            frame.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            frame.extend_from_slice(arg);
            frame.extend_from_slice(b"\r\n");
        }
        self.send_raw(&frame).await
    }

    /// Sends bytes as they are.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.map_err(Error::io("sending a request"))?;
        self.stream.flush().await.map_err(Error::io("sending a request"))
    }

    /// The next answer. What came unasked before it is kept.
    pub async fn answer(&mut self) -> Result<Resp> {
        loop {
            match self.next().await? {
                push @ Resp::Push(_) => self.pushes.push_back(push),
                answer => return Ok(answer),
            }
        }
    }

    /// The next message that came unasked, if it comes within `patience`.
    pub async fn push(&mut self, patience: Duration) -> Result<Option<Resp>> {
        if let Some(push) = self.pushes.pop_front() {
            return Ok(Some(push));
        }
        match timeout(patience, self.read(0)).await {
            Ok(message) => message.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// What came unasked before everything that this connection was sent until now.
    pub async fn pushes(&mut self) -> Result<Vec<Resp>> {
        self.call(&["ECHO", "fence"]).await?;
        Ok(self.pushes.drain(..).collect())
    }

    /// What came unasked before the latest answer.
    pub fn pushes_so_far(&mut self) -> Vec<Resp> {
        self.pushes.drain(..).collect()
    }

    /// Whatever comes next.
    pub async fn next(&mut self) -> Result<Resp> {
        let limit = Error::Deadline { what: "an answer".into(), waited: ANSWER };
        timeout(ANSWER, self.read(0)).await.map_err(|_| limit)?
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).await.map_err(Error::io("reading an answer"))?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
            None => Err(Error::Malformed("the connection was closed".into())),
        }
    }

    async fn read(&mut self, depth: usize) -> Result<Resp> {
        if depth > DEEPEST {
            return Err(Error::Malformed("an answer is nested too deeply".into()));
        }
        let line = self.line().await?;
        let malformed = || Error::Malformed(format!("not an answer: {line:?}"));
        let kind = line.get(..1).ok_or_else(malformed)?;
        let rest = line.get(1..).unwrap_or_default();
        let number = || rest.parse::<i64>().map_err(|_| malformed());
        Ok(match kind {
            "+" => Resp::Simple(rest.to_owned()),
            "-" => Resp::Error(rest.to_owned()),
            ":" => Resp::Int(number()?),
            "_" => Resp::Null,
            "," | "#" => Resp::Other(line.clone()),
            "$" | "=" => {
                let Ok(length) = usize::try_from(number()?) else {
                    return Ok(Resp::Null);
                };
                let mut text = vec![0; length + 2];
                self.stream.read_exact(&mut text).await.map_err(Error::io("reading an answer"))?;
                text.truncate(length);
                let text = String::from_utf8_lossy(&text).into_owned();
                // A verbatim text begins with its format.
                Resp::Text(if kind == "=" { text.get(4..).unwrap_or_default().to_owned() } else { text })
            }
            "*" | "~" | ">" => {
                let Ok(length) = usize::try_from(number()?) else {
                    return Ok(Resp::Null);
                };
                let mut items = Vec::new();
                for _ in 0..length {
                    items.push(Box::pin(self.read(depth + 1)).await?);
                }
                if kind == ">" { Resp::Push(items) } else { Resp::Array(items) }
            }
            "%" => {
                let mut pairs = Vec::new();
                for _ in 0..number()? {
                    let key = Box::pin(self.read(depth + 1)).await?;
                    pairs.push((key, Box::pin(self.read(depth + 1)).await?));
                }
                Resp::Map(pairs)
            }
            _ => return Err(malformed()),
        })
    }
}
