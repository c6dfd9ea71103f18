//! Accounts, what they may do, pods, and tokens that are bound to them.

use crate::{
    ControlPlane, Error, Result,
    control_plane::{Credential, NODE, client},
    eventually,
};
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        core::v1::{Namespace, Pod, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

static BINDINGS: AtomicUsize = AtomicUsize::new(0);

/// Files that let a process act with a token.
#[derive(Debug, Clone)]
pub struct TokenAccess {
    /// A kubeconfig that names the token file.
    pub kubeconfig: PathBuf,
    /// The token alone. Clients read it again and again, so it can be replaced.
    pub token_file: PathBuf,
}

/// A rule for a role: these verbs on these resources of this API group. Subresources are written `pods/status`.
pub fn policy_rule(group: &str, resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}

impl ControlPlane {
    /// Creates a namespace.
    pub async fn create_namespace(&self, name: &str) -> Result<()> {
        let namespace = Namespace { metadata: named(name), ..Namespace::default() };
        let created = Api::all(self.client()).create(&PostParams::default(), &namespace).await;
        created.map(drop).map_err(Error::api(format!("creating the namespace {name}")))
    }

    /// Creates a service account without any rights.
    pub async fn create_service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let account = ServiceAccount { metadata: named(name), ..ServiceAccount::default() };
        let created = Api::namespaced(self.client(), namespace).create(&PostParams::default(), &account).await;
        created.map(drop).map_err(Error::api(format!("creating the account {namespace}/{name}")))
    }

    /// Lets an account do this in its namespace, and waits until the API server allows it.
    pub async fn bind_role(&self, namespace: &str, account: &str, rules: Vec<PolicyRule>) -> Result<()> {
        let name = binding_name(account);
        let role = Role { metadata: named(&name), rules: Some(rules.clone()) };
        let binding = RoleBinding {
            metadata: named(&name),
            role_ref: role_ref("Role", &name),
            subjects: Some(vec![subject(namespace, account)]),
        };
        let failed = || Error::api(format!("binding a role to {namespace}/{account}"));
        Api::namespaced(self.client(), namespace).create(&PostParams::default(), &role).await.map_err(failed())?;
        Api::namespaced(self.client(), namespace).create(&PostParams::default(), &binding).await.map_err(failed())?;
        allowed(&self.client(), (namespace, account), Some(namespace), &rules).await
    }

    /// Lets an account do this everywhere, and waits until the API server allows it.
    pub async fn bind_cluster_role(&self, namespace: &str, account: &str, rules: Vec<PolicyRule>) -> Result<()> {
        let name = binding_name(&format!("{namespace}-{account}"));
        let role = ClusterRole { metadata: named(&name), rules: Some(rules.clone()), aggregation_rule: None };
        let binding = ClusterRoleBinding {
            metadata: named(&name),
            role_ref: role_ref("ClusterRole", &name),
            subjects: Some(vec![subject(namespace, account)]),
        };
        let failed = || Error::api(format!("binding a cluster role to {namespace}/{account}"));
        Api::all(self.client()).create(&PostParams::default(), &role).await.map_err(failed())?;
        Api::all(self.client()).create(&PostParams::default(), &binding).await.map_err(failed())?;
        allowed(&self.client(), (namespace, account), None, &rules).await
    }

    /// Creates a pod that runs, as far as the API knows, on a node and with this address. What it would run is up to
    /// the test: a process that listens there.
    pub async fn create_pod(&self, namespace: &str, name: &str, account: &str, ip: IpAddr) -> Result<Pod> {
        let pods = Api::<Pod>::namespaced(self.client(), namespace);
        let failed = || Error::api(format!("creating the pod {namespace}/{name}"));
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "app.kubernetes.io/name": name } },
            "spec": {
                "serviceAccountName": account,
                "automountServiceAccountToken": false,
                "nodeName": NODE,
                "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "main", "image": "none.invalid/none" }],
            },
        }))
        .map_err(|e| Error::Malformed(format!("the pod {name}: {e}")))?;
        pods.create(&PostParams::default(), &pod).await.map_err(failed())?;
        let status = json!({ "status": {
            "phase": "Running",
            "hostIP": ip,
            "hostIPs": [{ "ip": ip }],
            "podIP": ip,
            "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }, { "type": "ContainersReady", "status": "True" }],
        }});
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.map_err(failed())
    }

    /// A token of an account, bound to a pod: it ends with that pod. The API server grants no time below ten minutes.
    pub async fn token_for_pod(
        &self,
        namespace: &str,
        account: &str,
        pod: &Pod,
        audiences: &[&str],
        lifetime: Duration,
    ) -> Result<String> {
        let bound = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        };
        self.token(namespace, account, Some(bound), audiences, lifetime).await
    }

    /// A token of an account, bound to nothing.
    pub async fn token_for_account(
        &self,
        namespace: &str,
        account: &str,
        audiences: &[&str],
        lifetime: Duration,
    ) -> Result<String> {
        self.token(namespace, account, None, audiences, lifetime).await
    }

    async fn token(
        &self,
        namespace: &str,
        account: &str,
        bound_object_ref: Option<BoundObjectReference>,
        audiences: &[&str],
        lifetime: Duration,
    ) -> Result<String> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audiences.iter().map(|&a| a.to_owned()).collect()),
                bound_object_ref,
                expiration_seconds: i64::try_from(lifetime.as_secs()).ok(),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), namespace);
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let answer = answer.map_err(Error::api(format!("asking for a token of {namespace}/{account}")))?;
        let no_token = || Error::Malformed("the answer to a token request has no token".into());
        answer.status.and_then(|s| s.token).filter(|t| !t.is_empty()).ok_or_else(no_token)
    }

    /// A client that acts with this token, at `url`: that of an API server or of a proxy in front of one.
    pub async fn client_for_token(&self, url: &str, token: &str) -> Result<Client> {
        client(self.shared().config_as(url, &Credential::Token(token)).await?)
    }

    /// Writes a token and a kubeconfig that names it, for a process that acts with this token at `url`. The files are
    /// called after `name`; writing them again replaces the token.
    pub fn kubeconfig_for_token(&self, name: &str, url: &str, token: &str) -> Result<TokenAccess> {
        let dir = &self.shared().dir;
        let folder = Path::new("access").join(name);
        let token_file = dir.write(folder.join("token"), token)?;
        let kubeconfig = self.shared().kubeconfig(url, &Credential::TokenFile(&token_file)).to_string();
        let kubeconfig = dir.write(folder.join("kubeconfig"), kubeconfig)?;
        Ok(TokenAccess { kubeconfig, token_file })
    }
}

