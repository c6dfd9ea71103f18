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

#[test]
fn a_test_is_told_from_another_function() {
    let text = "fn helper() {}\n#[tokio::test(flavor = \"x\")]\nasync fn one() {}\n    #[test]\n    fn two() {}\n";
    let has: Vec<bool> = ["helper", "one", "two", "tw", "three"].iter().map(|name| has_test(text, name)).collect();
    assert_eq!(has, [false, true, true, false, false]);
}
