//! The server's side of a connection: it shakes hands when it is first read from.
//!
//! So no task and no list of handshakes is needed: whoever bounds the time and the number of the connections bounds those of
//! the handshakes.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};
use tonic::transport::server::Connected;

/// A connection that is encrypted, once it has shaken hands.
pub struct Encrypted<IO: Connected> {
    state: State<IO>,
    info: IO::ConnectInfo,
}

enum State<IO> {
    Shaking(Box<Accept<IO>>),
    Open(Box<TlsStream<IO>>),
    Failed,
}

impl<IO: Connected> fmt::Debug for Encrypted<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encrypted").field("open", &matches!(self.state, State::Open(_))).finish_non_exhaustive()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Connected> Encrypted<IO> {
    /// The server's side of `io`.
    pub fn new(io: IO, config: &Arc<ServerConfig>) -> Self {
        let info = io.connect_info();
        Self { state: State::Shaking(Box::new(TlsAcceptor::from(config.clone()).accept(io))), info }
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut TlsStream<IO>>>> {
        if let State::Shaking(accept) = &mut self.state {
            let shaken = ready!(Pin::new(accept.as_mut()).poll(cx));
            self.state = State::Failed;
            self.state = State::Open(Box::new(shaken?));
        }
        match &mut self.state {
            State::Open(stream) => Poll::Ready(Ok(Pin::new(stream.as_mut()))),
            State::Shaking(_) | State::Failed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Connected> AsyncRead for Encrypted<IO>
where
    IO::ConnectInfo: Unpin,
{
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Connected> AsyncWrite for Encrypted<IO>
where
    IO::ConnectInfo: Unpin,
{
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Open(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            // There is nobody to say goodbye to.
            State::Shaking(_) | State::Failed => Poll::Ready(Ok(())),
        }
    }
}

impl<IO: Connected> Connected for Encrypted<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.info.clone()
    }
}
