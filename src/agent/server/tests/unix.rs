//! The Unix socket, and its file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;

use tokio::net::UnixStream;

use super::*;
use crate::agent::server::{ListenError, Room};

fn bind(path: &Path) -> Result<Server, ListenError> {
    let config = ServerConfig { tcp: None, unix: Some(path.to_owned()), unix_mode: 0o600, limits: unlimited() };
    Server::bind(&config, Arc::new(Clients::new(Room { clients: 10, output: 1 << 20, memory: 1 << 20 })))
}

#[tokio::test]
async fn clients_come_through_the_socket_and_its_file_goes_with_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let place = Place::open(unlimited());
    let config = ServerConfig { tcp: None, unix: Some(path.clone()), unix_mode: 0o600, limits: unlimited() };
    let server = Server::bind(&config, Arc::clone(&place.clients)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(server.run(Arc::clone(&place.desk), shutdown.clone(), PATIENCE));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    soon(stream.write_all(b"ECHO a\r\n")).await.unwrap();
    let mut heard = [0; 7];
    soon(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"$1\r\na\r\n");
    let handle = place.clients.get(ClientId(1)).unwrap();
    assert!(handle.is_unix());
    assert_eq!(handle.address().to_string(), format!("{}:0", path.display()));
    shutdown.cancel();
    soon(server).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn the_file_has_the_permissions_that_were_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let config = ServerConfig { tcp: None, unix: Some(path.clone()), unix_mode: 0o660, limits: unlimited() };
    let _server = Server::bind(&config, Arc::clone(&Place::open(unlimited()).clients)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660, "whatever the umask is");
}

#[tokio::test]
async fn what_a_dead_process_left_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    drop(StdUnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _server = bind(&path).unwrap();
    assert!(UnixStream::connect(&path).await.is_ok());
}

#[tokio::test]
async fn a_living_process_keeps_its_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let living = StdUnixListener::bind(&path).unwrap();
    assert!(matches!(bind(&path), Err(ListenError::Taken(_))));
    assert!(UnixStream::connect(&path).await.is_ok());
    drop(living);
}

#[tokio::test]
async fn a_file_that_is_no_socket_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    fs::write(&path, "mine").unwrap();
    let error = bind(&path).unwrap_err();
    assert!(error.to_string().ends_with("there is a file that is no socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    // Nor is a link followed to one.
    let link = folder.path().join("link.sock");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(bind(&link), Err(ListenError::NoSocket(_))));
}

#[tokio::test]
async fn the_file_of_a_successor_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let first = bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _second = bind(&path).unwrap();
    drop(first);
    assert!(UnixStream::connect(&path).await.is_ok());
}

#[tokio::test]
async fn a_server_listens_somewhere() {
    let config = ServerConfig { tcp: None, unix: None, unix_mode: 0o600, limits: unlimited() };
    assert!(matches!(
        Server::bind(&config, Arc::new(Clients::new(Room { clients: 1, output: 1, memory: 1 }))),
        Err(ListenError::Nowhere)
    ));
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let config = ServerConfig { tcp: Some(taken.local_addr().unwrap()), ..config };
    assert!(matches!(
        Server::bind(&config, Arc::new(Clients::new(Room { clients: 1, output: 1, memory: 1 }))),
        Err(ListenError::Tcp { .. })
    ));
    let long = Path::new("/tmp").join("x".repeat(200));
    assert!(matches!(bind(&long), Err(ListenError::Unix { .. })));
}
