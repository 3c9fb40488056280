//! Every manifest of `examples/pods/` on one node, with real kubectl: each comes to the status that
//! is documented beside it, and nothing is left when all are gone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use outpost_tests::arena::Arena;
use outpost_tests::expect::{Expect, differences};
use outpost_tests::kubectl::Kubectl;
use outpost_tests::oci::{self, ImageSpec};
use outpost_tests::registry::{PASSWORD, Registry, USER};
use outpost_tests::world::{NODE, path};
use outpost_tests::{containerd, wait};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// As the examples name it.
const IMAGE: &str = "localhost/busybox:1";
/// Examples that are looked at side by side: two cores.
const AT_ONCE: usize = 6;

struct Example {
    name: String,
    manifest: PathBuf,
    expect: Expect,
}

fn examples() -> Result<Vec<Example>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/pods");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir)? {
        let manifest = entry?.path();
        let file = manifest
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let Some(name) = file
            .strip_suffix(".yaml")
            .filter(|name| !name.ends_with(".expect"))
        else {
            continue;
        };
        let expect = dir.join(format!("{name}.expect.yaml"));
        let text = std::fs::read_to_string(&expect)
            .with_context(|| format!("no documented status: {}", expect.display()))?;
        found.push(Example {
            name: name.to_owned(),
            expect: serde_saphyr::from_str(&text).with_context(|| expect.display().to_string())?,
            manifest,
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let only = std::env::var("EXAMPLE").unwrap_or_default();
    found.retain(|example| only.is_empty() || only.split(',').any(|one| one == example.name));
    Ok(found)
}

#[test]
fn each_example_comes_to_its_documented_status() {
    if containerd::skipped() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Err(error) = runtime.block_on(run()) {
        panic!("{error:#}");
    }
}

async fn run() -> Result<()> {
    let all = examples()?;
    let (ready, pending): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|example| example.expect.pending.is_none());
    for example in &pending {
        let why = example.expect.pending.as_deref().unwrap_or_default();
        eprintln!("PENDING {}: {why}", example.name);
    }
    let registry_dir = tempfile::tempdir()?;
    let registry = Registry::start(registry_dir.path(), true).await?;
    registry.push(&ImageSpec::busybox(IMAGE), "private/busybox", "1")?;
    let settings = vec![(
        "outpost.insecureRegistries",
        format!("[\"{}\"]", registry.address),
    )];
    let mut arena = Arena::start_with("pods", containerd::binaries(), settings).await?;
    let archive = arena.dir.path().join("examples.tar");
    let image = ImageSpec::busybox(IMAGE);
    oci::write_archive(&image, &archive)?;
    arena.world.import(&archive)?;
    let digest = oci::digest(&oci::content(&image)?.manifest);
    for example in &ready {
        let text = std::fs::read_to_string(&example.manifest)?
            .replace("registry.example:5000", &registry.address.to_string())
            .replace(
                "\"username\": \"edge\", \"password\": \"secret\"",
                &format!("\"username\": \"{USER}\", \"password\": \"{PASSWORD}\""),
            )
            .replace(&format!("sha256:{}", "0".repeat(64)), &digest);
        std::fs::write(
            arena.dir.path().join(format!("{}.yaml", example.name)),
            text,
        )?;
    }
    let outcome = apply_all(&mut arena, &ready).await;
    outcome.map_err(|error| {
        let logs = arena.logs();
        error.context(logs)
    })
}

