//! Streams to the controller: how they are connected, kept alive, encrypted and authenticated, on the side of those who
//! connect.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::small_file;
use super::tls::trust::{Trust, TrustError};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// A connection on which nothing has come for so long is asked whether it lives,
const KEEPALIVE: Duration = Duration::from_secs(5);
/// and given up if it does not answer in this time.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A token file is no longer than this.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

/// The name in the controller's certificate, where nothing else is said: that of its Service in its usual namespace.
pub const CONTROLLER_NAME: &str = "vmcp-session-controller.vmcp-system.svc";

/// A stream cannot be opened.
#[derive(Debug, Error)]
pub enum TransportError {
    /// It is no address.
    #[error("'{0}' is not an address of the form HOST:PORT")]
    Address(String),
    /// Nobody answers there.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// The address.
        address: String,
        /// What the innermost layer said.
        reason: String,
    },
    /// Nobody can be believed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The token cannot be read.
    #[error("cannot read the token file {}: {source}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no token in it.
    #[error("the token file {} holds no token", .0.display())]
    NoToken(PathBuf),
}

/// How to reach replicas of the controller, and as whom.
#[derive(Clone, Debug)]
pub struct Transport {
    /// Whose certificates are believed.
    pub trust: Trust,
    /// The name that must be in the certificate, whatever the address is.
    pub name: String,
    /// File with a service account token. It is read for each stream anew, since such tokens are replaced.
    pub token_file: Option<PathBuf>,
}

impl Transport {
    /// Connects to HOST:PORT.
    pub async fn connect(&self, address: &str) -> Result<Channel, TransportError> {
        let endpoint = Endpoint::from_shared(format!("https://{address}"));
        let endpoint = endpoint.map_err(|_| TransportError::Address(address.to_owned()))?;
        let pem = self.trust.pem().await?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem.as_bytes())).domain_name(&self.name);
        let endpoint = endpoint.tls_config(tls).map_err(|error| failed(address, &error))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        endpoint.connect().await.map_err(|error| failed(address, &error))
    }

    /// Adds the token to a request.
    pub async fn authorize<T>(&self, request: &mut Request<T>) -> Result<(), TransportError> {
        let Some(path) = &self.token_file else {
            return Ok(());
        };
        let unreadable = |source: io::Error| TransportError::TokenFile { path: path.clone(), source };
        let bytes = small_file::load(path, MAX_TOKEN_BYTES).await.map_err(unreadable)?;
        let token = std::str::from_utf8(&bytes).unwrap_or_default().trim();
        let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>().ok().filter(|_| !token.is_empty());
        let mut value = value.ok_or_else(|| TransportError::NoToken(path.clone()))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
        Ok(())
    }
}

/// With what the innermost layer said.
fn failed(address: &str, error: &tonic::transport::Error) -> TransportError {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let reason = innermost.to_string().chars().filter(|c| !c.is_control()).take(200).collect();
    TransportError::Connect { address: address.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tls::trust::CurrentTrust;

    fn transport(trust: Trust) -> Transport {
        Transport { trust, name: "controller".to_owned(), token_file: None }
    }

    async fn authorized(content: Option<&[u8]>) -> Result<Option<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let transport = Transport { token_file: Some(path), ..transport(Trust::None) };
        let mut request = Request::new(());
        let authorized = transport.authorize(&mut request).await;
        let value = request.metadata().get("authorization");
        assert!(value.is_none_or(MetadataValue::is_sensitive), "it must not be shown by Debug");
        authorized.map(|()| value.map(|v| v.to_str().unwrap().to_owned())).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn the_token_is_read_from_its_file() {
        assert_eq!(authorized(Some(b"canary-4b1d\n")).await, Ok(Some("Bearer canary-4b1d".to_owned())));
        for bad in [&b""[..], b"\n", b"canary\x00b", b"canary\xff"] {
            let error = authorized(Some(bad)).await.unwrap_err();
            assert!(error.contains("holds no token") && !error.contains("canary"), "{error}");
        }
        let error = authorized(Some(&b"a".repeat(16 * 1024 + 1))).await.unwrap_err();
        assert!(error.contains("cannot read the token file") && error.contains("too large"), "{error}");
        let error = authorized(None).await.unwrap_err();
        assert!(error.contains("cannot read the token file") && error.contains("No such file"), "{error}");
    }

    #[tokio::test]
    async fn without_a_file_there_is_no_token() {
        let mut request = Request::new(());
        transport(Trust::None).authorize(&mut request).await.unwrap();
        assert!(request.metadata().is_empty());
    }

    #[tokio::test]
    async fn who_cannot_be_reached_is_named_with_the_reason() {
        let authority = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        let current = std::sync::Arc::new(CurrentTrust::default());
        current.set(authority.into());
        let transport = transport(Trust::Current(current));
        let error = transport.connect("not an address").await.unwrap_err().to_string();
        assert!(error.contains("'not an address' is not an address"), "{error}");
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let error = transport.connect(&free).await.unwrap_err().to_string();
        assert!(error.contains(&free) && error.to_lowercase().contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn nothing_is_sent_to_somebody_who_cannot_be_checked() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = transport(Trust::None).connect(&listener.local_addr().unwrap().to_string()).await.unwrap_err();
        assert!(error.to_string().contains("no file with the authorities"), "{error}");
        assert!(futures::FutureExt::now_or_never(listener.accept()).is_none());
    }
}
