//! TLS of the streams to the controller, and of what else it serves: version 1.3 only, with certificates and authorities that
//! change while it runs.
//!
//! Who connects shows a token, not a certificate: only the controller has one.

pub mod identity;
pub mod listener;
pub mod server;
pub mod trust;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::version::TLS13;
use rustls::{ServerConfig, SupportedProtocolVersion};

pub use identity::{IdentityError, Period, ServingCertificate};
pub use trust::{Trust, TrustError};

/// The only version that is spoken.
pub const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13];
/// Streams are HTTP/2.
pub const STREAMS: &[u8] = b"h2";
/// What axum serves is HTTP/1.1.
pub const REQUESTS: &[u8] = b"http/1.1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// How a server of this protocol shakes hands that shows whatever `certificate` holds then.
pub fn server_config(
    certificate: Arc<ServingCertificate>,
    protocol: &[u8],
) -> Result<Arc<ServerConfig>, IdentityError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS);
    let mut config = builder.map_err(IdentityError::Tls)?.with_no_client_auth().with_cert_resolver(certificate);
    config.alpn_protocols = vec![protocol.to_vec()];
    // Nobody resumes: connections are few and long, and a resumed one would not see a new certificate.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
