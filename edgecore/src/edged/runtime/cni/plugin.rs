//! One call of one plugin (CNI spec 1.0.0, sections 2 and 4): its environment, its input, its words.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

use super::{Cached, Cni, CniError, IF_NAME, is_namespace, plugin_type};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Check,
    Del,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
        }
    }
}

impl Cni {
    /// The directories of plugins, as `CNI_PATH` lists them.
    fn search_path(&self) -> String {
        let all: Vec<String> = self
            .bin_dirs
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        all.join(":")
    }

    pub(super) fn find(&self, plugin: &str) -> Result<PathBuf, CniError> {
        if plugin.is_empty() || plugin.contains('/') {
            return Err(CniError::Config(format!("plugin type `{plugin}`")));
        }
        self.bin_dirs
            .iter()
            .map(|dir| dir.join(plugin))
            .find(|path| path.is_file())
            .ok_or_else(|| CniError::Missing {
                plugin: plugin.to_owned(),
                searched: self.search_path(),
            })
    }

    /// What ADD answered; null for the others.
    pub(super) async fn run(
        &self,
        command: Command,
        uid: &str,
        plugin: &Value,
        cached: &Cached,
        previous: Option<&Value>,
    ) -> Result<Value, CniError> {
        let kind = plugin_type(plugin);
        let failed = |reason: String| CniError::Plugin {
            plugin: kind.to_owned(),
            reason,
        };
        let binary = self.find(kind)?;
        let input = plugin_config(plugin, cached, previous).to_string();
        // DEL with a namespace that is gone: the plugins want an empty name, not a dead path.
        let netns = if command == Command::Del && !is_namespace(&cached.netns) {
            Path::new("")
        } else {
            &cached.netns
        };
        let child = tokio::process::Command::new(binary)
            .env("CNI_COMMAND", command.name())
            .env("CNI_CONTAINERID", uid)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", IF_NAME)
            .env("CNI_ARGS", &cached.args)
            .env("CNI_PATH", self.search_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let group = child.id();
        let answered = tokio::time::timeout(self.plugin_max, converse(child, &input))
            .await
            .map_err(|_| {
                kill_group(group);
                failed(format!("no answer within {:?}", self.plugin_max))
            })?
            .map_err(|error| failed(error.to_string()))?;
        if !answered.status.success() {
            return Err(failed(complaint(&answered.stdout, &answered.stderr)));
        }
        // Only ADD answers with anything.
        if command != Command::Add {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answered.stdout).map_err(|error| failed(error.to_string()))
    }
}

/// Hands a plugin its input and waits for its end.
async fn converse(mut child: Child, input: &str) -> io::Result<Output> {
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()).await {
            // One that ended without reading says why itself.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    child.wait_with_output().await
}

/// A plugin that does not answer goes with everything it started.
fn kill_group(leader: Option<u32>) {
    let leader = leader.and_then(|pid| i32::try_from(pid).ok());
    if let Some(group) = leader.and_then(rustix::process::Pid::from_raw) {
        // It may have ended this moment.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

/// The plugin's own words: code, `msg` and `details` of its error object, else its stderr.
fn complaint(stdout: &[u8], stderr: &[u8]) -> String {
    const TEXT_MAX: usize = 512;
    let error: Value = serde_json::from_slice(stdout).unwrap_or_default();
    let part = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    let said = format!("{} {}", part("msg"), part("details"));
    let text = if said.trim().is_empty() {
        String::from_utf8_lossy(stderr).into_owned()
    } else {
        match error.get("code").and_then(Value::as_u64) {
            Some(code) => format!("{} (code {code})", said.trim()),
            None => said,
        }
    };
    text.trim().chars().take(TEXT_MAX).collect()
}

/// One plugin's input: its own part, the list's name and version, what it may know of the pod by
/// its capabilities, and the result so far (CNI spec 1.0.0, section 4).
fn plugin_config(plugin: &Value, cached: &Cached, previous: Option<&Value>) -> Value {
    let mut config: Map<String, Value> = plugin.as_object().cloned().unwrap_or_default();
    for key in ["name", "cniVersion"] {
        if let Some(value) = cached.conflist.get(key).filter(|value| !value.is_null()) {
            config.insert(key.to_owned(), value.clone());
        }
    }
    let capabilities = config.remove("capabilities").unwrap_or_default();
    let mut runtime = Map::new();
    for (name, value) in cached.runtime.as_object().into_iter().flatten() {
        let wanted = capabilities.get(name).and_then(Value::as_bool) == Some(true);
        let is_empty = value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(Map::is_empty);
        if wanted && !is_empty {
            runtime.insert(name.clone(), value.clone());
        }
    }
    if !runtime.is_empty() {
        config.insert("runtimeConfig".to_owned(), Value::Object(runtime));
    }
    if let Some(previous) = previous {
        config.insert("prevResult".to_owned(), previous.clone());
    }
    Value::Object(config)
}
