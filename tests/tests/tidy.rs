//! Rules about the tree that no compiler holds: which crate may depend on which, what may not be
//! linked at all, and that every member takes the workspace's lints.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Normal dependencies among our own crates (development dependencies are free).
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let ours = |p: &&Value| p["source"].is_null();
    let names: BTreeSet<&str> = packages
        .iter()
        .filter(ours)
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    packages
        .iter()
        .filter(ours)
        .map(|package| {
            let to = package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|d| d["kind"].is_null())
                .map(|d| d["name"].as_str().unwrap())
                .filter(|name| names.contains(name))
                .map(ToOwned::to_owned)
                .collect();
            (package["name"].as_str().unwrap().to_owned(), to)
        })
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    let allowed: &[(&str, &[&str])] = &[
        ("quantity", &[]),
        ("wire", &[]),
        ("device-twin", &[]),
        ("broker", &[]),
        ("apiserver", &["quantity"]),
        ("dmi", &[]),
        (
            "edgecore",
            &["quantity", "wire", "device-twin", "broker", "dmi"],
        ),
        ("cloudhub", &["quantity", "wire", "apiserver"]),
        ("outpost-examples", &[]),
        ("mapper-kit", &["dmi"]),
        ("virtual-mapper", &["mapper-kit"]),
        ("modbus-mapper", &["mapper-kit"]),
        (
            "outpost-tests",
            &[
                "wire",
                "device-twin",
                "broker",
                "apiserver",
                "edgecore",
                "cloudhub",
            ],
        ),
    ];
    for (name, to) in arrows() {
        let (_, may) = allowed
            .iter()
            .find(|(n, _)| *n == name)
            .unwrap_or_else(|| panic!("crate `{name}` is new: say here what it may depend on"));
        for target in to {
            assert!(
                may.contains(&target.as_str()),
                "`{name}` must not depend on `{target}`"
            );
        }
    }
}

#[test]
fn nothing_banned_is_linked() {
    let banned = [
        "openssl-sys",
        "native-tls",
        "aws-lc-sys",
        "serde_yaml",
        "tikv-jemallocator",
    ];
    let metadata = metadata();
    for package in metadata["resolve"]["nodes"].as_array().unwrap() {
        let id = package["id"].as_str().unwrap();
        for name in banned {
            assert!(
                !id.contains(&format!("#{name}@")),
                "{id} is linked; see deny.toml for why not"
            );
        }
    }
}

#[test]
fn every_member_takes_the_workspace_lints() {
    let metadata = metadata();
    for package in metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|p| p["source"].is_null())
    {
        let manifest = std::fs::read_to_string(package["manifest_path"].as_str().unwrap()).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} lacks `[lints] workspace = true`",
            package["name"]
        );
    }
}

/// Files of the pure crates: no runtime, no files, no clock. Time is an argument there.
#[test]
fn pure_code_stays_pure() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut files = Vec::new();
    for dir in ["wire/src", "device-twin/src"] {
        collect(&std::path::Path::new(root).join(dir), &mut files);
    }
    assert!(files.len() > 10, "the pure crates were not found");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for word in [
            "tokio::",
            "std::fs",
            "std::net",
            "Instant::now",
            "SystemTime::now",
            "std::thread",
        ] {
            assert!(!text.contains(word), "{} names {word}", file.display());
        }
    }
}

/// The shim writes both streams of `file://` to one file, and panics where only one is set.
#[test]
fn no_output_goes_to_a_file_past_the_logger() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../edgecore/src/edged/runtime");
    let mut files = Vec::new();
    collect(std::path::Path::new(root), &mut files);
    files.retain(|file| !file.to_string_lossy().ends_with("_tests.rs"));
    assert!(files.len() > 10, "the runtime was not found");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("file://"), "{}", file.display());
    }
}

#[test]
fn tests_that_documents_name_are_there() {
    let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut files = Vec::new();
    for dir in ["edgecore", "tests", "device-twin", "cloudhub", "wire"] {
        collect(&root.join(dir), &mut files);
    }
    let texts = files.iter().map(std::fs::read_to_string);
    let sources: Vec<String> = texts.collect::<Result<_, _>>().unwrap();
    for table in ["docs/traps.md", "docs/device-plane.md"] {
        let text = std::fs::read_to_string(root.join(table)).unwrap();
        let mut named = 0;
        for row in text.lines().filter(|line| line.starts_with("| ")) {
            let held = row.trim_end_matches('|').rsplit('|').next().unwrap();
            for name in held.split('`').skip(1).step_by(2) {
                let test = format!("fn {name}(");
                let is_there = sources.iter().any(|text| text.contains(&test));
                assert!(is_there, "{table} names {name}, which is no test");
                named += 1;
            }
        }
        assert!(named > 30, "the table was not found");
    }
}

#[test]
fn tests_that_hold_bounds_and_hazards_are_there() {
    let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut files = Vec::new();
    for dir in [
        "apiserver",
        "broker",
        "cloudhub",
        "device-twin",
        "edgecore",
        "tests",
        "wire",
    ] {
        collect(&root.join(dir), &mut files);
    }
    let texts = files.iter().map(std::fs::read_to_string);
    let sources: Vec<String> = texts.collect::<Result<_, _>>().unwrap();
    let is_name = |text: &&str| {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        text.matches('_').count() >= 2 && text.chars().all(is_word)
    };
    let mut named = 0;
    for document in ["docs/limits.md", "docs/hazards.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for name in text.split('`').skip(1).step_by(2).filter(is_name) {
            let test = format!("fn {name}(");
            let is_there = sources.iter().any(|text| text.contains(&test));
            assert!(is_there, "{document} names {name}, which is no test");
            named += 1;
        }
    }
    assert!(named > 150, "only {named} names were found");
}

/// The hub writes into a volume where its data lies on a node that was configured as usual.
#[test]
fn volumes_lie_where_the_hub_says() {
    let defaults = edgecore::config::load(None, [], &edgecore::config::Flags::default()).unwrap();
    let storage = defaults.runtime.unwrap().root_dir.join("storage");
    assert_eq!(storage.to_str(), Some(cloudhub::volumes::plan::STORAGE_DIR));
}

fn collect(dir: &std::path::Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}
