//! What is said by variables of the environment, where an empty one is as good as none: manifests and shells have no other way
//! to unset what somebody else has set.

use clap::builder::Resettable;
use clap::{Arg, Command};

/// The command, without variables that are empty: so their flags have their defaults.
pub fn without_empty(command: Command) -> Command {
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(without_empty)
}

fn is_empty(arg: &Arg) -> bool {
    let value = arg.get_env().and_then(std::env::var_os);
    value.is_some_and(|value| value.is_empty())
}

/// The name of the pod that this process is in: the one that was `given`, or the host's, which a container has from its pod.
pub fn pod_name(given: Option<&str>) -> Option<String> {
    let host = || std::env::var("HOSTNAME").ok();
    given.filter(|name| !name.is_empty()).map(str::to_owned).or_else(host).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_name_is_no_name() {
        assert_eq!(pod_name(Some("pod-1")).as_deref(), Some("pod-1"));
        assert_eq!(pod_name(Some("")), pod_name(None));
        assert_ne!(pod_name(Some("")).as_deref(), Some(""));
    }
}
