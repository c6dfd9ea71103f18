//! Errors of the Kubernetes API, without what they quote.
//!
//! The API server's messages repeat what was wrong with an object: `Invalid value: "the secret"`. kube's errors carry them,
//! and decode errors quote the text too. So an error is taken apart here, once, and only words that come from a fixed list
//! or name a place (a field, a line) are kept (I6). [`kube::Error`] itself goes no further than this module.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use kube::core::Status;
use kube::core::response::reason;

/// What went wrong, as far as a caller decides on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApiErrorKind {
    /// 404: the object does not exist (or its whole type does not).
    NotFound,
    /// 409: an object of that name exists.
    AlreadyExists,
    /// 409: the object changed since it was read.
    Conflict,
    /// The object has another uid than the one that the call meant (422 for a patch, 409 for a precondition).
    UidMismatch,
    /// 422 or 400: the object or the request is refused as it is.
    Invalid,
    /// 413, or etcd's limit: the object is too large.
    TooLarge,
    /// 410: the resourceVersion is too old, list again.
    Gone,
    /// 504 with its own cause: the API server has not seen the resourceVersion that was asked for yet.
    ResourceVersionTooLarge,
    /// 403: RBAC or admission.
    Forbidden,
    /// 403: a `ResourceQuota` of the namespace is used up.
    OverQuota,
    /// 401, or the credentials could not be read.
    Unauthorized,
    /// 429.
    TooManyRequests,
    /// 5xx: the API server is there, but could not do it.
    ServerError,
    /// No answer within the call's own deadline.
    Timeout,
    /// No connection, or it broke.
    Unreachable,
    /// An answer that is not what it should be.
    Undecodable,
    /// Anything else.
    Other,
}

impl ApiErrorKind {
    /// Whether it may well be otherwise in a moment: the API server is away, or has too much to do.
    pub fn passes(self) -> bool {
        matches!(self, Self::ServerError | Self::Timeout | Self::TooManyRequests | Self::Unreachable)
    }
}

/// One cause in an API server's refusal: which field, and what kind of wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Path of the field, as in `spec.metadata.tools`. It may name a metadata key, never a value.
    pub field: String,
    /// Kubernetes' name for the kind of cause, as in `FieldValueTooLong`.
    pub reason: &'static str,
}

/// An error of a call to the Kubernetes API. It holds nothing that the API server or the object said in free text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    kind: ApiErrorKind,
    code: Option<u16>,
    reason: &'static str,
    causes: Vec<Cause>,
    retry_after: Option<Duration>,
    detail: Option<String>,
    /// There was no connection to send it over.
    never_sent: bool,
}

impl ApiError {
    /// What went wrong.
    pub fn kind(&self) -> ApiErrorKind {
        self.kind
    }

    /// The HTTP status code, if the API server answered.
    pub fn code(&self) -> Option<u16> {
        self.code
    }

    /// The fields that were refused.
    pub fn causes(&self) -> &[Cause] {
        &self.causes
    }

    /// How long the API server asks to wait before the next try, if its `Status` says so. The header that says the same
    /// to who gets none is not passed on by kube.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether a write that ended like this may have been committed all the same. Everything else is a refusal.
    pub fn outcome_unknown(&self) -> bool {
        use ApiErrorKind as K;
        match self.kind {
            K::Unreachable if self.never_sent => false,
            K::ServerError | K::Timeout | K::Unreachable | K::Undecodable | K::Other => true,
            K::NotFound
            | K::AlreadyExists
            | K::Conflict
            | K::UidMismatch
            | K::Invalid
            | K::TooLarge
            | K::Gone
            | K::ResourceVersionTooLarge
            | K::Forbidden
            | K::OverQuota
            | K::Unauthorized
            | K::TooManyRequests => false,
        }
    }

    /// A call of ours that got no answer in time.
    pub fn timeout(limit: Duration) -> Self {
        let detail = format!("no answer within {} ms", limit.as_millis());
        Self { detail: Some(detail), ..Self::of(ApiErrorKind::Timeout) }
    }

