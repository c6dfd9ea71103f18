//! How a client of the Kubernetes API is configured.
//!
//! Files are read again as they rotate, by polling, which a symlink swap does not fool: kube's client reads a token file and
//! an in-cluster CA bundle anew when what it has is about a minute old. A kubeconfig itself is read once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use http::header::USER_AGENT;
use http::{HeaderValue, Uri};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;

use super::api_error::ApiError;

/// How this program names itself to the API server. An audit log tells its requests from those of others with the same account.
const PROGRAM: HeaderValue = HeaderValue::from_static(concat!("vmcp-session/", env!("CARGO_PKG_VERSION")));

/// How to reach the Kubernetes API.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Kubernetes API")]
pub struct KubeArgs {
    /// Kubeconfig to use. Without it: the pod's service account if there is one, else ~/.kube/config.
    #[arg(long, env = "KUBECONFIG", value_name = "PATHS", conflicts_with = "kube_api_server")]
    pub kubeconfig: Option<String>,

    /// Context of the kubeconfig to use instead of its current one.
    #[arg(long, env = "VMCP_KUBE_CONTEXT", value_name = "NAME", conflicts_with = "kube_api_server")]
    pub kube_context: Option<String>,

    /// URL of the API server (https), instead of a kubeconfig.
    #[arg(long, env = "VMCP_KUBE_API_SERVER", value_name = "URL", requires_all = ["kube_ca_file", "kube_token_file"])]
    pub kube_api_server: Option<Uri>,

    /// PEM file with the certificates that the API server's must come from; read again about once a minute.
    #[arg(long, env = "VMCP_KUBE_CA_FILE", value_name = "PATH", requires = "kube_api_server")]
    pub kube_ca_file: Option<PathBuf>,

    /// File with the service account's token; read again about once a minute.
    #[arg(long, env = "VMCP_KUBE_TOKEN_FILE", value_name = "PATH", requires = "kube_api_server")]
    pub kube_token_file: Option<PathBuf>,

    /// Name to expect in the API server's certificate, if it is not the URL's host.
    #[arg(long, env = "VMCP_KUBE_TLS_SERVER_NAME", value_name = "NAME", requires = "kube_api_server")]
    pub kube_tls_server_name: Option<String>,
}

/// Bounds of the connections to the API server. Each call has a deadline of its own on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection to be made, TLS included.
    pub connect: Duration,
    /// For the next bytes of an answer. A watch that says nothing for that long is cut off, so it is longer than the
    /// minute between two bookmarks.
    pub read: Duration,
    /// For bytes of a request to be taken.
    pub write: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), read: Duration::from_secs(75), write: Duration::from_secs(10) }
    }
}

/// The client could not be configured.
#[derive(Debug, Error)]
pub enum KubeConfigError {
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig: {0}")]
    Kubeconfig(String),
    /// The pod's service account cannot be used.
    #[error("cannot use the pod's service account: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    /// A token must not travel in clear text.
    #[error("--kube-api-server (VMCP_KUBE_API_SERVER) {0} must begin with https://")]
    NotHttps(Uri),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file has been read, but is of no use.
    #[error("{} holds no {wanted}", path.display())]
    Useless {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
    },
    /// Nothing says where the API is.
    #[error("no Kubernetes API: not in a pod, and {0}; give --kubeconfig or --kube-api-server")]
    Nowhere(String),
    /// The client could not be built from the configuration.
    #[error("cannot set up the Kubernetes client: {0}")]
    Client(String),
}

impl From<KubeconfigError> for KubeConfigError {
    fn from(error: KubeconfigError) -> Self {
        Self::Kubeconfig(without_lines(&error))
    }
}

/// What is wrong with a kubeconfig. The parser shows the lines around a fault, and those may hold a token.
fn without_lines(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(_) => "it is not YAML, or not of a kubeconfig's form".to_owned(),
        other => other.to_string(),
    }
}

