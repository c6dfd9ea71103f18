//! What the documents say of the code, as far as a machine can hold it against it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where a module's tests may be: in its own file, or beside it.
fn files(modules: &[&str]) -> Vec<PathBuf> {
    let below = |folder: &str| {
        let path = root().join(folder).join(modules.join("/"));
        let beside = path.with_file_name(format!("{}_tests", modules.last().unwrap()));
        [path.with_extension("rs"), path.join("mod.rs"), beside.with_extension("rs")]
    };
    ["tests/integration", "src"].into_iter().flat_map(below).collect()
}

/// Whether a text has this test: a function under an attribute that makes it one.
fn has_test(text: &str, name: &str) -> bool {
    let is_it = |line: &str| {
        let line = line.trim_start().trim_start_matches("async ");
        line.strip_prefix("fn ").and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.starts_with('('))
    };
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| is_it(line));
    let attributes = |at: usize| lines[..at].iter().rev().take_while(|line| line.trim_start().starts_with("#["));
    at.is_some_and(|at| attributes(at).any(|line| line.contains("test]") || line.contains("test(")))
}

/// Paths in code spans, such as `protocol::floods::a_test`.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let is_path = |span: &&str| {
        span.contains("::") && span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c))
    };
    text.split('`').skip(1).step_by(2).filter(is_path)
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let text = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let mut missing = Vec::new();
    let mut found = 0;
    for path in named(&text) {
        let parts: Vec<&str> = path.split("::").collect();
        let (name, modules) = parts.split_last().unwrap();
        let texts = files(modules).into_iter().filter_map(|file| fs::read_to_string(file).ok());
        if texts.into_iter().any(|text| has_test(&text, name)) {
            found += 1;
        } else {
            missing.push(path);
        }
    }
    assert!(missing.is_empty(), "docs/security.md names tests that do not exist: {missing:#?}");
    assert!(found > 30, "hardly any test was found: {found}");
}

/// What stands in a file behind each of the marks, up to the end of the number.
fn numbers<'a>(text: &'a str, marks: &'a [&str]) -> impl Iterator<Item = &'a str> {
    let behind = marks.iter().flat_map(|mark| text.split(mark).skip(1));
    let number = |rest: &'a str| rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    behind.map(number).map(|number| number.trim_end_matches('.')).filter(|number| !number.is_empty())
}

/// Files that tell people and machines a version, and how often at least.
fn agree(files: &[(&str, usize)], marks: &[&str], version: &str) {
    // Of one that is only a candidate, the number.
    let version = version.split('-').next().unwrap();
    for (file, least) in files {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let found: Vec<&str> = numbers(&text, marks).collect();
        assert!(found.len() >= *least, "{file} names {found:?} behind {marks:?}: it should have {least}");
        assert!(found.iter().all(|found| *found == version), "{file} should say {version}, not {found:?}");
    }
}

#[test]
fn all_say_the_same_version() {
    let files = [
        ("charts/vmcp-session-operator/Chart.yaml", 2),
        ("docs/agent.md", 2),
        ("deploy/kustomize/agent/kustomization.yaml", 1),
        ("SECURITY.md", 3),
        ("README.md", 0),
        ("docs/install.md", 0),
    ];
    let marks = ["\nversion: ", "\nappVersion: ", "vmcp-session:", "vmcp-session-operator:", "newTag: ", "checkout v"];
    agree(&files, &marks, env!("CARGO_PKG_VERSION"));
}

/// What is promised to work with this Rust is built and tested with it.
#[test]
fn all_say_the_same_rust() {
    let files = [
        ("Dockerfile", 1),
        (".github/workflows/ci.yml", 4),
        (".github/workflows/release.yml", 2),
        ("README.md", 1),
        ("CONTRIBUTING.md", 1),
        ("examples/vmcp-server/Cargo.toml", 1),
    ];
    let marks = ["rust:", "toolchain install ", "rustup default ", "Rust ", "\nrust-version = \""];
    agree(&files, &marks, env!("CARGO_PKG_RUST_VERSION"));
}

#[test]
fn a_number_ends_where_a_sentence_does() {
    let text = "with Rust 1.95, or rust:1.95-x; Rust 1.95. A `rust:` and Rust from elsewhere are none";
    assert_eq!(numbers(text, &["Rust ", "rust:"]).collect::<Vec<_>>(), ["1.95", "1.95", "1.95"]);
}

#[test]
fn a_test_is_told_from_another_function() {
    let text = "fn helper() {}\n#[tokio::test(flavor = \"x\")]\nasync fn one() {}\n    #[test]\n    fn two() {}\n";
    let has: Vec<bool> = ["helper", "one", "two", "tw", "three"].iter().map(|name| has_test(text, name)).collect();
    assert_eq!(has, [false, true, true, false, false]);
}
