//! The controller: thin layers around [`crate::core::replica`].
//!
//! * [`watch`]: lists and watches sessions; [`object`] is how they are read.
//! * [`marker`]: proves that the watch is complete, and registers the replica.
//! * [`serve`]: streams of agents ([`attach`]) and of other replicas ([`peer`]); [`certificates`] has what they are encrypted
//!   with, [`auth`] tells who they are by their token, [`connections`] and [`stream_limits`] bound what they may have.
//! * [`ledger`]: what is left to be done for each session, by whoever leads.
//! * [`injection`]: adds the agent to pods.
//! * [`election`]: who leads; [`reconcile`] is what it does; [`peers`] are its streams to the others.
//! * [`status_writer`], [`events`]: bounded queues of what is written; [`metrics`]: what Prometheus is told, and [`scrape`] to whom.
//! * [`uninstall`]: what is done when no controller will be there any more, by the subcommand `release`.
//! * `assembly`: how all of these are put together, in the order of [`run`].
//! * [`shared`]: the replica's state, where all of these meet.
//! * [`shutdown`]: in what order they end.

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::runtime::admin::AdminError;
use crate::runtime::kube_client::{KubeConfigError, Timeouts};
use crate::runtime::task_set::TaskError;
use crate::runtime::tls::IdentityError;

mod assembly;
pub mod attach;
pub mod auth;
pub mod certificates;
pub mod clock;
pub mod config;
pub mod connections;
pub mod election;
pub mod events;
pub mod injection;
pub mod ledger;
pub mod marker;
pub mod metrics;
pub mod object;
mod paging;
pub mod peer;
pub mod peers;
mod poll;
mod pump;
pub mod reconcile;
mod remedy;
pub mod scrape;
pub mod serve;
pub mod shared;
pub mod shutdown;
pub mod status_writer;
pub mod stream_limits;
pub mod uninstall;
pub mod watch;

use assembly::{Assembly, Ports, Process};
use auth::Authenticator;
use certificates::CertificateError;
pub use config::ControllerArgs;
use injection::InjectionError;

/// The controller could not start, or could not go on.
#[derive(Debug, Error)]
pub enum ControllerError {
    /// A setting makes no sense.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The API client cannot be configured.
    #[error(transparent)]
    Kube(#[from] KubeConfigError),
    /// The admin endpoints cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The certificate in the files cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// No certificate can be used.
    #[error(transparent)]
    Tls(#[from] IdentityError),
    /// The streams cannot be served.
    #[error(transparent)]
    Serve(#[from] serve::ServeError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Scrape(#[from] scrape::ScrapeError),
    /// Agents cannot be added to pods.
    #[error(transparent)]
    Injection(#[from] InjectionError),
    /// A task ended.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Runs one replica until `shutdown`.
pub async fn run(args: ControllerArgs, shutdown: CancellationToken) -> Result<(), ControllerError> {
    args.validate()?;
    let Ports { admin, streams, metrics, webhook } = Ports::bind(&args).await?;
    let client = args.kube.client(Timeouts::default()).await?;
    let mut process = Process::default();
    let (api_server, shown) = process.answer_probes(admin, metrics.is_none());
    let Some(authenticator) = Authenticator::awaited(&client, &args.token_audience, &shutdown).await else {
        return Ok(());
    };
    api_server.ready();

    let (mut replica, leading) = Assembly::new(args, client, streams.address, process)?;
    replica.watch().await?;
    let trust = replica.keep_certificate().await?;
    replica.answer_webhook(webhook)?;
    replica.serve_streams(streams, authenticator)?;
    replica.poll();
    let measured = replica.lead(leading, trust).await;
    replica.show_metrics(measured, &shown, metrics)?;
    replica.run(&shutdown).await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::ledger::Settlements;
    use crate::core::replica::Settled;

    /// Whom it does not concern that something has settled.
    pub(super) struct Nobody;

    impl Settlements for Nobody {
        fn settled(&self, _settled: &Settled) {}
    }

    /// A client of an API server that takes connections and never answers.
    pub(super) async fn unanswered() -> (kube::Client, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        (kube::Client::try_from(kube::Config::new(url)).unwrap(), listener)
    }
}
