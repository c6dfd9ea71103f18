//! Who is at the other end of a stream: taken from a token that the API server has checked, never from what is said.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenReview, TokenReviewSpec, UserInfo};
use kube::Client;
use kube::api::{Api, PostParams};
use thiserror::Error;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::reviews::{self, Reviews};
use crate::runtime::api_error::{ApiError, deadline};

const CALL_DEADLINE: Duration = Duration::from_secs(5);
const MAX_TOKEN_BYTES: usize = 16 * 1024;

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
            Denied::NotAPod | Denied::NotAPeer => Self::permission_denied(text),
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

/// Whom a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bearer {
    user: String,
    /// The pod that the token is bound to.
    pod: Option<Pod>,
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
        Self { user, pod }
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
    pub async fn new(client: Client, audience: String) -> Result<Self, ApiError> {
        let api: Api<SelfSubjectReview> = Api::all(client.clone());
        let params = PostParams::default();
        let own = deadline(CALL_DEADLINE, api.create(&params, &SelfSubjectReview::default())).await?;
        let own_user = own.status.and_then(|s| s.user_info).and_then(|u| u.username).unwrap_or_default();
        Ok(Self { client, audience, own_user, reviews: Arc::default() })
    }

    /// The pod whose token came with a request.
    pub async fn pod(&self, metadata: &MetadataMap) -> Result<Pod, Denied> {
        self.bearer(metadata).await?.pod.ok_or(Denied::NotAPod)
    }

    /// Lets only replicas of this controller through: those that share its service account.
    pub async fn peer(&self, metadata: &MetadataMap) -> Result<(), Denied> {
        let bearer = self.bearer(metadata).await?;
        if self.own_user.is_empty() || bearer.user != self.own_user {
            return Err(Denied::NotAPeer);
        }
        Ok(())
    }

    async fn bearer(&self, metadata: &MetadataMap) -> Result<Bearer, Denied> {
        let token = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN_BYTES)
            .ok_or(Denied::NoToken)?;
        let bearer = self.reviews.who(token, async || self.review(token).await).await?;
        bearer.ok_or_else(|| Denied::NotAccepted { audience: self.audience.clone() })
    }

    /// Asks the API server.
    async fn review(&self, token: &str) -> Result<Option<Bearer>, Denied> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![self.audience.clone()]) },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = deadline(CALL_DEADLINE, api.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        // An API server that does not know audiences answers without any: the token may be for anybody.
        let for_us = status.audiences.unwrap_or_default().contains(&self.audience);
        let accepted = status.authenticated == Some(true) && for_us;
        Ok(status.user.filter(|_| accepted).map(Bearer::new))
    }
}
