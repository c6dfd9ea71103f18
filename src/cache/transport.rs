//! How a replica is reached: the one place for what a connection needs besides an address. Today that is a token; TLS comes
//! in here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::proto::MAX_MESSAGE_BYTES;
use crate::proto::v1::coherence_client::CoherenceClient;
use crate::proto::v1::{AgentMessage, ReplicaMessage};

/// For a TCP connection to be made.
const CONNECT: Duration = Duration::from_secs(3);
/// A connection on which nothing is heard is asked for a sign of life after this, and given up after as much again.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// A token file is no longer than this.
const MAX_TOKEN_BYTES: u64 = 64 * 1_024;

/// A replica could not be reached, or does not want us.
#[derive(Debug, Error)]
pub(super) enum TransportError {
    #[error("cannot read the token file {}: {reason}", path.display())]
    Token { path: PathBuf, reason: String },
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("{}", status_text(_0))]
    Refused(Status),
}

/// What a status says, fit for a line of a log.
pub(super) fn status_text(status: &Status) -> String {
    let message = status.message();
    let code = status.code();
    if message.is_empty() {
        return code.to_string();
    }
    format!("{code}: {}", one_line(message))
}

/// A text from outside, fit for a line of a log.
pub(super) fn one_line(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(300).map(visible).collect()
}

/// Opens the stream to the replica at `address`. The channel must live as long as the stream.
pub(super) async fn attach(
    address: SocketAddr,
    token_file: Option<&Path>,
    outgoing: mpsc::Receiver<AgentMessage>,
) -> Result<(Channel, Streaming<ReplicaMessage>), TransportError> {
    let token = match token_file {
        Some(path) => Some(bearer(path).await?),
        None => None,
    };
    let connect = |error: tonic::transport::Error| TransportError::Connect(innermost(&error));
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .map_err(connect)?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(connect)?;
    let mut client = CoherenceClient::new(channel.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token);
    }
    let inbound = client.attach(request).await.map_err(TransportError::Refused)?;
    Ok((channel, inbound.into_inner()))
}

/// The token as a header. It is read for each connection, as it is replaced long before it expires.
async fn bearer(path: &Path) -> Result<MetadataValue<Ascii>, TransportError> {
    let failed = |reason: String| TransportError::Token { path: path.to_owned(), reason };
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await;
    let file = file.map_err(|e| failed(e.kind().to_string()))?;
    let read = file.take(MAX_TOKEN_BYTES).read_to_string(&mut text).await;
    read.map_err(|e| failed(e.kind().to_string()))?;
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", text.trim())
        .parse()
        .map_err(|_| failed("it has characters that no header can have".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The innermost cause of an error: "connection refused" instead of "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    one_line(&error.to_string())
}
