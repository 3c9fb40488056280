use std::sync::atomic::Ordering;

use super::*;
use crate::edged::runtime::fake::FakeRuntime;
use crate::edged::scripted::Store;

#[test]
fn removal_begins_at_one_mark_and_ends_at_the_other() {
    let policy = ImagePolicy::default();
    let disk = |available| FsUsage {
        capacity_bytes: 1000,
        available_bytes: available,
    };
    for (available, want) in [
        (500, None),
        (151, None),
        (150, Some(50)),
        (100, Some(100)),
        (0, Some(200)),
    ] {
        assert_eq!(policy.excess(disk(available)), want, "{available}");
    }
    let never = ImagePolicy {
        high_percent: 100,
        ..policy.clone()
    };
    assert_eq!(never.excess(disk(0)), None);
    assert_eq!(policy.excess(FsUsage::default()), None, "an unknown disk");
}

#[test]
fn every_image_of_a_pod_counts() {
    let pod: Pod = serde_json::from_value(json!({
        "spec": {
            "initContainers": [{"name": "i", "image": "init"}],
            "containers": [{"name": "a", "image": "app:1"}, {"name": "b"}],
            "ephemeralContainers": [{"name": "e", "image": "debug"}],
            "volumes": [{"name": "v", "image": {"reference": "data:2"}}],
        }
    }))
    .unwrap();
    let names: Vec<String> = named(&[pod, Pod::default()]).into_iter().collect();
    assert_eq!(names, ["app:1", "data:2", "debug", "init"]);
}

#[test]
fn the_largest_images_are_told_with_all_their_names() {
    let image = |reference: &str, digest: &str, size_bytes| Image {
        reference: reference.to_owned(),
        digest: digest.to_owned(),
        size_bytes,
        ..Image::default()
    };
    let images = [
        image("docker.io/library/a:1", "sha256:a", 5),
        image("docker.io/library/a:2", "sha256:a", 5),
        image("r.io:5000/b@sha256:b", "sha256:b", 9),
        image("r.io/c:1", "sha256:c", 1),
    ];
    assert_eq!(
        status(&images, Some(2)),
        [
            json!({"names": ["r.io:5000/b@sha256:b"], "sizeBytes": 9}),
            json!({"names": ["docker.io/library/a:1", "docker.io/library/a:2",
                "docker.io/library/a@sha256:a"], "sizeBytes": 5}),
        ]
    );
    assert_eq!(status(&images, None).len(), 3);
}

#[test]
fn progress_is_told_in_mebibytes() {
    let told = progress_text(
        "x",
        PullProgress {
            done_bytes: (12 << 20) + 314_600,
            total_bytes: 26 << 20,
        },
    );
    assert_eq!(told, "Pulling image \"x\": 12.3 of 26 MiB");
}

#[tokio::test]
async fn what_a_pod_names_stays_and_nothing_goes_while_pods_are_unknown() {
    let runtime = FakeRuntime::default();
    for name in ["wanted", "unwanted"] {
        runtime.add_image(name);
        runtime.set_image_size(name, 7);
    }
    let pod = serde_json::from_value(json!({
        "spec": {"containers": [{"name": "a", "image": "wanted"}]}
    }))
    .unwrap();
    let wanted = Store::default();
    wanted.set([pod]);
    wanted.is_incomplete.store(true, Ordering::Relaxed);
    let freed = reclaim(&runtime, &wanted, Duration::ZERO, None)
        .await
        .unwrap();
    assert_eq!((freed, runtime.calls().len()), (0, 0));
    wanted.is_incomplete.store(false, Ordering::Relaxed);
    let freed = reclaim(&runtime, &wanted, Duration::ZERO, None)
        .await
        .unwrap();
    assert_eq!(freed, 7);
    let left = runtime.images().await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].reference, "wanted");
}
