//! Who is at the other end of a stream: taken from a token that the API server has checked, never from what is said.
//!
//! A [`token`] is shown to the API server, which is asked whose it is and what that one may do (`question`); [`reviews`] are its
//! answers, and bound how often it is asked. Who reads metrics is asked for in the same way.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use rand::Rng;
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tracing::{debug, info, warn};

use crate::controller::clock::{now, sleep_until};
use crate::runtime::api_error::{ApiError, deadline};
use crate::runtime::backoff::Backoff;
use crate::runtime::failing::Failing;

pub(super) mod question;
pub mod reviews;
pub mod token;

use question::CALL_DEADLINE;
use reviews::{Group, Reviews};
use token::Token;

/// How often it is looked whether who has a stream may still have it: a little less, so that not all come at once. With the
/// [`reviews::FRESH`] seconds of an answer, and the ten for which the API server itself goes on to accept the token of a pod
/// that is gone, a stream ends within 45 s of its pod.
const RECHECK: Duration = Duration::from_secs(28);
/// The same after one that could not be done for want of time.
const AGAIN: Duration = Duration::from_secs(3);

/// A stream ends when the API server has refused so often in a row to say whose token it is.
const UNANSWERED: u32 = 3;

/// Why somebody is not let in.
#[derive(Debug, Error)]
pub enum Denied {
    /// No token, or one that cannot be one.
    #[error("a service account token is expected as metadata 'authorization: Bearer TOKEN'")]
    NoToken,
    /// The API server does not know the token, or it is for somebody else.
    #[error("the API server does not accept the token (expired, or not made for audience '{audience}'?)")]
    NotAccepted {
        /// The audience that it must be for.
        audience: String,
    },
    /// The token is not bound to a pod.
    #[error("the token is not bound to a pod: expected a projected service account token")]
    NotAPod,
    /// Who may not read sessions must not hold them either.
    #[error("{user} may not get vmcpsessions in namespace {namespace}: bind its service account a role that allows it")]
    NotAllowed {
        /// The account.
        user: String,
        /// The namespace.
        namespace: String,
    },
    /// The token is that of another pod now.
    #[error("the token is no longer that of the pod that opened the stream")]
    AnotherPod,
    /// The token belongs to somebody who is no replica of the controller.
    #[error("only replicas of the controller may open a peer stream")]
    NotAPeer,
    /// The API server could not be asked.
    #[error("the token cannot be checked now: {0}")]
    Unchecked(#[from] ApiError),
    /// Too many tokens are being checked.
    #[error("too many tokens are being checked: try again later")]
    Busy,
}

impl From<reviews::Busy> for Denied {
    fn from(_: reviews::Busy) -> Self {
        Self::Busy
    }
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        let text = denied.to_string();
        match denied {
            Denied::NoToken | Denied::NotAccepted { .. } => Self::unauthenticated(text),
            Denied::NotAPod | Denied::NotAPeer | Denied::NotAllowed { .. } | Denied::AnotherPod => {
                Self::permission_denied(text)
            }
            Denied::Unchecked(_) | Denied::Busy => Self::unavailable(text),
        }
    }
}

/// A pod whose token was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What a stream was opened with: it is looked at again while the stream is open.
pub struct Pass {
    token: Token,
    from: IpAddr,
    claim: Claim,
}

/// Looks at whether a stream may go on, one after the other.
#[derive(Debug, Default)]
struct Looks {
    /// So many of the last ones the API server has refused to answer.
    unanswered: u32,
}

impl Looks {
    /// How long to wait, after a look has come to `held`, before the next; or why the stream must end.
    fn saw(&mut self, held: Result<(), Denied>) -> Result<Duration, Denied> {
        match held {
            Ok(()) => self.unanswered = 0,
            // Nobody has looked, as too many ask: soon again, since what was taken away must not last.
            Err(Denied::Busy) => return Ok(AGAIN),
            // While there is no API server, nothing is known against it, and the leases end by themselves; and one that
            // has too much to do would have more of it from agents that lose their streams. But if it answers, and not
            // this question, leases go on.
            Err(Denied::Unchecked(error)) => {
                self.unanswered = if error.kind().passes() { 0 } else { self.unanswered + 1 };
                if self.unanswered >= UNANSWERED {
                    return Err(error.into());
                }
            }
            Err(denied) => return Err(denied),
        }
        Ok(RECHECK)
    }
}

