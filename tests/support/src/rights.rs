//! Which rights the programs use: what their accounts asked the API servers of all tests for.
//!
//! Only what `vmcp-session` and the cache library ask for themselves counts: tests take the same accounts to show what these
//! may not do, with other clients.

use crate::{AuditEntry, AuditLog, AuditMark, Error, Result, Verb};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

/// Names the folder where each API server of the tests leaves what was used, when it ends.
const FOLDER: &str = "RIGHTS_USED";
/// How the programs name themselves to API servers.
const PROGRAM: &str = "vmcp-session/";
const ACCOUNT: &str = "system:serviceaccount:";
/// Names of sessions would only make this long: no rule names any.
const SESSIONS: &str = "vmcp.dev";

/// A right that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RightUsed {
    /// Namespace and name of the account.
    pub account: (String, String),
    /// The verb.
    pub verb: Verb,
    /// The API group; empty for the core group.
    pub group: String,
    /// The resource, with its subresource as a role names it.
    pub resource: String,
    /// The namespace; empty for all.
    pub namespace: String,
    /// The object, where a rule may name it.
    pub name: String,
    /// Whether it was refused.
    pub refused: bool,
}

impl RightUsed {
    /// What an entry of the audit log shows: nothing, one right, or some. Who creates an object by a patch, as server-side apply
    /// does, needs both rights; and who writes a `ClusterTrustBundle` must be allowed to speak for its signer.
    fn of(entry: &AuditEntry) -> impl Iterator<Item = Self> {
        let account = entry.user.strip_prefix(ACCOUNT).and_then(|account| account.split_once(':'));
        let ours = entry.user_agent.starts_with(PROGRAM) && !entry.resource.is_empty();
        let right = account.filter(|_| ours).map(|(namespace, name)| {
            let resource = match &*entry.subresource {
                "" => entry.resource.clone(),
                subresource => format!("{}/{subresource}", entry.resource),
            };
            let named = entry.group != SESSIONS && entry.verb != Verb::Create;
            Self {
                account: (namespace.to_owned(), name.to_owned()),
                verb: entry.verb,
                group: entry.group.clone(),
                resource,
                namespace: entry.namespace.clone(),
                name: if named { entry.name.clone() } else { String::new() },
                refused: entry.code == 403,
            }
        });
        let created = right.clone().filter(|right| right.verb == Verb::Patch && entry.code == 201);
        let created = created.map(|right| Self { verb: Verb::Create, ..right });
        let attested =
            right.clone().filter(|right| right.resource == "clustertrustbundles" && right.verb == Verb::Patch);
        let attested = attested.map(|right| {
            let signer = right.name.rsplit_once(':').map_or("", |(signer, _)| signer).replace(':', "/");
            Self { verb: Verb::Other, resource: "signers".into(), name: signer, ..right }
        });
        right.into_iter().chain(created).chain(attested)
    }

    /// All that the audit log of an API server shows that was started again at these times.
    pub fn in_log(audit: &AuditLog, restarts: &[Timestamp]) -> Result<BTreeSet<Self>> {
        let entries = audit.entries_since(AuditMark::default())?;
        Ok(entries.iter().filter(|entry| !is_early(entry, restarts)).flat_map(Self::of).collect())
    }

    /// What API servers left in a folder.
    pub fn in_folder(folder: &Path) -> Result<Vec<Left>> {
        let failed = || Error::io(format!("reading {}", folder.display()));
        let mut all = Vec::new();
        for file in fs::read_dir(folder).map_err(failed())? {
            let path = file.map_err(failed())?.path();
            let text = fs::read_to_string(&path).map_err(failed())?;
            let malformed = |e| Error::Malformed(format!("{}: {e}", path.display()));
            all.push(serde_json::from_str(&text).map_err(malformed)?);
        }
        Ok(all)
    }
}

/// What one API server leaves.
#[derive(Debug, Serialize, Deserialize)]
pub struct Left {
    /// The test that had it.
    pub test: String,
    /// The namespaces that its controllers watched; empty for all.
    pub chosen: Vec<String>,
    /// What was asked for.
    pub rights: BTreeSet<RightUsed>,
}

