//! What the API server is asked about somebody who shows a token: who that is, and what he may do.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};

use crate::runtime::api_error::{ApiError, deadline};

/// How long an answer may take.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Whose `token` it is, if it was made for `audience`; without one it must be made for the API server. `None`: nobody's.
pub async fn owner(client: &Client, token: &str, audience: Option<&str>) -> Result<Option<UserInfo>, ApiError> {
    let audiences = audience.map(|audience| vec![audience.to_owned()]);
    let spec = TokenReviewSpec { token: token.to_owned(), audiences };
    let review = TokenReview { spec, ..TokenReview::default() };
    let api: Api<TokenReview> = Api::all(client.clone());
    let answer = deadline(CALL_DEADLINE, api.create(&PostParams::default(), &review)).await?;
    let status = answer.status.unwrap_or_default();
    // An API server that does not know audiences answers without any: the token may be for anybody.
    let for_us = audience.is_none_or(|audience| status.audiences.unwrap_or_default().iter().any(|a| a == audience));
    let accepted = status.authenticated == Some(true) && for_us;
    Ok(status.user.filter(|_| accepted))
}

/// Whether somebody may do `what` is said there.
pub async fn may(client: &Client, user: UserInfo, what: SubjectAccessReviewSpec) -> Result<bool, ApiError> {
    let spec =
        SubjectAccessReviewSpec { user: user.username, groups: user.groups, uid: user.uid, extra: user.extra, ..what };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = deadline(CALL_DEADLINE, api.create(&PostParams::default(), &review)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