/// On whose account the API server is asked whose a token is.
#[derive(Clone, Copy)]
enum Asked<'a> {
    /// Of whoever comes from this address.
    From(IpAddr),
    /// Of those of this group who are in.
    Again(&'a Group),
}

/// What somebody may do who has a token.
enum Claim {
    /// Hold sessions, as this pod.
    Pod(Pod),
    /// Ask as another replica of the controller.
    Peer,
}

impl Claim {
    /// The group of [`Authenticator::bearer`]: the namespace. The other replicas are few.
    fn group(&self) -> Group {
        match self {
            Self::Pod(pod) => pod.namespace.as_str().into(),
            Self::Peer => "".into(),
        }
    }
}

/// Whom a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bearer {
    user: String,
    /// The pod that the token is bound to.
    pod: Option<Pod>,
    /// Whether it may read the sessions of its namespace.
    may_read: bool,
}

impl Bearer {
    fn new(user: UserInfo) -> Self {
        let UserInfo { username, extra, .. } = user;
        let user = username.unwrap_or_default();
        let mut extra = extra.unwrap_or_default();
        let mut first = |key: &str| extra.remove(key).and_then(|v| v.into_iter().next());
        let name = first("authentication.kubernetes.io/pod-name");
        let uid = first("authentication.kubernetes.io/pod-uid");
        let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        let pod = match (account, name, uid) {
            (Some((namespace, _)), Some(name), Some(uid)) => Some(Pod { namespace: namespace.to_owned(), name, uid }),
            _ => None,
        };
        Self { user, pod, may_read: false }
    }
}

/// Checks tokens.
#[derive(Clone)]
pub struct Authenticator {
    client: Client,
    audience: String,
    /// This controller's own user name, which its peers share.
    own_user: String,
    reviews: Arc<Reviews<Bearer>>,
}

impl Authenticator {
    /// An authenticator for tokens made for `audience`. Asks the API server who this process itself is.
    async fn new(client: Client, audience: String) -> Result<Self, ApiError> {
        let api: Api<SelfSubjectReview> = Api::all(client.clone());
        let params = PostParams::default();
        let own = deadline(CALL_DEADLINE, api.create(&params, &SelfSubjectReview::default())).await?;
        let own_user = own.status.and_then(|s| s.user_info).and_then(|u| u.username).unwrap_or_default();
        Ok(Self { client, audience, own_user, reviews: Arc::default() })
    }

    /// Asks until the API server answers: a controller that starts before it must not fail for that. `None` if it was asked to end
    /// before.
    pub async fn awaited(client: &Client, audience: &str, shutdown: &CancellationToken) -> Option<Self> {
        let asking = async {
            let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
            let mut failing = Failing::default();
            loop {
                match Self::new(client.clone(), audience.to_owned()).await {
                    Ok(authenticator) => {
                        if failing.over() {
                            info!("the API server says who this controller is");
                        }
                        return authenticator;
                    }
                    Err(error) if failing.failed(&error.to_string(), Instant::now()) => {
                        warn!(%error, "the API server does not say who this controller is; trying again");
                    }
                    Err(error) => debug!(%error, "the API server does not say who this controller is"),
                }
                sleep(backoff.pause()).await;
            }
        };
        shutdown.run_until_cancelled(asking).await
    }

    /// The pod whose token came with a request `from` an address, if it may read the sessions of its namespace; and what it was
    /// known by.
    pub async fn pod(&self, metadata: &MetadataMap, from: IpAddr) -> Result<(Pod, Pass), Denied> {
        let token = Token::of(metadata).ok_or(Denied::NoToken)?;
        let pod = self.admitted(&token, Asked::From(from)).await?;
        Ok((pod.clone(), Pass { token, from, claim: Claim::Pod(pod) }))
    }

