//! Percentiles of measured times.

use serde_json::{Value, json};

/// Median and 99th percentile.
#[derive(Clone, Copy, Debug)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Percentiles {
    /// Those of `values`, by nearest rank.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values[rank.clamp(1, values.len()) - 1]
        };
        Self { p50: at(0.50), p99: at(0.99) }
    }

    /// For a file.
    pub fn json(self) -> Value {
        json!({"p50": self.p50, "p99": self.p99})
    }
}