    /// What an API server's `Status` says, without its message. Watches deliver it as an event.
    pub fn from_status(status: &Status) -> Self {
        let known = known_reason(&status.reason);
        let details = status.details.as_ref();
        let mut causes = Vec::new();
        for cause in details.iter().flat_map(|d| &d.causes) {
            // The API server adds a cause without a field when it left rules unchecked; that says nothing new.
            if causes.len() == MAX_CAUSES || cause.field == "<nil>" {
                continue;
            }
            let cause = Cause { field: bounded(&cause.field, MAX_FIELD), reason: known_cause(&cause.reason) };
            if !causes.contains(&cause) {
                causes.push(cause);
            }
        }
        let seconds = details.map_or(0, |d| d.retry_after_seconds);
        Self {
            kind: kind_of(status, &causes),
            code: (status.code != 0).then_some(status.code),
            reason: known,
            causes,
            retry_after: (seconds > 0).then(|| Duration::from_secs(seconds.into())),
            detail: missing_right(&status.message),
            never_sent: false,
        }
    }

    fn of(kind: ApiErrorKind) -> Self {
        Self { kind, code: None, reason: "", causes: Vec::new(), retry_after: None, detail: None, never_sent: false }
    }

    fn with(kind: ApiErrorKind, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..Self::of(kind) }
    }
}

/// Causes that are kept of one refusal.
const MAX_CAUSES: usize = 8;

/// Characters that are kept of a field's path: the longest key and the way to it.
const MAX_FIELD: usize = 300;

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ApiErrorKind::NotFound => "not found",
            ApiErrorKind::AlreadyExists => "already exists",
            ApiErrorKind::Conflict => "changed by somebody else in the meantime",
            ApiErrorKind::UidMismatch => "another object has taken the name (uid mismatch)",
            ApiErrorKind::Invalid => "refused as invalid",
            ApiErrorKind::TooLarge => "too large",
            ApiErrorKind::Gone => "resourceVersion too old",
            ApiErrorKind::ResourceVersionTooLarge => "the API server is behind the resourceVersion asked for",
            ApiErrorKind::Forbidden => "forbidden by RBAC or admission",
            ApiErrorKind::OverQuota => "a ResourceQuota of the namespace is used up",
            ApiErrorKind::Unauthorized => "credentials not accepted",
            ApiErrorKind::TooManyRequests => "too many requests",
            ApiErrorKind::ServerError => "the API server failed",
            ApiErrorKind::Timeout => "timed out",
            ApiErrorKind::Unreachable => "the API server cannot be reached",
            ApiErrorKind::Undecodable => "the API server's answer cannot be decoded",
            ApiErrorKind::Other => "failed",
        })?;
        match (self.code, self.reason) {
            (Some(code), "") => write!(f, " ({code})")?,
            (Some(code), reason) => write!(f, " ({code} {reason})")?,
            (None, "") => {}
            (None, reason) => write!(f, " ({reason})")?,
        }
        let mut before = ": ";
        for Cause { field, reason } in &self.causes {
            let space = if field.is_empty() { "" } else { " " };
            write!(f, "{before}{field}{space}{reason}")?;
            before = ", ";
        }
        match &self.detail {
            Some(detail) => write!(f, "{before}{detail}"),
            None => Ok(()),
        }
    }
}

impl StdError for ApiError {}

impl From<kube::Error> for ApiError {
    #[allow(clippy::match_wildcard_for_single_variants, reason = "more variants come with more features of kube")]
    fn from(error: kube::Error) -> Self {
        use ApiErrorKind::{Other, Unauthorized, Undecodable, Unreachable};
        use kube::Error as E;
        match error {
            E::Api(status) => Self::from_status(&status),
            E::SerdeError(error) => Self::with(Undecodable, decode_place(&error)),
            E::FromUtf8(error) => {
                Self::with(Undecodable, format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
            }
            E::LinesCodecMaxLineLengthExceeded => Self::with(Undecodable, "a line is too long"),
            E::HyperError(error) => transport(&error),
            E::Service(error) => transport(error.as_ref()),
            E::ReadEvents(error) => transport(&error),
            E::Auth(error) => Self::with(Unauthorized, credentials(&error)),
            E::HttpError(_) | E::BuildRequest(_) => Self::with(Other, "the request could not be built"),
            E::RustlsTls(_) | E::TlsRequired => Self::with(Unreachable, "TLS could not be set up"),
            E::ProxyProtocolUnsupported { .. } | E::ProxyProtocolDisabled { .. } => {
                Self::with(Unreachable, "the proxy in the kubeconfig is of a kind that is not supported")
            }
            E::InferConfig(_) | E::InferKubeconfig(_) => Self::with(Other, "the client's configuration is not usable"),
            // Discovery errors, and whatever comes with features that are off. Nothing of them is kept.
            _ => Self::of(Other),
        }
    }
}

/// Ends a call to the API server that takes too long, and scrubs its error. Every call goes through here.
pub async fn deadline<T>(limit: Duration, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ApiError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(_) => Err(ApiError::timeout(limit)),
    }
}