    /// Lets only replicas of this controller through: those that share its service account.
    pub async fn peer(&self, metadata: &MetadataMap, from: IpAddr) -> Result<Pass, Denied> {
        let token = Token::of(metadata).ok_or(Denied::NoToken)?;
        self.is_replica(&token, Asked::From(from)).await?;
        Ok(Pass { token, from, claim: Claim::Peer })
    }

    /// Returns when, and why, a stream may no longer be open that was opened with `pass`. When its token ends is not read from the
    /// token, but heard from the API server: this machine's clock may be wrong.
    pub async fn revoked(&self, pass: &Pass) -> Denied {
        let (mut pause, mut looks) = (RECHECK, Looks::default());
        loop {
            let next = now().saturating_add(pause.mul_f64(rand::rng().random_range(0.8..1.0)));
            sleep_until(next).await;
            let held = self.holds(pass).await;
            if let Err(Denied::Unchecked(error)) = &held {
                debug!(from = %pass.from, %error, "it is not known whether a stream may go on");
            }
            match looks.saw(held) {
                Ok(next) => pause = next,
                Err(denied) => return denied,
            }
        }
    }

    async fn holds(&self, Pass { token, claim, .. }: &Pass) -> Result<(), Denied> {
        let group = claim.group();
        match claim {
            Claim::Pod(pod) if self.admitted(token, Asked::Again(&group)).await? == *pod => Ok(()),
            Claim::Pod(_) => Err(Denied::AnotherPod),
            Claim::Peer => self.is_replica(token, Asked::Again(&group)).await,
        }
    }

    async fn admitted(&self, token: &Token, asked: Asked<'_>) -> Result<Pod, Denied> {
        let Bearer { user, pod, may_read } = self.bearer(token, asked).await?;
        let pod = pod.ok_or(Denied::NotAPod)?;
        if may_read { Ok(pod) } else { Err(Denied::NotAllowed { user, namespace: pod.namespace }) }
    }

    async fn is_replica(&self, token: &Token, asked: Asked<'_>) -> Result<(), Denied> {
        let bearer = self.bearer(token, asked).await?;
        if self.own_user.is_empty() || bearer.user != self.own_user {
            return Err(Denied::NotAPeer);
        }
        Ok(())
    }

    async fn bearer(&self, token: &Token, asked: Asked<'_>) -> Result<Bearer, Denied> {
        let welcome = |bearer: &Bearer| match &bearer.pod {
            Some(pod) if bearer.may_read => Some(pod.namespace.as_str().into()),
            // The other replicas are few.
            _ => (bearer.user == self.own_user).then(|| "".into()),
        };
        let ask = async || self.review(token.reveal()).await;
        let bearer = match asked {
            Asked::From(from) => self.reviews.who(token, from, welcome, ask).await?,
            Asked::Again(group) => self.reviews.still(token, group, welcome, ask).await?,
        };
        bearer.ok_or_else(|| Denied::NotAccepted { audience: self.audience.clone() })
    }

    /// Asks the API server. Who may not read the sessions of its namespace must not learn of them by holding copies either.
    async fn review(&self, token: &str) -> Result<Option<Bearer>, Denied> {
        let Some(user) = question::owner(&self.client, token, Some(&self.audience)).await? else {
            return Ok(None);
        };
        let mut bearer = Bearer::new(user.clone());
        if let Some(pod) = &bearer.pod {
            let attributes = ResourceAttributes {
                group: Some("vmcp.dev".to_owned()),
                resource: Some("vmcpsessions".to_owned()),
                verb: Some("get".to_owned()),
                namespace: Some(pod.namespace.clone()),
                ..ResourceAttributes::default()
            };
            let what =
                SubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SubjectAccessReviewSpec::default() };
            bearer.may_read = question::may(&self.client, user, what).await?;
        }
        Ok(Some(bearer))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::controller::tests::unanswered;

