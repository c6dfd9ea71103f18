//! Which rights the chart grants, and which of them were of use.

use crate::{Error, Result, RightUsed, Verb, assets::Assets};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeSet, fmt, path::Path, process::Command};

/// A right as the chart grants it: one verb on one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The role that grants it.
    pub role: String,
    /// Namespace and name of the account.
    pub account: (String, String),
    /// Where it counts; everywhere if there is none.
    pub namespace: Option<String>,
    /// The API group.
    pub group: String,
    /// The resource, with its subresource.
    pub resource: String,
    /// The verb.
    pub verb: Verb,
    /// Objects that it is for; all if there are none.
    pub names: Vec<String>,
}

impl Grant {
    /// Whether this right is enough for that request.
    pub fn covers(&self, used: &RightUsed) -> bool {
        self.account == used.account
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == used.namespace)
            && (&self.group, &self.resource, self.verb) == (&used.group, &used.resource, used.verb)
            && (self.names.is_empty() || self.names.contains(&used.name))
    }

    /// Those without which everything would have gone the same way: nothing needed them, or what did had another one too.
    pub fn needless<'a>(grants: &'a [Self], used: &BTreeSet<RightUsed>) -> Vec<&'a Self> {
        let mut needed = BTreeSet::new();
        for right in used {
            let mut cover = grants.iter().enumerate().filter(|(_, grant)| grant.covers(right));
            if let (Some((at, _)), None) = (cover.next(), cover.next()) {
                needed.insert(at);
            }
        }
        grants.iter().enumerate().filter(|(at, _)| !needed.contains(at)).map(|(_, grant)| grant).collect()
    }

    /// What these objects grant to accounts.
    pub fn of(objects: &[Value]) -> Result<Vec<Self>> {
        let is = |object: &&Value, kind: &str| object["kind"].as_str().is_some_and(|is| is == kind);
        let mut grants = Vec::new();
        for object in objects.iter().filter(|o| is(o, "RoleBinding") || is(o, "ClusterRoleBinding")) {
            let binding: Binding = read(object)?;
            let (kind, name) = (&binding.role_ref.kind, &binding.role_ref.name);
            let role = objects.iter().filter(|o| is(o, kind)).find(|o| {
                let metadata = &o["metadata"];
                metadata["name"] == **name
                    && (kind != "Role" || metadata["namespace"] == object["metadata"]["namespace"])
            });
            let Some(role) = role else {
                return Err(Error::Malformed(format!("there is no {kind} {name} to bind")));
            };
            let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
            for rule in read::<Vec<Rule>>(&role["rules"])? {
                for Subject { name: account, namespace: of } in &binding.subjects {
                    let of = of.as_ref().or(namespace.as_ref()).cloned().unwrap_or_default();
                    let one = |group: &String, resource: &String, verb: &Verb| Self {
                        role: format!("{kind} {name}"),
                        account: (of.clone(), account.clone()),
                        namespace: namespace.clone(),
                        group: group.clone(),
                        resource: resource.clone(),
                        verb: *verb,
                        names: rule.resource_names.clone(),
                    };
                    for group in &rule.api_groups {
                        for resource in &rule.resources {
                            grants.extend(rule.verbs.iter().map(|verb| one(group, resource, verb)));
                        }
                    }
                }
            }
        }
        Ok(grants)
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, account: (_, account), namespace, group, resource, verb, names } = self;
        let at = namespace.as_ref().map_or_else(|| "everywhere".to_owned(), |namespace| format!("in {namespace}"));
        write!(f, "{account} may {verb:?} {group}/{resource} {names:?} {at} ({role})")
    }
}

/// The objects of the chart with these values.
pub fn rendered_chart(root: &Path, values: &[&str]) -> Result<Vec<Value>> {
    let chart = root.join("charts/vmcp-session-operator");
    let home = tempfile::tempdir().map_err(Error::io("a folder for helm"))?;
    let mut helm = Command::new(Assets::find().program("helm")?);
    // What hooks may lives as long as they run; a test of the chart says what it is.
    helm.args(["template", "release", "--no-hooks", "--namespace=vmcp-system"]).arg(chart).env("HOME", home.path());
    helm.args(values.iter().flat_map(|value| ["--set", value]));
    let output = helm.output().map_err(Error::io("running helm"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        return Err(Error::Command { command: "helm template".into(), status: output.status, stderr });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let documents = text.split("\n---").filter(|document| document.lines().any(|line| line.starts_with("kind:")));
    let object = |document: &str| serde_norway::from_str(document.trim_start_matches("---"));
    let malformed = |e| Error::Malformed(format!("what helm made of the chart: {e}"));
    documents.map(object).collect::<Result<_, _>>().map_err(malformed)
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<T> {
    serde_json::from_value(value.clone()).map_err(|e| Error::Malformed(format!("{value}: {e}")))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Binding {
    role_ref: RoleRef,
    subjects: Vec<Subject>,
}

#[derive(Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Deserialize)]
struct Subject {
    name: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<Verb>,
    #[serde(default)]
    resource_names: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn grants() -> Vec<Grant> {
        let role = |kind: &str, namespace: Option<&str>, rules: &Value| {
            let mut metadata = json!({"name": "r"});
            if let Some(namespace) = namespace {
                metadata["namespace"] = json!(namespace);
            }
            let binding = json!({"kind": format!("{kind}Binding"), "metadata": metadata,
                "roleRef": {"kind": kind, "name": "r"}, "subjects": [{"name": "a", "namespace": "own"}]});
            [json!({"kind": kind, "metadata": metadata, "rules": rules}), binding]
        };
        let core = |resources: Value, verbs: Value| json!({"apiGroups": [""], "resources": resources, "verbs": verbs});
        let everywhere = role("ClusterRole", None, &json!([core(json!(["pods"]), json!(["get", "list"]))]));
        let mut secrets = core(json!(["secrets"]), json!(["get"]));
        secrets["resourceNames"] = json!(["s"]);
        let own = role("Role", Some("own"), &json!([core(json!(["pods"]), json!(["get"])), secrets]));
        Grant::of(&[everywhere, own].concat()).unwrap()
    }

    fn used(namespace: &str, verb: Verb, resource: &str, name: &str) -> RightUsed {
        RightUsed {
            account: ("own".into(), "a".into()),
            verb,
            group: String::new(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            refused: false,
        }
    }

    #[test]
    fn what_nothing_needs_is_found() {
        let grants = grants();
        assert_eq!(grants.len(), 4);
        let list = || used("", Verb::List, "pods", "");
        let needless = |used: &[RightUsed]| {
            let used = used.iter().cloned().collect();
            Grant::needless(&grants, &used).into_iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let secret = || used("own", Verb::Get, "secrets", "s");
        let get = || used("other", Verb::Get, "pods", "p");
        // The role of its own namespace grants what it may do everywhere.
        assert_eq!(needless(&[list(), get(), secret()]).len(), 1);
        let twice = needless(&[list(), used("own", Verb::Get, "pods", "p"), secret()]);
        assert_eq!(twice.len(), 2, "{twice:?}");
        assert!(needless(&[list(), get()]).iter().any(|grant| grant.contains("secrets")));
        let another = used("own", Verb::Get, "secrets", "another");
        assert!(!grants.iter().any(|grant| grant.covers(&another)));
    }
}
