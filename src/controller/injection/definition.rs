//! What pods get, as it stands in a file: a container and its volumes, with places that annotations of the pod fill.
//!
//! Two kinds of maps are such places, wherever they stand:
//!
//! * `{option: NAME, default: X}` is the value of the annotation `vmcp.dev/agent-NAME`, or X; without a default, it is left out
//!   of its map or list. With `number: true` it is a number, and with `port: true` the number behind its last colon; what is none
//!   counts as nothing.
//! * `{when: NAME, then: X}` is X if there is that annotation, and is left out otherwise.
//!
//! Whether a value is a good one is not asked here: the API server asks only for pods with good ones, and a
//! `ValidatingAdmissionPolicy` refuses the others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::runtime::small_file;

/// What annotations for the agent begin with.
const PREFIX: &str = "vmcp.dev/agent-";
/// More digits than this are no number: what the policy takes has 18 at most, too.
const MAX_DIGITS: usize = 18;
/// A definition is some kilobytes long.
const MAX_BYTES: u64 = 256 * 1024;

/// Annotations of a pod.
pub type Annotations = BTreeMap<String, String>;

/// There is no definition that could be used.
#[derive(Debug, Error)]
pub enum DefinitionError {
    /// The file cannot be read.
    #[error("cannot read what agents are made of from {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not of the form that it should have.
    #[error("{} does not say what agents are made of: {reason}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Debug, Error)]
pub(super) enum FormError {
    #[error(transparent)]
    Yaml(#[from] serde_norway::Error),
    #[error("the {0} has no name")]
    Nameless(&'static str),
    #[error("there is a place that is neither {{option, default, number, port}} nor {{when, then}}: it has {0}")]
    Place(String),
}

/// A value with places to fill.
#[derive(Clone, Debug, PartialEq)]
enum Template {
    Is(Value),
    List(Vec<Template>),
    Map(Vec<(String, Template)>),
    Option { annotation: String, default: Option<Value>, kind: Kind },
    When { annotation: String, then: Box<Template> },
}

/// What an annotation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Port,
}

impl Kind {
    fn of(self, said: &str) -> Option<Value> {
        match self {
            Self::Text => Some(said.into()),
            Self::Number => digits(said),
            Self::Port => digits(said.rsplit(':').next()?),
        }
    }
}

/// What pods get.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// The container's name: a pod that has one of this name gets no other.
    pub name: String,
    container: Template,
    volumes: Vec<Template>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    container: Value,
    volumes: Vec<Value>,
}

impl Definition {
    /// Reads it from a file.
    pub fn load(path: &Path) -> Result<Self, DefinitionError> {
        let failed = |source| DefinitionError::Read { path: path.to_owned(), source };
        let text = small_file::read(path, MAX_BYTES).map_err(failed)?;
        let wrong = |error: FormError| DefinitionError::Form { path: path.to_owned(), reason: error.to_string() };
        Self::parse(&text).map_err(wrong)
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, FormError> {
        let Text { container, volumes } = serde_norway::from_slice(text)?;
        let name = container["name"].as_str().ok_or(FormError::Nameless("container"))?.to_owned();
        let container = Template::of(container)?;
        let volumes = volumes.into_iter().map(Template::of).collect::<Result<_, _>>()?;
        Ok(Self { name, container, volumes })
    }

    /// The container of a pod with these annotations.
    pub fn container(&self, annotations: &Annotations) -> Value {
        self.container.filled(annotations).unwrap_or_default()
    }

    /// Its volumes.
    pub fn volumes(&self, annotations: &Annotations) -> Vec<Value> {
        self.volumes.iter().filter_map(|volume| volume.filled(annotations)).collect()
    }
}

impl Template {
    fn of(value: Value) -> Result<Self, FormError> {
        match value {
            Value::Array(items) => Ok(Self::List(items.into_iter().map(Self::of).collect::<Result<_, _>>()?)),
            Value::Object(map) if map.contains_key("option") || map.contains_key("when") => Self::place(map),
            Value::Object(map) => {
                let entries = map.into_iter().map(|(key, value)| Ok((key, Self::of(value)?)));
                Ok(Self::Map(entries.collect::<Result<_, FormError>>()?))
            }
            other => Ok(Self::Is(other)),
        }
    }

    fn place(mut map: Map<String, Value>) -> Result<Self, FormError> {
        let keys = map.keys().cloned().collect::<Vec<_>>().join(", ");
        let (option, when) = (map.remove("option"), map.remove("when"));
        let (default, then) = (map.remove("default"), map.remove("then"));
        let kind = match (map.remove("number"), map.remove("port")) {
            (None, None) => Some(Kind::Text),
            (Some(Value::Bool(true)), None) => Some(Kind::Number),
            (None, Some(Value::Bool(true))) => Some(Kind::Port),
            _ => None,
        };
        let known = map.is_empty();
        match (option, when, then, kind) {
            (Some(Value::String(name)), None, None, Some(kind)) if known => {
                Ok(Self::Option { annotation: format!("{PREFIX}{name}"), default, kind })
            }
            (None, Some(Value::String(name)), Some(then), Some(Kind::Text)) if known && default.is_none() => {
                Ok(Self::When { annotation: format!("{PREFIX}{name}"), then: Box::new(Self::of(then)?) })
            }
            _ => Err(FormError::Place(keys)),
        }
    }

