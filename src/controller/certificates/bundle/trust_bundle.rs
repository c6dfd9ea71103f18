//! The bundle in a `ClusterTrustBundle`, which Kubernetes has since 1.37: pods of every namespace can mount it, and no
//! namespace need be listed.

use std::fmt;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::certificates::v1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};

use super::{CALL_DEADLINE, FIELD_MANAGER, Place, PlaceError};
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};

const VERSION: &str = "certificates.k8s.io/v1";
const RESOURCE: &str = "clustertrustbundles";

/// A `ClusterTrustBundle`.
pub struct BundleOfCluster {
    client: Client,
    name: String,
    /// Where there are none, pods have another place.
    optional: bool,
}

impl BundleOfCluster {
    /// The `ClusterTrustBundle` `name`, which [`signer`] understands. An `optional` one need not be there in clusters that
    /// know none.
    pub fn new(client: Client, name: String, optional: bool) -> Self {
        Self { client, name, optional }
    }

    async fn make(&self, pem: &str) -> Result<bool, PlaceError> {
        let api: Api<ClusterTrustBundle> = Api::all(self.client.clone());
        let is = deadline(CALL_DEADLINE, api.get_opt(&self.name)).await?;
        match is {
            Some(bundle) if bundle.spec.trust_bundle == pem => return Ok(false),
            Some(_) => {}
            None if self.is_served().await? => {}
            None if self.optional => return Ok(false),
            None => return Err(PlaceError::NotServed("ClusterTrustBundles (certificates.k8s.io/v1)")),
        }
        let bundle = ClusterTrustBundle {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: ClusterTrustBundleSpec { signer_name: signer(&self.name), trust_bundle: pem.to_owned() },
        };
        // Whoever has changed it meanwhile was mistaken.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        deadline(CALL_DEADLINE, api.patch(&self.name, &params, &Patch::Apply(&bundle))).await?;
        Ok(true)
    }

    /// A cluster can be upgraded, so this is asked again whenever there is none.
    async fn is_served(&self) -> Result<bool, ApiError> {
        match deadline(CALL_DEADLINE, self.client.list_api_group_resources(VERSION)).await {
            Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == RESOURCE)),
            Err(error) if error.kind() == ApiErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Who may speak for the authorities in a bundle of this name: `a.example:b:c` is one of the signer `a.example/b`. `None`: it is
/// nobody's, and no name that the API server would take.
pub fn signer(name: &str) -> Option<String> {
    let (signer, _) = name.rsplit_once(':')?;
    let (domain, path) = signer.split_once(':')?;
    Some(format!("{domain}/{}", path.replace(':', "/")))
}

impl fmt::Display for BundleOfCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterTrustBundle {}", self.name)
    }
}

impl Place for BundleOfCluster {
    fn publish<'a>(&'a self, pem: &'a str) -> BoxFuture<'a, Result<bool, PlaceError>> {
        self.make(pem).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_it_is() {
        assert_eq!(signer("vmcp.dev:session-controller:vmcp-system").as_deref(), Some("vmcp.dev/session-controller"));
        assert_eq!(signer("a.example:b:c:d").as_deref(), Some("a.example/b/c"));
        for nobodys in ["", "ca", "vmcp.dev:ca"] {
            assert_eq!(signer(nobodys), None, "{nobodys}");
        }
    }
}
