//! The committed definition of the resource is the one that the code generates.

use vmcp_session::api::crd::crd_yaml;

#[test]
fn the_file_equals_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/vmcpsessions.vmcp.dev.yaml");
    let file = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}; run `make crds`"));
    let code = crd_yaml().expect("the definition serializes");
    let line = file.lines().zip(code.lines()).position(|(f, c)| f != c);
    assert!(file == code, "{path} and src/api differ (first at line {:?}); run `make crds`", line.map(|l| l + 1));
}
