//! Accounts, rights, pods and their tokens.

use crate::{SOON, config_maps, control_plane, create_config_map};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    core::v1::Pod,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use std::{fs, net::IpAddr, time::Duration};
use testkit::{LoopbackAddr, eventually, policy_rule};

const TEN_MINUTES: Duration = Duration::from_mins(10);

async fn review(client: Client, token: &str, audience: &str) -> TokenReview {
    let spec = TokenReviewSpec { token: token.into(), audiences: Some(vec![audience.into()]) };
    let review = TokenReview { spec, ..TokenReview::default() };
    Api::all(client).create(&PostParams::default(), &review).await.unwrap()
}

#[tokio::test]
async fn a_token_bound_to_a_pod_names_it_and_ends_with_it() {
    let plane = control_plane().await;
    let address = LoopbackAddr::claim().unwrap();
    plane.create_namespace("team").await.unwrap();
    plane.create_service_account("team", "vmcp").await.unwrap();
    let pod = plane.create_pod("team", "vmcp-0", "vmcp", address.ip()).await.unwrap();
    let uid = pod.metadata.uid.clone().unwrap();
    let ip: IpAddr = pod.status.as_ref().unwrap().pod_ip.as_ref().unwrap().parse().unwrap();
    assert_eq!(ip, address.ip());

    let token = plane.token_for_pod("team", "vmcp", &pod, &["controller"], TEN_MINUTES).await.unwrap();
    let status = review(plane.client(), &token, "controller").await.status.unwrap();
    assert_eq!(status.authenticated, Some(true), "{status:?}");
    let user = status.user.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:team:vmcp"));
    let extra = user.extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["vmcp-0"]);
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], [uid]);
    let other = review(plane.client(), &token, "somebody-else").await.status.unwrap();
    assert_ne!(other.authenticated, Some(true), "another audience");

    // Of a token that it has seen, an API server remembers for ten seconds that it is good.
    let unseen = plane.token_for_pod("team", "vmcp", &pod, &["controller"], TEN_MINUTES).await.unwrap();
    let pods = Api::<Pod>::namespaced(plane.client(), "team");
    pods.delete("vmcp-0", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually(SOON, "the token ends with its pod", async || {
        let status = review(plane.client(), &unseen, "controller").await.status.unwrap();
        (status.authenticated != Some(true)).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_account_may_do_what_it_was_given_and_nothing_else() {
    let plane = control_plane().await;
    plane.create_namespace("other").await.unwrap();
    plane.create_service_account("default", "reader").await.unwrap();
    let token = plane.token_for_account("default", "reader", &[], TEN_MINUTES).await.unwrap();
    let client = plane.client_for_token(plane.url(), &token).await.unwrap();
    let maps = config_maps(client.clone());
    let forbidden = |e: kube::Error| matches!(e, kube::Error::Api(s) if s.code == 403);

    assert!(maps.list(&ListParams::default()).await.is_err_and(forbidden));
    plane.bind_role("default", "reader", vec![policy_rule("", &["configmaps"], &["list", "get"])]).await.unwrap();
    maps.list(&ListParams::default()).await.unwrap();
    assert!(create_config_map(&maps, "mine").await.is_err_and(forbidden));
    let elsewhere = Api::<Pod>::namespaced(client.clone(), "other");
    assert!(elsewhere.list(&ListParams::default()).await.is_err_and(forbidden));
    let pods = policy_rule("", &["pods"], &["list"]);
    plane.bind_cluster_role("default", "reader", vec![pods]).await.unwrap();
    elsewhere.list(&ListParams::default()).await.unwrap();

    // The same through files, as a process gets it.
    let access = plane.kubeconfig_for_token("reader", plane.url(), &token).unwrap();
    assert_eq!(fs::read_to_string(&access.token_file).unwrap(), token);
    let kubeconfig = access.kubeconfig.display().to_string();
    let who = plane.kubectl(&["--kubeconfig", &kubeconfig, "auth", "whoami"]).await.unwrap();
    assert!(who.contains("system:serviceaccount:default:reader"), "{who}");
    let no = plane.kubectl_output(&["--kubeconfig", &kubeconfig, "delete", "ns", "other"], None).await.unwrap();
    assert!(!no.status.success() && no.stderr.contains("Forbidden"), "{no:?}");
}
