//! What changes in a pod, as a JSON patch.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use serde_json::{Value, json};

use super::definition::{Annotations, Definition};

/// The operations that add the agent to a pod with this `spec`; none if it has one.
///
/// It comes first of the init containers, so that those after it have sessions too, and so it is the last to end. The policy of
/// the chart does the same, and a test compares them.
pub fn patch(definition: &Definition, annotations: &Annotations, spec: &Value) -> Patch {
    let items = |list: &str| spec[list].as_array().map_or(&[][..], Vec::as_slice);
    let has = |list: &str, name: &Value| items(list).iter().any(|item| item["name"] == *name);
    let name = Value::from(definition.name.as_str());
    if has("initContainers", &name) || has("containers", &name) {
        return Patch::default();
    }
    let container = definition.container(annotations);
    let mut operations = vec![if spec["initContainers"].is_array() {
        add(["spec", "initContainers", "0"], container)
    } else {
        add(["spec", "initContainers"], json!([container]))
    }];
    if !spec["volumes"].is_array() {
        operations.push(add(["spec", "volumes"], json!([])));
    }
    let missing = definition.volumes(annotations).into_iter().filter(|volume| !has("volumes", &volume["name"]));
    operations.extend(missing.map(|volume| add(["spec", "volumes", "-"], volume)));
    Patch(operations)
}

fn add<const N: usize>(path: [&str; N], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path), value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Definition {
        let text = b"container: {name: agent, image: {option: image, default: a}}\nvolumes: [{name: v}, {name: w}]";
        Definition::parse(text).unwrap()
    }

    fn patched(mut pod: Value) -> Value {
        let patch = patch(&definition(), &Annotations::default(), &pod["spec"]);
        json_patch::patch(&mut pod, &patch).unwrap();
        pod["spec"].take()
    }

    #[test]
    fn the_agent_comes_first_and_volumes_come_once() {
        let agent = json!({"name": "agent", "image": "a"});
        assert_eq!(
            patched(json!({"spec": {"containers": []}})),
            json!({"containers": [], "initContainers": [agent], "volumes": [{"name": "v"}, {"name": "w"}]})
        );
        assert_eq!(
            patched(json!({"spec": {"initContainers": [{"name": "b"}], "volumes": [{"name": "w", "own": 1}]}})),
            json!({
                "initContainers": [agent, {"name": "b"}],
                "volumes": [{"name": "w", "own": 1}, {"name": "v"}],
            })
        );
    }

    #[test]
    fn who_has_an_agent_gets_no_other() {
        for list in ["containers", "initContainers"] {
            let pod = json!({"spec": {list: [{"name": "agent"}]}});
            assert_eq!(patched(pod.clone()), pod["spec"]);
        }
    }
}
