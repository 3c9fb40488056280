use super::*;

fn settings() -> Settings {
    let mut settings = Settings::new("edge-1");
    settings.eviction = crate::edged::eviction::threshold::Config::default();
    settings.labels.insert("site".to_owned(), "hut".to_owned());
    settings
}

fn node(runtime: &RuntimeInfo, pressure: Pressure, since: &mut Transitions, now: i64) -> Value {
    let machine = Machine {
        cpus: 4,
        memory_bytes: 4 << 30,
        architecture: "arm64",
        ..Machine::default()
    };
    let all = capacity::capacity(&machine, 8 << 30, 110, BTreeMap::new());
    let left = capacity::allocatable(&all, settings().reserved, &settings().eviction.thresholds);
    let facts = Facts {
        settings: &settings(),
        machine: &machine,
        runtime,
        pressure,
        host_ip: "192.0.2.9",
        capacity: &all,
        allocatable: &left,
        images: &[],
    };
    object(&facts, since, now)
}

fn condition(node: &Value, kind: &str) -> Value {
    let list = node["status"]["conditions"].as_array().unwrap();
    list.iter().find(|c| c["type"] == kind).unwrap().clone()
}

#[test]
fn a_node_is_described_as_kubeedge_does() {
    let runtime = RuntimeInfo {
        version: "containerd://1.6.20".to_owned(),
        ready: true,
        network_ready: true,
        network_reason: String::new(),
    };
    let node = node(&runtime, Pressure::default(), &mut Transitions::new(), 0);
    let labels = &node["metadata"]["labels"];
    assert_eq!(labels["node-role.kubernetes.io/edge"], "");
    assert_eq!(labels["kubernetes.io/arch"], "arm64");
    assert_eq!(labels["site"], "hut");
    let status = &node["status"];
    assert_eq!(
        status["capacity"],
        json!({"cpu": "4", "memory": "4194304Ki", "ephemeral-storage": "8388608Ki", "pods": "110"})
    );
    assert_eq!(
        status["allocatable"],
        json!({"cpu": "4", "memory": "4091904Ki", "ephemeral-storage": "7730941133", "pods": "110"}),
        "without what must stay free"
    );
    let version = status["nodeInfo"]["kubeletVersion"].as_str().unwrap();
    assert!(
        version.starts_with("v1.32.10-kubeedge-v1.23.0-outpost."),
        "{version}"
    );
    assert_eq!(
        status["addresses"],
        json!([{"type": "InternalIP", "address": "192.0.2.9"}, {"type": "Hostname", "address": "edge-1"}])
    );
    let ready = condition(&node, "Ready");
    assert_eq!(
        (ready["status"].as_str(), ready["reason"].as_str()),
        (Some("True"), Some("EdgeReady"))
    );
    assert_eq!(ready["message"], "edge is posting ready status");
    for kind in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
        assert_eq!(condition(&node, kind)["status"], "False", "{kind}");
    }
}

#[test]
fn a_node_that_cannot_run_pods_says_why_and_since_when() {
    let mut since = Transitions::new();
    let mut runtime = RuntimeInfo {
        ready: true,
        network_ready: false,
        network_reason: "no CNI configuration in /etc/cni/net.d".to_owned(),
        ..RuntimeInfo::default()
    };
    let first = condition(
        &node(&runtime, Pressure::default(), &mut since, 1_000),
        "Ready",
    );
    assert_eq!(first["status"], "False");
    assert_eq!(
        first["message"],
        "network is not ready: no CNI configuration in /etc/cni/net.d"
    );
    runtime.ready = false;
    let second = condition(
        &node(&runtime, Pressure::default(), &mut since, 9_000),
        "Ready",
    );
    assert_eq!(
        second["lastTransitionTime"], first["lastTransitionTime"],
        "still not ready"
    );
    assert!(
        second["message"]
            .as_str()
            .unwrap()
            .starts_with("container runtime is down")
    );
    (runtime.ready, runtime.network_ready) = (true, true);
    let pressure = Pressure {
        disk: true,
        ..Pressure::default()
    };
    let node = node(&runtime, pressure, &mut since, 20_000);
    assert_eq!(
        condition(&node, "Ready")["lastTransitionTime"],
        "1970-01-01T00:00:20Z"
    );
    assert_eq!(
        condition(&node, "DiskPressure")["reason"],
        "EdgeHasDiskPressure"
    );
}

#[test]
fn the_machine_and_its_memory_are_read() {
    let machine = Machine::read();
    assert!(machine.cpus >= 1 && machine.memory_bytes > 0 && !machine.kernel.is_empty());
    let text = "MemTotal:       16000 kB\nMemAvailable:    1 kB\nBad: x kB\n";
    assert_eq!(meminfo(text, "MemTotal"), Some(16_384_000));
    assert_eq!(meminfo(text, "MemAvail"), None);
    assert_eq!(meminfo(text, "Bad"), None);
    assert!(
        disk_bytes(Path::new("/nowhere/at/all")) > 0,
        "the nearest directory counts"
    );
}
