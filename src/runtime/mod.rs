//! What every subcommand needs around its work.