    /// Nothing if it is left out.
    fn filled(&self, annotations: &Annotations) -> Option<Value> {
        match self {
            Self::Is(value) => Some(value.clone()),
            Self::List(items) => Some(items.iter().filter_map(|item| item.filled(annotations)).collect()),
            Self::Map(entries) => {
                let filled = |(key, value): &(String, Self)| Some((key.clone(), value.filled(annotations)?));
                Some(Value::Object(entries.iter().filter_map(filled).collect()))
            }
            Self::Option { annotation, default, kind } => {
                annotations.get(annotation).and_then(|said| kind.of(said)).or_else(|| default.clone())
            }
            Self::When { annotation, then } => annotations.get(annotation).and_then(|_| then.filled(annotations)),
        }
    }
}

fn digits(text: &str) -> Option<Value> {
    let good = text.len() <= MAX_DIGITS && text.bytes().all(|b| b.is_ascii_digit());
    good.then(|| text.parse::<u64>().ok().map(Value::from)).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &[u8] = b"
container:
  name: agent
  image: {option: image, default: standard}
  env:
    - {name: FIXED, value: '1'}
    - {when: server, then: {name: SERVER, value: {option: server}}}
    - {option: last}
  ports: [{containerPort: {option: listen, port: true, default: 8079}}]
  securityContext: {runAsUser: {option: user, number: true, default: 7}, group: {option: group, number: true}}
volumes:
  - name: always
  - {when: server, then: {name: sometimes}}
";

    fn annotations(said: &[(&str, &str)]) -> Annotations {
        said.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())).collect()
    }

    #[test]
    fn places_are_filled_or_left_out() {
        let definition = Definition::parse(TEXT).unwrap();
        assert_eq!(definition.name, "agent");
        let nothing = annotations(&[]);
        let bare = json!({
            "name": "agent", "image": "standard", "env": [{"name": "FIXED", "value": "1"}],
            "ports": [{"containerPort": 8079}], "securityContext": {"runAsUser": 7},
        });
        assert_eq!(definition.container(&nothing), bare);
        assert_eq!(definition.volumes(&nothing), [json!({"name": "always"})]);

        let said = annotations(&[
            ("image", "mine"),
            ("server", ""),
            ("last", "x"),
            ("user", "0010"),
            ("group", "5"),
            ("listen", "[::1]:9000"),
        ]);
        let full = json!({
            "name": "agent", "image": "mine",
            "env": [{"name": "FIXED", "value": "1"}, {"name": "SERVER", "value": ""}, "x"],
            "ports": [{"containerPort": 9000}], "securityContext": {"runAsUser": 10, "group": 5},
        });
        assert_eq!(definition.container(&said), full);
        assert_eq!(definition.volumes(&said).len(), 2);
    }

    #[test]
    fn what_is_no_number_counts_as_nothing() {
        let definition = Definition::parse(TEXT).unwrap();
        for wrong in ["", "-1", "1.5", "x", "1e3", &"9".repeat(19), "+1"] {
            let said = annotations(&[("user", wrong), ("group", wrong), ("listen", &format!("127.0.0.1:{wrong}"))]);
            let container = definition.container(&said);
            assert_eq!(container["securityContext"], json!({"runAsUser": 7}), "{wrong}");
            assert_eq!(container["ports"], json!([{"containerPort": 8079}]), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, reason) in [
            ("container: {name: a}", "missing field `volumes`"),
            ("container: {}\nvolumes: []", "the container has no name"),
            ("container: {name: a, b: {option: 1}}\nvolumes: []", "neither"),
            ("container: {name: a, b: {option: x, then: 1}}\nvolumes: []", "it has option, then"),
            ("container: {name: a, b: {when: x}}\nvolumes: []", "neither"),
            ("container: {name: a}\nvolumes: [{when: x, then: {}, defualt: 1}]", "defualt"),
            ("container: {name: a}\nvolumes: []\nmore: 1", "unknown field `more`"),
        ] {
            let error = Definition::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.yaml");
        let error = Definition::load(&path).unwrap_err().to_string();
        assert!(error.contains("agent.yaml"), "{error}");
        std::fs::write(&path, "#".repeat(300_000)).unwrap();
        assert!(matches!(Definition::load(&path), Err(DefinitionError::Read { .. })));
        std::fs::write(&path, "x").unwrap();
        let error = Definition::load(&path).unwrap_err().to_string();
        assert!(error.contains("does not say what agents are made of"), "{error}");
    }
}
