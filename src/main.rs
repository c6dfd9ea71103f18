//! The `vmcp-session` command.

fn main() {}