async fn apply_all(arena: &mut Arena, ready: &[Example]) -> Result<()> {
    let kubectl = arena.world.kubectl();
    let logs = arena.world.edge_dir().join("logs");
    let mut failures = Vec::new();
    for group in ready.chunks(AT_ONCE) {
        let side_by_side = group.iter().map(|example| {
            let manifest = arena.dir.path().join(format!("{}.yaml", example.name));
            let (kubectl, logs) = (&kubectl, &logs);
            async move { one(kubectl, logs, &manifest, &example.name, &example.expect).await }
        });
        let ended = futures_util::future::join_all(side_by_side).await;
        for (example, outcome) in group.iter().zip(ended) {
            let name = &example.name;
            match outcome {
                Ok(()) => eprintln!("ok      {name}"),
                Err(error) => {
                    eprintln!("FAILED  {name}: {error:#}");
                    failures.push(name.clone());
                }
            }
        }
    }
    for file in std::fs::read_dir(arena.dir.path().join("statics"))? {
        std::fs::remove_file(file?.path())?;
    }
    arena.world.delete_pods().await?;
    arena.nothing_runs().await?;
    ensure!(
        failures.is_empty(),
        "{} of {} examples: {}",
        failures.len(),
        ready.len(),
        failures.join(", ")
    );
    let bad = arena.world.complaints();
    ensure!(bad.is_empty(), "errors in the logs:\n{}", bad.join("\n"));
    Ok(())
}

async fn one(
    kubectl: &Kubectl,
    logs: &Path,
    manifest: &Path,
    name: &str,
    expect: &Expect,
) -> Result<()> {
    let mirror = format!("{name}-{NODE}");
    let name = if expect.is_static {
        std::fs::copy(manifest, statics(manifest).join(format!("{name}.yaml")))?;
        mirror.as_str()
    } else {
        kubectl.run(&["apply", "-f", path(manifest)?]).await?;
        name
    };
    let limit = Duration::from_secs(expect.within);
    let mut last = Value::Null;
    let outcome = wait::until("the documented status", limit, async || {
        let pod = kubectl.json(&["get", "pod", name]).await?;
        last = pod["status"].clone();
        let mut different = differences(&expect.pod, &pod);
        for (container, part) in &expect.logs {
            let container = container.split('.').next().unwrap_or(container);
            let text = log_of(logs, name, container);
            if !text.contains(part.as_str()) {
                different.push(format!("log of {container} lacks `{part}`:\n{text}"));
            }
        }
        if !expect.events.is_empty() {
            let seen = reasons(kubectl, name).await?;
            let missing = expect.events.iter().filter(|reason| !seen.contains(reason));
            different.extend(missing.map(|reason| format!("no event {reason}; {seen:?}")));
        }
        for (address, part) in &expect.http {
            let text = get(address).await;
            if !text.contains(part.as_str()) {
                different.push(format!("{address} answers `{text}`"));
            }
        }
        if different.is_empty() {
            return Ok(Some(()));
        }
        bail!("{}", different.join("\n  "))
    })
    .await;
    outcome.with_context(|| format!("last status: {last}"))
}

/// The node's directory of static pods, beside the manifests of this run.
fn statics(manifest: &Path) -> PathBuf {
    manifest.with_file_name("statics")
}

/// All that the container has written in all of its runs, without the log format.
fn log_of(logs: &Path, pod: &str, container: &str) -> String {
    let prefix = format!("default_{pod}_");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(logs).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let runs = std::fs::read_dir(entry.path().join(container));
            files.extend(runs.into_iter().flatten().flatten().map(|file| file.path()));
        }
    }
    files.sort();
    let mut text = String::new();
    for file in files {
        for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
            text.push_str(line.splitn(4, ' ').nth(3).unwrap_or_default());
            text.push('\n');
        }
    }
    text
}

async fn reasons(kubectl: &Kubectl, pod: &str) -> Result<Vec<String>> {
    let about = format!("--field-selector=involvedObject.name={pod}");
    let events = kubectl.json(&["get", "events", &about]).await?;
    let items = events["items"].as_array().cloned().unwrap_or_default();
    let reason = |event: &Value| event["reason"].as_str().map(str::to_owned);
    Ok(items.iter().filter_map(reason).collect())
}

/// What an HTTP server answers; no proxy of the machine in between.
async fn get(address: &str) -> String {
    let plain = address.trim_start_matches("http://");
    let (host, target) = plain.split_once('/').unwrap_or((plain, ""));
    let talk = async {
        let mut stream = TcpStream::connect(host).await?;
        let question = format!("GET /{target} HTTP/1.0\r\nHost: {host}\r\n\r\n");
        stream.write_all(question.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    match tokio::time::timeout(Duration::from_secs(2), talk).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    }
}
