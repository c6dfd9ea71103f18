//! Temporary folders that go, also those of a process that was killed before it could remove its own.

use crate::{Error, Result};
use std::{
    env, fs,
    fs::File,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

const PREFIX: &str = "vmcp-controlplane-";
/// Locked while its owner lives; the kernel unlocks it when the owner is killed.
const OWNER: &str = "owner.lock";
/// A folder younger than this may not have its lock yet.
const SETTLED: Duration = Duration::from_mins(1);

/// A temporary folder, removed on drop unless `TESTKIT_KEEP` is set.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: TempDir,
    _owner: File,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        sweep(&env::temp_dir());
        let failed = "creating a temporary folder";
        let mut dir = tempfile::Builder::new().prefix(PREFIX).tempdir().map_err(Error::io(failed))?;
        let owner = File::create(dir.path().join(OWNER)).map_err(Error::io(failed))?;
        owner.try_lock().map_err(|e| Error::io(failed)(e.into()))?;
        if env::var_os("TESTKIT_KEEP").is_some() {
            dir.disable_cleanup(true);
            eprintln!("testkit: {} is kept", dir.path().display());
        }
        Ok(Self { dir, _owner: owner })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of a file or folder in it.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that only this user can read, making its folder if need be.
    pub(crate) fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.join(name);
        let write = || {
            path.parent().map(fs::create_dir_all).transpose()?;
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(content.as_ref())
        };
        write().map_err(Error::io(format!("writing {}", path.display())))?;
        Ok(path)
    }
}

/// Removes folders whose owner is gone. What cannot be removed is left to the next one.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let lock = entry.path().join(OWNER);
        let Ok(owner) = File::open(&lock) else {
            continue;
        };
        let age = owner.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age > SETTLED) && owner.try_lock().is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn only_what_was_left_behind_is_swept_away() {
        let parent = tempfile::tempdir().unwrap();
        let folder = |name: &str, age: Duration| {
            let dir = parent.path().join(format!("{PREFIX}{name}"));
            fs::create_dir(&dir).unwrap();
            let owner = File::create(dir.join(OWNER)).unwrap();
            owner.set_modified(SystemTime::now() - age).unwrap();
            (dir, owner)
        };
        let (left, owner) = folder("left", SETTLED * 2);
        drop(owner);
        let (used, owner) = folder("used", SETTLED * 2);
        owner.try_lock().unwrap();
        let (young, _) = folder("young", Duration::ZERO);
        sweep(parent.path());
        assert!(!left.exists() && used.exists() && young.exists());
    }
}
