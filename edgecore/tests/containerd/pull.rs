//! Pulling through a registry that wants a password and breaks off in the middle.

use crate::oci::{ImageSpec, write_archive};
use crate::registry::{PASSWORD, Registry, USER};
use crate::world::World;
use edgecore::edged::runtime::{PullOptions, RegistryAuth, Runtime, RuntimeError};

/// Where the link breaks: no multiple of anything.
const CUT: usize = (3 << 19) + 13;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_pull_goes_on_where_it_stopped() {
    let Some(world) = World::empty() else {
        return;
    };
    let archive = world.directory.path().join("image.tar");
    let mut image = ImageSpec::busybox("unused");
    let ballast = world.directory.path().join("ballast");
    std::fs::write(&ballast, vec![7_u8; 3 << 20]).unwrap();
    image.files.push(("ballast".to_owned(), ballast, 0o644));
    write_archive(&image, &archive).unwrap();
    let registry = Registry::serve(&archive);
    let reference = format!("{}/team/app:v1", registry.address);
    let options = PullOptions {
        auths: vec![RegistryAuth {
            username: USER.to_owned(),
            password: PASSWORD.to_owned(),
            ..RegistryAuth::default()
        }],
        ..PullOptions::default()
    };

    let refused = world
        .runtime
        .pull(&reference, &PullOptions::default())
        .await;
    assert!(
        matches!(refused, Err(RuntimeError::Pull { .. })),
        "{refused:?}"
    );
    let message = refused.unwrap_err().to_string();
    assert!(!message.contains(PASSWORD), "{message}");

    registry.cut_next(CUT);
    registry.asked();
    let pulled = world.runtime.pull(&reference, &options).await.unwrap();
    let ranges: Vec<usize> = registry
        .asked()
        .iter()
        .filter_map(|(_, from)| *from)
        .collect();
    assert_eq!(ranges, [CUT], "the layer goes on at its very byte");
    assert_eq!(
        world.runtime.image(&reference).await.unwrap(),
        Some(pulled.clone())
    );

    let again = world.runtime.pull(&reference, &options).await.unwrap();
    assert_eq!(again, pulled);
    let blobs = registry
        .asked()
        .iter()
        .filter(|(path, _)| path.contains("/blobs/"))
        .count();
    assert_eq!(blobs, 0, "nothing is fetched twice");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// What `docker save` wrote before it learnt the OCI layout: names that say nothing, no digests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_of_docker_is_understood() {
    let Some(world) = World::empty() else {
        return;
    };
    let oci = world.directory.path().join("oci.tar");
    write_archive(&ImageSpec::busybox("unused"), &oci).unwrap();
    let members: Vec<(String, Vec<u8>)> = tar::Archive::new(std::fs::File::open(&oci).unwrap())
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        })
        .collect();
    let find = |wanted: &dyn Fn(&serde_json::Value) -> bool| {
        let parsed = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
        let found = members
            .iter()
            .find(|(_, bytes)| parsed(bytes).is_some_and(|v| wanted(&v)));
        found.unwrap().1.clone()
    };
    let config = find(&|value| value.get("rootfs").is_some());
    let layer = &members
        .iter()
        .max_by_key(|(_, bytes)| bytes.len())
        .unwrap()
        .1;
    let manifest =
        br#"[{"Config":"c.json","RepoTags":["app:v1","app:latest"],"Layers":["l/layer.tar"]}]"#;
    let docker = world.directory.path().join("docker.tar");
    let mut archive = tar::Builder::new(std::fs::File::create(&docker).unwrap());
    for (name, bytes) in [
        ("manifest.json", manifest.as_slice()),
        ("c.json", &config),
        ("l/layer.tar", layer),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes).unwrap();
    }
    archive.into_inner().unwrap();

    let images = world.runtime.import_archive(&docker, None).await.unwrap();
    let names: Vec<&str> = images
        .iter()
        .map(|image| image.reference.as_str())
        .collect();
    assert_eq!(
        names,
        ["docker.io/library/app:v1", "docker.io/library/app:latest"]
    );
    assert!(world.runtime.image("app").await.unwrap().is_some());

    let broken = world.directory.path().join("broken.tar");
    std::fs::write(&broken, vec![1; 4096]).unwrap();
    let refused = world.runtime.import_archive(&broken, None).await;
    assert!(
        matches!(refused, Err(RuntimeError::Other { .. })),
        "{refused:?}"
    );
}
