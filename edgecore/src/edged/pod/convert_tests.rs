use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::edged::pod::env::{Facts, Sources};
use crate::edged::runtime::Resources;

/// A node with nothing special.
pub(crate) fn placement() -> Placement {
    Placement {
        log_root: "/var/log/pods".into(),
        log_bytes_max: 10 << 20,
        log_files_max: 5,
        cgroup_root: "/edgepods".to_owned(),
        node_hostname: "machine".to_owned(),
        memory_bytes: 4 << 30,
        pod_pids_max: None,
        rules: security::Rules::default(),
    }
}

fn pod(spec: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u-1"},
        "spec": spec,
    }))
    .unwrap()
}

#[test]
fn a_container_is_converted_whole() {
    let pod = pod(&json!({
        "securityContext": {"runAsUser": 7, "runAsGroup": 8, "fsGroup": 9, "supplementalGroups": [11]},
        "containers": [{
            "name": "c", "image": "busybox:1.36",
            "command": ["sh", "-c"], "args": ["echo $(A) $(B)"],
            "env": [{"name": "A", "value": "1"}],
            "workingDir": "/tmp", "tty": true, "stdin": true,
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "100m", "memory": "32Mi"}},
            "securityContext": {
                "runAsUser": 1000, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}
            }
        }]
    }));
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let spec = container_spec(
        &pod,
        container,
        2,
        &Sources::default(),
        &Facts::default(),
        Vec::new(),
        &placement(),
    )
    .unwrap();
    let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let want = ContainerSpec {
        pod_uid: "u-1".to_owned(),
        pod_namespace: "default".to_owned(),
        pod_name: "web".to_owned(),
        name: "c".to_owned(),
        attempt: 2,
        spec_hash: spec_hash(container),
        image: "busybox:1.36".to_owned(),
        command: text(&["sh", "-c"]),
        args: text(&["echo 1 $(B)"]),
        env: vec![("A".to_owned(), "1".to_owned())],
        working_dir: Some("/tmp".to_owned()),
        resources: Resources {
            cpu_shares: Some(102),
            cpu_quota_us: Some(50_000),
            memory_limit_bytes: Some(64 << 20),
            pids_limit: None,
            oom_score_adj: Some(993),
        },
        cgroup_parent: "/edgepods/burstable/podu-1".to_owned(),
        tty: true,
        stdin: true,
        read_only_rootfs: true,
        no_new_privileges: true,
        add_capabilities: text(&["NET_ADMIN"]),
        drop_capabilities: text(&["ALL"]),
        run_as_user: Some(1000),
        run_as_group: Some(8),
        supplemental_groups: vec![9, 11],
        log_path: Path::new("/var/log/pods/default_web_u-1/c/2.log").to_owned(),
        log_bytes_max: 10 << 20,
        log_files_max: 5,
        ..ContainerSpec::default()
    };
    assert_eq!(spec, want);
}

#[test]
fn a_sandbox_has_ports_and_names() {
    let ports = json!([{"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"}, {"containerPort": 1}]);
    let mut spec = json!({"containers": [{"name": "c", "image": "x", "ports": ports}]});
    let sandbox = sandbox_spec(&pod(&spec), &placement());
    assert_eq!(sandbox.hostname, "web");
    assert_eq!(
        sandbox.port_mappings,
        [
            (8080, 80, "tcp".to_owned(), String::new()),
            (53, 53, "udp".to_owned(), "127.0.0.1".to_owned())
        ]
    );
    spec["hostNetwork"] = json!(true);
    let sandbox = sandbox_spec(&pod(&spec), &placement());
    assert_eq!(sandbox.hostname, "machine");
    assert!(sandbox.host_network && sandbox.port_mappings.is_empty());
}

#[test]
fn the_hash_is_about_name_and_image_only() {
    let hash = |container: Value| spec_hash(&serde_json::from_value(container).unwrap());
    // Stored in labels on nodes in the field: a release that changes it restarts everything.
    assert_eq!(
        hash(json!({"name": "c", "image": "busybox:1.36"})),
        GOLDEN_HASH
    );
    assert_eq!(
        hash(json!({"name": "c", "image": "busybox:1.36", "tty": true})),
        GOLDEN_HASH
    );
    assert_ne!(
        hash(json!({"name": "c", "image": "busybox:1.37"})),
        GOLDEN_HASH
    );
}

const GOLDEN_HASH: &str = "be14a6a8dd8d5569";

#[test]
fn quality_of_service_follows_requests_and_limits() {
    for (name, resources, want) in [
        ("nothing", json!({}), Qos::BestEffort),
        (
            "limits alone",
            json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
            Qos::Guaranteed,
        ),
        (
            "equal",
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
            Qos::Guaranteed,
        ),
        (
            "smaller request",
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1m"}}),
            Qos::Burstable,
        ),
        (
            "memory alone",
            json!({"limits": {"memory": "1Gi"}}),
            Qos::Burstable,
        ),
        ("zero", json!({"requests": {"cpu": "0"}}), Qos::BestEffort),
    ] {
        let pod =
            pod(&json!({"containers": [{"name": "c", "image": "x", "resources": resources}]}));
        assert_eq!(qos(&pod), want, "{name}");
    }
}

#[test]
fn pull_policies_default_by_tag() {
    for (image, policy, want) in [
        ("busybox", None, PullPolicy::Always),
        ("busybox:latest", None, PullPolicy::Always),
        ("busybox:1", None, PullPolicy::IfNotPresent),
        ("reg:5000/busybox", None, PullPolicy::Always),
        ("reg:5000/busybox@sha256:00", None, PullPolicy::IfNotPresent),
        ("busybox", Some("Never"), PullPolicy::Never),
    ] {
        let container = Container {
            image: Some(image.to_owned()),
            image_pull_policy: policy.map(str::to_owned),
            ..Container::default()
        };
        assert_eq!(pull_policy(&container), want, "{image} {policy:?}");
    }
}

#[test]
fn what_is_desired_reads_grace_and_policy() {
    let mut pod = pod(&json!({
        "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 5,
        "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "c"}]
    }));
    let want = desired(&pod, false);
    let roles: Vec<Role> = want.containers.iter().map(|c| c.role).collect();
    assert_eq!(roles, [Role::Init, Role::Sidecar, Role::Main]);
    assert_eq!(
        (want.delete, want.grace.as_secs(), want.restart),
        (false, 5, RestartPolicy::OnFailure)
    );
    assert!(desired(&pod, true).delete);
    pod.metadata.deletion_timestamp = Some(crate::edged::pod::status::time(0));
    pod.metadata.deletion_grace_period_seconds = Some(1);
    let want = desired(&pod, false);
    assert_eq!((want.delete, want.grace.as_secs()), (true, 1));
}
