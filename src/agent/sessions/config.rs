//! How the agent's sessions are set up.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::entry::ANNOTATION_FORM;
use super::key::{ANNOTATION_SESSION_ID, HashKey, HashKeyError, KeyError, Keys, MAX_PREFIX};
use super::local::{LocalKeys, PatternError};
use super::ttl::ANNOTATION_EXPIRES_AT;
use crate::api::ANNOTATION_RENEWED_AT;
use crate::cache::{CacheConfig, ConfigError, Visibility};

/// How sessions are found and written.
#[derive(Clone, Debug)]
pub struct SessionsConfig {
    /// What all keys begin with: a key is this and the session's id.
    pub prefix: String,
    /// Patterns of the metadata keys that are true only in this pod (`*` and `?`).
    pub pod_local_keys: Vec<String>,
    /// File with the key under which ids are hashed to names; `None`: names show ids.
    pub hash_key_file: Option<PathBuf>,
    /// When writes are answered.
    pub visibility: Visibility,
}

/// The settings make no sense.
#[derive(Debug, Error)]
pub enum SetupError {
    /// Those of the cache.
    #[error(transparent)]
    Cache(#[from] ConfigError),
    /// The patterns of pod-local keys.
    #[error(transparent)]
    Patterns(#[from] PatternError),
    /// The key under which ids are hashed.
    #[error(transparent)]
    HashKey(#[from] HashKeyError),
    /// The prefix of keys.
    #[error("--key-prefix may have {MAX_PREFIX} bytes at most, and no control characters")]
    Prefix,
}

impl SessionsConfig {
    /// The name of the object that a key means.
    pub fn name(&self, key: &[u8]) -> Result<String, NameError> {
        let (keys, _) = self.read()?;
        Ok(keys.name(key)?.as_str().to_owned())
    }

    /// What maps keys to names, and which metadata keys are this pod's own.
    pub(super) fn read(&self) -> Result<(Keys, LocalKeys), SetupError> {
        if self.prefix.len() > MAX_PREFIX || self.prefix.chars().any(char::is_control) {
            return Err(SetupError::Prefix);
        }
        let local = LocalKeys::new(self.pod_local_keys.iter().map(String::as_str))?;
        let hash_key = self.hash_key_file.as_deref().map(HashKey::read).transpose()?;
        Ok((Keys::new(self.prefix.clone(), hash_key), local))
    }
}

/// Which object a key means cannot be said.
#[derive(Debug, Error)]
pub enum NameError {
    /// Because of the settings.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Because no session can have this key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// What a cache must keep and do for the agent's clients.
pub(super) fn for_clients(config: CacheConfig) -> CacheConfig {
    let annotations = [ANNOTATION_FORM, ANNOTATION_EXPIRES_AT, ANNOTATION_RENEWED_AT, ANNOTATION_SESSION_ID];
    CacheConfig {
        annotations: annotations.into_iter().map(Arc::from).collect(),
        // Redis renews nothing when it is asked for a value.
        uses_renew: false,
        remember_given: true,
        ..config
    }
}
