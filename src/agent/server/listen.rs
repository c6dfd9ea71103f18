//! Where clients connect to.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket};
use tracing::warn;

use crate::runtime::listen::listen;

/// Connections that wait to be taken. The system may allow fewer.
const BACKLOG: u32 = 4_096;
/// Files that the process keeps for itself: the API server, controllers, tokens, who asks for metrics.
const OTHER_FILES: u64 = 256;

/// Clients cannot connect.
#[derive(Debug, Error)]
pub enum ListenError {
    /// There is neither an address nor a socket.
    #[error("there is nothing to listen on: give an address or the path of a Unix socket")]
    Nowhere,
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// The address as given.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen on the Unix socket {}: {source}", path.display())]
    Unix {
        /// The path as given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process listens there.
    #[error("cannot listen on the Unix socket {}: another process does", .0.display())]
    Taken(PathBuf),
    /// Something else is there, and stays there.
    #[error("cannot listen on the Unix socket {}: there is a file that is no socket", .0.display())]
    NoSocket(PathBuf),
}

/// Listens on an address.
pub(super) fn tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    socket.and_then(|socket| listen(socket, address, BACKLOG)).map_err(|source| ListenError::Tcp { address, source })
}

/// A Unix socket. Its file goes with it.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    pub(super) path: Arc<PathBuf>,
    /// Device and inode of our file: another process may have put its own there meanwhile.
    file: (u64, u64),
}

impl Socket {
    /// Listens on a path. What a process that has ended left there is removed, and nothing else.
    pub(super) fn listen(path: &Path, mode: u32) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Unix { path: path.to_owned(), source };
        remove_stale(path)?;
        let socket = UnixSocket::new_stream().map_err(failed)?;
        socket.bind(path).map_err(failed)?;
        // Before it listens nobody can connect, whatever the file's permissions were for a moment.
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        let file = identity(&fs::symlink_metadata(path).map_err(failed)?);
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        Ok(Self { listener, path: Arc::new(path.to_owned()), file })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&*self.path).is_ok_and(|metadata| identity(&metadata) == self.file) {
            let _ = fs::remove_file(&*self.path);
        }
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Unix { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NoSocket(path.to_owned())),
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        // Somebody is there, or may be: a full queue and missing permissions say so, too.
        _ => Err(ListenError::Taken(path.to_owned())),
    }
}

/// How many of so many clients there may be. As in Redis, the limit of open files is raised as far as they need it and the system
/// allows, and if that is not enough there are fewer: an agent that cannot open a file cannot renew its lease.
pub fn affordable(clients: usize) -> usize {
    let Some(files) = raise_file_limit(clients) else { return clients };
    let fewer = fitting(clients, files);
    warn!(
        files,
        wanted = clients,
        clients = fewer,
        "the limit of open files allows fewer clients than --max-clients: there may be as many as leave room for the agent's own files"
    );
    fewer
}

/// How many of so many clients find room among so many files.
fn fitting(clients: usize, files: u64) -> usize {
    // With a tiny limit both have half of it.
    let left = files - OTHER_FILES.min(files / 2);
    clients.min(usize::try_from(left).unwrap_or(usize::MAX)).max(1)
}

/// Raises the limit of open files as far as the clients need it and the system allows. What was reached, if that is not
/// enough.
fn raise_file_limit(clients: usize) -> Option<u64> {
    let needed = u64::try_from(clients).unwrap_or(u64::MAX).saturating_add(OTHER_FILES);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // No limit is written as none.
    let current = current?;
    if current >= needed {
        return None;
    }
    let reachable = maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(reachable), maximum });
    let reached = if raised.is_ok() { reachable } else { current };
    (reached < needed).then_some(reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_files_are_fewer_clients_and_never_fewer_own_files() {
        for (clients, files, fitting_clients) in [
            (10_000, 4_096, 3_840),
            (10_000, 1_024, 768),
            (10_000, 512, 256),
            (10_000, 100, 50),
            (10_000, 0, 1),
            (5, 100, 5),
        ] {
            assert_eq!(fitting(clients, files), fitting_clients, "{clients} clients, {files} files");
        }
    }
}
