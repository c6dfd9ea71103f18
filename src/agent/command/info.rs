//! `INFO` and `TIME`.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::args::is;
use super::context::Context;
use super::refusal::Refusal;
use super::{Flow, REDIS_VERSION};
use crate::agent::Agent;
use crate::agent::sessions::now_millis;
use crate::resp::Reply;

/// `TIME`
pub fn time(_: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let parts = [now.as_secs().to_string(), now.subsec_micros().to_string()];
    Ok(Flow::Reply(Reply::Array(parts.map(|part| Reply::Bulk(part.into())).to_vec())))
}

/// A section: its name, and what it writes.
type Section = (&'static str, fn(&Agent, &mut String) -> std::fmt::Result);

const SECTIONS: [Section; 8] = [
    ("Server", server),
    ("Clients", clients),
    ("Memory", memory),
    ("Persistence", persistence),
    ("Stats", stats),
    ("Replication", replication),
    ("Commandstats", commandstats),
    ("Keyspace", keyspace),
];

/// Sections that are shown only when they are asked for.
const ON_REQUEST: &str = "Commandstats";

/// `INFO [section ...]`
pub fn info(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let asked = args.get(1..).unwrap_or_default();
    let wanted = |name: &str| {
        let by_default = asked.is_empty() || asked.iter().any(|a| is(a, "default"));
        let all = asked.iter().any(|a| is(a, "all") || is(a, "everything"));
        all || by_default && name != ON_REQUEST || asked.iter().any(|a| is(a, name))
    };
    let mut text = String::new();
    for (name, write) in SECTIONS.into_iter().filter(|(name, _)| wanted(name)) {
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "# {name}\r\n");
        let _ = write(context.agent, &mut text);
    }
    Ok(Flow::Reply(Reply::Verbatim("txt", text)))
}

fn server(agent: &Agent, out: &mut String) -> std::fmt::Result {
    let uptime = agent.commands.started.elapsed().as_secs();
    write!(
        out,
        "redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nos:{} {}\r\narch_bits:{}\r\nvmcp_session_version:{}\r\n\
         process_id:{}\r\nrun_id:{}\r\ntcp_port:{}\r\nserver_time_usec:{}\r\nuptime_in_seconds:{uptime}\r\n\
         uptime_in_days:{}\r\n",
        std::env::consts::OS,
        std::env::consts::ARCH,
        usize::BITS,
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
        agent.commands.run_id,
        agent.commands.port,
        now_millis() * 1_000,
        uptime / 86_400,
    )
}

fn clients(agent: &Agent, out: &mut String) -> std::fmt::Result {
    let (mut connected, mut pubsub, mut tracking, mut output) = (0, 0, 0, 0);
    agent.clients.each(|client| {
        connected += 1;
        pubsub += usize::from(client.subscriptions() != (0, 0));
        tracking += usize::from(client.caching().is_some());
        output = client.output_bytes().max(output);
    });
    write!(
        out,
        "connected_clients:{connected}\r\nmaxclients:{}\r\nclient_recent_max_output_buffer:{output}\r\nblocked_clients:0\r\n\
         tracking_clients:{tracking}\r\npubsub_clients:{pubsub}\r\n",
        agent.commands.max_clients,
    )
}

/// A field of `/proc/self/status`, in bytes.
fn process_memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1_024
}

fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut unit = 0;
    let mut scale = 1;
    while unit + 1 < UNITS.len() && bytes / scale >= 1_024 {
        unit += 1;
        scale *= 1_024;
    }
    let hundredths = bytes % scale * 100 / scale;
    format!("{}.{hundredths:02}{}", bytes / scale, UNITS[unit])
}

fn memory(agent: &Agent, out: &mut String) -> std::fmt::Result {
    let rss = process_memory("VmRSS");
    let peak = process_memory("VmHWM");
    let dataset = agent.sessions.cache().state().bytes;
    let most = agent.commands.max_memory;
    // Who compares it with `maxmemory` must compare like with like: that bounds the copies, not the process.
    write!(
        out,
        "used_memory:{dataset}\r\nused_memory_human:{}\r\nused_memory_rss:{rss}\r\nused_memory_rss_human:{}\r\n\
         used_memory_peak:{peak}\r\nused_memory_peak_human:{}\r\nused_memory_dataset:{dataset}\r\nmaxmemory:{most}\r\n\
         maxmemory_human:{}\r\nmaxmemory_policy:allkeys-lru\r\nmem_clients_normal:{}\r\n",
        human(u64::try_from(dataset).unwrap_or(u64::MAX)),
        human(rss),
        human(peak),
        human(u64::try_from(most).unwrap_or(u64::MAX)),
        agent.clients.memory_bytes(),
    )
}

