//! Tests with answers that a real API server (1.37) gave to objects with a canary for a value, as it wrote them.

use serde_json::json;

use super::ApiErrorKind as K;
use super::*;

const CANARY: &str = "canary-4b1d";

fn error(status: &serde_json::Value) -> ApiError {
    kube::Error::Api(serde_json::from_value(status.clone()).unwrap()).into()
}

/// Text that anybody could print of an error, at every level.
fn everything(error: &ApiError) -> String {
    let boxed: Box<dyn StdError + Send + Sync> = Box::new(error.clone());
    format!("{error} {error:?} {error:#?} {boxed} {boxed:?} {}", boxed.source().is_some())
}

fn unchecked() -> serde_json::Value {
    json!({"reason": "FieldValueInvalid", "field": "<nil>", "message": "Invalid value: null: some validation rules were \
        not checked because the object was invalid; correct the existing errors to complete validation"})
}

/// Refusals, the kind that is wanted and the text that is wanted.
fn refusals() -> Vec<(serde_json::Value, K, &'static str)> {
    let invalid = |cause: serde_json::Value| {
        json!({"message": format!("VmcpSession.vmcp.dev \"t\" is invalid: {cause}"), "reason": "Invalid", "code": 422,
            "details": {"name": "t", "group": "vmcp.dev", "kind": "VmcpSession", "causes": [cause, unchecked()]}})
    };
    vec![
        (
            invalid(json!({"reason": "FieldValueTypeInvalid", "field": "spec.metadata.k",
                "message": "Invalid value: \"canary-4b1d\": spec.metadata.k in body must be of type string: \"integer\""})),
            K::Invalid,
            "refused as invalid (422 Invalid): spec.metadata.k FieldValueTypeInvalid",
        ),
        (
            invalid(json!({"reason": "FieldValueInvalid", "field": "metadata.finalizers",
                "message": "Invalid value: \"bad fin canary-4b1d\": name part must consist of alphanumeric characters"})),
            K::Invalid,
            "refused as invalid (422 Invalid): metadata.finalizers FieldValueInvalid",
        ),
        (
            invalid(json!({"reason": "FieldValueTypeInvalid", "field": "spec.metadata.a key/with.dots \n x",
                "message": "Invalid value: \"integer\": canary-4b1d"})),
            K::Invalid,
            "refused as invalid (422 Invalid): spec.metadata.a key/with.dots \u{fffd} x FieldValueTypeInvalid",
        ),
        (
            invalid(json!({"reason": "FieldValueInvalid", "field": "metadata.uid",
                "message": "Invalid value: \"00000000-0000-0000-0000-000000000000\": field is immutable"})),
            K::UidMismatch,
            "another object has taken the name (uid mismatch) (422 Invalid): metadata.uid FieldValueInvalid",
        ),
        // An admission policy whose message quotes the value, as cause and as message.
        (
            json!({"message": "vmcpsessions.vmcp.dev \"v\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' \
                denied request: no good: canary-4b1d", "reason": "Invalid", "code": 422,
                "details": {"name": "v", "group": "vmcp.dev", "kind": "vmcpsessions", "causes": [{"message":
                    "ValidatingAdmissionPolicy 'p' with binding 'p' denied request: no good: canary-4b1d"}]}}),
            K::Invalid,
            "refused as invalid (422 Invalid): other cause",
        ),
        // RBAC, in a namespace and for all; and somebody who imitates it.
        (
            json!({"message": "vmcpsessions.vmcp.dev \"t\" is forbidden: User \"system:serviceaccount:a:canary-4b1d\" \
                cannot patch resource \"vmcpsessions/status\" in API group \"vmcp.dev\" in the namespace \"canary-4b1d\"",
                "reason": "Forbidden", "code": 403, "details": {"name": "t", "group": "vmcp.dev", "kind": "vmcpsessions"}}),
            K::Forbidden,
            "forbidden by RBAC or admission (403 Forbidden): no Role or ClusterRole that is bound to this account lets it \
                patch vmcpsessions/status in that namespace",
        ),
        (
            json!({"message": "vmcpsessions.vmcp.dev is forbidden: User \"u\" cannot list resource \"vmcpsessions\" in API \
                group \"vmcp.dev\" at the cluster scope: RBAC: clusterrole.rbac.authorization.k8s.io \"canary-4b1d\" not found",
                "reason": "Forbidden", "code": 403, "details": {"group": "vmcp.dev", "kind": "vmcpsessions"}}),
            K::Forbidden,
            "forbidden by RBAC or admission (403 Forbidden): no ClusterRole that is bound to this account lets it list \
                vmcpsessions everywhere",
        ),
        (
            json!({"message": "vmcpsessions.vmcp.dev \"t\" is forbidden: exceeded quota: canary-4b1d, requested: \
                count/vmcpsessions.vmcp.dev=1, used: count/vmcpsessions.vmcp.dev=1, limited: count/vmcpsessions.vmcp.dev=1",
                "reason": "Forbidden", "code": 403, "details": {"name": "t", "group": "vmcp.dev", "kind": "vmcpsessions"}}),
            K::OverQuota,
            "a ResourceQuota of the namespace is used up (403 Forbidden)",
        ),
        (
            json!({"message": "it is forbidden: User \"u\" cannot list resource \"canary-4b1d\" in API group \"\"",
                "reason": "Forbidden", "code": 403}),
            K::Forbidden,
            "forbidden by RBAC or admission (403 Forbidden)",
        ),
        // An admission webhook may choose the reason and the code.
        (
            json!({"message": "admission webhook denied the request: canary-4b1d", "reason": "canary-4b1d", "code": 418}),
            K::Other,
            "failed (418)",
        ),
        // Server-side apply prints Go values.
        (
            json!({"message": "failed to create typed patch object (/t; vmcp.dev/v1alpha1, Kind=VmcpSession): \
                .spec.metadata.k: expected string, got &value.valueUnstructured{Value:map[string]interface \
                {}{\"in\":\"canary-4b1d\"}}", "code": 500}),
            K::ServerError,
            "the API server failed (500)",
        ),
        (
            json!({"message": "Apply failed with 1 conflict: conflict with \"canary-4b1d\": .spec.metadata.k",
                "reason": "Conflict", "code": 409, "details": {"causes": [{"reason": "FieldManagerConflict",
                    "message": "conflict with \"canary-4b1d\"", "field": ".spec.metadata.k"}]}}),
            K::Conflict,
            "changed by somebody else in the meantime (409 Conflict): .spec.metadata.k FieldManagerConflict",
        ),
        (
            json!({"message": "the object provided is unrecognized (must be of type VmcpSession): couldn't get \
                version/kind; json parse error: unexpected end of JSON input ({\"a\":\"canary-4b1d ...)",
                "reason": "BadRequest", "code": 400}),
            K::Invalid,
            "refused as invalid (400 BadRequest)",
        ),
        (
            json!({"message": "VmcpSession in version \"v1alpha1\" cannot be handled as a VmcpSession: strict decoding \
                error: unknown field \"spec.metadata.k.canary-4b1d\"", "reason": "BadRequest", "code": 400}),
            K::Invalid,
            "refused as invalid (400 BadRequest)",
        ),
        (
            json!({"message": "Operation cannot be fulfilled on VmcpSession.vmcp.dev \"t\": the UID in the precondition \
                (00000000-0000-0000-0000-000000000000) does not match the UID in record (6c2ab51c). The object might \
                have been deleted and then recreated", "reason": "Conflict", "code": 409,
                "details": {"name": "t", "group": "vmcp.dev", "kind": "VmcpSession"}}),
            K::UidMismatch,
            "another object has taken the name (uid mismatch) (409 Conflict)",
        ),
        (
            json!({"message": "Operation cannot be fulfilled on vmcpsessions.vmcp.dev \"t\": the object has been \
                modified; please apply your changes to the latest version and try again", "reason": "Conflict",
                "code": 409}),
            K::Conflict,
            "changed by somebody else in the meantime (409 Conflict)",
        ),
        (
            json!({"message": "vmcpsessions.vmcp.dev \"t\" already exists", "reason": "AlreadyExists", "code": 409}),
            K::AlreadyExists,
            "already exists (409 AlreadyExists)",
        ),
        (
            json!({"message": "vmcpsessions.vmcp.dev \"nope\" not found", "reason": "NotFound", "code": 404}),
            K::NotFound,
            "not found (404 NotFound)",
        ),
        (
            json!({"message": "too old resource version: 1 (260)", "reason": "Expired", "code": 410}),
            K::Gone,
            "resourceVersion too old (410 Expired)",
        ),
        (
            json!({"message": "Timeout: Too large resource version: 99999999, current: 313", "reason": "Timeout",
                "code": 504, "details": {"retryAfterSeconds": 1, "causes": [
                    {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]}}),
            K::ResourceVersionTooLarge,
            "the API server is behind the resourceVersion asked for (504 Timeout): ResourceVersionTooLarge",
        ),
        (
            json!({"message": "Unauthorized", "reason": "Unauthorized", "code": 401}),
            K::Unauthorized,
            "credentials not accepted (401 Unauthorized)",
        ),
        (
            json!({"message": "Request entity too large: limit is 3145728", "reason": "RequestEntityTooLarge",
                "code": 413}),
            K::TooLarge,
            "too large (413 RequestEntityTooLarge)",
        ),
        (json!({"message": "etcdserver: request is too large", "code": 500}), K::TooLarge, "too large (500)"),
        (
            json!({"message": "rpc error: code = ResourceExhausted desc = trying to send message larger than max \
                (2097534 vs. 2097152)", "code": 500}),
            K::TooLarge,
            "too large (500)",
        ),
        // A proxy's answer: kube puts the whole text into the message and words of its own into the reason.
        (
            json!({"message": "<html>canary-4b1d</html>", "reason": "Failed to parse error data", "code": 502}),
            K::ServerError,
            "the API server failed (502)",
        ),
    ]
}

#[test]
fn refusals_are_told_apart_and_say_where() {
    for (status, kind, text) in refusals() {
        let error = error(&status);
        assert_eq!(error.kind(), kind, "{status}");
        assert_eq!(error.to_string(), text, "{status}");
    }
}

#[test]
fn no_refusal_repeats_a_value() {
    for (status, ..) in refusals() {
        let error = error(&status);
        assert!(!everything(&error).contains(CANARY), "{error:?}");
        assert!(!everything(&error).contains("00000000"), "{error:?}");
    }
}

#[test]
fn waiting_time_and_causes_are_kept() {
    let status = json!({"reason": "TooManyRequests", "code": 429, "details": {"retryAfterSeconds": 7}});
    let error = error(&status);
    assert_eq!((error.kind(), error.retry_after()), (K::TooManyRequests, Some(Duration::from_secs(7))));
    assert_eq!(error.code(), Some(429));
}

#[test]
fn what_is_kept_of_a_refusal_is_bounded() {
    let causes: Vec<_> = (0..1000)
        .map(|i| json!({"reason": "FieldValueInvalid", "field": format!("spec.metadata.{i}{}", "x".repeat(9999))}))
        .collect();
    let error = error(&json!({"reason": "Invalid", "code": 422, "details": {"causes": causes}}));
    assert_eq!(error.causes().len(), MAX_CAUSES);
    assert!(error.to_string().len() < 3000);
}

#[test]
fn only_refusals_are_certain() {
    let unknown = |code: u16| error(&json!({"code": code})).outcome_unknown();
    assert!([400, 401, 403, 404, 409, 410, 413, 422, 429].into_iter().all(|code| !unknown(code)));
    assert!([500, 502, 503, 504].into_iter().all(unknown));
    assert!(ApiError::timeout(Duration::from_secs(1)).outcome_unknown());
}

#[test]
fn decode_errors_say_where_and_not_what() {
    let wrong_type = serde_json::from_str::<u32>("\n  \"canary-4b1d\"").unwrap_err();
    assert!(wrong_type.to_string().contains(CANARY), "the premise: serde quotes");
    let error = ApiError::from(kube::Error::SerdeError(wrong_type));
    assert_eq!(error.kind(), K::Undecodable);
    assert!(error.to_string().contains("not of the expected type at line 2 column"), "{error}");
    assert!(!everything(&error).contains(CANARY));

    let unknown_variant = serde_json::from_str::<kube::core::response::StatusSummary>(r#""canary-4b1d""#).unwrap_err();
    let error = ApiError::from(kube::Error::SerdeError(unknown_variant));
    assert!(!everything(&error).contains(CANARY));

    let not_utf8 = String::from_utf8(b"canary-4b1d\xff".to_vec()).unwrap_err();
    let error = ApiError::from(kube::Error::FromUtf8(not_utf8));
    assert!(error.to_string().ends_with("not UTF-8 at byte 11"), "{error}");
    assert!(!everything(&error).contains(CANARY));
}

#[test]
fn an_error_of_a_stream_keeps_its_kind_only() {
    let broken = io::Error::new(io::ErrorKind::ConnectionReset, CANARY);
    let error = ApiError::from(kube::Error::ReadEvents(broken));
    assert_eq!(error.to_string(), "the API server cannot be reached: connection reset");
    assert!(!everything(&error).contains(CANARY));
}

#[test]
fn a_missing_token_file_is_named() {
    let gone = io::Error::new(io::ErrorKind::NotFound, CANARY);
    let auth = kube::client::AuthError::ReadTokenFile(gone, "/run/token".into());
    let as_service = kube::Error::Service(Box::new(auth));
    let error = ApiError::from(as_service);
    assert_eq!(error.kind(), K::Unauthorized);
    assert!(error.to_string().ends_with("cannot read the token file /run/token: entity not found"), "{error}");
}

#[test]
fn output_of_a_credential_plugin_is_left_out() {
    let out = std::process::Command::new("echo").arg(CANARY).output().unwrap();
    let auth = kube::client::AuthError::AuthExecRun { cmd: "plugin".to_owned(), out: Box::new(out) };
    let error = ApiError::from(kube::Error::Auth(auth));
    assert!(!everything(&error).contains("canary"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_answer_ends_at_its_deadline() {
    let start = tokio::time::Instant::now();
    let error = deadline(Duration::from_secs(3), std::future::pending::<Result<(), _>>()).await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert_eq!(error.to_string(), "timed out: no answer within 3000 ms");
    assert_eq!(error.kind(), K::Timeout);
}

#[test]
fn who_has_no_connection_has_sent_nothing() {
    let broken = |kind: io::ErrorKind| {
        let error = io::Error::other(io::Error::from(kind));
        ApiError::from(kube::Error::Service(Box::new(error)))
    };
    let refused = broken(io::ErrorKind::ConnectionRefused);
    assert_eq!((refused.kind(), refused.outcome_unknown()), (K::Unreachable, false));
    for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof] {
        assert!(broken(kind).outcome_unknown(), "{kind}");
    }
}
