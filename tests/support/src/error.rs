//! What can go wrong in a fixture.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the fixture, not of what it tests.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program of the control plane is not there.
    #[error(
        "{name} was not found in {}: run `make controlplane` without KUBEBUILDER_ASSETS, or set that to a folder that has it",
        folder.display()
    )]
    MissingBinary {
        /// The program.
        name: &'static str,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A condition did not come true in time.
    #[error("{what}: not within {waited:?}")]
    Deadline {
        /// The condition.
        what: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A process ended that should run.
    #[error("{name} ended ({status}); the end of its log:\n{log}")]
    Exited {
        /// The process.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// A process is asked for something that only a running one can do.
    #[error("{name} does not run")]
    NotRunning {
        /// The process.
        name: String,
    },
    /// A command ended with an error.
    #[error("{command} ended with {status}: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// The API server answered with an error, or not at all.
    #[error("{what}: {source}")]
    Api {
        /// What was asked for.
        what: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// An answer or a file lacks what it must have.
    #[error("{0}")]
    Malformed(String),
}

impl Error {
    /// Wraps an error of the operating system with what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Wraps an error of the client with what was asked for.
    pub(crate) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api { what, source: Box::new(source) }
    }
}
