use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn pod(spec: &Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"uid": "u-1"}, "spec": spec})).unwrap()
}

fn with(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}})
}

fn placement() -> Placement {
    Placement {
        log_root: "/var/log/pods".into(),
        log_bytes_max: 1,
        log_files_max: 1,
        cgroup_root: "/edgepods".to_owned(),
        node_hostname: "machine".to_owned(),
        memory_bytes: 4 << 30,
        pod_pids_max: Some(50),
        rules: crate::edged::pod::security::Rules::default(),
    }
}

#[test]
fn sums_follow_the_order_in_which_containers_run() {
    let main = json!({"name": "m", "image": "x", "resources": with("100m", "100Mi")});
    let init = |memory: &str| json!({"name": "i", "image": "x", "resources": with("50m", memory)});
    let sidecar = |memory: &str| {
        json!({"name": "s", "image": "x", "restartPolicy": "Always",
            "resources": with("50m", memory)})
    };
    for (name, inits, cpu, mebibytes) in [
        ("one container", json!([]), 100, 100),
        ("a small init runs before", json!([init("10Mi")]), 100, 100),
        (
            "a great init counts alone",
            json!([init("300Mi")]),
            100,
            300,
        ),
        ("a sidecar runs beside", json!([sidecar("10Mi")]), 150, 110),
        (
            "an init after a sidecar runs with it",
            json!([sidecar("10Mi"), init("300Mi")]),
            150,
            310,
        ),
        (
            "an init before a sidecar does not",
            json!([init("300Mi"), sidecar("10Mi")]),
            150,
            300,
        ),
    ] {
        let pod = pod(&json!({"initContainers": inits, "containers": [main]}));
        assert_eq!(pod_request(&pod, "cpu"), cpu, "{name}");
        assert_eq!(pod_request(&pod, "memory"), mebibytes << 20, "{name}");
        assert_eq!(pod_limit(&pod, "memory"), Some(mebibytes << 20), "{name}");
    }
}

#[test]
fn a_pod_is_limited_only_if_all_its_containers_are() {
    let limited = json!({"name": "a", "image": "x", "resources": with("500m", "64Mi")});
    let free = json!({"name": "b", "image": "x"});
    let both = pod(&json!({"containers": [limited, limited]}));
    assert_eq!(
        of_pod(&both, &placement()),
        Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(100_000),
            memory_limit_bytes: Some(128 << 20),
            pids_limit: Some(50),
            oom_score_adj: None,
        }
    );
    assert_eq!(cgroup(&both, &placement()), "/edgepods/podu-1");
    let one = pod(&json!({"containers": [limited, free]}));
    let resources = of_pod(&one, &placement());
    assert_eq!(
        (resources.cpu_quota_us, resources.memory_limit_bytes),
        (None, None)
    );
    assert_eq!(resources.cpu_shares, Some(512));
    assert_eq!(cgroup(&one, &placement()), "/edgepods/burstable/podu-1");
    let init = pod(&json!({"initContainers": [free], "containers": [limited]}));
    assert_eq!(of_pod(&init, &placement()).memory_limit_bytes, None);
    let none = pod(&json!({"containers": [free]}));
    assert_eq!(of_pod(&none, &placement()).cpu_shares, Some(2));
    assert_eq!(cgroup(&none, &placement()), "/edgepods/besteffort/podu-1");
}

#[test]
fn overhead_counts() {
    let pod = pod(&json!({
        "overhead": {"cpu": "10m", "memory": "1Mi"},
        "containers": [{"name": "a", "image": "x", "resources": with("100m", "1Mi")}]
    }));
    assert_eq!(pod_request(&pod, "cpu"), 110);
    assert_eq!(pod_limit(&pod, "memory"), Some(2 << 20));
    assert!(names(&pod).contains("cpu"));
}

#[test]
fn the_killer_prefers_those_who_asked_for_less() {
    let adjust = |resources: Value, qos| {
        let container = json!({"name": "a", "image": "x", "resources": resources});
        let container: Container = serde_json::from_value(container).unwrap();
        super::resources(&container, qos, 4 << 30).oom_score_adj
    };
    for (name, resources, qos, want) in [
        ("guaranteed", with("1", "1Gi"), Qos::Guaranteed, -997),
        ("best effort", json!({}), Qos::BestEffort, 1000),
        (
            "a quarter",
            json!({"requests": {"memory": "1Gi"}}),
            Qos::Burstable,
            750,
        ),
        ("nothing", json!({}), Qos::Burstable, 999),
        (
            "everything",
            json!({"requests": {"memory": "8Gi"}}),
            Qos::Burstable,
            3,
        ),
    ] {
        assert_eq!(adjust(resources, qos), Some(want), "{name}");
    }
}

proptest! {
    /// Whatever runs at one moment fits into the sum.
    #[test]
    fn the_sum_covers_every_moment(
        inits in proptest::collection::vec((any::<bool>(), 0i64..1000), 0..6),
        mains in proptest::collection::vec(0i64..1000, 1..4),
    ) {
        let container = |milli: &i64, always: bool| {
            let mut c = json!({"name": "c", "image": "x",
                "resources": {"requests": {"cpu": format!("{milli}m")}}});
            if always { c["restartPolicy"] = json!("Always"); }
            c
        };
        let pod = pod(&json!({
            "initContainers": inits.iter().map(|(s, m)| container(m, *s)).collect::<Vec<_>>(),
            "containers": mains.iter().map(|m| container(m, false)).collect::<Vec<_>>(),
        }));
        let sum = pod_request(&pod, "cpu");
        let mut sidecars = 0;
        for (is_sidecar, milli) in &inits {
            prop_assert!(sum >= sidecars + milli);
            if *is_sidecar { sidecars += milli; }
        }
        let running = sidecars + mains.iter().sum::<i64>();
        prop_assert!(sum >= running);
        prop_assert!(sum <= running + inits.iter().map(|(_, m)| m).sum::<i64>());
    }
}
