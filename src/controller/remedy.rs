//! What a failed write calls for.

use crate::runtime::api_error::{ApiError, ApiErrorKind};

/// What to do about a failed write that is safe to repeat.
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

impl Remedy {
    /// What this error calls for.
    pub fn of(error: &ApiError) -> Self {
        use ApiErrorKind as K;
        match error.kind() {
            K::ServerError
            | K::Timeout
            | K::Unreachable
            | K::TooManyRequests
            | K::Unauthorized
            | K::ResourceVersionTooLarge => Self::Retry,
            K::Forbidden | K::OverQuota | K::Conflict | K::Undecodable | K::Other => Self::RetryFewTimes,
            K::NotFound | K::Gone | K::UidMismatch => Self::Forget,
            K::AlreadyExists | K::Invalid | K::TooLarge => Self::GiveUp,
        }
    }
}
