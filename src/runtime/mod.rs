//! What every subcommand needs around its work: logs, metrics, admin endpoints, shutdown, a clock, a Kubernetes client, streams
//! to the controller.

pub mod admin;
pub mod api_error;
pub mod backoff;
pub mod bounded;
pub mod clock;
pub mod environment;
pub mod fail_fast;
pub mod failing;
pub mod health;
pub mod kube_client;
pub mod listen;
pub mod metrics;
pub mod probe;
pub mod shutdown;
pub mod small_file;
pub mod task_set;
pub mod telemetry;
pub mod tls;
pub mod transport;
pub mod turn;
