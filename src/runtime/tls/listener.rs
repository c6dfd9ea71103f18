//! Connections that are encrypted, for what is served with axum.

use std::io;
use std::sync::Arc;

use axum::serve::Listener;
use rustls::ServerConfig;
use tonic::transport::server::Connected;

use super::server::Encrypted;

/// Accepts connections that shake hands when they are first read from: who is slow keeps nobody waiting.
#[derive(Debug)]
pub struct TlsListener<L> {
    inner: L,
    config: Arc<ServerConfig>,
}

impl<L> TlsListener<L> {
    /// Encrypts what `inner` accepts.
    pub fn new(inner: L, config: Arc<ServerConfig>) -> Self {
        Self { inner, config }
    }
}

impl<L> Listener for TlsListener<L>
where
    L: Listener,
    L::Io: Connected,
    <L::Io as Connected>::ConnectInfo: Unpin,
{
    type Io = Encrypted<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (io, peer) = self.inner.accept().await;
        (Encrypted::new(io, &self.config), peer)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}
