//! Which module may use which: the table in `src/lib.rs`, held against every `use` and path in `src/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const SRC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// Crates that are no part of the core: it has no I/O, no tasks and no clock.
const NOT_IN_CORE: [&str; 10] =
    ["tokio", "tokio_stream", "tokio_util", "kube", "k8s_openapi", "tonic", "prost", "axum", "rustix", "tracing"];
/// Where the standard library reads a clock, or does I/O.
const NOT_IN_CORE_STD: [&str; 8] =
    ["std::fs", "std::net", "std::process", "std::thread", "std::env", "std::io", "Instant::now", "SystemTime"];

/// What each module may use, as the table says.
fn allowed() -> BTreeMap<String, Vec<String>> {
    let lib = fs::read_to_string(Path::new(SRC).join("lib.rs")).unwrap();
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | [`"));
    rows.map(|row| {
        let mut cells = row.split(" | ");
        let module = cells.next().unwrap().trim_end_matches("`]").to_owned();
        let may_use = cells.next().unwrap();
        (module, may_use.split('`').skip(1).step_by(2).map(str::to_owned).collect())
    })
    .collect()
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Modules that `path` declares under `#[cfg(test)]`, as paths without their extension.
fn test_modules(path: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(path).unwrap();
    let folder = if path.ends_with("mod.rs") { path.with_file_name("") } else { path.with_extension("") };
    let declared = text.split("#[cfg(test)]").skip(1).filter_map(|rest| {
        let line = rest.trim_start().lines().find(|line| !line.starts_with("#["))?;
        let (_, name) = line.strip_suffix(';')?.rsplit_once("mod ")?;
        let beside = rest.trim_start().strip_prefix("#[path = \"").and_then(|r| r.split_once(".rs\""));
        Some(beside.map_or_else(|| folder.join(name), |(file, _)| path.with_file_name(file)))
    });
    declared.collect()
}

/// Each file of `module`, with its code: comments may speak of other modules, and tests may use what they like.
fn code_of(module: &str) -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    let single = Path::new(SRC).join(format!("{module}.rs"));
    if single.exists() {
        paths.push(single);
    }
    let folder = Path::new(SRC).join(module);
    if folder.is_dir() {
        files(&folder, &mut paths);
    }
    let tests: Vec<PathBuf> = paths.iter().flat_map(|path| test_modules(path)).collect();
    paths.retain(|path| !tests.iter().any(|test| path.starts_with(test) || path.with_extension("") == *test));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code = text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
        (path, code)
    };
    paths.into_iter().map(read).collect()
}

/// Modules of this crate that a piece of code names, as `crate::x` or `crate::{x, y::z}`.
fn used(code: &str) -> Vec<String> {
    let word = |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut found = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        // `$crate` is fine, `my_crate` is another one.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + path.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 0_i32;
        let mut start = true;
        for (index, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if c.is_whitespace() => {}
                _ if start => {
                    found.push(word(&group[index..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn modules_use_only_what_the_table_allows() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    for (module, may_use) in &allowed {
        let files = code_of(module);
        assert!(!files.is_empty(), "src/lib.rs has a row for {module}, which has no files");
        for (path, code) in files {
            for other in used(&code) {
                let is_module = allowed.contains_key(&other);
                if is_module && other != *module && !may_use.contains(&other) {
                    wrong.push(format!("{} uses {other}", path.strip_prefix(SRC).unwrap().display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "the table in src/lib.rs does not allow this:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_row_and_every_row_a_module() {
    let lib = fs::read_to_string(Path::new(SRC).join("lib.rs")).unwrap();
    let modules = lib.lines().filter_map(|l| l.strip_prefix("pub mod ").or(l.strip_prefix("mod ")));
    let mut modules: Vec<String> = modules.map(|m| m.trim_end_matches(';').to_owned()).collect();
    modules.sort();
    let rows: Vec<String> = allowed().into_keys().collect();
    assert_eq!(modules, rows);
}

#[test]
fn controller_and_cache_meet_only_in_proto_and_core() {
    let allowed = allowed();
    for (module, other) in [("controller", "cache"), ("cache", "controller")] {
        let may_use = allowed.get(module).cloned().unwrap_or_default();
        assert!(!may_use.iter().any(|m| m == other), "the table lets {module} use {other}");
    }
}

#[test]
fn the_core_has_no_io_no_tasks_and_no_clock() {
    assert_eq!(allowed()["core"], [""; 0], "the core uses nothing of ours");
    let mut wrong = Vec::new();
    for (path, code) in code_of("core") {
        for crate_name in NOT_IN_CORE {
            let used = code
                .match_indices(&format!("{crate_name}::"))
                .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
            if used {
                wrong.push(format!("{}: {crate_name}", path.display()));
            }
        }
        for path_in_std in NOT_IN_CORE_STD {
            if code.contains(path_in_std) {
                wrong.push(format!("{}: {path_in_std}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "no part of the core:\n{}", wrong.join("\n"));
}

#[test]
fn paths_are_found_in_every_form() {
    let code = "use crate::api::names; use crate::{core::{a, b}, proto}; fn f() { crate::cache::g(); my_crate::x() }";
    assert_eq!(used(code), ["api", "core", "proto", "cache"]);
}
