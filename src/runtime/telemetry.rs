//! Logs: for people on a terminal, as JSON otherwise.

use std::fmt::Display;
use std::io::{IsTerminal, stderr};
use std::panic::PanicHookInfo;

use clap::{Args, ValueEnum};
use thiserror::Error;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, fmt};

/// How and how much to log.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Format of the log on stderr; `auto` is text on a terminal and JSON otherwise.
    #[arg(long, env = "VMCP_LOG_FORMAT", value_enum, default_value_t = LogFormat::Auto, global = true)]
    pub log_format: LogFormat,

    /// What to log: a level, or directives as in `info,vmcp_session=debug`.
    #[arg(long, env = "VMCP_LOG_LEVEL", value_name = "FILTER", default_value = "info", global = true)]
    pub log_level: String,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("--log-level (VMCP_LOG_LEVEL) '{filter}' is not a filter: {reason}")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Logging was set up before.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Sets up logging for the whole process.
pub fn init(args: &LogArgs) -> Result<(), TelemetryError> {
    let terminal = stderr().is_terminal();
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let json = match args.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let subscriber = subscriber(&args.log_level, json, colours, stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::AlreadySet)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Says why the process ends: in the log, or as it is, if the filter keeps errors out of the log. Nobody knows otherwise.
pub fn ended(error: &dyn Display) {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(%error, "ended");
    } else {
        eprintln!("error: {error}");
    }
}

/// Logs a panic like everything else. A message that was put together at run time may hold a value, so only one that
/// stands in the source is shown; the place says which it was.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("(message withheld)");
    let place = panic.location().map(ToString::to_string);
    tracing::error!(place, panic = message, thread = std::thread::current().name(), "panicked");
}

/// Whether a library's own events may be logged at all, whatever the filter says.
///
/// kube's client logs the API server's answers: at `warn` the whole text of an object that it cannot decode, at `debug`
/// every refusal with the values that it quotes. Those are metadata values (I6), so nothing of it is ever shown. What
/// went wrong is told by our own errors.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    target != "kube_client" && !target.starts_with("kube_client::")
}

/// The filter that a text means. A word that is no level would be taken for a target, of which all is logged, and nothing of
/// anything else: `warning` would silence everything. So each directive must end with a level.
fn parsed(filter: &str) -> Result<EnvFilter, String> {
    let directives: Vec<&str> = filter.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    if directives.is_empty() {
        return Err("it is empty; to log nothing, say 'off'".to_owned());
    }
    for directive in &directives {
        let level = directive.rsplit_once('=').map_or(*directive, |(_, level)| level);
        if !is_level(level) {
            return Err(format!(
                "'{directive}' is no level, and has none after a '=': expected off, error, warn, info, debug or trace, or \
                 TARGET=LEVEL"
            ));
        }
    }
    // Where only some targets are named, one of them misspelt perhaps, what goes wrong is logged all the same.
    let all = if directives.iter().any(|directive| is_level(directive)) { "" } else { "error," };
    EnvFilter::builder().parse(format!("{all}{}", directives.join(","))).map_err(|e| e.to_string())
}

fn is_level(text: &str) -> bool {
    !text.is_empty() && text.parse::<LevelFilter>().is_ok()
}

