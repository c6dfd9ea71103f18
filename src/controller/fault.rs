//! A failed API call without the server's text, which quotes what it refuses: values must not reach logs.

use std::fmt;
use std::time::Duration;

use kube::Error;

/// What may be told about a failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The HTTP status, if there was an answer.
    pub code: Option<u16>,
    /// The machine-readable reason, or what kept an answer away.
    pub reason: String,
}

/// What a failed write calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Try again for as long as it takes: the server is away or busy.
    Retry,
    /// Try again, but not for ever: it may be for good.
    RetryFewTimes,
    /// The object is gone; so is the work.
    Forget,
    /// The same write would be refused again.
    GiveUp,
}

impl Fault {
    /// No answer within the deadline.
    pub fn deadline() -> Self {
        Self::without_answer("deadline exceeded")
    }

    /// An answer that makes no sense.
    pub fn unreadable() -> Self {
        Self::without_answer("unreadable answer")
    }

    fn without_answer(reason: &str) -> Self {
        Self { code: None, reason: reason.to_owned() }
    }

    /// What to do about it, for a write that is safe to repeat.
    pub fn remedy(&self) -> Remedy {
        match self.code {
            None | Some(401 | 429 | 500..) => Remedy::Retry,
            Some(403 | 409) => Remedy::RetryFewTimes,
            Some(404 | 410) => Remedy::Forget,
            Some(_) => Remedy::GiveUp,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "{code} {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl std::error::Error for Fault {}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        match error {
            Error::Api(status) => Self { code: Some(status.code), reason: word(&status.reason) },
            Error::Service(_) | Error::HyperError(_) | Error::ReadEvents(_) => {
                Self::without_answer("connection failed")
            }
            Error::SerdeError(_) | Error::FromUtf8(_) => Self::unreadable(),
            Error::Auth(_) => Self::without_answer("no credentials"),
            Error::BuildRequest(_) | Error::HttpError(_) => {
                Self { code: Some(400), reason: "request could not be built".to_owned() }
            }
            _ => Self::without_answer("client error"),
        }
    }
}

/// A reason is one CamelCase word. Whatever else a server or a proxy puts there is not repeated.
fn word(reason: &str) -> String {
    let plain = !reason.is_empty() && reason.len() <= 64 && reason.bytes().all(|b| b.is_ascii_alphanumeric());
    if plain { reason.to_owned() } else { "unknown".to_owned() }
}

/// Waits for a call, but not longer than `deadline`, and scrubs its error.
pub async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(deadline, call).await {
        Ok(outcome) => outcome.map_err(|error| Fault::from(&error)),
        Err(_) => Err(Fault::deadline()),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::{Fault, Remedy};

    fn answered(code: u16, reason: &str) -> Fault {
        let status = Status::failure("spec.metadata.k: Invalid value: \"canary\"", reason).with_code(code);
        Fault::from(&kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn the_servers_text_is_not_repeated() {
        assert_eq!(answered(422, "Invalid").to_string(), "422 Invalid");
        assert_eq!(answered(422, "canary: value").to_string(), "422 unknown");
        assert_eq!(answered(422, &"c".repeat(65)).to_string(), "422 unknown");
        let serde = serde_json::from_str::<u8>("\"canary\"").map_err(kube::Error::SerdeError);
        let text = serde.map_err(|error| Fault::from(&error).to_string());
        assert_eq!(text, Err("unreadable answer".to_owned()));
    }

    #[test]
    fn what_to_do_depends_on_the_code() {
        let cases = [
            (409, Remedy::RetryFewTimes),
            (403, Remedy::RetryFewTimes),
            (404, Remedy::Forget),
            (422, Remedy::GiveUp),
            (400, Remedy::GiveUp),
            (429, Remedy::Retry),
            (500, Remedy::Retry),
            (503, Remedy::Retry),
        ];
        for (code, remedy) in cases {
            assert_eq!(answered(code, "Any").remedy(), remedy, "{code}");
        }
        assert_eq!(Fault::deadline().remedy(), Remedy::Retry);
    }
}