/// Whether a request was refused by an API server that had just been started again, and may not have known of all roles yet. It
/// had granted before what it was to grant: what really lacks shows before that, or later.
fn is_early(entry: &AuditEntry, restarts: &[Timestamp]) -> bool {
    /// Longer than it takes to be ready, on a busy machine.
    const SETTLES: SignedDuration = SignedDuration::from_secs(15);
    let Ok(received) = entry.received.parse::<Timestamp>() else { return false };
    let early = |restart: &Timestamp| (SignedDuration::ZERO..SETTLES).contains(&received.duration_since(*restart));
    entry.code == 403 && restarts.iter().any(early)
}

/// Leaves what an audit log shows in the folder that the environment names, if it names one.
pub(crate) fn leave(audit: &AuditLog, restarts: &[Timestamp], chosen: &[String]) {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else { return };
    if let Err(error) = leave_in(&folder, audit, restarts, chosen) {
        // The check misses it then, and fails.
        eprintln!("which rights were used is not known: {error}");
    }
}

fn leave_in(folder: &Path, audit: &AuditLog, restarts: &[Timestamp], chosen: &[String]) -> Result<()> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    // The thread that a test runs on has its name.
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let left = Left { test, chosen: chosen.to_vec(), rights: RightUsed::in_log(audit, restarts)? };
    let file = format!("{}-{}.json", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let failed = || Error::io(format!("writing to {}", folder.display()));
    fs::create_dir_all(folder).map_err(failed())?;
    let json = serde_json::to_vec(&left).map_err(|e| Error::Malformed(e.to_string()))?;
    fs::write(folder.join(file), json).map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AuditEntry {
        AuditEntry {
            verb: Verb::Patch,
            user: "system:serviceaccount:ns:account".into(),
            user_agent: "vmcp-session/0.1.0".into(),
            resource: "configmaps".into(),
            namespace: "ns".into(),
            name: "bundle".into(),
            code: 200,
            ..AuditEntry::default()
        }
    }

    fn verbs(entry: &AuditEntry) -> Vec<Verb> {
        RightUsed::of(entry).map(|right| right.verb).collect()
    }

    #[test]
    fn who_creates_by_a_patch_needs_both_rights() {
        assert_eq!(verbs(&entry()), [Verb::Patch]);
        assert_eq!(verbs(&AuditEntry { code: 201, ..entry() }), [Verb::Patch, Verb::Create]);
    }

    #[test]
    fn who_says_whom_to_believe_speaks_for_a_signer() {
        let entry =
            AuditEntry { resource: "clustertrustbundles".into(), name: "a.example:b:c".into(), code: 201, ..entry() };
        let rights: Vec<_> = RightUsed::of(&entry).map(|right| (right.verb, right.resource, right.name)).collect();
        let right = |verb, resource: &str, name: &str| (verb, resource.to_owned(), name.to_owned());
        let bundle = |verb| right(verb, "clustertrustbundles", "a.example:b:c");
        assert_eq!(rights, [bundle(Verb::Patch), bundle(Verb::Create), right(Verb::Other, "signers", "a.example/b")]);
    }

    #[test]
    fn what_others_ask_for_does_not_count() {
        assert!(verbs(&AuditEntry { user: "admin".into(), ..entry() }).is_empty());
        assert!(verbs(&AuditEntry { user_agent: "kubectl/v1".into(), ..entry() }).is_empty());
    }

    #[test]
    fn what_is_refused_just_after_a_restart_does_not_count() {
        let refused = |received: &str| AuditEntry { code: 403, received: received.into(), ..entry() };
        let restarts = ["2026-11-26T03:00:00Z".parse().unwrap()];
        assert!(is_early(&refused("2026-11-26T03:00:14.999999Z"), &restarts));
        for counts in ["2026-11-26T02:59:59.999999Z", "2026-11-26T03:00:15.000000Z"] {
            assert!(!is_early(&refused(counts), &restarts), "{counts}");
        }
        assert!(!is_early(&refused("2026-11-26T03:00:01.000000Z"), &[]), "what began just now has granted nothing yet");
        let allowed = AuditEntry { code: 200, ..refused("2026-11-26T03:00:01.000000Z") };
        assert!(!is_early(&allowed, &restarts));
    }

    #[test]
    fn what_is_left_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let audit = AuditLog::new(folder.path().join("none"));
        leave_in(&folder.path().join("left"), &audit, &[], &["a".into()]).unwrap();
        let left = RightUsed::in_folder(&folder.path().join("left")).unwrap();
        assert_eq!(left.len(), 1);
        assert!(left[0].rights.is_empty() && left[0].chosen == ["a"]);
        assert!(RightUsed::in_folder(&folder.path().join("none")).is_err(), "nothing that was left is no proof");
    }
}