/// Where decoding stopped. The error's own text quotes what stood there.
fn decode_place(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Io => "broken off",
        serde_json::error::Category::Syntax => "not JSON",
        serde_json::error::Category::Data => "not of the expected type",
        serde_json::error::Category::Eof => "cut off",
    };
    format!("{what} at line {} column {}", error.line(), error.column())
}

/// Errors below HTTP: no body has been read, so nothing in them comes from an object. Only the innermost is of interest.
fn transport(error: &(dyn StdError + 'static)) -> ApiError {
    let mut next = Some(error);
    let mut found: Option<String> = None;
    let mut never_sent = false;
    while let Some(error) = next {
        if let Some(auth) = error.downcast_ref::<kube::client::AuthError>() {
            return ApiError::with(ApiErrorKind::Unauthorized, credentials(auth));
        }
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            found = Some(bounded(&format!("TLS: {tls}"), MAX_FIELD));
        } else if let Some(io) = error.downcast_ref::<io::Error>() {
            if io.kind() == io::ErrorKind::TimedOut {
                return ApiError::with(ApiErrorKind::Timeout, "the connection timed out");
            }
            // Only who has no connection yet is told so.
            never_sent |= io.kind() == io::ErrorKind::ConnectionRefused;
            found = Some(io.kind().to_string());
            // An I/O error does not name what it wraps as its source, but the source of that.
            if let Some(inner) = io.get_ref() {
                next = Some(inner);
                continue;
            }
        }
        next = error.source();
    }
    ApiError { detail: found, never_sent, ..ApiError::of(ApiErrorKind::Unreachable) }
}

/// What is wrong with the credentials. The output of a credential plugin, which may hold a token, is left out.
fn credentials(error: &kube::client::AuthError) -> String {
    match error {
        kube::client::AuthError::ReadTokenFile(error, path) => {
            format!("cannot read the token file {}: {}", path.display(), error.kind())
        }
        kube::client::AuthError::InvalidBearerToken(_) => "the token has characters that no header can have".to_owned(),
        _ => "the credentials of the kubeconfig are not usable".to_owned(),
    }
}

/// etcd's words for an object over its limit, which the API server passes on as a plain 500.
const ETCD_TOO_LARGE: [&str; 2] =
    ["etcdserver: request is too large", "rpc error: code = ResourceExhausted desc = trying to send message larger"];

