//! The webhook's command line.

use std::path::PathBuf;

use clap::Args;
use kube::Client;
use thiserror::Error;

use super::definition::{Definition, DefinitionError};
use super::webhook::{BoundWebhook, WebhookError};
use crate::controller::certificates::bundle::webhook::BundleOfWebhook;
use crate::runtime::listen::Listen;

/// Adding agents to pods.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Adding agents to pods")]
pub struct InjectionArgs {
    /// Address on which the API server asks, by a mutating admission webhook, what to add to pods. Without it, nobody can ask.
    #[arg(long, env = "VMCP_INJECTION_LISTEN", value_name = "ADDRESS", requires = "injection_definition")]
    pub injection_listen: Option<Listen>,

    /// File that says what agents are made of, as the chart writes it.
    #[arg(long, env = "VMCP_INJECTION_DEFINITION", value_name = "PATH")]
    pub injection_definition: Option<PathBuf>,

    /// Name by which the API server knows the webhook: that of its Service. The certificate that the leader makes has it too.
    #[arg(long, env = "VMCP_INJECTION_NAME", value_name = "NAME")]
    pub injection_name: Option<String>,

    /// `MutatingWebhookConfiguration` in which the leader keeps the authorities that the webhook's certificate is signed by. Without
    /// it, somebody else does.
    #[arg(long, env = "VMCP_INJECTION_WEBHOOK", value_name = "NAME")]
    pub injection_webhook: Option<String>,
}

/// Agents cannot be added to pods.
#[derive(Debug, Error)]
pub enum InjectionError {
    /// It is not known what they are made of.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// Nobody can ask.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
}

impl InjectionArgs {
    /// The webhook, if it is to be served.
    pub async fn bind(&self) -> Result<Option<BoundWebhook>, InjectionError> {
        match (self.injection_listen, &self.injection_definition) {
            (Some(address), Some(path)) => Ok(Some(BoundWebhook::bind(address, Definition::load(path)?).await?)),
            _ => Ok(None),
        }
    }

    /// Where the API server looks whom the webhook's certificate may be signed by.
    pub fn bundle(&self, client: &Client) -> Option<BundleOfWebhook> {
        let name = self.injection_webhook.clone()?;
        Some(BundleOfWebhook { client: client.clone(), name })
    }
}
