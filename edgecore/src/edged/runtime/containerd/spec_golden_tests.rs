//! From pods to OCI specs, whole. `tests/golden/README.md` says how the files are made.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::edged::pod::convert;
use crate::edged::pod::env::{Facts, Sources};

const SECCOMP: &str = "seccomp-default.json";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/spec")
}

/// One container `main` of a pod. What a case does not say is not there.
struct Case {
    name: &'static str,
    pod: Value,
    main: Value,
    host: HostFacts,
}

fn host() -> HostFacts {
    HostFacts {
        devices: vec![HostDevice {
            path: "/dev/ttyS0".into(),
            is_block: false,
            major: 4,
            minor: 64,
            mode: 0o020_660,
            uid: 0,
            gid: 0,
        }],
        ..tests::host()
    }
}

fn case(name: &'static str, pod: Value, main: Value) -> Case {
    Case {
        name,
        pod,
        main,
        host: host(),
    }
}

fn cases() -> Vec<Case> {
    let none = || json!({});
    let context = |context: Value| json!({ "securityContext": context });
    vec![
        case("plain", none(), none()),
        case(
            "command-env-limits",
            none(),
            json!({
                "command": ["/bin/sh", "-c"], "args": ["exec server --port $(PORT)"],
                "env": [{"name": "PORT", "value": "80"}, {"name": "LANG", "value": "de"}],
                "workingDir": "/data", "tty": true, "stdin": true,
                "resources": {
                    "requests": {"cpu": "100m", "memory": "32Mi"},
                    "limits": {"cpu": "500m", "memory": "64Mi"},
                },
            }),
        ),
        case(
            "user-and-groups",
            context(json!({
                "runAsUser": 405, "runAsGroup": 3000, "fsGroup": 2000, "supplementalGroups": [4000],
            })),
            none(),
        ),
        case(
            "groups-strict",
            context(json!({"supplementalGroups": [4000], "supplementalGroupsPolicy": "Strict"})),
            none(),
        ),
        case(
            "restricted",
            context(json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}})),
            context(json!({
                "runAsUser": 1000, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
            })),
        ),
        case(
            "capabilities",
            none(),
            context(
                json!({"capabilities": {"add": ["SYS_TIME", "net_admin"], "drop": ["MKNOD", "CAP_KILL"]}}),
            ),
        ),
        case("privileged", none(), context(json!({"privileged": true}))),
        case(
            "unconfined-unmasked",
            none(),
            context(json!({"seccompProfile": {"type": "Unconfined"}, "procMount": "Unmasked"})),
        ),
        case(
            "host-namespaces",
            json!({"hostNetwork": true, "hostPID": true, "hostIPC": true}),
            none(),
        ),
        case("shared-pid", json!({"shareProcessNamespace": true}), none()),
        Case {
            host: HostFacts {
                cgroup_v2: true,
                ..host()
            },
            ..case("cgroup-v2", none(), none())
        },
        Case {
            host: HostFacts {
                oom_score_adj_min: Some(0),
                capability_bounds: Some(0xa804_25fb & !(1 << 27)),
                apparmor_profiles: Some(vec!["outpost-default".to_owned()]),
                ..HostFacts::default()
            },
            ..case(
                "poor-host",
                none(),
                json!({"resources": {"limits": {"cpu": "1", "memory": "64Mi"}}}),
            )
        },
    ]
}

fn spec_of(case: &Case) -> Value {
    let mut main = case.main.clone();
    main["name"] = json!("main");
    main["image"] = json!("docker.io/library/web:1");
    let mut spec = case.pod.clone();
    spec["containers"] = json!([main]);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "0f1e2d3c-0000-4000-8000-0123456789ab"},
        "spec": spec,
    }))
    .unwrap();
    let placement = convert::tests::placement();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let (sources, facts) = (Sources::default(), Facts::default());
    let asked =
        convert::container_spec(&pod, container, 0, &sources, &facts, Vec::new(), &placement)
            .unwrap();
    let image = ImageDefaults {
        user: "guest".to_owned(),
        env: vec!["PATH=/bin".to_owned(), "LANG=C".to_owned()],
        entrypoint: vec!["/bin/httpd".to_owned()],
        cmd: vec!["-f".to_owned()],
        working_dir: "/srv".to_owned(),
        stop_signal: String::new(),
    };
    let users = UserDatabase {
        passwd: "root:x:0:0:root:/root:/bin/sh\nguest:x:405:100:guest:/home/guest:/bin/sh\n"
            .to_owned(),
        group: "root:x:0:\nwheel:x:10:admin,guest\nusers:x:100:\n".to_owned(),
    };
    let at = |name: &str| PathBuf::from("/run/edgecore/sandboxes/0f1e2d3c").join(name);
    let host_network = case.pod.get("hostNetwork").is_some();
    let paths = PodPaths {
        net_ns: (!host_network).then(|| at("ns/net")),
        uts_ns: (!host_network).then(|| at("ns/uts")),
        pid_ns: case
            .pod
            .get("shareProcessNamespace")
            .map(|_| "/proc/4711/ns/pid".into()),
        ipc_ns: (!host_network).then(|| at("ns/ipc")),
        shm: (!host_network).then(|| at("shm")),
        hostname: "web".to_owned(),
    };
    let built = build(
        &asked,
        &image,
        &users,
        &paths,
        &case.host,
        Path::new("/none"),
    )
    .unwrap();
    assert_eq!(sorted(tests::typed(&built)), sorted(built.clone()));
    sorted(built)
}

/// A set in the typed spec: its order means nothing and differs from run to run.
fn sorted(mut spec: Value) -> Value {
    for set in ["bounding", "effective", "permitted"] {
        let names = spec["process"]["capabilities"][set].as_array_mut().unwrap();
        names.sort_by_key(|name| name.as_str().unwrap().to_owned());
    }
    spec
}

/// Compares, or writes with `BLESS=1`.
fn check(file: &str, found: &Value) {
    let path = directory().join(file);
    if std::env::var("BLESS").is_ok() {
        std::fs::write(&path, serde_json::to_string_pretty(found).unwrap() + "\n").unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    assert_eq!(*found, golden, "{file}");
}

#[test]
fn golden() {
    let usual = spec_of(&cases()[0])["linux"]["seccomp"].clone();
    check(SECCOMP, &usual);
    for case in cases() {
        let mut found = spec_of(&case);
        if found["linux"]["seccomp"] == usual {
            found["linux"]["seccomp"] = json!(SECCOMP);
        }
        check(&format!("{}.json", case.name), &found);
    }
}

#[test]
fn no_golden_file_is_without_its_case() {
    let mut wanted: Vec<String> = cases().iter().map(|c| format!("{}.json", c.name)).collect();
    wanted.push(SECCOMP.to_owned());
    wanted.sort();
    let mut found: Vec<String> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, wanted);
}
