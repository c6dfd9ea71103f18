//! The `CustomResourceDefinition`, as an object and as a file.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Number, Value};
use thiserror::Error;

use super::VmcpSession;

/// First lines of the generated file.
const HEADER: &str = "\
# The definition of VmcpSession, generated from src/api by `make crds`. Do not edit it here.
";

/// The definition could not be written down.
#[derive(Debug, Error)]
#[error("cannot serialize the definition of VmcpSession: {0}")]
pub struct CrdError(String);

/// The definition of `VmcpSession`.
pub fn crd() -> CustomResourceDefinition {
    let mut crd = VmcpSession::crd();
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else {
            continue;
        };
        // The derive titles the root and lets the status be null. Neither says anything to anybody.
        root.title = None;
        if let Some(status) = root.properties.as_mut().and_then(|p| p.get_mut("status")) {
            status.nullable = None;
        }
    }
    crd
}

/// The definition of `VmcpSession` as the text of `crds/vmcpsessions.vmcp.dev.yaml`.
pub fn crd_yaml() -> Result<String, CrdError> {
    let mut json = serde_json::to_value(crd()).map_err(|e| CrdError(e.to_string()))?;
    whole_numbers(&mut json);
    let body = serde_norway::to_string(&json).map_err(|e| CrdError(e.to_string()))?;
    Ok(format!("{HEADER}{body}"))
}

/// Writes bounds as people do: `minimum: 1`. The type of the schema only knows floating-point numbers.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().and_then(|f| format!("{f}").parse::<i64>().ok()) {
                *number = Number::from(whole);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_nullable_and_bounds_are_whole() {
        let yaml = crd_yaml().unwrap();
        assert!(!yaml.contains("nullable"), "{yaml}");
        assert!(yaml.contains("maximum: 31536000\n"), "{yaml}");
        assert!(yaml.contains("minimum: 1\n"), "{yaml}");
    }

    #[test]
    fn the_text_reads_back_as_the_definition() {
        let back: CustomResourceDefinition = serde_norway::from_str(&crd_yaml().unwrap()).unwrap();
        assert_eq!(back, crd());
    }

    #[test]
    fn every_field_is_described() {
        fn walk(path: &str, value: &Value, missing: &mut Vec<String>) {
            for (name, field) in value["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{name}");
                if field["description"].as_str().is_none_or(str::is_empty) {
                    missing.push(path.clone());
                }
                walk(&path, field, missing);
                walk(&path, &field["items"], missing);
            }
        }
        let json = serde_json::to_value(crd()).unwrap();
        let mut missing = Vec::new();
        walk("", &json["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut missing);
        assert_eq!(missing, Vec::<String>::new());
    }
}
