//! The agent in pods that ask for it, as an API server adds it with what the chart installs.

mod admitted;
mod by_hand;
mod mode;
mod options;
mod selection;
mod webhook;
mod workload;
