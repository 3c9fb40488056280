//! Images of several layers in every encoding, made for a registry, and their collection.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use edgecore::edged::runtime::{PullOptions, Reclaim, Runtime, RuntimeError};
use serde_json::{Value, json};

use crate::oci::{ImageSpec, content, digest, write_archive};
use crate::registry::{Auth, Behaviour, Fault, Registry};
use crate::world::{IMAGE, World};

const OCI: &str = "application/vnd.oci.image";
const DOCKER: &str = "application/vnd.docker";

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    fn pack(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => tar.to_vec(),
            Self::Gzip => {
                let level = flate2::Compression::fast();
                let mut packed = flate2::write::GzEncoder::new(Vec::new(), level);
                packed.write_all(tar).unwrap();
                packed.finish().unwrap()
            }
            Self::Zstd => zstd(tar),
        }
    }
}

/// By the program, which Debian has everywhere.
pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("zstd")
        .args(["-q", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// A layer with one file.
pub(crate) fn file_layer(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, name, bytes).unwrap();
    tar.into_inner().unwrap()
}

/// What no compressor makes smaller.
pub(crate) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Puts an image of these layers, above busybox, into the registry; returns its manifest.
pub(crate) fn publish(
    registry: &Registry,
    tag: &str,
    layers: &[(Vec<u8>, Packing)],
    docker: bool,
) -> Value {
    let base = content(&ImageSpec::busybox("unused")).unwrap();
    let mut config: Value = serde_json::from_slice(&base.config).unwrap();
    let mut all = vec![(base.layer, Packing::Gzip)];
    all.extend_from_slice(layers);
    let diff_ids: Vec<String> = all.iter().map(|(tar, _)| digest(tar)).collect();
    config["rootfs"]["diff_ids"] = json!(diff_ids);
    let described = |kind: String, bytes: &[u8]| {
        let digest = registry.put(bytes, &kind, None);
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    let described_layers: Vec<Value> = all
        .iter()
        .map(|(tar, packing)| {
            let kind = match (docker, packing) {
                (true, Packing::Plain) => format!("{DOCKER}.image.rootfs.diff.tar"),
                (true, _) => format!("{DOCKER}.image.rootfs.diff.tar.gzip"),
                (false, Packing::Plain) => format!("{OCI}.layer.v1.tar"),
                (false, Packing::Gzip) => format!("{OCI}.layer.v1.tar+gzip"),
                (false, Packing::Zstd) => format!("{OCI}.layer.v1.tar+zstd"),
            };
            described(kind, &packing.pack(tar))
        })
        .collect();
    let (manifest_kind, config_kind) = if docker {
        (
            format!("{DOCKER}.distribution.manifest.v2+json"),
            format!("{DOCKER}.container.image.v1+json"),
        )
    } else {
        (
            format!("{OCI}.manifest.v1+json"),
            format!("{OCI}.config.v1+json"),
        )
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_kind,
        "config": described(config_kind, config.to_string().as_bytes()),
        "layers": described_layers,
    });
    registry.put(manifest.to_string().as_bytes(), &manifest_kind, Some(tag));
    manifest
}

pub(crate) fn open_registry() -> Registry {
    Registry::with(Behaviour {
        auth: Auth::Nobody,
        ..Behaviour::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_packing_and_both_families_of_media_types_run() {
    let Some(world) = World::empty() else {
        return;
    };
    let registry = open_registry();
    let layer = |name: &str, text: &str| file_layer(name, text.as_bytes());
    publish(
        &registry,
        "oci",
        &[
            (layer("plain", "a"), Packing::Plain),
            (layer("zstd", "b"), Packing::Zstd),
            (layer("gzip", "c"), Packing::Gzip),
        ],
        false,
    );
    let docker = [
        (layer("plain", "d"), Packing::Plain),
        (layer("zstd", ""), Packing::Gzip),
        (layer("gzip", "e"), Packing::Gzip),
    ];
    publish(&registry, "docker", &docker, true);
    for (tag, want) in [("oci", "abc"), ("docker", "de")] {
        let reference = format!("{}/team/app:{tag}", registry.address);
        let options = PullOptions::default();
        world.runtime.pull(&reference, &options).await.unwrap();
        let mut pod = world.pod();
        pod.host_network = true;
        world.runtime.ensure_sandbox(&pod).await.unwrap();
        let mut container = world.container(&pod, "c", "cat /plain /zstd /gzip; echo");
        container.image = reference;
        let id = world.runtime.start(&container).await.unwrap();
        let (code, _) = world.exited(&id).await;
        let log: String = World::log(&container)
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        assert_eq!((code, log.trim()), (0, want), "{tag}");
        world.clean(&pod).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_nobody_needs_is_collected() {
    let Some(world) = World::new().await else {
        return;
    };
    let registry = open_registry();
    for name in ["kept", "pinned", "loose", "unused"] {
        let own = (file_layer(name, &noise(300 << 10, 7)), Packing::Gzip);
        publish(&registry, name, &[own], false);
    }
    let name = |tag: &str| format!("{}/team/app:{tag}", registry.address);
    for tag in ["kept", "pinned", "loose", "unused"] {
        let pulled = world
            .runtime
            .pull(&name(tag), &PullOptions::default())
            .await;
        assert!(!pulled.unwrap().pinned);
    }
    world
        .runtime
        .pin_image(&name("pinned"), true)
        .await
        .unwrap();
    let missing = world.runtime.pin_image("no/such:image", true).await;
    assert!(matches!(missing, Err(RuntimeError::ImageNotPresent { .. })));

    // A container that has ended, but is still there, was made from IMAGE.
    let mut pod = world.pod();
    pod.host_network = true;
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let id = world
        .runtime
        .start(&world.container(&pod, "c", "true"))
        .await
        .unwrap();
    world.exited(&id).await;

    let mut reclaim = Reclaim {
        keep: BTreeSet::from([name("kept")]),
        min_age: Duration::from_secs(3600),
        bytes: None,
    };
    assert_eq!(
        world.runtime.reclaim_images(&reclaim).await.unwrap(),
        0,
        "too young"
    );
    reclaim.min_age = Duration::ZERO;
    // One is enough; which one is settled by its use, which lies a moment further back.
    reclaim.bytes = Some(1);
    world.runtime.image(&name("loose")).await.unwrap();
    let freed = world.runtime.reclaim_images(&reclaim).await.unwrap();
    assert!(
        (300 << 10..1 << 20).contains(&freed),
        "{freed}: its own layer, packed and unpacked"
    );
    let left = |images: Vec<edgecore::edged::runtime::Image>| -> BTreeSet<String> {
        images.into_iter().map(|image| image.reference).collect()
    };
    let all: BTreeSet<String> = ["kept", "pinned", "loose"].map(name).into();
    let mut want = all.clone();
    want.insert(IMAGE.to_owned());
    assert_eq!(left(world.runtime.images().await.unwrap()), want);

    reclaim.bytes = None;
    world.runtime.reclaim_images(&reclaim).await.unwrap();
    want.remove(&name("loose"));
    assert_eq!(left(world.runtime.images().await.unwrap()), want);

    world.clean(&pod).await;
    world
        .runtime
        .pin_image(&name("pinned"), false)
        .await
        .unwrap();
    reclaim.keep.clear();
    world.runtime.reclaim_images(&reclaim).await.unwrap();
    assert_eq!(world.runtime.images().await.unwrap(), vec![]);
    assert_eq!(world.ctr(&["content", "ls", "-q"]).trim(), "");
    assert_eq!(world.leftovers(), Vec::<String>::new());

    let disk = world.runtime.image_fs().await.unwrap();
    assert!(
        disk.available_bytes > 0 && disk.available_bytes <= disk.capacity_bytes,
        "{disk:?}"
    );
}

/// `edgecore image …` on the world's daemon.
fn edgecore(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgecore"));
    let socket = world.daemon.address().display().to_string();
    let data = world.directory.path().join("data").display().to_string();
    command.arg("image").args(arguments);
    for (key, value) in [
        (
            "modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint",
            format!("unix://{socket}"),
        ),
        (
            "outpost.containerdNamespace",
            world.config.namespace.clone(),
        ),
        (
            "outpost.runDirectory",
            world.config.state_dir.display().to_string(),
        ),
        ("outpost.imageStallSeconds", "3600".to_owned()),
        ("database.dataSource", format!("{data}/edgecore.db")),
    ] {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Bytes after which the registry of the killed pull hangs up.
const STOP: usize = (1 << 20) + 4321;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_killed_in_the_middle_goes_on_in_the_next_process() {
    let Some(world) = World::empty() else {
        return;
    };
    let registry = open_registry();
    let own = (file_layer("noise", &noise(2 << 20, 5)), Packing::Plain);
    publish(&registry, "a", &[own], false);
    let reference = format!("{}/team/app:a", registry.address);
    // Busybox's layer or the other: whichever comes first stops there.
    registry.fault(Fault::Stall(STOP));
    let mut pull = edgecore(&world, &["pull", &reference]).spawn().unwrap();
    registry.until_stalled();
    // What was sent has to have been written: the store tells.
    let written = || {
        let listed = world.ctr(&["content", "active"]);
        listed.contains("1.0 MiB") || listed.contains("1.004 MiB")
    };
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    while !written() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    pull.kill().unwrap();
    pull.wait().unwrap();
    registry.asked();
    let (code, text) = said(edgecore(&world, &["pull", &reference]));
    assert_eq!(code, Some(0), "{text}");
    let ranges: Vec<usize> = registry
        .asked()
        .iter()
        .filter_map(|(_, from)| *from)
        .collect();
    assert!(
        !ranges.is_empty() && ranges.iter().all(|from| *from > 0 && *from <= STOP),
        "{ranges:?}"
    );

    let (_, listed) = said(edgecore(&world, &["list"]));
    assert!(listed.contains(&reference), "{listed}");
    let (code, _) = said(edgecore(&world, &["pin", &reference]));
    assert_eq!(code, Some(0));
    let (_, listed) = said(edgecore(&world, &["list", "-o", "json"]));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["pinned"], json!(true));
    let (code, text) = said(edgecore(&world, &["prune"]));
    assert!(code == Some(69) && text.contains("not running"), "{text}");

    let mut pod = world.pod();
    pod.host_network = true;
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let mut container = world.container(&pod, "c", "true");
    container.image = reference.clone();
    let id = world.runtime.start(&container).await.unwrap();
    world.exited(&id).await;
    let (code, text) = said(edgecore(&world, &["rm", &reference]));
    assert!(
        code == Some(1) && text.contains("used by container c"),
        "{text}"
    );
    world.clean(&pod).await;
    let (code, text) = said(edgecore(&world, &["rm", &reference]));
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = said(edgecore(&world, &["rm", &reference]));
    assert!(
        code == Some(1) && text.contains("not on this node"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_are_read_packed_and_refused_broken() {
    let Some(world) = World::empty() else {
        return;
    };
    let at = |name: &str| world.directory.path().join(name);
    let plain = at("plain.tar");
    write_archive(&ImageSpec::busybox(IMAGE), &plain).unwrap();
    let bytes = std::fs::read(&plain).unwrap();
    std::fs::write(at("a.gz"), Packing::Gzip.pack(&bytes)).unwrap();
    std::fs::write(at("a.zst"), zstd(&bytes)).unwrap();
    for name in ["a.gz", "a.zst", "plain.tar"] {
        let images = world.runtime.import_archive(&at(name), None).await.unwrap();
        assert_eq!(images[0].reference, IMAGE);
        world.runtime.remove_image(IMAGE).await.unwrap();
    }

    let half = Packing::Gzip.pack(&bytes);
    std::fs::write(at("half.gz"), &half[..half.len() / 2]).unwrap();
    std::fs::write(at("half.tar"), &bytes[..bytes.len() / 2]).unwrap();
    let mut garbled = bytes.clone();
    let middle = garbled.len() / 2;
    garbled[middle] = !garbled[middle];
    std::fs::write(at("garbled.tar"), &garbled).unwrap();
    std::fs::write(at("other.tar"), file_layer("x", b"y")).unwrap();
    std::fs::write(at("x.xz"), b"\xfd7zXZ\0\0").unwrap();
    for (name, want) in [
        ("half.gz", "truncated"),
        ("half.tar", "truncated"),
        ("garbled.tar", "does not match its digest"),
        ("other.tar", "no image archive"),
        ("x.xz", "xz"),
        ("absent.tar", "No such file"),
    ] {
        let error = world
            .runtime
            .import_archive(&at(name), None)
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains(want) && text.contains(name), "{text}");
    }
    assert_eq!(world.runtime.images().await.unwrap(), vec![]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_cannot_fit_is_not_begun() {
    let Some(world) = World::empty() else {
        return;
    };
    let registry = open_registry();
    let mut manifest = publish(&registry, "a", &[], false);
    // The largest that a manifest may claim.
    manifest["layers"][0]["size"] = json!(1_u64 << 40);
    let kind = format!("{OCI}.manifest.v1+json");
    registry.put(manifest.to_string().as_bytes(), &kind, Some("huge"));
    let reference = format!("{}/team/app:huge", registry.address);
    let sent = registry.sent().0;
    let pulled = world
        .runtime
        .pull(&reference, &PullOptions::default())
        .await;
    let text = pulled.unwrap_err().to_string();
    assert!(text.contains("not enough disk space"), "{text}");
    assert!(registry.sent().0 - sent < 64 << 10, "only the config came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_removed_is_gone_and_its_name_free() {
    let Some(world) = World::new().await else {
        return;
    };
    world.runtime.remove_image(IMAGE).await.unwrap();
    assert_eq!(world.runtime.image(IMAGE).await.unwrap(), None);
    let archive = world.directory.path().join("again.tar");
    write_archive(&ImageSpec::busybox(IMAGE), &archive).unwrap();
    world.runtime.import_archive(&archive, None).await.unwrap();
    assert!(world.runtime.image(IMAGE).await.unwrap().is_some());
}
