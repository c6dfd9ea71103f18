//! A program that runs beside the test.

use crate::{
    Error, Result, eventually,
    supervisor::{self, Supervised},
};
use rustix::process::Signal;
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use tempfile::TempPath;
use tokio::time::timeout;

/// Lines of the log that are shown when a test fails, and characters of each.
const TAIL: usize = 30;
const WIDTH: usize = 300;
/// How long the kernel may take to stop or to kill a process.
const KERNEL: Duration = Duration::from_secs(10);

/// A child process that ends with this one, whatever happens: when the value is dropped, when the test panics, and when
/// this process is killed with SIGKILL (the kernel then kills it too). Its output is in a file; when a test panics,
/// the end of that file is printed.
pub struct Process {
    name: String,
    child: Supervised,
    log: PathBuf,
    printed: AtomicBool,
    _log_guard: Option<TempPath>,
}

/// How to start a [`Process`].
pub struct ProcessBuilder {
    name: String,
    program: OsString,
    command: Command,
    log: Option<PathBuf>,
    stdout: Option<PathBuf>,
    stdin: Option<PathBuf>,
}

impl ProcessBuilder {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable; the others are those of this process.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Removes an environment variable.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(key);
        self
    }

    /// Starts it in this folder.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Appends its output to this file; otherwise to a temporary file.
    #[must_use]
    pub fn log(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = Some(path.into());
        self
    }

    /// Writes standard output to this file, so that the log has only standard error.
    #[must_use]
    pub fn stdout(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdout = Some(path.into());
        self
    }

    /// Reads standard input from this file; otherwise it is empty.
    #[must_use]
    pub fn stdin(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdin = Some(path.into());
        self
    }

    /// Starts the program.
    pub fn spawn(self) -> Result<Process> {
        let Self { name, program, mut command, log, stdout, stdin } = self;
        let opening = |path: &Path| Error::io(format!("opening {} for {name}", path.display()));
        // Else the shell in between would find out, too late for an error here.
        if program.as_encoded_bytes().contains(&b'/') && !Path::new(&program).exists() {
            return Err(Error::io(format!("starting {}", program.display()))(std::io::ErrorKind::NotFound.into()));
        }
        let (log, log_guard) = if let Some(path) = log {
            (path, None)
        } else {
            let file = tempfile::Builder::new().prefix("testkit-").suffix(".log").tempfile();
            let guard = file.map_err(Error::io("creating a log file"))?.into_temp_path();
            (guard.to_path_buf(), Some(guard))
        };
        let append = |path: &Path| File::options().create(true).append(true).open(path).map_err(opening(path));
        let errors = append(&log)?;
        command.stdout(match &stdout {
            Some(path) => File::create(path).map_err(opening(path))?,
            None => append(&log)?,
        });
        command.stderr(errors);
        command.stdin(match &stdin {
            Some(path) => Stdio::from(File::open(path).map_err(opening(path))?),
            None => Stdio::null(),
        });
        let child = Supervised::spawn(command)
            .map_err(Error::io(format!("starting {name} (with setpriv, which is part of util-linux)")))?;
        Ok(Process { name, child, log, printed: AtomicBool::new(false), _log_guard: log_guard })
    }
}

impl Process {
    /// Prepares to start `program`, which tests call `name`.
    pub fn builder(name: impl Into<String>, program: impl AsRef<OsStr>) -> ProcessBuilder {
        ProcessBuilder {
            name: name.into(),
            program: program.as_ref().to_owned(),
            command: supervisor::command(program.as_ref()),
            log: None,
            stdout: None,
            stdin: None,
        }
    }

    /// What tests call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its exit status, when it has ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child.status()
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Stops it with SIGSTOP, and returns when every thread of it stands still.
    pub async fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        eventually(KERNEL, &format!("{} is paused", self.name), async || all_threads_stopped(self.pid()).then_some(()))
            .await
    }

    /// Lets it go on after [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills it with SIGKILL, and returns when it is gone. Fine when it is gone already.
    pub async fn kill9(&self) -> Result<()> {
        self.child.signal(Signal::KILL);
        self.wait(KERNEL).await.map(drop)
    }

    /// Asks it to end (SIGTERM) and returns its exit status. When it has not ended within `grace`, it is killed, and
    /// that is an error.
    pub async fn terminate(&self, grace: Duration) -> Result<ExitStatus> {
        self.child.signal(Signal::TERM);
        // A process that is paused handles the signal only after this.
        self.child.signal(Signal::CONT);
        let ended = self.wait(grace).await;
        if ended.is_err() {
            self.kill9().await?;
        }
        ended
    }

    /// Waits for it to end by itself.
    pub async fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        let late = || Error::Deadline { what: format!("{} ends", self.name), waited: deadline };
        timeout(deadline, self.child.ended()).await.ok().flatten().ok_or_else(late)
    }

    /// Sends any signal.
    fn signal(&self, signal: Signal) -> Result<()> {
        if self.child.signal(signal) { Ok(()) } else { Err(Error::NotRunning { name: self.name.clone() }) }
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of what it has written, long ones cut.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let cut = |line: &str| {
            line.char_indices().nth(WIDTH).map_or(line.to_owned(), |(end, _)| format!("{}…", &line[..end]))
        };
        let lines: Vec<_> = log.lines().map(cut).collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// Prints the end of the log, once, if the test panics. Whoever ends several processes calls it for all of them
    /// first, lest their logs end with complaints about one another.
    pub(crate) fn print_if_panicking(&self) {
        if thread::panicking() && !self.printed.swap(true, Ordering::Relaxed) {
            eprintln!("--- the end of the log of {} ---\n{}", self.name, self.log_tail());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.print_if_panicking();
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("name", &self.name).field("pid", &self.pid()).finish_non_exhaustive()
    }
}

/// Whether each thread is in state T. A thread that ended in between does not count.
fn all_threads_stopped(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        // "12 (name) T …", and the name may have anything in it.
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
    })
}
