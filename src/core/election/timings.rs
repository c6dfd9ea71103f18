//! The periods of the election, and how they must fit together.

use std::time::Duration;

/// No lease may last longer, neither by our settings nor by what another replica wrote into the object.
pub const MAX_LEASE_DURATION: Duration = Duration::from_hours(1);

/// The periods of the election, checked against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    pub(super) lease_duration: Duration,
    pub(super) renew_deadline: Duration,
    pub(super) retry_period: Duration,
}

/// Why periods do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingsError {
    /// The object stores whole seconds, and a forgotten lease must end some day.
    #[error("the lease duration must be between 1s and 3600s, not {0:?}")]
    LeaseDuration(Duration),
    /// The rest of the lease is the margin for clocks that drift and for work under way.
    #[error(
        "the renew deadline ({renew_deadline:?}) must be at most nine tenths of the lease duration ({lease_duration:?})"
    )]
    RenewDeadline {
        /// The deadline that was asked for.
        renew_deadline: Duration,
        /// The lease duration that it must stay below.
        lease_duration: Duration,
    },
    /// A renewal that failed once must have time for another try.
    #[error(
        "the retry period ({retry_period:?}) must be at least 50ms and at most half the renew deadline ({renew_deadline:?})"
    )]
    RetryPeriod {
        /// The period that was asked for.
        retry_period: Duration,
        /// The deadline that it must fit into twice.
        renew_deadline: Duration,
    },
}

impl Timings {
    /// Checks that a leader stops before its lease ends, and has time for more than one try before that.
    pub fn new(
        lease_duration: Duration,
        renew_deadline: Duration,
        retry_period: Duration,
    ) -> Result<Self, TimingsError> {
        if lease_duration < Duration::from_secs(1) || lease_duration > MAX_LEASE_DURATION {
            return Err(TimingsError::LeaseDuration(lease_duration));
        }
        if renew_deadline > lease_duration * 9 / 10 {
            return Err(TimingsError::RenewDeadline { renew_deadline, lease_duration });
        }
        if retry_period < Duration::from_millis(50) || retry_period > renew_deadline / 2 {
            return Err(TimingsError::RetryPeriod { retry_period, renew_deadline });
        }
        Ok(Self { lease_duration, renew_deadline, retry_period })
    }

    /// How long the others leave an unchanged lease alone.
    pub const fn lease_duration(&self) -> Duration {
        self.lease_duration
    }

    /// How long a leader leads after it sent its last successful renewal.
    pub const fn renew_deadline(&self) -> Duration {
        self.renew_deadline
    }

    /// How often a leader renews, and how often the others look.
    pub const fn retry_period(&self) -> Duration {
        self.retry_period
    }
}
