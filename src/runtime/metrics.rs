//! How numbers are told to Prometheus that are read when it asks.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// A number with its label: what it is of, and which of these.
pub type Row<V> = (Option<(&'static str, &'static str)>, V);

/// What is now.
///
/// # Errors
///
/// Those of the encoder.
pub fn gauges(encoder: &mut DescriptorEncoder, name: &str, help: &str, of: &[Row<usize>]) -> Result<(), Error> {
    let value = |value: usize| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    let of: Vec<_> = of.iter().map(|(label, number)| (*label, value(*number))).collect();
    rows(encoder, name, help, &of)
}

/// What has been so far.
///
/// # Errors
///
/// Those of the encoder.
pub fn counters(encoder: &mut DescriptorEncoder, name: &str, help: &str, of: &[Row<u64>]) -> Result<(), Error> {
    let of: Vec<_> = of.iter().map(|(label, number)| (*label, ConstCounter::new(*number))).collect();
    rows(encoder, name, help, &of)
}

/// Numbers of any kind. One without a label is alone.
///
/// # Errors
///
/// Those of the encoder.
pub fn rows<M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    of: &[Row<M>],
) -> Result<(), Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, M::TYPE)?;
    for (label, number) in of {
        match label {
            Some(label) => number.encode(metric.encode_family(&[*label])?)?,
            None => return number.encode(metric),
        }
    }
    Ok(())
}
