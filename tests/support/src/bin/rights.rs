//! `rights FOLDER`: are the rights that the chart grants those that the programs need? FOLDER has what the API servers of all
//! tests left there (`RIGHTS_USED`). It fails when the chart grants what nothing needed, when a program was refused something, and when
//! one used what only a test had granted.

use std::{collections::BTreeSet, env, path::Path, process::ExitCode};
use testkit::{Error, Grant, Left, Result, RightUsed, rendered_chart};

/// Namespaces and accounts as tests have them.
const OPERATOR: &str = "vmcp-system";
const TENANT: &str = "vmcp";
const CONTROLLER: (&str, &str) = (OPERATOR, "vmcp-session-controller");
const POD: (&str, &str) = (TENANT, "vmcp-server");
const AGENTS: [&str; 2] = ["agents.namespaces[0].name=vmcp", "agents.namespaces[0].serviceAccounts[0]=vmcp-server"];
const CHOSEN: [&str; 3] = [AGENTS[0], AGENTS[1], "controller.namespaces={vmcp}"];

/// Values with which the chart grants something else each time: where all namespaces are watched, and where some are chosen.
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (mut problems, mut granted, mut used) = (Vec::new(), Vec::new(), BTreeSet::new());
    for values in VALUES {
        granted.push((values, Grant::of(&rendered_chart(&root, values)?)?));
    }
    for Left { test, chosen, rights } in RightUsed::in_folder(Path::new(&folder))? {
        let grants = &granted[usize::from(!chosen.is_empty())].1;
        let rights: BTreeSet<RightUsed> = rights.into_iter().map(|right| as_in_chart(right, &chosen)).collect();
        for right in rights.iter().filter(|right| is_ours(right)) {
            // Just after its start an API server may not know of all roles yet. What is not granted is refused all the time.
            if right.refused && !rights.contains(&RightUsed { refused: false, ..right.clone() }) {
                problems.push(format!("in {test}, a program was refused what it asked for: {right:?}"));
            } else if !right.refused && !grants.iter().any(|grant| grant.covers(right)) {
                problems.push(format!("in {test}, a program used a right that the chart does not grant: {right:?}"));
            }
        }
        used.extend(rights.into_iter().filter(|right| is_ours(right) && !right.refused));
    }
    for (values, grants) in &granted {
        let needless = Grant::needless(grants, &used);
        problems.extend(needless.iter().map(|grant| format!("with {values:?}, nothing needs that {grant}")));
        println!("{} rights granted with {values:?}, {} of them needed", grants.len(), grants.len() - needless.len());
    }
    Ok(problems)
}

/// Tests have more namespaces than one with pods and sessions; to the chart they are all alike. What an account does outside its
/// own, or a controller outside those that it watches, stays what it is.
fn as_in_chart(right: RightUsed, chosen: &[String]) -> RightUsed {
    let (of, account) = right.account.clone();
    let like = match &*right.namespace {
        "" | OPERATOR => right.namespace.clone(),
        _ if of == OPERATOR && !chosen.is_empty() && !chosen.contains(&right.namespace) => right.namespace.clone(),
        _ if of != OPERATOR && of != right.namespace => right.namespace.clone(),
        _ => TENANT.to_owned(),
    };
    let of = if of == OPERATOR { of } else { TENANT.to_owned() };
    RightUsed { account: (of, account), namespace: like, ..right }
}

/// Whether the chart is to grant it: everybody may ask who he is.
fn is_ours(right: &RightUsed) -> bool {
    let (namespace, name) = (&*right.account.0, &*right.account.1);
    [CONTROLLER, POD].contains(&(namespace, name)) && right.resource != "selfsubjectreviews"
}
