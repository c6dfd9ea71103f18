//! Children that die with this process, also when it is killed with SIGKILL.
//!
//! The kernel does it (`PR_SET_PDEATHSIG`), asked by setpriv of util-linux, since asking from here would need unsafe
//! code. Two traps are avoided:
//! - The signal comes when the THREAD that forked ends. Test threads and the threads of tokio end early, so one thread
//!   that never ends forks all children.
//! - This process may die before the child has asked for the signal. So a shell compares its parent with the one it was
//!   told, after asking, and goes no further when they differ.
//!
//! All three are one process, by exec: the child's id, exit status and signals are those of the program itself.

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid},
};
use std::{
    ffi::OsStr,
    io,
    os::unix::process::CommandExt,
    process::{self, Child, Command, ExitStatus},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
};
use tokio::sync::watch;

/// Runs as `sh -c CHECK sh PARENT PROGRAM ARGS`.
const CHECK: &str = r#"[ "$PPID" = "$1" ] || exit 125; shift; exec "$@""#;

struct Order {
    command: Command,
    answer: mpsc::SyncSender<io::Result<Child>>,
}

static SPAWNER: LazyLock<io::Result<mpsc::Sender<Order>>> = LazyLock::new(|| {
    let (orders, inbox) = mpsc::channel::<Order>();
    // The static keeps a sender for ever, so this thread ends only with the process.
    thread::Builder::new().name("spawner".into()).spawn(move || {
        for mut order in inbox {
            // Nobody waits for the answer any more only if the asking thread died; the child is dropped unwatched, but
            // still dies with the process.
            let _ = order.answer.send(order.command.spawn());
        }
    })?;
    Ok(orders)
});

/// A command that runs `program` under supervision. Arguments are added as usual.
pub(crate) fn command(program: &OsStr) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "sh", "-c", CHECK, "sh"]);
    command.arg(process::id().to_string()).arg(program);
    // A group of its own: what it starts can be killed with it, and ctrl-C on a terminal reaches only this process.
    command.process_group(0);
    command
}

/// A running child, or one that has ended.
pub(crate) struct Supervised {
    pid: Pid,
    state: Arc<State>,
    waiter: Option<JoinHandle<()>>,
}

struct State {
    /// Held while a signal is sent and while the child is reaped, so that a signal never hits a process that got the
    /// id of one long gone.
    reaped: Mutex<bool>,
    status: watch::Sender<Option<ExitStatus>>,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.reaped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Supervised {
    /// Starts a command made by [`command`].
    pub(crate) fn spawn(command: Command) -> io::Result<Self> {
        let spawner = SPAWNER.as_ref().map_err(|e| io::Error::new(e.kind(), e.to_string()))?;
        let (answer, reply) = mpsc::sync_channel(1);
        let gone = |_| io::Error::other("the spawner thread has ended");
        spawner.send(Order { command, answer }).map_err(|_| io::Error::other("the spawner thread has ended"))?;
        let mut child = reply.recv().map_err(gone)??;

        let pid = Pid::from_child(&child);
        let state = Arc::new(State { reaped: Mutex::new(false), status: watch::Sender::new(None) });
        let waiter = thread::Builder::new().name(format!("wait-{}", child.id())).spawn({
            let state = Arc::clone(&state);
            move || {
                // Not reaped yet by this call: until it is, nobody else can get its id.
                let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                while matches!(waitid(WaitId::Pid(pid), ended), Err(Errno::INTR)) {}
                let mut reaped = state.lock();
                // What it started and left behind goes with it.
                let _ = kill_process_group(pid, Signal::KILL);
                let status = child.wait().ok();
                *reaped = true;
                state.status.send_replace(status);
            }
        })?;
        Ok(Self { pid, state, waiter: Some(waiter) })
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal; false when the process has ended.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let reaped = self.state.lock();
        !*reaped && kill_process(self.pid, signal).is_ok()
    }

    /// The exit status, when it has ended.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        *self.state.status.borrow()
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) -> Option<ExitStatus> {
        let mut status = self.state.status.subscribe();
        status.wait_for(Option::is_some).await.ok().and_then(|s| *s)
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_whose_parent_is_gone_already_does_not_start() {
        let run = |parent: u32| {
            let parent = parent.to_string();
            Command::new("sh").args(["-c", CHECK, "sh", &parent, "sh", "-c", "exit 7"]).status().unwrap().code()
        };
        assert_eq!(run(process::id()), Some(7));
        assert_eq!(run(1), Some(125));
    }
}
