//! The audit log of an API server: who asked for what.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::File,
    io::{ErrorKind, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// More than a line at the level Metadata can have.
const LONGEST_LINE: u64 = 1 << 20;

/// The audit log of one API server.
#[derive(Debug, Clone)]
pub struct AuditLog(PathBuf);

/// A place in an audit log: what comes after it is newer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditMark(u64);

/// One request. Fields that a request does not have are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditEntry {
    /// `ResponseComplete`, or `ResponseStarted` for a watch that goes on.
    pub stage: String,
    /// What was done.
    pub verb: Verb,
    /// Who asked; an account is `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// The pod that the token was bound to which was shown.
    pub pod: String,
    /// For whom it was asked, when somebody was impersonated.
    pub impersonated_user: String,
    /// The client program, as it names itself.
    pub user_agent: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The resource, in plural.
    pub resource: String,
    /// The subresource, such as `status`.
    pub subresource: String,
    /// The namespace.
    pub namespace: String,
    /// The object's name; empty in a list.
    pub name: String,
    /// The HTTP status of the answer.
    pub code: u16,
    /// Path and query.
    pub uri: String,
    /// When it was received, as the API server writes it (RFC 3339 in microseconds, UTC: sorts as text).
    pub received: String,
}

/// The verbs of Kubernetes, as far as tests ask for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the verbs of Kubernetes")]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// Verbs of requests that are not for a resource, and others.
    #[default]
    #[serde(other)]
    Other,
}

impl Verb {
    /// Whether it changes something.
    pub fn is_write(self) -> bool {
        match self {
            Self::Create | Self::Update | Self::Patch | Self::Delete | Self::DeleteCollection => true,
            Self::Get | Self::List | Self::Watch | Self::Other => false,
        }
    }
}

impl AuditEntry {
    /// Whether the request asked for a change of an object: reviews and tokens are created, but nothing is written.
    pub fn is_write(&self) -> bool {
        let asks = matches!(self.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
            || self.subresource == "token";
        self.verb.is_write() && !asks
    }

    /// Whether the answer was a success.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Whether this account asked.
    pub fn is_by(&self, namespace: &str, service_account: &str) -> bool {
        self.user == format!("system:serviceaccount:{namespace}:{service_account}")
    }
}

impl AuditLog {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Now, as a place in the log.
    pub fn mark(&self) -> Result<AuditMark> {
        let mut tail = Vec::new();
        let read = File::open(&self.0).and_then(|mut file| {
            let start = file.metadata()?.len().saturating_sub(LONGEST_LINE);
            file.seek(SeekFrom::Start(start))?;
            file.read_to_end(&mut tail)?;
            Ok(start)
        });
        match read {
            // A line that is being written belongs to what comes after.
            Ok(start) => Ok(AuditMark(start + complete_lines(&tail).len() as u64)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(AuditMark(0)),
            Err(e) => Err(Error::io(format!("reading {}", self.0.display()))(e)),
        }
    }

    /// All entries after `mark`, those of watches that go on among them. `AuditMark::default()` is the beginning.
    pub fn entries_since(&self, mark: AuditMark) -> Result<Vec<AuditEntry>> {
        let mut text = Vec::new();
        let read = File::open(&self.0).and_then(|mut file| {
            file.seek(SeekFrom::Start(mark.0))?;
            file.read_to_end(&mut text)
        });
        match read {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(format!("reading {}", self.0.display()))(e)),
        }
        complete_lines(&text).split(|&b| b == b'\n').filter(|line| !line.is_empty()).map(parse).collect()
    }

    /// The requests that were answered after `mark`, each once.
    pub fn requests_since(&self, mark: AuditMark) -> Result<Vec<AuditEntry>> {
        let mut entries = self.entries_since(mark)?;
        entries.retain(|e| e.stage == "ResponseComplete");
        Ok(entries)
    }

    /// How many requests that were answered after `mark` are as `wanted` says.
    pub fn count_since(&self, mark: AuditMark, wanted: impl Fn(&AuditEntry) -> bool) -> Result<usize> {
        Ok(self.requests_since(mark)?.iter().filter(|e| wanted(e)).count())
    }
}

/// Without the last line when it is half written.
fn complete_lines(text: &[u8]) -> &[u8] {
    &text[..text.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1)]
}

/// As the API server writes it (audit.k8s.io/v1).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    verb: Verb,
    #[serde(default)]
    user: User,
    #[serde(default)]
    impersonated_user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: ObjectRef,
    #[serde(default)]
    response_status: ResponseStatus,
    #[serde(default, rename = "requestURI")]
    request_uri: String,
    #[serde(default)]
    request_received_timestamp: String,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: HashMap<String, Vec<String>>,
}

impl User {
    fn pod(&mut self) -> String {
        self.extra.remove("authentication.kubernetes.io/pod-name").unwrap_or_default().pop().unwrap_or_default()
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
}

fn parse(line: &[u8]) -> Result<AuditEntry> {
    let malformed = |e| Error::Malformed(format!("a line of the audit log: {e}: {}", String::from_utf8_lossy(line)));
    let mut event: Event = serde_json::from_slice(line).map_err(malformed)?;
    let ObjectRef { api_group: group, resource, subresource, namespace, name } = event.object_ref;
    Ok(AuditEntry {
        stage: event.stage,
        verb: event.verb,
        pod: event.user.pod(),
        user: event.user.username,
        impersonated_user: event.impersonated_user.username,
        user_agent: event.user_agent,
        group,
        resource,
        subresource,
        namespace,
        name,
        code: event.response_status.code,
        uri: event.request_uri,
        received: event.request_received_timestamp,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write};

    const LINE: &str = r#"{"kind":"Event","stage":"ResponseComplete","verb":"patch","user":{"username":"a"},"objectRef":{"resource":"pods","subresource":"status","name":"p","namespace":"n"},"responseStatus":{"code":200}}"#;

    #[test]
    fn a_half_written_line_is_left_for_later() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::new(dir.path().join("audit.log"));
        assert_eq!(log.entries_since(AuditMark::default()).unwrap(), []);
        fs::write(log.path(), format!("{LINE}\n{}", &LINE[..30])).unwrap();
        let entries = log.entries_since(AuditMark::default()).unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(log.count_since(log.mark().unwrap(), |_| true).unwrap(), 0);
        let mark = log.mark().unwrap();
        assert!(entries[0].is_write() && entries[0].subresource == "status" && entries[0].code == 200);
        let mut file = File::options().append(true).open(log.path()).unwrap();
        writeln!(file, "{}", &LINE[30..]).unwrap();
        assert_eq!(log.count_since(AuditMark::default(), |e| e.user == "a").unwrap(), 2);
        assert_eq!(log.count_since(mark, |e| e.user == "a").unwrap(), 1, "the line that was half written at the mark");
        assert_eq!(log.count_since(log.mark().unwrap(), |_| true).unwrap(), 0);
    }

    #[test]
    fn reviews_and_tokens_write_nothing() {
        let entry = |group: &str, subresource: &str| AuditEntry {
            verb: Verb::Create,
            group: group.into(),
            subresource: subresource.into(),
            ..AuditEntry::default()
        };
        assert!(entry("", "").is_write());
        assert!(!entry("authentication.k8s.io", "").is_write());
        assert!(!entry("", "token").is_write());
    }
}