fn kind_of(status: &Status, causes: &[Cause]) -> ApiErrorKind {
    use ApiErrorKind as K;
    match status.reason.as_str() {
        reason::NOT_FOUND => return K::NotFound,
        reason::ALREADY_EXISTS => return K::AlreadyExists,
        // Nothing but the message tells a failed precondition on the uid from a lost race; the words are the API
        // server's own and come before anything that it quotes.
        reason::CONFLICT if status.message.contains(" UID in ") => return K::UidMismatch,
        reason::CONFLICT => return K::Conflict,
        reason::GONE | reason::EXPIRED => return K::Gone,
        // Admission has no word for it but those of the message, which come before anything that it quotes but the name.
        reason::FORBIDDEN if status.message.contains(" is forbidden: exceeded quota: ") => return K::OverQuota,
        reason::FORBIDDEN => return K::Forbidden,
        reason::UNAUTHORIZED => return K::Unauthorized,
        reason::TOO_MANY_REQUESTS => return K::TooManyRequests,
        reason::REQUEST_ENTITY_TOO_LARGE => return K::TooLarge,
        _ => {}
    }
    if causes.iter().any(|c| c.reason == "ResourceVersionTooLarge") {
        return K::ResourceVersionTooLarge;
    }
    match status.code {
        401 => K::Unauthorized,
        403 => K::Forbidden,
        404 => K::NotFound,
        409 => K::Conflict,
        410 => K::Gone,
        413 => K::TooLarge,
        422 if causes.iter().any(|c| c.field == "metadata.uid") => K::UidMismatch,
        400 | 422 => K::Invalid,
        429 => K::TooManyRequests,
        500 if ETCD_TOO_LARGE.iter().any(|words| status.message.starts_with(words)) => K::TooLarge,
        500..=599 => K::ServerError,
        _ => K::Other,
    }
}

/// The right that RBAC does not grant, which nothing but the message names. Only words of these lists are kept of it: whoever
/// imitates the message can have any of them said, and no other.
fn missing_right(message: &str) -> Option<String> {
    const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "attest"];
    const RESOURCES: [&str; 13] = [
        "vmcpsessions",
        "vmcpsessions/status",
        "leases",
        "secrets",
        "configmaps",
        "events",
        "pods",
        "namespaces",
        "tokenreviews",
        "subjectaccessreviews",
        "clustertrustbundles",
        "signers",
        "mutatingwebhookconfigurations",
    ];
    let (_, refused) = message.split_once(" is forbidden: User \"")?;
    let (verb, rest) = refused.split_once("\" cannot ")?.1.split_once(" resource \"")?;
    let (resource, scope) = rest.split_once('"')?;
    let verb = VERBS.into_iter().find(|known| *known == verb)?;
    let resource = RESOURCES.into_iter().find(|known| *known == resource)?;
    let (role, place) = if scope.contains(" at the cluster scope") {
        ("ClusterRole", "everywhere")
    } else {
        ("Role or ClusterRole", "in that namespace")
    };
    Some(format!("no {role} that is bound to this account lets it {verb} {resource} {place}"))
}

/// The reason, if it is one of Kubernetes' own. An admission webhook may put any text there.
fn known_reason(given: &str) -> &'static str {
    const KNOWN: [&str; 19] = [
        reason::UNAUTHORIZED,
        reason::FORBIDDEN,
        reason::NOT_FOUND,
        reason::ALREADY_EXISTS,
        reason::CONFLICT,
        reason::GONE,
        reason::INVALID,
        reason::SERVER_TIMEOUT,
        reason::STORAGE_READ_ERROR,
        reason::TIMEOUT,
        reason::TOO_MANY_REQUESTS,
        reason::BAD_REQUEST,
        reason::METHOD_NOT_ALLOWED,
        reason::NOT_ACCEPTABLE,
        reason::REQUEST_ENTITY_TOO_LARGE,
        reason::UNSUPPORTED_MEDIA_TYPE,
        reason::INTERNAL_ERROR,
        reason::EXPIRED,
        reason::SERVICE_UNAVAILABLE,
    ];
    KNOWN.into_iter().find(|known| *known == given).unwrap_or_default()
}

/// The kind of a cause, if it is one of Kubernetes' own.
fn known_cause(given: &str) -> &'static str {
    const KNOWN: [&str; 14] = [
        "FieldValueNotFound",
        "FieldValueRequired",
        "FieldValueDuplicate",
        "FieldValueInvalid",
        "FieldValueNotSupported",
        "FieldValueForbidden",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueTooFew",
        "FieldValueTypeInvalid",
        "UnexpectedServerResponse",
        "FieldManagerConflict",
        "NamespaceTerminating",
        "ResourceVersionTooLarge",
    ];
    KNOWN.into_iter().find(|known| *known == given).unwrap_or("other cause")
}

/// A text for one line of a log: of bounded length, without control characters.
fn bounded(text: &str, limit: usize) -> String {
    text.chars().take(limit).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
#[path = "api_error_tests.rs"]
mod tests;
