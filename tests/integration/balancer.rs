//! Several API servers behind one address, as a Service has them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Takes connections to any of several servers. Open connections stay where they are.
pub struct Balancer {
    address: SocketAddr,
    first: Arc<AtomicUsize>,
    /// How many of the servers get connections, from the first on.
    among: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Balancer {
    /// In front of these. New connections go to the first, until it is said otherwise.
    pub async fn start(servers: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind((servers[0].ip(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (first, among) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(1)));
        let (start, count) = (first.clone(), among.clone());
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            let mut turn = 0;
            while let Ok((mut client, _)) = listener.accept().await {
                turn += 1;
                let at = start.load(Ordering::SeqCst) + turn % count.load(Ordering::SeqCst);
                let server = servers[at % servers.len()];
                open.spawn(async move {
                    let mut server = TcpStream::connect(server).await?;
                    client.set_nodelay(true)?;
                    server.set_nodelay(true)?;
                    copy_bidirectional(&mut client, &mut server).await
                });
                while open.try_join_next().is_some() {}
            }
        });
        Self { address, first, among, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go to this server only.
    pub fn only(&self, server: usize) {
        self.first.store(server, Ordering::SeqCst);
        self.among.store(1, Ordering::SeqCst);
    }

    /// New connections go to all servers in turn.
    pub fn in_turn(&self, servers: usize) {
        self.among.store(servers, Ordering::SeqCst);
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
