//! Where the programs of the control plane are.

use crate::{Error, Result};
use std::{
    env,
    path::{Path, PathBuf},
};

/// The folder that holds them: `KUBEBUILDER_ASSETS` when set, else what tests/controlplane/build.sh makes.
#[derive(Debug, Clone)]
pub(crate) struct Assets(PathBuf);

impl Assets {
    pub(crate) fn find() -> Self {
        let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/controlplane");
        Self(env::var_os("KUBEBUILDER_ASSETS").filter(|v| !v.is_empty()).map_or_else(built, PathBuf::from))
    }

    pub(crate) fn program(&self, name: &'static str) -> Result<PathBuf> {
        let path = self.0.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let folder = self.0.canonicalize().unwrap_or_else(|_| self.0.clone());
        Err(Error::MissingBinary { name, folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        let error = Assets(dir.path().into()).program("etcd").unwrap_err().to_string();
        assert!(error.contains("etcd was not found") && error.contains("make controlplane"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
