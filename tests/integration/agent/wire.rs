//! The Redis protocol as a client sees it, and as little of it as tests need. Written apart from the product's own, so
//! that both do not share a mistake. Types are kept as they came: a test tells `$-1` from `*-1` and from `_`.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_mins(1);

/// An answer, with its type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    /// `$-1`
    NullBulk,
    /// `*-1`
    NullArray,
    /// `_`
    Null,
    Bool(bool),
    Double(String),
    Big(String),
    Verbatim(Vec<u8>),
    Array(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Set(Vec<Value>),
    Push(Vec<Value>),
}

impl Value {
    /// What is in an array, set or push.
    pub fn items(&self) -> &[Value] {
        match self {
            Self::Array(items) | Self::Set(items) | Self::Push(items) => items,
            _ => &[],
        }
    }

    /// A string, of whatever kind; empty if it is none.
    pub fn text(&self) -> String {
        match self {
            Self::Simple(text) | Self::Error(text) => text.clone(),
            Self::Bulk(bytes) | Self::Verbatim(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        }
    }
}

/// Bytes as somebody would type them for redis-cli.
pub fn quoted(bytes: &[u8]) -> String {
    let plain = |b: &u8| b.is_ascii_graphic() && !b"\"'\\".contains(b);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    format!("\"{}\"", bytes.escape_ascii())
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, name: &str, items: &[Value]| {
            write!(f, "{name}[")?;
            for (at, item) in items.iter().enumerate() {
                write!(f, "{}{item}", if at > 0 { ", " } else { "" })?;
            }
            f.write_str("]")
        };
        match self {
            Self::Simple(text) => write!(f, "+{text}"),
            Self::Error(text) => write!(f, "-{text}"),
            Self::Int(number) => write!(f, ":{number}"),
            Self::Bulk(bytes) => write!(f, "${}", quoted(bytes)),
            Self::NullBulk => f.write_str("$-1"),
            Self::NullArray => f.write_str("*-1"),
            Self::Null => f.write_str("_"),
            Self::Bool(value) => write!(f, "#{value}"),
            Self::Double(text) => write!(f, ",{text}"),
            Self::Big(text) => write!(f, "({text}"),
            Self::Verbatim(bytes) => write!(f, "={}", quoted(bytes)),
            Self::Array(items) => list(f, "*", items),
            Self::Set(items) => list(f, "~", items),
            Self::Push(items) => list(f, ">", items),
            Self::Map(entries) => {
                f.write_str("%{")?;
                for (at, (key, value)) in entries.iter().enumerate() {
                    write!(f, "{}{key}: {value}", if at > 0 { ", " } else { "" })?;
                }
                f.write_str("}")
            }
        }
    }
}

/// A connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer is malformed: {what}"))
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(|_| malformed(text))
}

impl Connection {
    /// Connects.
    pub async fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a command.
    pub async fn send(&mut self, args: &[impl AsRef<[u8]>]) -> io::Result<()> {
        let mut out = Vec::new();
        encode(args, &mut out);
        self.send_bytes(&out).await
    }

    /// Sends these bytes.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes).await
    }

    /// Reads an answer, or a push.
    pub async fn read(&mut self) -> io::Result<Value> {
        timeout(ANSWER, read(&mut self.stream)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Reads an answer; pushes that come before it are passed over.
    pub async fn answer(&mut self) -> io::Result<Value> {
        self.answer_behind(&mut Vec::new()).await
    }

    /// Reads an answer, and the pushes that come before it.
    pub async fn answer_behind(&mut self, pushes: &mut Vec<Value>) -> io::Result<Value> {
        loop {
            match self.read().await? {
                push @ Value::Push(_) => pushes.push(push),
                answer => return Ok(answer),
            }
        }
    }

    /// Sends a command, and reads its answer.
    pub async fn call(&mut self, args: &[impl AsRef<[u8]>]) -> io::Result<Value> {
        self.send(args).await?;
        self.answer().await
    }

    /// Sends a command that is written in one line, without quotes.
    pub async fn ask(&mut self, line: &str) -> io::Result<Value> {
        let words: Vec<&str> = line.split(' ').collect();
        self.call(&words).await
    }
}

/// A command, as it is sent.
pub fn encode(args: &[impl AsRef<[u8]>], out: &mut Vec<u8>) {
    out.extend(format!("*{}\r\n", args.len()).bytes());
    for arg in args.iter().map(AsRef::as_ref) {
        out.extend(format!("${}\r\n", arg.len()).bytes());
        out.extend(arg);
        out.extend(b"\r\n");
    }
}

async fn read(from: &mut BufReader<TcpStream>) -> io::Result<Value> {
    let mut line = String::new();
    if from.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let line = line.strip_suffix("\r\n").ok_or_else(|| malformed(&line))?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| malformed(line))?;
    let length = || number(rest).map(usize::try_from);
    Ok(match kind {
        "+" => Value::Simple(rest.into()),
        "-" => Value::Error(rest.into()),
        ":" => Value::Int(number(rest)?),
        "_" => Value::Null,
        "#" => Value::Bool(rest == "t"),
        "," => Value::Double(rest.into()),
        "(" => Value::Big(rest.into()),
        "$" | "=" => {
            let Ok(length) = length()? else { return Ok(Value::NullBulk) };
            let mut bytes = vec![0; length + 2];
            from.read_exact(&mut bytes).await?;
            bytes.truncate(length);
            if kind == "=" { Value::Verbatim(bytes) } else { Value::Bulk(bytes) }
        }
        "*" | "~" | ">" | "%" => {
            let Ok(length) = length()? else { return Ok(Value::NullArray) };
            let mut items = Vec::new();
            for _ in 0..length * if kind == "%" { 2 } else { 1 } {
                items.push(Box::pin(read(from)).await?);
            }
            match kind {
                "*" => Value::Array(items),
                "~" => Value::Set(items),
                ">" => Value::Push(items),
                _ => Value::Map(items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()),
            }
        }
        _ => return Err(malformed(line)),
    })
}
