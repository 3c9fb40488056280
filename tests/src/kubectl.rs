//! kubectl as an admin uses it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::wait;

/// One kubectl binary with one kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    /// `home` takes kubectl's cache, and the files that a refused `edit` leaves.
    pub fn new(program: impl Into<PathBuf>, kubeconfig: &Path, home: &Path) -> Self {
        Self {
            program: program.into(),
            kubeconfig: kubeconfig.to_owned(),
            home: home.to_owned(),
        }
    }

    /// The command, to be started by the caller: what does not end by itself.
    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(args)
            .env("HOME", &self.home)
            .env("TMPDIR", &self.home)
            .env_remove("KUBECONFIG");
        command
    }

    /// Runs a command; its standard output, or an error with what it said.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        self.finish(self.command(args), args).await
    }

    /// `kubectl edit` with `editor` as the person.
    pub async fn edit(&self, editor: &str, what: &[&str]) -> Result<String> {
        let args = [&["edit"], what].concat();
        let mut command = self.command(&args);
        command.env("KUBE_EDITOR", editor);
        self.finish(command, &args).await
    }

    async fn finish(&self, command: std::process::Command, args: &[&str]) -> Result<String> {
        let output = Command::from(command)
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `kubectl get … -o json`, or `get --raw`.
    pub async fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        if !args.contains(&"--raw") {
            all.extend(["-o", "json"]);
        }
        Ok(serde_json::from_str(&self.run(&all).await?)?)
    }

    /// Waits until `get` answers something for which `accept` is `Some`.
    pub async fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        get: &[&str],
        mut accept: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let mut seen = Value::Null;
        let outcome = wait::until(what, limit, async || {
            seen = self.json(get).await?;
            Ok(accept(&seen))
        })
        .await;
        outcome.with_context(|| format!("last answer: {seen}"))
    }
}

/// The first kubectl of the machine.
pub fn on_path() -> PathBuf {
    PathBuf::from("kubectl")
}

/// Debian's own, which `scripts/setup.sh` puts beside it.
pub fn debian() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/tools/kubernetes-client/usr/bin/kubectl");
    path.exists().then_some(path)
}