    /// An API server that answers with this status code.
    fn unchecked(code: u16) -> Result<(), Denied> {
        let status = kube::core::Status::failure("", "").with_code(code);
        Err(ApiError::from_status(&status).into())
    }

    #[test]
    fn a_stream_ends_when_it_was_not_said_three_times_in_a_row_whether_it_may_go_on() {
        let mut looks = Looks::default();
        let mut goes_on = |held, pause| assert_eq!(looks.saw(held).unwrap(), pause);
        for _ in 0..2 {
            goes_on(unchecked(403), RECHECK);
            goes_on(unchecked(403), RECHECK);
            // It may.
            goes_on(Ok(()), RECHECK);
            goes_on(unchecked(403), RECHECK);
            goes_on(unchecked(403), RECHECK);
            // Nothing is known against it while the API server is away, or has too much to do.
            goes_on(unchecked(503), RECHECK);
            goes_on(unchecked(403), RECHECK);
            goes_on(unchecked(429), RECHECK);
        }
        goes_on(unchecked(403), RECHECK);
        goes_on(unchecked(403), RECHECK);
        // Nobody has looked.
        goes_on(Err(Denied::Busy), AGAIN);
        assert!(matches!(looks.saw(unchecked(403)), Err(Denied::Unchecked(_))));
    }

    #[test]
    fn a_stream_ends_at_once_when_it_is_known_that_it_may_not_go_on() {
        assert!(matches!(Looks::default().saw(Err(Denied::AnotherPod)), Err(Denied::AnotherPod)));
        assert_eq!(Looks::default().saw(Err(Denied::Busy)).unwrap(), AGAIN);
    }

    /// An API server for which each token is that of this pod and user.
    fn knows(pod: &Pod, user: &str) -> Client {
        let extra = json!({
            "authentication.kubernetes.io/pod-name": [pod.name], "authentication.kubernetes.io/pod-uid": [pod.uid],
        });
        let review = json!({"metadata": {}, "spec": {}, "status": {"authenticated": true, "audiences": ["vmcp.dev"],
            "user": {"username": user, "extra": extra}, "allowed": true}});
        let answer = serde_json::to_vec(&review).unwrap();
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let answer = http::Response::new(Body::from(answer.clone()));
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        Client::new(service, "ns")
    }

    #[tokio::test]
    async fn open_streams_are_looked_at_though_nobody_can_open_one() {
        let user = "system:serviceaccount:ns:pod";
        let pod = Pod { namespace: "ns".into(), name: "pod".into(), uid: "1".into() };
        let (client, reviews) = (knows(&pod, user), Arc::<Reviews<Bearer>>::default());
        let from = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let authenticator = Authenticator { client, audience: "vmcp.dev".into(), own_user: user.into(), reviews };
        authenticator.reviews.exhaust(&"ns".into(), from);
        let bearer = |token: &str| format!("Bearer {token}").parse().unwrap();
        let metadata = MetadataMap::from_headers([(http::header::AUTHORIZATION, bearer("new"))].into_iter().collect());
        assert!(matches!(authenticator.pod(&metadata, from).await, Err(Denied::Busy)));
        assert!(matches!(authenticator.peer(&metadata, from).await, Err(Denied::Busy)));
        for (token, claim) in [("a", Claim::Pod(pod)), ("b", Claim::Peer)] {
            let token = Token::bearer(&format!("Bearer {token}")).unwrap();
            let held = authenticator.holds(&Pass { token, from, claim }).await;
            assert!(held.is_ok(), "{held:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_before_the_api_server_has_answered_is_no_failure() {
        let (client, _listener) = unanswered().await;
        let shutdown = CancellationToken::new();
        let end = async {
            sleep(Duration::from_mins(1)).await;
            shutdown.cancel();
        };
        let (authenticator, ()) = tokio::join!(Authenticator::awaited(&client, "vmcp.dev", &shutdown), end);
        assert!(authenticator.is_none());
    }
}
