//! A part of the control plane that tests stop, kill, pause and start again.

use crate::{Error, Process, Result, eventually};
use k8s_openapi::jiff::Timestamp;
use std::{
    path::PathBuf,
    sync::{Mutex as StdMutex, PoisonError},
    time::Duration,
};
use tokio::{sync::Mutex, time::timeout};

/// How long a part may take to be ready, on a busy machine.
const READY: Duration = Duration::from_mins(1);
/// How long it may take to end when asked to.
const GRACE: Duration = Duration::from_secs(30);
/// How long one question for readiness may take: a paused server answers never.
const PROBE: Duration = Duration::from_secs(2);

/// etcd or an API server: a process that can be started again on the same data and the same port.
pub struct Component {
    name: String,
    url: String,
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    health: &'static str,
    client: kube::Client,
    process: Mutex<Option<Process>>,
    /// When it was started again.
    restarts: StdMutex<Vec<Timestamp>>,
}

impl Component {
    /// Starts it, without waiting until it is ready. `client` is used to ask at the path `health`.
    pub(crate) fn start(
        name: &str,
        url: String,
        program: PathBuf,
        args: Vec<String>,
        log: PathBuf,
        health: &'static str,
        client: kube::Client,
    ) -> Result<Self> {
        let (name, process, restarts) = (name.to_owned(), Mutex::default(), StdMutex::default());
        let part = Self { name, url, program, args, log, health, client, process, restarts };
        let process = part.spawn()?;
        Ok(Self { process: Mutex::new(Some(process)), ..part })
    }

    fn spawn(&self) -> Result<Process> {
        Process::builder(&self.name, &self.program).args(&self.args).log(&self.log).spawn()
    }

    /// Its name, as in its log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The file with its output, of all its runs.
    pub fn log_path(&self) -> &std::path::Path {
        &self.log
    }

    /// Its process id while it runs.
    pub async fn pid(&self) -> Option<u32> {
        self.process.lock().await.as_ref().filter(|p| p.is_running()).map(Process::pid)
    }

    /// Ends it as Kubernetes does (SIGTERM). Fine when it does not run.
    pub async fn stop(&self) -> Result<()> {
        match self.process.lock().await.take() {
            Some(process) => process.terminate(GRACE).await.map(drop),
            None => Ok(()),
        }
    }

    /// Kills it (SIGKILL). Fine when it does not run.
    pub async fn kill9(&self) -> Result<()> {
        match self.process.lock().await.take() {
            Some(process) => process.kill9().await,
            None => Ok(()),
        }
    }

    /// Freezes it (SIGSTOP): its connections stay open, and nothing answers.
    pub async fn pause(&self) -> Result<()> {
        match &*self.process.lock().await {
            Some(process) => process.pause().await,
            None => Err(self.not_running()),
        }
    }

    /// Lets it go on after [`pause`](Self::pause).
    pub async fn resume(&self) -> Result<()> {
        match &*self.process.lock().await {
            Some(process) => process.resume(),
            None => Err(self.not_running()),
        }
    }

    /// Stops it if it runs, starts it on the same data and port, and waits until it is ready.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.launch().await?;
        self.wait_ready().await
    }

    /// Starts it if it does not run, without waiting until it is ready.
    pub async fn launch(&self) -> Result<()> {
        let mut process = self.process.lock().await;
        if process.as_ref().is_none_or(|p| !p.is_running()) {
            *process = Some(self.spawn()?);
            self.restarts.lock().unwrap_or_else(PoisonError::into_inner).push(Timestamp::now());
        }
        Ok(())
    }

    /// When it was started again so far.
    pub fn restarts(&self) -> Vec<Timestamp> {
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it says that it is ready. Fails at once when its process has ended.
    pub async fn wait_ready(&self) -> Result<()> {
        let what = format!("{} is ready", self.name);
        let ready = eventually(READY, &what, async || {
            if let Some(ended) = self.ended().await {
                return Some(Err(ended));
            }
            matches!(timeout(PROBE, self.is_ready()).await, Ok(true)).then_some(Ok(()))
        });
        ready.await?
    }

    /// Asks once whether it is ready. Hangs when the server does.
    pub async fn is_ready(&self) -> bool {
        let Ok(request) = http::Request::get(self.health).body(Vec::new()) else {
            return false;
        };
        self.client.request_text(request).await.is_ok()
    }

    async fn ended(&self) -> Option<Error> {
        match &*self.process.lock().await {
            Some(process) => process.exit_status().map(|status| Error::Exited {
                name: self.name.clone(),
                status,
                log: process.log_tail(),
            }),
            None => Some(self.not_running()),
        }
    }

    /// See [`Process::print_if_panicking`].
    pub(crate) fn print_if_panicking(&self) {
        if let Ok(process) = self.process.try_lock() {
            process.iter().for_each(Process::print_if_panicking);
        }
    }

    fn not_running(&self) -> Error {
        Error::NotRunning { name: self.name.clone() }
    }
}
