//! A real redis-server, and the tools that come with it. `make clients` gets them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use testkit::{LoopbackAddr, Process, eventually};

use super::wire::Connection;
use crate::world::PATIENCE;

/// A program or file that `make clients` has put under target/tools.
pub fn tool(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(path);
    assert!(path.exists(), "{} is missing: run `make clients`", path.display());
    path
}

/// A Redis server with nothing but what is in its memory.
pub struct RedisServer {
    pub address: SocketAddr,
    process: Process,
    args: Vec<String>,
    _ip: LoopbackAddr,
}

impl RedisServer {
    /// Starts one.
    pub async fn start(args: &[&str]) -> Self {
        let ip = LoopbackAddr::claim().unwrap();
        let address = ip.free_socket().unwrap();
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let process = Self::spawn(address, &args);
        let server = Self { address, process, args, _ip: ip };
        server.wait_ready().await;
        server
    }

    fn spawn(address: SocketAddr, args: &[String]) -> Process {
        Process::builder("redis-server", tool("redis/bin/redis-server"))
            .args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()])
            // Nothing on disk; and in its default mode it would refuse strangers on other addresses than 127.0.0.1.
            .args(["--save", "", "--appendonly", "no", "--protected-mode", "no"])
            .args(args)
            .spawn()
            .unwrap()
    }

    async fn wait_ready(&self) {
        eventually(PATIENCE, "redis-server answers", async || {
            Connection::open(self.address).await.ok()?.ask("PING").await.ok()
        })
        .await
        .unwrap();
    }

    /// Kills it, and starts it again on the same port. What it knew is lost.
    pub async fn kill9_and_restart(&mut self) {
        self.process.kill9().await.unwrap();
        self.process = Self::spawn(self.address, &self.args);
        self.wait_ready().await;
    }
}