/// Waits until the authorizer, which learns of roles by a watch, allows the first of what each rule says.
async fn allowed(
    client: &Client,
    (namespace, account): (&str, &str),
    scope: Option<&str>,
    rules: &[PolicyRule],
) -> Result<()> {
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    for rule in rules {
        let first = |list: &Option<Vec<String>>| list.as_ref().and_then(|l| l.first()).cloned();
        let Some(resource) = first(&rule.resources) else {
            continue;
        };
        let (resource, subresource) = match resource.split_once('/') {
            Some((resource, sub)) => (resource.to_owned(), Some(sub.to_owned())),
            None => (resource, None),
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:{namespace}:{account}")),
                resource_attributes: Some(ResourceAttributes {
                    namespace: scope.map(str::to_owned),
                    group: first(&rule.api_groups),
                    resource: Some(resource),
                    subresource,
                    name: first(&rule.resource_names),
                    verb: rule.verbs.first().cloned(),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        eventually(Duration::from_secs(30), &format!("{namespace}/{account} has its rights"), async || {
            let answer = reviews.create(&PostParams::default(), &review).await.ok()?;
            answer.status.is_some_and(|s| s.allowed).then_some(())
        })
        .await?;
    }
    Ok(())
}

fn binding_name(of: &str) -> String {
    format!("{of}-{}", BINDINGS.fetch_add(1, Ordering::Relaxed))
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef { api_group: Some("rbac.authorization.k8s.io".into()), kind: kind.into(), name: name.into() }
}

fn subject(namespace: &str, account: &str) -> Subject {
    Subject {
        kind: "ServiceAccount".into(),
        name: account.into(),
        namespace: Some(namespace.into()),
        ..Subject::default()
    }
}
