//! A thread that does nothing but serve clients.

use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::flow::Handler;
use super::serve::Server;

/// The thread's name.
const NAME: &str = "clients";

impl Server {
    /// [`Self::run`] on a thread of its own: like Redis, one serves all clients, in turn, and no request waits until another
    /// thread has woken up. Whatever clients ask for, the leases, which are kept elsewhere, are kept.
    ///
    /// An error: the system has no thread left, or the thread panicked.
    pub async fn run_apart<H: Handler + Clone>(
        self,
        handler: H,
        shutdown: CancellationToken,
        drain: Duration,
    ) -> io::Result<()> {
        let (end, ended) = oneshot::channel();
        thread::Builder::new().name(NAME.into()).spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            // Nobody listens any more if the process is about to end.
            let _ = end.send(runtime.map(|runtime| runtime.block_on(self.run(handler, shutdown, drain))));
        })?;
        ended.await.unwrap_or_else(|_| Err(io::Error::other("the thread that serves clients has panicked")))
    }
}
