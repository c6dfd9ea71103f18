//! Where the keys are: one Secret in the controller's own namespace. Only the leader writes it; all replicas read it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, PostParams};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tracing::warn;

use super::issue::{self, IssueError, Pair};
use super::plan::{self, Lifetimes, Shown, Step, Validity};
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};

const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// All of it, in one value, so that no half of it can be changed.
const STATE: &str = "state.json";
/// For people and their tools: the bundle, and the certificate. Nobody here reads them.
const BUNDLE: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";

/// An authority that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Its certificate and key.
    pub pair: Pair,
    /// Since when it is in all bundles, or has signed without having been there: seconds since 1970.
    #[serde(default)]
    pub told: Option<u64>,
}

/// A certificate that is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// It and its key.
    pub pair: Pair,
    /// The names in it.
    pub names: Vec<String>,
    /// The certificate of the authority that has signed it.
    pub by: String,
}

/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// The oldest first.
    pub authorities: Vec<Authority>,
    /// What is shown.
    pub serving: Option<Serving>,
}

impl Keys {
    /// Whom to believe: all authorities, as PEM.
    pub fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| authority.pair.cert.as_str()).collect()
    }

    /// Makes what is due. Says whether anything was.
    pub fn renew(&mut self, names: &[String], lifetimes: Lifetimes, now: u64) -> Result<bool, IssueError> {
        let mut changed = false;
        while let Some(step) = self.next(names, lifetimes, now) {
            changed = true;
            match step {
                Step::Forget(at) => drop(self.authorities.remove(at)),
                Step::NewAuthority => {
                    let name = format!("vmcp-session-controller {now}");
                    let pair = issue::authority(&name, Validity::new(now, lifetimes.authority))?;
                    // The first one signs at once: there is nobody whom an older one could spare anything.
                    let told = self.authorities.is_empty().then_some(now);
                    self.authorities.push(Authority { pair, told });
                }
                Step::NewCertificate(by) => {
                    let Some(authority) = self.authorities.get(by) else { break };
                    let pair = issue::serving(names, &authority.pair, Validity::new(now, lifetimes.serving))?;
                    self.serving = Some(Serving { pair, names: names.to_vec(), by: authority.pair.cert.clone() });
                }
            }
        }
        Ok(changed)
    }

    fn next(&self, names: &[String], lifetimes: Lifetimes, now: u64) -> Option<Step> {
        let authorities = self.authorities.iter();
        let authorities: Vec<plan::Authority> =
            authorities.map(|kept| plan::Authority { validity: kept.pair.validity, told: kept.told }).collect();
        let shown = self.serving.as_ref().map(|serving| Shown {
            by: self.authorities.iter().position(|authority| authority.pair.cert == serving.by),
            validity: serving.pair.validity,
            names: &serving.names,
        });
        plan::next(&authorities, shown, names, lifetimes, now)
    }

    /// All bundles hold all authorities now. Says whether that is news.
    pub fn told(&mut self, now: u64) -> bool {
        let untold = self.authorities.iter_mut().filter(|authority| authority.told.is_none());
        untold.map(|authority| authority.told = Some(now)).count() > 0
    }
}

/// The Secret.
#[derive(Clone)]
pub struct Vault {
    api: Api<Secret>,
    name: String,
}

impl Vault {
    /// The Secret `name` in `namespace`.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned() }
    }

    /// What is kept, and its version; `None` if there is no Secret. One that cannot be read is told, and counts as empty: it
    /// can only be made anew.
    pub async fn load(&self) -> Result<Option<(Keys, Secret)>, ApiError> {
        let Some(secret) = deadline(CALL_DEADLINE, self.api.get_opt(&self.name)).await? else {
            return Ok(None);
        };
        let state = secret.data.as_ref().and_then(|data| data.get(STATE));
        let keys = state.and_then(|state| serde_json::from_slice(&state.0).ok());
        if keys.is_none() {
            warn!(secret = self.name, "the Secret holds no keys that can be read: they are made anew");
        }
        Ok(Some((keys.unwrap_or_default(), secret)))
    }

    /// Keeps `keys`, if the Secret is still as it was `seen`, and returns it as it is now. `None`: somebody else was faster.
    pub async fn store(&self, keys: &Keys, seen: Option<Secret>) -> Result<Option<Secret>, ApiError> {
        let text = serde_json::to_vec(keys).unwrap_or_default();
        let certificate = keys.serving.as_ref().map(|serving| serving.pair.cert.clone()).unwrap_or_default();
        let data = BTreeMap::from([
            (STATE.to_owned(), ByteString(text)),
            (BUNDLE.to_owned(), ByteString(keys.bundle().into_bytes())),
            (CERTIFICATE.to_owned(), ByteString(certificate.into_bytes())),
        ]);
        let params = PostParams::default();
        let stored = if let Some(mut secret) = seen {
            secret.data = Some(data);
            secret.metadata.managed_fields = None;
            deadline(CALL_DEADLINE, self.api.replace(&self.name, &params, &secret)).await
        } else {
            let mut secret = Secret { data: Some(data), type_: Some("Opaque".to_owned()), ..Secret::default() };
            secret.metadata.name = Some(self.name.clone());
            deadline(CALL_DEADLINE, self.api.create(&params, &secret)).await
        };
        match stored {
            Ok(secret) => Ok(Some(secret)),
            Err(error) if matches!(error.kind(), ApiErrorKind::Conflict | ApiErrorKind::AlreadyExists) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIMES: Lifetimes = Lifetimes { authority: Duration::from_hours(12), serving: Duration::from_hours(1) };

    #[test]
    fn keys_are_made_once_and_renewed_in_time() {
        let (mut keys, names, now) = (Keys::default(), ["a".to_owned()], 1_800_000_000);
        assert!(keys.renew(&names, LIFETIMES, now).unwrap());
        assert!(!keys.renew(&names, LIFETIMES, now + 60).unwrap());
        assert!(!keys.told(now + 1), "the first one needs no notice");
        let first = keys.clone();
        assert!(keys.renew(&names, LIFETIMES, now + 2_400).unwrap());
        assert_eq!(keys.authorities, first.authorities);
        assert_ne!(keys.serving, first.serving);
        let late = now + 8 * 3_600;
        assert!(keys.renew(&names, LIFETIMES, late).unwrap());
        assert_eq!(keys.authorities.len(), 2);
        assert_eq!(keys.serving.as_ref().unwrap().by, first.authorities[0].pair.cert, "nobody was told of the new one");
        assert!(keys.bundle().matches("BEGIN CERTIFICATE").count() == 2 && !keys.bundle().contains("KEY"));
        assert!(keys.told(late) && !keys.told(late + 1));
        assert!(keys.renew(&names, LIFETIMES, late + 3_600).unwrap());
        assert_eq!(keys.serving.as_ref().unwrap().by, keys.authorities[1].pair.cert);
        assert!(!format!("{keys:?}").contains("PRIVATE"));
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let mut keys = Keys::default();
        keys.renew(&["a".to_owned()], LIFETIMES, 1_800_000_000).unwrap();
        let text = serde_json::to_vec(&keys).unwrap();
        assert_eq!(serde_json::from_slice::<Keys>(&text).unwrap(), keys);
    }
}
