//! Where the keys are: one Secret in the controller's own namespace. Only the leader writes it; all replicas read it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, PostParams};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use thiserror::Error;

use super::issue::{self, IssueError, Pair};
use super::plan::{self, Lifetimes, Shown, Step, Validity};
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};

const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// All of it, in one value, so that no half of it can be changed.
const STATE: &str = "state.json";
/// Of that value's format. A version of this program that makes more of it, or something else, counts it up: while both
/// run, or when it is rolled back, the other one must not take what it does not understand for nothing.
const VERSION: u32 = 1;
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

/// The value as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(default = "first_version")]
    version: u32,
    #[serde(flatten)]
    keys: Keys,
}

/// What is read first of it, whatever else there is.
#[derive(Deserialize)]
struct Versioned {
    #[serde(default = "first_version")]
    version: u32,
}

/// That of values that do not say it.
const fn first_version() -> u32 {
    1
}

/// There is something in the Secret that is not ours to replace.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Foreign {
    /// It is of another version of this program.
    #[error(
        "its state.json has format {0}, and this program knows {VERSION}: nothing is changed; run one that knows it"
    )]
    Version(u32),
    /// It is something else, or broken. What it is stays untold: it may be keys.
    #[error(
        "its state.json cannot be understood: nothing is changed. Delete the Secret if its keys are to be made anew"
    )]
    NotUnderstood,
    /// It is somebody else's.
    #[error(
        "it has data, and no state.json among it: nothing is changed. Name a Secret that is the controller's alone"
    )]
    OtherData,
}

/// The value that `keys` are kept as.
fn state(keys: &Keys) -> Vec<u8> {
    serde_json::to_vec(&Stored { version: VERSION, keys: keys.clone() }).unwrap_or_default()
}

/// The keys that are in a Secret, if any are; else they may be made.
fn keys_in(data: &BTreeMap<String, ByteString>) -> Result<Keys, Foreign> {
    let Some(ByteString(state)) = data.get(STATE) else {
        return if data.is_empty() { Ok(Keys::default()) } else { Err(Foreign::OtherData) };
    };
    if state.is_empty() {
        return Ok(Keys::default());
    }
    let Versioned { version } = serde_json::from_slice(state).map_err(|_| Foreign::NotUnderstood)?;
    if version != VERSION {
        return Err(Foreign::Version(version));
    }
    let stored: Stored = serde_json::from_slice(state).map_err(|_| Foreign::NotUnderstood)?;
    Ok(stored.keys)
}

/// Why it is not known what is kept.
#[derive(Debug, Error)]
pub enum VaultError {
    /// The API server has not said it.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// It cannot be told.
    #[error(transparent)]
    Foreign(#[from] Foreign),
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

    /// What is kept, and its version; `None` if there is no Secret. What is not understood is an error, and not
    /// nothing: keys that pods believe may be in it, or those of somebody else.
    pub async fn load(&self) -> Result<Option<(Keys, Secret)>, VaultError> {
        let Some(secret) = deadline(CALL_DEADLINE, self.api.get_opt(&self.name)).await? else {
            return Ok(None);
        };
        let keys = secret.data.as_ref().map(keys_in).transpose()?;
        Ok(Some((keys.unwrap_or_default(), secret)))
    }

    /// Keeps `keys`, if the Secret is still as it was `seen`, and returns it as it is now. `None`: somebody else was faster.
    pub async fn store(&self, keys: &Keys, seen: Option<Secret>) -> Result<Option<Secret>, ApiError> {
        let text = state(keys);
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
        let data = |state: Vec<u8>| BTreeMap::from([(STATE.to_owned(), ByteString(state))]);
        let text = state(&keys);
        assert!(text.starts_with(br#"{"version":1,"#));
        assert_eq!(keys_in(&data(text)).as_ref(), Ok(&keys));
        // It did not always say its version.
        assert_eq!(keys_in(&data(serde_json::to_vec(&keys).unwrap())), Ok(keys));
    }

    #[test]
    fn keys_are_made_only_where_there_is_nothing() {
        let data = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), ByteString(value.into()))]);
        for nothing in [BTreeMap::new(), data(STATE, "")] {
            assert_eq!(keys_in(&nothing), Ok(Keys::default()));
        }
        for (name, value, why) in [
            (STATE, r#"{"version":2,"roots":[]}"#, Foreign::Version(2)),
            (STATE, r#"{"version":"2","authorities":[]}"#, Foreign::NotUnderstood),
            (STATE, r#"{"version":1}"#, Foreign::NotUnderstood),
            (STATE, "{}", Foreign::NotUnderstood),
            (STATE, "{canary-4b1d", Foreign::NotUnderstood),
            ("password", "canary-4b1d", Foreign::OtherData),
            (BUNDLE, "canary-4b1d", Foreign::OtherData),
        ] {
            assert_eq!(keys_in(&data(name, value)).as_ref(), Err(&why), "{value}");
            assert!(!why.to_string().contains("canary"));
        }
    }
}
