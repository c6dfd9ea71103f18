//! `rights FOLDER`: are the rights that the chart grants those that the programs need? FOLDER has what the API servers of all
//! tests left there (`RIGHTS_USED`). It fails when the chart grants what nothing needed, when a program was refused something, and when
//! one used what only a test had granted.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::Path,
    process::ExitCode,
};
use testkit::{Error, Grant, Result, RightUsed, rendered_chart};

/// Namespaces and accounts as tests have them.
const OPERATOR: &str = "vmcp-system";
const TENANT: &str = "vmcp";
const CONTROLLER: (&str, &str) = (OPERATOR, "vmcp-session-controller");
const POD: (&str, &str) = (TENANT, "vmcp-server");
const AGENTS: [&str; 2] = ["agents.namespaces[0].name=vmcp", "agents.namespaces[0].serviceAccounts[0]=vmcp-server"];
const CHOSEN: [&str; 1] = ["controller.namespaces={vmcp}"];

/// Values with which the chart grants something else each time.
const VALUES: [&[&str]; 2] = [&AGENTS, &CHOSEN];

fn main() -> ExitCode {
    match check() {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            for problem in &problems {
                eprintln!("rights: {problem}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("rights: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<Vec<String>> {
    let folder = env::args().nth(1).ok_or_else(|| Error::Malformed("which folder?".into()))?;
    let asked = RightUsed::in_folder(Path::new(&folder))?.into_iter().map(|(right, test)| (as_in_chart(right), test));
    let (mut refused, used): (Vec<_>, Vec<_>) = asked.filter(|(right, _)| is_ours(right)).partition(|(r, _)| r.refused);
    // Just after its start an API server may not know of all roles yet. What is not granted is refused all the time.
    let allowed: BTreeSet<&(RightUsed, String)> = used.iter().collect();
    refused.retain(|(right, test)| !allowed.contains(&(RightUsed { refused: false, ..right.clone() }, test.clone())));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut problems: Vec<String> = refused
        .iter()
        .map(|(right, test)| format!("in {test}, a program was refused what it asked for: {right:?}"))
        .collect();
    let tests: BTreeMap<&RightUsed, &String> = used.iter().map(|(right, test)| (right, test)).collect();
    let used: BTreeSet<RightUsed> = tests.keys().copied().cloned().collect();
    let mut uncovered = used.clone();
    for values in VALUES {
        let grants = Grant::of(&rendered_chart(&root, values)?)?;
        uncovered.retain(|right| !grants.iter().any(|grant| grant.covers(right)));
        let needless = Grant::needless(&grants, &used);
        problems.extend(needless.iter().map(|grant| format!("with {values:?}, nothing needs that {grant}")));
        println!("{} rights granted with {values:?}, {} of them needed", grants.len(), grants.len() - needless.len());
    }
    let lacks = |right: &RightUsed| {
        format!("in {}, a program used a right that the chart does not grant: {right:?}", tests[right])
    };
    problems.extend(uncovered.iter().map(lacks));
    Ok(problems)
}

/// Tests have more namespaces than one with pods and sessions; to the chart they are all alike.
fn as_in_chart(right: RightUsed) -> RightUsed {
    let like = |namespace: String| match &*namespace {
        "" | OPERATOR => namespace,
        _ => TENANT.to_owned(),
    };
    let (namespace, name) = right.account;
    RightUsed { account: (like(namespace), name), namespace: like(right.namespace), ..right }
}

/// Whether the chart is to grant it: everybody may ask who he is.
fn is_ours(right: &RightUsed) -> bool {
    let (namespace, name) = (&*right.account.0, &*right.account.1);
    [CONTROLLER, POD].contains(&(namespace, name)) && right.resource != "selfsubjectreviews"
}
