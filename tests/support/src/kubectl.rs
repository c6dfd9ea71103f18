//! The real kubectl, as people use it.

use crate::{ControlPlane, Error, Process, Result, assets::Assets, eventually};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

/// How long one command may take; `kubectl wait` gives up sooner by itself.
const DEADLINE: Duration = Duration::from_mins(2);

/// What kubectl said.
#[derive(Debug, Clone)]
pub struct KubectlOutput {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// kubectl with the administrator's kubeconfig.
#[derive(Clone)]
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    pub(crate) fn new(assets: &Assets, kubeconfig: PathBuf, home: PathBuf) -> Result<Self> {
        Ok(Self { program: assets.program("kubectl")?, kubeconfig, home })
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    async fn run(&self, args: &[&str], stdin: Option<&str>) -> Result<KubectlOutput> {
        let failed = "running kubectl";
        let dir = tempfile::Builder::new().prefix("kubectl-").tempdir_in(&self.home).map_err(Error::io(failed))?;
        let file = |name: &str| dir.path().join(name);
        let read = |name: &str| fs::read_to_string(file(name)).map_err(Error::io(failed));
        let mut command = Process::builder("kubectl", &self.program)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            // Its caches, and no preferences of whoever runs the test.
            .env("HOME", &self.home)
            .env_remove("KUBECACHEDIR")
            .env_remove("KUBERC")
            .stdout(file("stdout"))
            .log(file("stderr"));
        if let Some(text) = stdin {
            fs::write(file("stdin"), text).map_err(Error::io(failed))?;
            command = command.stdin(file("stdin"));
        }
        let process = command.spawn()?;
        let status = process.wait(DEADLINE).await?;
        Ok(KubectlOutput { status, stdout: read("stdout")?, stderr: read("stderr")? })
    }

    async fn succeed(&self, args: &[&str], stdin: Option<&str>) -> Result<String> {
        let KubectlOutput { status, stdout, stderr } = self.run(args, stdin).await?;
        if status.success() {
            return Ok(stdout);
        }
        let name = self.program.file_name().unwrap_or_default().display();
        let command = format!("{name} {}", args.join(" "));
        Err(Error::Command { command, status, stderr: stderr.trim_end().to_owned() })
    }
}

impl ControlPlane {
    /// Runs another program as kubectl is run: with its output caught, and a deadline.
    pub(crate) async fn tool(&self, program: impl Into<PathBuf>, args: &[&str]) -> Result<String> {
        Kubectl { program: program.into(), ..self.kubectl_runner().clone() }.succeed(args, None).await
    }

    /// Runs Helm as the administrator, from the folder of the control plane's programs; returns what it prints. It must
    /// succeed.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        self.tool(self.shared().assets.program("helm")?, args).await
    }

    /// The same with Helm 3.
    pub async fn helm3(&self, args: &[&str]) -> Result<String> {
        self.tool(self.shared().assets.program("helm3")?, args).await
    }

    /// Runs kubectl as administrator and returns what it printed; an error when it fails. Another identity is given by
    /// `--kubeconfig`.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_runner().succeed(args, None).await
    }

    /// The same, with text on its standard input.
    pub async fn kubectl_with_input(&self, args: &[&str], stdin: &str) -> Result<String> {
        self.kubectl_runner().succeed(args, Some(stdin)).await
    }

    /// Runs kubectl and returns how it ended, for tests that expect it to fail.
    pub async fn kubectl_output(&self, args: &[&str], stdin: Option<&str>) -> Result<KubectlOutput> {
        self.kubectl_runner().run(args, stdin).await
    }

    /// `kubectl apply` of this text.
    pub async fn apply_yaml(&self, yaml: &str) -> Result<String> {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml).await
    }

    /// Applies the custom resource definitions of a file or folder, and waits until their resources can be used.
    pub async fn apply_crds(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref().display().to_string();
        let names = self.kubectl(&["apply", "--server-side", "-f", &path, "-o", "name"]).await?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "-f", &path]).await?;
        for name in names.lines().filter_map(|line| line.split_once('/')).map(|(_, name)| name) {
            served(&self.client(), name).await?;
        }
        Ok(())
    }
}

/// Waits until every version of a custom resource answers; that may come a little after `Established`.
async fn served(client: &Client, name: &str) -> Result<()> {
    let crd = Api::<CustomResourceDefinition>::all(client.clone()).get(name).await;
    let spec = crd.map_err(Error::api(format!("getting the definition {name}")))?.spec;
    for version in spec.versions.iter().filter(|v| v.served) {
        let kind = GroupVersionKind::gvk(&spec.group, &version.name, &spec.names.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, &spec.names.plural);
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        let what = format!("{name} {} answers", version.name);
        let one = ListParams::default().limit(1);
        eventually(Duration::from_secs(30), &what, async || api.list(&one).await.ok().map(drop)).await?;
    }
    Ok(())
}
