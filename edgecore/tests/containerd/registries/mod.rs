//! Registries as they are met: with tokens, private authorities, mirrors, and links that break.

mod hosts;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edgecore::edged::runtime::containerd::{ContainerdConfig, RegistryHost};
use edgecore::edged::runtime::{PullOptions, PullProgress, RegistryAuth, Runtime, RuntimeError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::images::{Packing, file_layer, noise, open_registry, publish};
use crate::registry::{Auth, Behaviour, Fault, PASSWORD, REFRESH, Registry, USER};
use crate::world::World;

const MIB: usize = 1 << 20;

/// Retries follow at once.
fn hasty(config: &mut ContainerdConfig) {
    config.registries.first_delay = Duration::from_millis(5);
    config.registries.stall = Duration::from_secs(1);
}

fn friend() -> PullOptions {
    let auth = RegistryAuth {
        username: USER.to_owned(),
        password: PASSWORD.to_owned(),
        ..RegistryAuth::default()
    };
    PullOptions {
        auths: vec![auth],
        ..PullOptions::default()
    }
}

fn noisy(registry: &Registry, tag: &str, bytes: usize) -> Value {
    let layer = (file_layer("noise", &noise(bytes, 3)), Packing::Plain);
    publish(registry, tag, &[layer], false)
}

fn size(number: &Value) -> usize {
    number.as_u64().unwrap().try_into().unwrap()
}

/// Compressed bytes of every layer and the config.
fn size_of(manifest: &Value) -> usize {
    let layers = manifest["layers"].as_array().unwrap().iter();
    let all = layers.chain([&manifest["config"]]);
    all.map(|part| size(&part["size"])).sum()
}

async fn failure(world: &World, reference: &str, options: &PullOptions) -> (RuntimeError, String) {
    let error = world.runtime.pull(reference, options).await.unwrap_err();
    let text = error.to_string();
    for secret in [PASSWORD, "dXNlcjpzZWNyZXQ", REFRESH, "golden"] {
        assert!(!text.contains(secret), "{text}");
    }
    (error, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_a_byte_comes_twice_wherever_the_link_is_cut() {
    let Some(world) = World::with(hasty) else {
        return;
    };
    let registry = open_registry();
    let mut seed = 12;
    for round in 0..4 {
        let bytes = MIB + round * 77_777;
        let tag = format!("r{round}");
        let layer = (file_layer("noise", &noise(bytes, seed)), Packing::Plain);
        let manifest = publish(&registry, &tag, &[layer], false);
        for cut in noise(6, seed) {
            // From nothing at all to a third of the layer.
            registry.cut_next(usize::from(cut) * bytes / 765);
        }
        seed += 7;
        let before = registry.sent().0;
        let reference = format!("{}/team/app:{tag}", registry.address);
        let told = Arc::new(Mutex::new(PullProgress::default()));
        let heard = Arc::clone(&told);
        let options = PullOptions {
            progress: Some(Box::new(move |progress| *heard.lock().unwrap() = progress)),
            ..PullOptions::default()
        };
        world.runtime.pull(&reference, &options).await.unwrap();
        let shared = if round == 0 {
            0
        } else {
            // Busybox's layer came with the first image.
            size(&manifest["layers"][0]["size"])
        };
        assert_eq!(
            registry.sent().0 - before,
            size_of(&manifest) - shared,
            "round {round}"
        );
        let told = *told.lock().unwrap();
        assert!(
            told.done_bytes <= told.total_bytes && told.total_bytes > 0,
            "{told:?}"
        );
        assert!(world.runtime.image(&reference).await.unwrap().is_some());
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broken_pull_brought_outlives_collection_of_garbage() {
    let Some(world) = World::with(hasty) else {
        return;
    };
    let registry = open_registry();
    noisy(&registry, "other", 100 << 10);
    let manifest = noisy(&registry, "big", 2 * MIB);
    let name = |tag: &str| format!("{}/team/app:{tag}", registry.address);
    world
        .runtime
        .pull(&name("other"), &PullOptions::default())
        .await
        .unwrap();
    let sent = registry.sent().0;
    // The layer breaks, and then the registry is gone for good.
    registry.fault(Fault::Stall(MIB + 5));
    let pull = {
        let runtime = Arc::clone(&world.runtime);
        let reference = name("big");
        tokio::spawn(async move { runtime.pull(&reference, &PullOptions::default()).await })
    };
    tokio::task::block_in_place(|| registry.until_stalled());
    registry.answer(Some("503 Service Unavailable"));
    let error = pull.await.unwrap().unwrap_err();
    assert!(
        matches!(error, RuntimeError::RegistryUnavailable { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("503"), "{error}");
    assert!(registry.sent().0 - sent > MIB);
    // Removes synchronously, which collects garbage.
    world.runtime.remove_image(&name("other")).await.unwrap();

    registry.answer(None);
    registry.asked();
    world
        .runtime
        .pull(&name("big"), &PullOptions::default())
        .await
        .unwrap();
    let ranges: Vec<usize> = registry
        .asked()
        .iter()
        .filter_map(|(_, from)| *from)
        .collect();
    assert_eq!(ranges, [MIB + 5]);
    let base = size(&manifest["layers"][0]["size"]);
    let other = registry.sent().0 - sent;
    assert!(
        (size_of(&manifest) - base..=size_of(&manifest) + 4096).contains(&other),
        "{other}"
    );
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_is_not_what_its_digest_says_is_never_kept() {
    let Some(world) = World::with(hasty) else {
        return;
    };
    let registry = open_registry();
    noisy(&registry, "a", 200 << 10);
    let reference = format!("{}/team/app:a", registry.address);
    // Each layer once wrong, then right.
    registry.fault(Fault::Garble);
    world
        .runtime
        .pull(&reference, &PullOptions::default())
        .await
        .unwrap();
    world.runtime.remove_image(&reference).await.unwrap();
    for _ in 0..8 {
        registry.fault(Fault::Garble);
    }
    let (error, text) = failure(&world, &reference, &PullOptions::default()).await;
    assert!(matches!(error, RuntimeError::Pull { .. }), "{text}");
    assert_eq!(world.runtime.image(&reference).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_wait_for_one_pull() {
    let Some(world) = World::with(hasty) else {
        return;
    };
    let registry = open_registry();
    let manifest = noisy(&registry, "a", MIB);
    let reference = format!("{}/team/app:a", registry.address);
    let pulls = (0..30).map(|_| {
        let (runtime, reference) = (Arc::clone(&world.runtime), reference.clone());
        tokio::spawn(async move { runtime.pull(&reference, &PullOptions::default()).await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(registry.sent().0, size_of(&manifest));
    let manifests = registry
        .asked()
        .iter()
        .filter(|(path, _)| path.contains("/manifests/"))
        .count();
    assert!(
        manifests <= 2,
        "{manifests}: one to pull, perhaps one by a latecomer"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_bought_once_and_refusals_explained() {
    let Some(world) = World::with(hasty) else {
        return;
    };
    let registry = Registry::with(Behaviour {
        auth: Auth::Token,
        ..Behaviour::default()
    });
    noisy(&registry, "a", 100 << 10);
    let reference = format!("{}/team/app:a", registry.address);
    let host = registry.address.to_string();

    let (error, text) = failure(&world, &reference, &PullOptions::default()).await;
    assert!(matches!(error, RuntimeError::Pull { .. }));
    assert!(
        text.contains("127.0.0.1") && text.contains("imagePullSecret"),
        "{text}"
    );
    let wrong = PullOptions {
        auths: vec![RegistryAuth {
            username: USER.to_owned(),
            password: "guess".to_owned(),
            ..RegistryAuth::default()
        }],
        ..PullOptions::default()
    };
    let (_, text) = failure(&world, &reference, &wrong).await;
    assert!(
        text.contains("refused") && !text.contains("guess"),
        "{text}"
    );

    // The wrong one first, as two imagePullSecrets may come.
    let mut both = wrong;
    both.auths.extend(friend().auths);
    world.runtime.pull(&reference, &both).await.unwrap();
    assert_eq!(
        registry.sent().1,
        1,
        "one token for manifest, config and layers"
    );

    // A refresh token, and the node's own file.
    world.runtime.remove_image(&reference).await.unwrap();
    let refresh = PullOptions {
        auths: vec![RegistryAuth {
            identity_token: REFRESH.to_owned(),
            ..RegistryAuth::default()
        }],
        ..PullOptions::default()
    };
    world.runtime.pull(&reference, &refresh).await.unwrap();
    let node = world.directory.path().join("auth.json");
    let file = json!({"auths": {host: {"auth": "dXNlcjpzZWNyZXQ="}}});
    std::fs::write(&node, file.to_string()).unwrap();
    let config = ContainerdConfig {
        registries: edgecore::edged::runtime::containerd::Registries {
            auth_files: vec!["/nonexistent".into(), node],
            ..world.config.registries.clone()
        },
        ..world.config.clone()
    };
    let own = edgecore::edged::runtime::containerd::ContainerdRuntime::connect(config).unwrap();
    own.pull(
        &format!("{}/team/app:b", registry.address),
        &PullOptions::default(),
    )
    .await
    .unwrap_err();
    own.remove_image(&reference).await.unwrap();
    own.pull(&reference, &PullOptions::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_without_ranges_and_one_that_stalls_still_serve() {
    let Some(world) = World::with(hasty) else {
        return;
    };
    let registry = Registry::with(Behaviour {
        auth: Auth::Nobody,
        no_ranges: true,
        ..Behaviour::default()
    });
    noisy(&registry, "a", MIB);
    registry.cut_next(400_001);
    registry.fault(Fault::Stall(500_000));
    let reference = format!("{}/team/app:a", registry.address);
    world
        .runtime
        .pull(&reference, &PullOptions::default())
        .await
        .unwrap();
    assert!(world.runtime.image(&reference).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_run_here_is_refused_in_words() {
    let Some(world) = World::with(hasty) else {
        return;
    };
    let registry = open_registry();
    let manifest = noisy(&registry, "good", 100 << 10);
    let digest = crate::oci::digest(manifest.to_string().as_bytes());
    let size = manifest.to_string().len();
    let index_kind = "application/vnd.oci.image.index.v1+json";
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let entry = |os: &str, architecture: &str, variant: &str| {
        json!({"mediaType": kind, "digest": digest, "size": size,
            "platform": {"os": os, "architecture": architecture, "variant": variant}})
    };
    let index = |entries: Vec<Value>| {
        json!({"schemaVersion": 2, "mediaType": index_kind, "manifests": entries}).to_string()
    };
    let strange = index(vec![
        entry("linux", "s390x", ""),
        entry("windows", "amd64", ""),
    ]);
    registry.put(strange.as_bytes(), index_kind, Some("strange"));
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let many = index(vec![
        entry("unknown", "unknown", ""),
        entry("linux", "s390x", ""),
        entry("linux", own, ""),
    ]);
    let pinned = registry.put(many.as_bytes(), index_kind, Some("many"));
    let old = br#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#;
    let old_kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    registry.put(old, old_kind, Some("old"));
    let mut foreign = manifest.clone();
    let layer = &mut foreign["layers"][1];
    layer["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar");
    registry.put(foreign.to_string().as_bytes(), kind, Some("foreign"));
    registry.put(b"{not json", kind, Some("broken"));

    let name = |tag: &str| format!("{}/team/app:{tag}", registry.address);
    for (tag, said) in [
        ("strange", "linux/s390x, windows/amd64"),
        ("old", "schema 1"),
        ("broken", "manifest"),
    ] {
        let (error, text) = failure(&world, &name(tag), &PullOptions::default()).await;
        assert!(matches!(error, RuntimeError::Pull { .. }), "{text}");
        assert!(text.contains(said), "{text}");
    }
    let options = PullOptions::default();
    for reference in [
        name("many"),
        name("foreign"),
        format!("{}/team/app@{pinned}", registry.address),
        format!("{}@{pinned}", name("many")),
    ] {
        let pulled = world.runtime.pull(&reference, &options).await.unwrap();
        assert_eq!(pulled.reference, reference);
    }
    // What is pinned and present needs no registry any more.
    registry.answer(Some("500 Internal Server Error"));
    let reference = format!("{}@{pinned}", name("many"));
    world.runtime.pull(&reference, &options).await.unwrap();
    let (error, _) = failure(&world, &name("many"), &options).await;
    assert!(
        matches!(error, RuntimeError::RegistryUnavailable { .. }),
        "{error}"
    );
    registry.answer(None);
    assert_eq!(
        world.leftovers(),
        Vec::<String>::new(),
        "what was refused keeps nothing"
    );
    let other = format!("{}/team/app@sha256:{}", registry.address, "0".repeat(64));
    let (_, text) = failure(&world, &other, &options).await;
    assert!(text.contains("404"), "{text}");
}
