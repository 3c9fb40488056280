//! The site's network configuration: which file counts, and whether it can be obeyed.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::CniError;

/// Versions whose results have `ips` as we read them and whose plugins are called as we call them.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const VERSIONS_TEXT: &str = "0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0";
/// A configuration is a page of text.
const BYTES_MAX: u64 = 1 << 20;

/// The first file by name that is one, as every CNI runtime chooses. `None`: there is no file. What
/// is wrong with the first one is told only if no other can be used.
pub(super) fn load(directory: &Path) -> Result<Option<Value>, CniError> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.retain(|file| {
        file.extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| matches!(e, "conf" | "conflist" | "json"))
    });
    files.sort();
    let mut wrong = None;
    for file in files {
        match read(&file) {
            Ok(list) => return Ok(Some(list)),
            Err(reason) => {
                let reason = format!("{}: {reason}", file.display());
                wrong.get_or_insert(reason);
            }
        }
    }
    match wrong {
        Some(reason) => Err(CniError::Config(reason)),
        None => Ok(None),
    }
}

fn read(file: &Path) -> Result<Value, String> {
    let size = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
    if size > BYTES_MAX {
        return Err(format!("{size} bytes are too many"));
    }
    let bytes = std::fs::read(file).map_err(|e| e.to_string())?;
    let parsed: Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let list = as_list(parsed).ok_or("no plugins")?;
    check(&list)?;
    Ok(list)
}

/// A single configuration is a list of one.
pub(super) fn as_list(parsed: Value) -> Option<Value> {
    if let Some(plugins) = parsed.get("plugins") {
        let some = plugins.as_array().is_some_and(|list| !list.is_empty());
        return some.then_some(parsed);
    }
    parsed.get("type")?;
    let (version, name) = (
        parsed.get("cniVersion").cloned(),
        parsed.get("name").cloned(),
    );
    Some(json!({ "cniVersion": version, "name": name, "plugins": [parsed] }))
}

fn check(list: &Value) -> Result<(), String> {
    let text = |value: &Value, key: &str| {
        let found = value.get(key).and_then(Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    let version = text(list, "cniVersion");
    if !VERSIONS.contains(&version.as_str()) {
        return Err(format!(
            "cniVersion \"{version}\" is not supported; {VERSIONS_TEXT} are"
        ));
    }
    if text(list, "name").is_empty() {
        return Err("the network has no name".to_owned());
    }
    if super::plugins(list).any(|plugin| text(plugin, "type").is_empty()) {
        return Err("a plugin has no type".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_can_be_used_counts() {
        let directory = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        assert_eq!(load(directory.path()).unwrap(), None);
        assert_eq!(load(Path::new("/none")).unwrap(), None);
        write("00-readme.txt", "not one");
        write("05-broken.conflist", "{");
        let error = load(directory.path()).unwrap_err().to_string();
        assert!(error.contains("05-broken.conflist"), "{error}");
        write(
            "10-old.conf",
            r#"{"cniVersion":"0.2.0","name":"o","type":"bridge"}"#,
        );
        write(
            "20-good.conf",
            r#"{"cniVersion":"0.3.1","name":"g","type":"ptp"}"#,
        );
        write(
            "30-later.conflist",
            r#"{"cniVersion":"1.0.0","name":"l","plugins":[{"type":"x"}]}"#,
        );
        let found = load(directory.path()).unwrap().unwrap();
        assert_eq!(
            (&found["name"], &found["plugins"][0]["type"]),
            (&json!("g"), &json!("ptp"))
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            (
                json!({"cniVersion": "0.2.0", "name": "n", "type": "t"}),
                "0.2.0",
            ),
            (json!({"name": "n", "type": "t"}), "cniVersion"),
            (json!({"cniVersion": "1.0.0", "type": "t"}), "no name"),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}),
                "no type",
            ),
        ] {
            let list = as_list(text.clone()).unwrap();
            let error = check(&list).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert_eq!(as_list(json!({"cniVersion": "1.0.0", "plugins": []})), None);
    }
}