fn persistence(_: &Agent, out: &mut String) -> std::fmt::Result {
    // What is answered OK is in etcd: there is nothing to load, and nothing to save.
    out.write_str("loading:0\r\nrdb_changes_since_last_save:0\r\naof_enabled:0\r\n")
}

fn stats(agent: &Agent, out: &mut String) -> std::fmt::Result {
    let state = agent.sessions.cache().state();
    let (calls, errors) = agent.commands.stats.totals();
    let evicted: u64 = state.evictions.iter().map(|(_, count)| count).sum();
    let (channels, patterns) = agent.pubsub.counts();
    let tracking = agent.tracking.counts();
    let totals = agent.clients.totals();
    write!(
        out,
        "total_connections_received:{}\r\nrejected_connections:{}\r\ntotal_commands_processed:{calls}\r\n\
         total_net_input_bytes:{}\r\ntotal_net_output_bytes:{}\r\ntotal_error_replies:{errors}\r\nkeyspace_hits:{}\r\n\
         keyspace_misses:{}\r\nevicted_keys:{evicted}\r\nevicted_clients:{}\r\npubsub_channels:{channels}\r\n\
         pubsub_patterns:{patterns}\r\n\
         tracking_total_keys:{}\r\ntracking_total_items:{}\r\ntracking_total_prefixes:{}\r\n",
        totals.accepted,
        totals.refused,
        totals.bytes_read,
        totals.bytes_written,
        state.hits + state.validated + state.restored,
        state.not_found,
        totals.ended_memory,
        tracking.keys,
        tracking.items,
        tracking.prefixes,
    )?;
    // What Redis has no name for.
    write!(
        out,
        "vmcp_hits:{}\r\nvmcp_validated:{}\r\nvmcp_restored:{}\r\nvmcp_unavailable:{}\r\nvmcp_overloaded:{}\r\n\
         vmcp_written:{}\r\nvmcp_write_errors:{}\r\nvmcp_api_calls:{}\r\nvmcp_lease_milliseconds:{}\r\n",
        state.hits,
        state.validated,
        state.restored,
        state.unavailable,
        state.overloaded,
        state.written,
        state.write_errors,
        state.api_calls,
        state.leased_for.map_or(0, |left| left.as_millis()),
    )?;
    for (reason, count) in &state.evictions {
        write!(out, "vmcp_evicted_{}:{count}\r\n", reason.as_str())?;
    }
    Ok(())
}

fn replication(agent: &Agent, out: &mut String) -> std::fmt::Result {
    write!(out, "role:master\r\nconnected_slaves:0\r\nmaster_replid:{}\r\n", agent.commands.run_id)
}

fn commandstats(agent: &Agent, out: &mut String) -> std::fmt::Result {
    for command in agent.commands.stats.by_command() {
        let (calls, usec) = (command.calls(), command.total.as_micros());
        let hundredths = usec * 100 / u128::from(calls.max(1));
        write!(
            out,
            "cmdstat_{}:calls={calls},usec={usec},usec_per_call={}.{:02},rejected_calls=0,failed_calls={}\r\n",
            command.name,
            hundredths / 100,
            hundredths % 100,
            command.errors,
        )?;
    }
    Ok(())
}

fn keyspace(agent: &Agent, out: &mut String) -> std::fmt::Result {
    let (keys, expires) = agent.sessions.counts();
    if keys == 0 {
        return Ok(());
    }
    let average = agent.sessions.average_ttl();
    write!(out, "db0:keys={keys},expires={expires},avg_ttl={average}\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_by_people_too() {
        assert_eq!(human(0), "0.00B");
        assert_eq!(human(1_023), "1023.00B");
        assert_eq!(human(1_536), "1.50K");
        assert_eq!(human(5 << 30), "5.00G");
        assert_eq!(human(u64::MAX), "16777215.99T");
    }

    #[test]
    fn this_process_has_memory() {
        assert!(process_memory("VmRSS") > 0);
        assert_eq!(process_memory("NoSuchField"), 0);
    }
}