fn subscriber<W>(
    filter: &str,
    json: bool,
    colours: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let parsed = parsed(filter).map_err(|reason| TelemetryError::Filter { filter: filter.to_owned(), reason })?;
    let filter = parsed.and(filter_fn(may_be_logged));
    let registry = tracing_subscriber::registry();
    Ok(if json {
        let layer = fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(writer);
        Box::new(registry.with(layer.with_filter(filter)))
    } else {
        let layer = fmt::layer().with_ansi(colours).with_target(false).with_writer(writer);
        Box::new(registry.with(layer.with_filter(filter)))
    })
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, json: bool, emit: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = subscriber(filter, json, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, emit);
        buffer.text()
    }

    #[test]
    fn json_is_one_flat_object_per_line() {
        let text = logged("info", true, || tracing::info!(session = "s1", pods = 3, "evicted"));
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["message"], "evicted");
        assert_eq!(line["session"], "s1");
        assert_eq!(line["pods"], 3);
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn text_has_no_colours_where_none_are_wanted() {
        let text = logged("info", false, || tracing::info!(pods = 3, "evicted"));
        assert!(text.contains("INFO") && text.contains("evicted pods=3"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn the_filter_decides_by_level_and_target() {
        let emit = || {
            tracing::debug!("hidden");
            tracing::debug!(target: "vmcp_session::core", "shown");
        };
        let text = logged("info,vmcp_session::core=debug", true, emit);
        assert!(!text.contains("hidden") && text.contains("shown"), "{text}");
    }

    #[test]
    fn what_kube_says_of_answers_is_never_shown() {
        let emit = || {
            tracing::warn!(target: "kube_client::client", "canary-4b1d");
            tracing::debug!(target: "kube_client", "canary-4b1d");
            tracing::error!(target: "kube_client::client::builder", "canary-4b1d");
            tracing::info!(target: "kube_clientele", "another crate");
        };
        for filter in ["trace", "trace,kube_client=trace", "kube_client::client=trace,info"] {
            let text = logged(filter, true, emit);
            assert!(!text.contains("canary"), "{filter}: {text}");
            assert!(text.contains("another crate"), "{filter}: {text}");
        }
    }

    #[test]
    fn a_panic_is_logged_without_a_message_made_at_run_time() {
        let value = String::from("canary-4b1d");
        let before = std::panic::take_hook();
        let text = logged("info", true, || {
            std::panic::set_hook(Box::new(log_panic));
            // The other tests' panics come here too meanwhile; they are shown by their own failure.
            let _ = std::panic::catch_unwind(|| panic!("{value}"));
            let _ = std::panic::catch_unwind(|| panic!("known at compile time"));
            std::panic::set_hook(before);
        });
        assert!(!text.contains("canary"), "{text}");
        assert!(text.contains("telemetry.rs:") && text.contains("(message withheld)"), "{text}");
        assert!(text.contains("known at compile time"), "{text}");
    }

    #[test]
    fn a_bad_filter_is_refused_with_the_reason() {
        for bad in ["vmcp_session=loud", "a=b=c", "a=b=info", "", "  ", ",", "[{", "[{=info"] {
            let Err(error) = subscriber(bad, true, false, io::sink) else { panic!("'{bad}' was taken") };
            let text = error.to_string();
            assert!(text.contains("--log-level") && text.contains(bad), "{text}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_since_it_would_silence_everything() {
        for (bad, word) in [
            ("warning", "warning"),
            ("fatal", "fatal"),
            ("info;debug", "info;debug"),
            ("bogus=", "bogus="),
            ("info,vmcp_session", "vmcp_session"),
            ("info, loud ,debug", "loud"),
        ] {
            let Err(error) = subscriber(bad, true, false, io::sink) else { panic!("'{bad}' was taken") };
            let text = error.to_string();
            assert!(text.contains(&format!("'{word}' is no level")) && text.contains("warn, info"), "{text}");
        }
    }

    #[test]
    fn good_filters_are_taken() {
        for good in ["info", "INFO", "off", "warn,vmcp_session=trace", "vmcp_session::core=debug", "info,[span]=debug,"]
        {
            assert!(subscriber(good, false, true, io::sink).is_ok(), "{good}");
        }
    }

    #[test]
    fn blanks_around_directives_mean_nothing() {
        let emit = || tracing::debug!(target: "vmcp_session::core", "shown");
        assert!(logged(" info , vmcp_session=debug ", true, emit).contains("shown"));
    }

    #[test]
    fn why_the_process_ends_is_logged_unless_the_filter_keeps_errors_out() {
        for loud in ["error", "another=trace"] {
            assert!(logged(loud, true, || ended(&"no reason")).contains("no reason"), "{loud}");
        }
        // It is on stderr then.
        assert_eq!(logged("off", true, || ended(&"no reason")), "");
    }
}
