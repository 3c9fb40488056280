//! A network configuration for pods, and the plugins that it names.

use std::path::Path;

use serde_json::Value;

use super::Finding;
use crate::config::RuntimeConfig;

const CHECK: &str = "cni";

pub(super) fn check(runtime: &RuntimeConfig) -> Finding {
    let dir = &runtime.cni_conf_dir;
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|e| e == "conf" || e == "conflist" || e == "json")
        })
        .collect();
    files.sort();
    let Some(file) = files.first() else {
        return builtin(runtime, dir);
    };
    let shown = file.display();
    let parsed = std::fs::read(file)
        .map_err(|e| e.to_string())
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).map_err(|e| e.to_string()));
    let config = match parsed {
        Ok(config) => config,
        Err(error) => {
            return Finding::fail(
                CHECK,
                format!("{shown}: {error}"),
                "mend or remove that file",
            );
        }
    };
    let missing: Vec<String> = plugins(&config)
        .into_iter()
        .filter(|plugin| {
            !runtime
                .cni_bin_dirs
                .iter()
                .any(|bin| bin.join(plugin).is_file())
        })
        .collect();
    if missing.is_empty() {
        return Finding::pass(CHECK, shown.to_string());
    }
    Finding::fail(
        CHECK,
        format!(
            "{shown} names plugins that are missing: {}",
            missing.join(", ")
        ),
        "`apt install containernetworking-plugins`, or set outpost.cniBinDirectory",
    )
}

/// What the built-in network is made of.
const BUILTIN: [&str; 3] = ["bridge", "host-local", "portmap"];

/// Without a configuration edgecore makes a bridge of its own, if the plugins are there.
fn builtin(runtime: &RuntimeConfig, dir: &Path) -> Finding {
    let missing: Vec<&str> = BUILTIN
        .into_iter()
        .filter(|plugin| {
            let mut bins = runtime.cni_bin_dirs.iter();
            !bins.any(|bin| bin.join(plugin).is_file())
        })
        .collect();
    if missing.is_empty() {
        let range = runtime.pod_cidr.as_deref().unwrap_or("a free 10.88.x.0/24");
        return Finding::pass(
            CHECK,
            format!(
                "no configuration in {}: pods get the built-in bridge with {range}",
                dir.display()
            ),
        );
    }
    Finding::warn(
        CHECK,
        format!(
            "no network configuration in {}, and the built-in network lacks {}",
            dir.display(),
            missing.join(", ")
        ),
        "pods with hostNetwork run without; for others `apt install containernetworking-plugins`, \
         or set outpost.cniBinDirectory",
    )
}

/// The plugin programs a configuration or a list needs, address management included.
fn plugins(config: &Value) -> Vec<String> {
    let entries: Vec<&Value> = match config.get("plugins").and_then(Value::as_array) {
        Some(list) => list.iter().collect(),
        None => vec![config],
    };
    entries
        .into_iter()
        .flat_map(|plugin| [plugin.get("type"), plugin.pointer("/ipam/type")])
        .flatten()
        .filter_map(Value::as_str)
        .map(ToOwned::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_of_a_list_is_named() {
        let list = serde_json::json!({"plugins": [
            {"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}
        ]});
        assert_eq!(plugins(&list), ["bridge", "host-local", "portmap"]);
        assert_eq!(plugins(&serde_json::json!({"type": "ptp"})), ["ptp"]);
    }
}
