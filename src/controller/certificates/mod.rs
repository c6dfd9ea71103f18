//! The certificate that streams are encrypted with: [`args`] says which one.
//!
//! * [`files`]: it is in files that somebody else replaces (cert-manager, or an administrator).
//! * [`managed`]: the controller makes it, and replaces it: [`plan`] decides when, [`issue`] makes it, [`vault`] keeps it in a
//!   Secret, [`bundle`] tells the pods whom to believe.

pub mod args;
pub mod bundle;
pub mod files;
pub mod issue;
pub mod managed;
pub mod plan;
pub mod vault;
