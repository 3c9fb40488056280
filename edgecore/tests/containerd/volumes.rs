//! Volumes in real containers: groups, sub-paths, propagation, read-only trees.

use std::collections::BTreeMap;
use std::path::Path;

use edgecore::edged::pod::convert;
use edgecore::edged::pod::env::{Facts, Sources};
use edgecore::edged::runtime::{ContainerSpec, Mount, Runtime};
use edgecore::edged::volumes::{self, Dirs};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use serde_json::{Value, json};

use crate::world::World;

/// What Edged would bind into the container `c` of this pod.
fn binds(pod: &Pod, sources: &Sources, dirs: &Dirs) -> Vec<Mount> {
    let prepared = volumes::prepare(pod, sources, &Facts::default(), dirs).unwrap();
    let container = convert::container(pod, "c").unwrap();
    volumes::mounts(container, &prepared, &BTreeMap::new()).unwrap()
}

fn pod(uid: &str, volumes: &Value, mounts: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": uid},
        "spec": {"securityContext": {"fsGroup": 4000}, "volumes": volumes,
                 "containers": [{"name": "c", "volumeMounts": mounts}]},
    }))
    .unwrap()
}

fn sources(text: &str) -> Sources {
    let map: ConfigMap = serde_json::from_value(json!({"data": {"app.conf": text}})).unwrap();
    Sources {
        configmaps: [("cm".to_owned(), Some(map))].into(),
        ..Sources::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_writes_sub_paths_are_bound_and_content_follows() {
    let Some(world) = World::new().await else {
        return;
    };
    let sandbox = world.pod();
    world.runtime.ensure_sandbox(&sandbox).await.unwrap();
    let base = world.directory.path();
    let dirs = Dirs {
        disk: base.join("disk"),
        run: base.join("vol"),
    };
    let host = base.join("host");
    std::fs::create_dir(&host).unwrap();
    let pod = pod(
        &sandbox.pod_uid,
        &json!([
            {"name": "data", "emptyDir": {}},
            {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "cm", "configMap": {"name": "cm", "defaultMode": 0o400}},
            {"name": "host", "hostPath": {"path": host}},
        ]),
        &json!([
            {"name": "data", "mountPath": "/data"},
            {"name": "mem", "mountPath": "/mem"},
            {"name": "cm", "mountPath": "/cm"},
            {"name": "cm", "mountPath": "/etc/app.conf", "subPath": "app.conf"},
            {"name": "host", "mountPath": "/logs", "subPath": "web/logs"},
        ]),
    );
    let script = "id -G; touch /data/x /mem/x && stat -c '%g %a' /data/x; \
        cat /cm/app.conf /etc/app.conf; touch /cm/x 2>/dev/null || echo read-only; \
        dd if=/dev/zero of=/mem/big bs=1M count=4 2>/dev/null || echo full; touch /logs/here; \
        until grep -q two /cm/app.conf; do sleep 0.05; done; cat /etc/app.conf; echo done";
    let spec = ContainerSpec {
        mounts: binds(&pod, &sources("one\n"), &dirs),
        supplemental_groups: vec![4000],
        run_as_user: Some(405),
        run_as_group: Some(405),
        ..world.container(&sandbox, "c", script)
    };
    std::fs::create_dir_all(host.join("web/logs")).unwrap();
    std::os::unix::fs::chown(host.join("web/logs"), Some(405), None).unwrap();
    let id = world.runtime.start(&spec).await.unwrap();
    // A running container sees the new content by its volume, not by its sub-path.
    volumes::prepare(&pod, &sources("two\n"), &Facts::default(), &dirs).unwrap();
    assert_eq!(world.exited(&id).await.0, 0);
    world.runtime.remove(&id).await.unwrap();
    let lines: Vec<String> = World::log(&spec).into_iter().map(|line| line.1).collect();
    assert_eq!(lines.last().map(String::as_str), Some("done"), "{lines:?}");
    assert!(
        lines[0].split(' ').any(|group| group == "4000"),
        "{lines:?}"
    );
    for want in ["4000 644", "read-only", "full"] {
        assert!(lines.iter().any(|line| line == want), "{want}: {lines:?}");
    }
    assert_eq!(lines[lines.len() - 2], "one", "{lines:?}");
    assert!(host.join("web/logs/here").exists());
    world.clean(&sandbox).await;
    dirs.remove_pod(&sandbox.pod_uid).unwrap();
    assert_eq!(World::mounts(base).len(), 0, "{:?}", World::mounts(base));
    assert!(host.join("web/logs/here").exists(), "only the bind is gone");
    assert!(dirs.pod_uids().is_empty());
}

/// A tmpfs that takes part in propagation, as `/` does under systemd.
struct Shared<'p>(&'p Path);

impl<'p> Shared<'p> {
    fn new(path: &'p Path) -> Self {
        std::fs::create_dir(path).unwrap();
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
        mount_change(path, MountPropagationFlags::SHARED).unwrap();
        Self(path)
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_travel_as_asked_and_read_only_goes_deep() {
    let Some(world) = World::new().await else {
        return;
    };
    let sandbox = world.pod();
    world.runtime.ensure_sandbox(&sandbox).await.unwrap();
    let base = world.directory.path();
    let dirs = Dirs {
        disk: base.join("disk"),
        run: base.join("vol"),
    };
    let path = base.join("shared");
    let shared = Shared::new(&path);
    for name in ["in", "out", "below"] {
        std::fs::create_dir(shared.0.join(name)).unwrap();
    }
    mount(
        "tmpfs",
        path.join("below"),
        "tmpfs",
        MountFlags::empty(),
        None,
    )
    .unwrap();
    let volume = json!([{"name": "v", "hostPath": {"path": path}}]);
    let with = |mounts: &Value| pod(&sandbox.pod_uid, &volume, mounts);
    let script = "mount -t tmpfs x /both/in && touch /both/in/seen; \
        until [ -e /slave/out/seen ]; do sleep 0.05; done; \
        touch /ro/x 2>/dev/null || echo ro; touch /ro/below/x 2>/dev/null && echo leaky; \
        touch /rro/below/x 2>/dev/null || echo rro; ls /private/out | wc -l";
    let spec = ContainerSpec {
        mounts: binds(
            &with(&json!([
                {"name": "v", "mountPath": "/both", "mountPropagation": "Bidirectional"},
                {"name": "v", "mountPath": "/slave", "mountPropagation": "HostToContainer"},
                {"name": "v", "mountPath": "/private"},
                {"name": "v", "mountPath": "/ro", "readOnly": true},
                {"name": "v", "mountPath": "/rro", "readOnly": true, "recursiveReadOnly": "Enabled"},
            ])),
            &Sources::default(),
            &dirs,
        ),
        privileged: true,
        ..world.container(&sandbox, "c", script)
    };
    let id = world.runtime.start(&spec).await.unwrap();
    mount(
        "tmpfs",
        path.join("out"),
        "tmpfs",
        MountFlags::empty(),
        None,
    )
    .unwrap();
    std::fs::write(path.join("out/seen"), "").unwrap();
    assert_eq!(world.exited(&id).await.0, 0);
    world.runtime.remove(&id).await.unwrap();
    let lines: Vec<String> = World::log(&spec).into_iter().map(|line| line.1).collect();
    assert_eq!(lines, ["ro", "leaky", "rro", "0"]);
    assert!(
        path.join("in/seen").exists(),
        "what the container mounts reaches the host"
    );
    world.clean(&sandbox).await;

    // A private mount cannot carry it, and that is said.
    mount_change(&path, MountPropagationFlags::PRIVATE).unwrap();
    let pod = with(&json!([
        {"name": "v", "mountPath": "/both", "mountPropagation": "Bidirectional"}
    ]));
    let prepared = volumes::prepare(&pod, &Sources::default(), &Facts::default(), &dirs).unwrap();
    let container = convert::container(&pod, "c").unwrap();
    let error = volumes::mounts(container, &prepared, &BTreeMap::new()).unwrap_err();
    let path = path.display();
    assert_eq!(
        error.to_string(),
        format!("path \"{path}\" is mounted on \"{path}\" but it is not a shared mount")
    );
    dirs.remove_pod(&sandbox.pod_uid).unwrap();
}
