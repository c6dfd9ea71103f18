//! Commands about the server, and those that are refused.

use super::{Command, Flags, Run};
use crate::agent::command::{config, info, introspection};

const ANYTIME: Flags = Flags::LOADING.and(Flags::STALE);
const UNORDERED: &[&str] = &["nondeterministic_output_order"];

const SCRIPTS: &str = "ERR scripts are not supported: a session is an object in Kubernetes, and no script can run where it \
                       is kept. Use MULTI with WATCH";
const MONITOR: &str = "ERR MONITOR is not supported: it would show session ids and values, which are secrets";

const fn container(name: &'static str, arity: i32, flags: Flags, run: Run) -> Command {
    Command::new(name, arity, flags, run).takes("Depends on subcommand.")
}

const fn sub(full_name: &'static str, name: &'static str, arity: i32, run: Run) -> Command {
    Command::new(name, arity, ANYTIME, run).full_name(full_name).group("server", &["connection"])
}

const fn refused(name: &'static str, arity: i32, reason: &'static str) -> Command {
    Command::new(name, arity, Flags::NOSCRIPT, Run::Refused(reason)).group("scripting", &[])
}

pub(super) const ROWS: [Command; 13] = [
    container("command", -1, ANYTIME, Run::Container(Some(introspection::list)))
        .group("server", &["connection"])
        .doc("Get array of Redis command details", "2.8.13")
        .takes("O(N) where N is the total number of Redis commands")
        .tips(UNORDERED)
        .subcommands(&COMMAND),
    container("config", -2, Flags::NONE, Run::Container(None))
        .group("server", &[])
        .doc("A container for server configuration commands", "2.0.0")
        .subcommands(&CONFIG),
    Command::new("info", -1, ANYTIME, Run::Now(info::info))
        .group("server", &["dangerous"])
        .doc("Get information and statistics about the server", "1.0.0")
        .tips(&["nondeterministic_output", "request_policy:all_shards", "response_policy:special"]),
    Command::new("time", 1, ANYTIME.and(Flags::FAST), Run::Now(info::time))
        .group("server", &[])
        .doc("Return the current server time", "2.6.0")
        .tips(&["nondeterministic_output"]),
    refused("eval", -3, SCRIPTS),
    refused("evalsha", -3, SCRIPTS),
    refused("eval_ro", -3, SCRIPTS),
    refused("evalsha_ro", -3, SCRIPTS),
    refused("fcall", -3, SCRIPTS),
    refused("fcall_ro", -3, SCRIPTS),
    refused("function", -2, SCRIPTS),
    refused("script", -2, SCRIPTS),
    refused("monitor", 1, MONITOR),
];

const COMMAND: [Command; 6] = [
    sub("command|count", "count", 2, Run::Now(introspection::count))
        .doc("Get total number of Redis commands", "2.8.13"),
    sub("command|docs", "docs", -2, Run::Now(introspection::docs))
        .doc("Get array of specific Redis command documentation", "7.0.0")
        .takes("O(N) where N is the number of commands to look up")
        .tips(UNORDERED)
        .differs("Without the syntax of the arguments."),
    sub("command|getkeys", "getkeys", -4, Run::Now(introspection::getkeys))
        .doc("Extract keys given a full Redis command", "2.8.13")
        .takes("O(N) where N is the number of arguments to the command"),
    sub("command|help", "help", 2, Run::Now(introspection::help))
        .doc("Show helpful text about the different subcommands", "5.0.0"),
    sub("command|info", "info", -2, Run::Now(introspection::info))
        .doc("Get array of specific Redis command details, or all when no argument is given.", "2.8.13")
        .takes("O(N) where N is the number of commands to look up")
        .tips(UNORDERED),
    sub("command|list", "list", -2, Run::Now(introspection::names))
        .doc("Get an array of Redis command names", "7.0.0")
        .takes("O(N) where N is the total number of Redis commands")
        .tips(UNORDERED)
        .differs("Without FILTERBY."),
];

const CONFIG: [Command; 2] = [
    Command::new("get", -3, ANYTIME.and(Flags::ADMIN).and(Flags::NOSCRIPT), Run::Now(config::get))
        .full_name("config|get")
        .group("server", &[])
        .doc("Get the values of configuration parameters", "2.0.0")
        .takes("O(N) when N is the number of configuration parameters provided")
        .differs("Those that have a meaning here. They are set on the command line."),
    Command::new("help", 2, ANYTIME, Run::Now(config::help))
        .full_name("config|help")
        .group("server", &[])
        .doc("Show helpful text about the different subcommands", "5.0.0"),
];
