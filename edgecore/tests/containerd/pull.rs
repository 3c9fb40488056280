//! Pulling through a registry that wants a password and breaks off in the middle.

use crate::oci::{ImageSpec, write_archive};
use crate::registry::{PASSWORD, Registry, USER};
use crate::world::{World, skipped};
use edgecore::edged::runtime::{RegistryAuth, Runtime, RuntimeError};

/// One write to the content store; what a broken transfer keeps is a multiple of it.
const CHUNK: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_pull_goes_on_where_it_stopped() {
    if skipped("a_broken_pull_goes_on_where_it_stopped") {
        return;
    }
    let world = World::empty();
    let archive = world.directory.path().join("image.tar");
    let mut image = ImageSpec::busybox("unused");
    let ballast = world.directory.path().join("ballast");
    std::fs::write(&ballast, vec![7_u8; 3 * CHUNK]).unwrap();
    image.files.push(("ballast".to_owned(), ballast, 0o644));
    write_archive(&image, &archive).unwrap();
    let registry = Registry::serve(&archive);
    let reference = format!("{}/team/app:v1", registry.address);
    let auth = RegistryAuth {
        username: USER.to_owned(),
        password: PASSWORD.to_owned(),
    };

    let refused = world.runtime.pull(&reference, None).await;
    assert!(
        matches!(refused, Err(RuntimeError::Pull { .. })),
        "{refused:?}"
    );
    let message = refused.unwrap_err().to_string();
    assert!(!message.contains(PASSWORD), "{message}");

    registry.cut_next(CHUNK + CHUNK / 2);
    let broken = world.runtime.pull(&reference, Some(&auth)).await;
    assert!(
        matches!(broken, Err(RuntimeError::Pull { .. })),
        "{broken:?}"
    );
    assert_eq!(world.runtime.image(&reference).await.unwrap(), None);

    registry.asked();
    let pulled = world.runtime.pull(&reference, Some(&auth)).await.unwrap();
    let ranges: Vec<usize> = registry
        .asked()
        .iter()
        .filter_map(|(_, from)| *from)
        .collect();
    assert_eq!(ranges, [CHUNK], "the layer goes on at its offset");
    assert_eq!(
        world.runtime.image(&reference).await.unwrap(),
        Some(pulled.clone())
    );

    let again = world.runtime.pull(&reference, Some(&auth)).await.unwrap();
    assert_eq!(again, pulled);
    let blobs = registry
        .asked()
        .iter()
        .filter(|(path, _)| path.contains("/blobs/"))
        .count();
    assert_eq!(blobs, 0, "nothing is fetched twice");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
