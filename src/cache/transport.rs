//! The stream to a replica, over the connection that [`crate::runtime::transport`] makes.

use std::net::SocketAddr;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::proto::MAX_MESSAGE_BYTES;
use crate::proto::v1::coherence_client::CoherenceClient;
use crate::proto::v1::{AgentMessage, ReplicaMessage};
use crate::runtime::transport::{self, Transport};

/// A replica could not be reached, or does not want us.
#[derive(Debug, Error)]
pub(super) enum TransportError {
    #[error(transparent)]
    Connect(#[from] transport::TransportError),
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
    transport: &Transport,
    outgoing: mpsc::Receiver<AgentMessage>,
) -> Result<(Channel, Streaming<ReplicaMessage>), TransportError> {
    let mut request = Request::new(ReceiverStream::new(outgoing));
    transport.authorize(&mut request).await?;
    let channel = transport.connect(&address.to_string()).await?;
    let mut client = CoherenceClient::new(channel.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let inbound = client.attach(request).await.map_err(TransportError::Refused)?;
    Ok((channel, inbound.into_inner()))
}