impl KubeArgs {
    /// A client with bounded waits. It connects when it is first used.
    pub async fn client(&self, timeouts: Timeouts) -> Result<Client, KubeConfigError> {
        let config = self.config(timeouts).await?;
        // Fails only where one is installed already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::try_from(config).map_err(|error| {
            KubeConfigError::Client(match error {
                kube::Error::RustlsTls(error) => format!("TLS: {error}"),
                other => ApiError::from(other).to_string(),
            })
        })
    }

    /// The configuration behind [`KubeArgs::client`].
    pub async fn config(&self, timeouts: Timeouts) -> Result<Config, KubeConfigError> {
        let mut config = self.source().await?;
        if let (Some(token), None) = (&config.auth_info.token_file, &config.auth_info.token) {
            usable_token(Path::new(token)).await?;
        }
        config.connect_timeout = Some(timeouts.connect);
        config.read_timeout = Some(timeouts.read);
        config.write_timeout = Some(timeouts.write);
        // The time that a pooled connection idled must not count against the next answer on it.
        config.reset_reader_on_write = true;
        // Our callers decide on retries: a write that is repeated unseen cannot be told from somebody else's.
        config.default_retry = false;
        config.headers.push((USER_AGENT, PROGRAM));
        Ok(config)
    }

    async fn source(&self) -> Result<Config, KubeConfigError> {
        if let (Some(url), Some(ca), Some(token)) = (&self.kube_api_server, &self.kube_ca_file, &self.kube_token_file) {
            return explicit(url, ca.clone(), token.clone(), self.kube_tls_server_name.clone()).await;
        }
        let options = KubeConfigOptions { context: self.kube_context.clone(), ..KubeConfigOptions::default() };
        if let Some(paths) = &self.kubeconfig {
            return Ok(Config::from_custom_kubeconfig(merged(paths)?, &options).await?);
        }
        if self.kube_context.is_none() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return Ok(Config::incluster()?);
        }
        Config::from_kubeconfig(&options).await.map_err(|error| KubeConfigError::Nowhere(without_lines(&error)))
    }
}

async fn explicit(
    url: &Uri,
    ca: PathBuf,
    token: PathBuf,
    server_name: Option<String>,
) -> Result<Config, KubeConfigError> {
    if url.scheme_str() != Some("https") {
        return Err(KubeConfigError::NotHttps(url.clone()));
    }
    if !read(&ca).await?.contains("BEGIN CERTIFICATE") {
        return Err(KubeConfigError::Useless { path: ca, wanted: "PEM certificate" });
    }
    let mut config = Config::new(url.clone());
    config.root_cert_file = Some(ca);
    config.auth_info.token_file = Some(token.to_string_lossy().into_owned());
    config.tls_server_name = server_name;
    Ok(config)
}

/// Read here to say at the start what is missing; the client reads it again itself.
async fn read(path: &Path) -> Result<String, KubeConfigError> {
    let read = tokio::fs::read_to_string(path).await;
    read.map_err(|source| KubeConfigError::File { path: path.to_owned(), source })
}

/// Refuses a token that kubectl would trim. The client would put a line break into each request's header, and fail then.
async fn usable_token(path: &Path) -> Result<(), KubeConfigError> {
    let text = read(path).await?;
    let wanted = match text.trim() {
        "" => "token",
        token if token != text => "token without blanks or line breaks around it",
        _ => return Ok(()),
    };
    Err(KubeConfigError::Useless { path: path.to_owned(), wanted })
}

/// Reads kubeconfigs as kubectl does: a list of paths, of which the first to name something wins. Files that do not
/// exist are skipped, unless there is only one.
fn merged(paths: &str) -> Result<Kubeconfig, KubeconfigError> {
    let paths: Vec<PathBuf> = std::env::split_paths(paths).filter(|p| !p.as_os_str().is_empty()).collect();
    let several = paths.len() > 1;
    let mut all = Kubeconfig::default();
    for path in paths {
        if several && !path.exists() {
            continue;
        }
        all = all.merge(Kubeconfig::read_from(path)?)?;
    }
    Ok(all)
}

#[cfg(test)]
#[path = "kube_client_tests.rs"]
mod tests;
