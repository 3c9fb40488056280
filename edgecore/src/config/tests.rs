use super::*;

fn with_file(text: &str) -> Result<Config, ConfigError> {
    with(text, &[])
}

fn with(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edgecore.yaml");
    std::fs::write(&path, text).unwrap();
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    load(Some(&path), env, &Flags::default())
}

#[test]
fn the_printed_files_are_read_back_as_the_defaults() {
    for text in [default_file(), minimal_file(), String::new()] {
        let config = with_file(&text).unwrap();
        assert!(config.ignored.is_empty());
        let hub = config.hub.unwrap();
        assert_eq!(hub.server, "127.0.0.1:10000");
        assert_eq!(config.outbox_bytes_max, crate::outbox::BYTES_MAX);
        assert_eq!(config.bus.unwrap().mode, BusMode::Internal);
        assert_eq!(config.runtime.unwrap().log_bytes_max, 10 << 20);
    }
}

#[test]
fn a_kubeedge_file_is_understood_and_its_other_fields_are_listed() {
    let config = with_file(
        "apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database: {aliasName: default, dataSource: /var/lib/kubeedge/edgecore.db, driverName: sqlite3}
featureGates: {}
modules:
  dbTest: {enable: false}
  edgeHub:
    heartbeat: 20
    quic: {enable: false, server: '1.2.3.4:10001'}
    websocket: {enable: true, server: 'cloud.example:10000', readDeadline: 15}
  edged:
    hostnameOverride: gate-7
    nodeLabels: {node-role.kubernetes.io/edge: ''}
    podSandboxImage: kubeedge/pause:3.6
    tailoredKubeletConfig: {cgroupDriver: cgroupfs, maxPods: 20, evictionHard: {memory.available: 100Mi}}
  metaManager:
    metaServer: {enable: false, apiAudiences: null}
",
    )
    .unwrap();
    assert_eq!(config.node_name, "gate-7");
    assert_eq!(
        config.node_labels.keys().collect::<Vec<_>>(),
        ["node-role.kubernetes.io/edge"]
    );
    let hub = config.hub.unwrap();
    assert_eq!(hub.server, "cloud.example:10000");
    assert_eq!(hub.heartbeat.as_secs(), 20);
    let runtime = config.runtime.unwrap();
    assert_eq!(runtime.max_pods, 20);
    let defaults = crate::edged::eviction::threshold::Config::default();
    assert_eq!(runtime.resources.eviction, defaults);
    assert_eq!(
        config.ignored,
        [
            "database.aliasName",
            "database.driverName",
            "featureGates",
            "modules.dbTest",
            "modules.edgeHub.quic",
            "modules.edgeHub.websocket.readDeadline",
            "modules.edged.podSandboxImage",
            "modules.edged.tailoredKubeletConfig.cgroupDriver",
            "modules.metaManager.metaServer",
            "modules.edgeHub.heartbeat",
        ]
    );
}

#[test]
fn mistakes_name_the_path() {
    for (text, expected) in [
        (
            "modules: {edgeHub: {heartbeet: 15}}",
            "unknown field `modules.edgeHub.heartbeet`, did you mean `modules.edgeHub.heartbeat`?",
        ),
        (
            "modules: {edgeHub: {heartbeat: soon}}",
            "modules.edgeHub.heartbeat",
        ),
        ("modules: 5", "`modules` must be a table"),
        (
            "modules: {edgeHub: {websocket: {server: nowhere}}}",
            "must be host:port",
        ),
        ("modules: [", "is not valid YAML"),
        (
            "modules: {edged: {hostnameOverride: Gate_7}}",
            "no valid node name",
        ),
        ("apiVersion: v1", "edgecore.config.kubeedge.io/v1alpha2"),
        ("modules: {eventBus: {mqttMode: 7}}", "must be 0, 1 or 2"),
        (
            "modules: {eventBus: {mqttMode: 2, mqttServerExternal: here}}",
            "must be tcp://host:port or ssl://host:port, is `here`",
        ),
        (
            "modules: {eventBus: {mqttMode: 2, mqttServerExternal: 'ssl://b:8883'}}",
            "`ssl://b:8883` needs modules.eventBus.eventBusTLS",
        ),
        (
            "modules: {eventBus: {mqttMode: 2, eventBusTLS: {enable: true, tlsMqttCAFile: /a, \
             tlsMqttCertFile: /b, tlsMqttPrivateKeyFile: /c}}}",
            "`tcp://127.0.0.1:1884` is plain, and eventBusTLS.enable is true",
        ),
        (
            "modules: {eventBus: {eventBusTLS: {enable: true}}}",
            "tlsMqttCAFile`: must be an absolute path",
        ),
        (
            "outpost: {logLevel: inof}",
            "`outpost.logLevel`: must be error",
        ),
        (
            "outpost: {logLevel: 'a=b=c'}",
            "`outpost.logLevel`: must be error",
        ),
        (
            "outpost: {outboxBytesMax: 4k}",
            "must be a size from 1Mi to 1Pi, is `4k`",
        ),
        (
            "outpost: {podLogsBytesMax: 1Mi}",
            "`outpost.podLogsBytesMax`: 1Mi must not be less than containerLogMaxSize, 10Mi",
        ),
        (
            "outpost: {nodeLogsBytesMax: 100Mi}",
            "must not be less than outpost.podLogsBytesMax, 256Mi",
        ),
    ] {
        let told = with_file(text).unwrap_err().to_string();
        assert!(told.contains(expected), "{text}: {told}");
    }
}

#[test]
fn each_key_says_what_it_is_for_and_documents_name_keys_that_are_there() {
    for field in schema::fields() {
        assert!(!field.doc.is_empty(), "{}", field.path);
    }
    let mut named = 0;
    for (document, text) in [
        ("operating.md", include_str!("../../../docs/operating.md")),
        ("limits.md", include_str!("../../../docs/limits.md")),
        ("hazards.md", include_str!("../../../docs/hazards.md")),
        ("README.md", include_str!("../../../README.md")),
    ] {
        for quoted in text.split('`').skip(1).step_by(2) {
            let end = quoted.find(|c: char| !c.is_ascii_alphanumeric() && c != '.');
            let path = quoted[..end.unwrap_or(quoted.len())].trim_end_matches('.');
            let path = match path.split_once('.') {
                Some(("tailoredKubeletConfig", _)) => format!("modules.edged.{path}"),
                Some(("modules", _)) => path.to_owned(),
                // Annotations and API groups begin alike.
                Some(("outpost", rest)) if !rest.starts_with("dev") => path.to_owned(),
                _ => continue,
            };
            let known = schema::classify(&path);
            assert_ne!(known, schema::Known::Unknown, "{document}: `{path}`");
            named += 1;
        }
    }
    assert!(named > 40, "only {named} keys found in the documents");
}

#[test]
fn values_of_properties_are_kubeedges_unless_they_may_be_wider() {
    let of = |text: &str| {
        let text = format!("outpost:\n  twinValues: {text}\n");
        with_file(&text).map(|config| config.twin_values)
    };
    let theirs = device_twin::ValueRule::default();
    assert_eq!(of("{}").unwrap(), theirs);
    assert_eq!(
        of("{bytesMax: '512', characters: kubeedge}").unwrap(),
        theirs
    );
    let wide = of("{bytesMax: 4Ki, characters: text}").unwrap();
    assert_eq!((wide.bytes_max, wide.is_text), (4096, true));
    for wrong in ["{bytesMax: '511'}", "{bytesMax: 5Ki}", "{characters: all}"] {
        let told = of(wrong).unwrap_err().to_string();
        assert!(told.contains("outpost.twinValues."), "{wrong}: {told}");
    }
}

/// What no key takes is refused by name, whatever the key: so each is read by its section.
#[test]
fn each_key_of_the_file_is_read() {
    for field in schema::fields() {
        let mut text = "{no: [[value]]}".to_owned();
        for name in field.path.rsplit('.') {
            text = format!("{{{name}: {text}}}");
        }
        // The one section that is off by default.
        let on = ("EDGECORE__MODULES__SERVICEBUS__ENABLE", "true");
        let env = (field.path != "modules.serviceBus.enable").then_some(on);
        let told = with(&text, env.as_slice()).err();
        let told = told.map(|error| error.to_string()).unwrap_or_default();
        assert!(told.contains(field.path), "{text}: {told}");
    }
}

fn kubelet(keys: &str) -> Result<RuntimeConfig, String> {
    let text = format!("modules: {{edged: {{tailoredKubeletConfig: {{{keys}}}}}}}");
    let config = with_file(&text).map_err(|error| error.to_string())?;
    assert_eq!(config.ignored, [""; 0], "{keys}");
    Ok(config.runtime.unwrap())
}

#[test]
fn images_and_logs_are_kept_as_kubelets_keys_say() {
    let as_ever = kubelet("").unwrap();
    assert_eq!(
        as_ever.image_policy,
        crate::edged::image_gc::ImagePolicy::default()
    );
    assert_eq!(as_ever.image_pulls_max, 2);
    assert_eq!(as_ever.log_pod_bytes_max, 256 << 20);
    assert_eq!(as_ever.log_node_bytes_max, 2 << 30);

    // As `keadm` writes it, nulls included.
    let theirs = kubelet(
        "imageMinimumGCAge: 2m0s, imageMaximumGCAge: 0s, imageGCHighThresholdPercent: 85, \
         imageGCLowThresholdPercent: 80, serializeImagePulls: true, maxParallelImagePulls: null, \
         containerLogMaxSize: 10Mi, containerLogMaxFiles: 5",
    )
    .unwrap();
    assert_eq!(theirs.image_policy, as_ever.image_policy);
    assert_eq!(theirs.image_pulls_max, 1);

    let other = kubelet(
        "imageMinimumGCAge: 1h30m, imageMaximumGCAge: 168h, maxParallelImagePulls: 5, \
         containerLogMaxSize: 1Mi, containerLogMaxFiles: 2",
    )
    .unwrap();
    let seconds = std::time::Duration::from_secs;
    assert_eq!(other.image_policy.min_age, seconds(5_400));
    assert_eq!(other.image_policy.max_age, Some(seconds(604_800)));
    assert_eq!(other.image_pulls_max, 5);
    assert_eq!((other.log_bytes_max, other.log_files_max), (1 << 20, 2));

    for (keys, says) in [
        (
            "imageMinimumGCAge: soon",
            "imageMinimumGCAge`: `soon` is no duration",
        ),
        ("imageMinimumGCAge: -5m", "is no duration"),
        (
            "imageMaximumGCAge: 1m",
            "1m must be more than imageMinimumGCAge, 2m0s",
        ),
        (
            "imageGCHighThresholdPercent: 70",
            "must be at most 100 and not below",
        ),
        ("imageGCHighThresholdPercent: 101", "must be at most 100"),
        (
            "serializeImagePulls: true, maxParallelImagePulls: 3",
            "contradicts serializeImagePulls",
        ),
        ("maxParallelImagePulls: 33", "must be at most 32, is 33"),
        (
            "containerLogMaxFiles: 1",
            "containerLogMaxFiles`: must be between 2 and 100, is 1",
        ),
        (
            "containerLogMaxSize: 4k",
            "must be a size from 32Ki to 1Pi, is `4k`",
        ),
        ("containerLogMaxSize: 10Mib", "is `10Mib`"),
    ] {
        let told = kubelet(keys).unwrap_err();
        assert!(told.contains(says), "{keys}: {told}");
    }
}

#[test]
fn environment_beats_the_file_and_flags_beat_both() {
    let text = "modules: {edgeHub: {heartbeat: 20}, edged: {hostnameOverride: from-file}}";
    let config = with(
        text,
        &[
            ("EDGECORE__MODULES__EDGEHUB__HEARTBEAT", "25"),
            ("EDGECORE__MODULES__EDGED__NODELABELS", "{a: b}"),
            ("EDGECORE__MODULES__EDGED__HOSTNAMEOVERRIDE", "123"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!(config.hub.unwrap().heartbeat.as_secs(), 25);
    assert_eq!(config.node_labels["a"], "b");
    assert_eq!(config.node_name, "123");

    let flags = Flags {
        node_name: Some("from-flag".into()),
        ..Flags::default()
    };
    let env = [(
        "EDGECORE__MODULES__EDGED__HOSTNAMEOVERRIDE".to_owned(),
        "from-env".to_owned(),
    )];
    assert_eq!(load(None, env, &flags).unwrap().node_name, "from-flag");

    let told = with("", &[("EDGECORE__modules__edgeHub__heartbeet", "1")]).unwrap_err();
    assert!(
        told.to_string()
            .contains("did you mean `modules.edgeHub.heartbeat`"),
        "{told}"
    );
}

#[test]
fn the_file_written_by_join_is_read_back() {
    let set = [
        (
            "modules.edged.hostnameOverride".to_owned(),
            "n: 1".to_owned(),
        ),
        ("modules.edgeHub.heartbeat".to_owned(), "7".to_owned()),
        (
            "modules.edgehub.websocket.SERVER".to_owned(),
            "h:1".to_owned(),
        ),
    ];
    let text = file_with(&set).unwrap().replace("n: 1", "n1");
    let config = with_file(&text).unwrap();
    let hub = config.hub.unwrap();
    assert_eq!((hub.heartbeat.as_secs(), hub.server.as_str()), (7, "h:1"));
    assert_eq!(config.node_name, "n1");
    assert!(file_with(&[("nope".into(), "1".into())]).is_err());
}

#[test]
fn a_threshold_can_be_set_by_a_flag() {
    let key = "modules.edged.tailoredKubeletConfig.evictionHard";
    let flags = Flags {
        set: vec![(
            key.to_owned(),
            "{nodefs.available: 0%, imagefs.available: 0%}".to_owned(),
        )],
        ..Flags::default()
    };
    let config = load(None, [], &flags).unwrap();
    let thresholds = config.runtime.unwrap().resources.eviction.thresholds;
    let signals: Vec<&str> = thresholds.iter().map(|t| t.signal.as_str()).collect();
    assert_eq!(
        signals,
        ["memory.available", "nodefs.inodesFree", "pid.available"]
    );
    // As `join` writes it and the daemon reads it again.
    let written = file_with(&flags.set).unwrap();
    let config = with_file(&written).unwrap();
    assert_eq!(
        config.runtime.unwrap().resources.eviction.thresholds,
        thresholds
    );
}

#[test]
fn amounts_are_kubelets() {
    let kubelet = |text: &str| {
        with_file(&format!(
            "apiVersion: edgecore.config.kubeedge.io/v1alpha2\nkind: EdgeCore\n\
             modules: {{edged: {{tailoredKubeletConfig: {{{text}}}}}}}\n"
        ))
    };
    let config = kubelet(
        "kubeReserved: {cpu: 100m, memory: 64Mi}, systemReserved: {cpu: 1, ephemeral-storage: 1Gi, pid: '1000'}, \
         podPidsLimit: 50, enforceNodeAllocatable: [none], evictionHard: {nodefs.available: 0%}, \
         evictionPressureTransitionPeriod: 30s",
    )
    .unwrap();
    let found = config.runtime.unwrap().resources;
    assert_eq!(
        (
            found.reserved.cpu_milli,
            found.reserved.memory_bytes,
            found.reserved.pids
        ),
        (1100, 64 << 20, 1000)
    );
    assert_eq!((found.pod_pids_max, found.enforce), (Some(50), false));
    assert_eq!(found.eviction.transition.as_secs(), 30);
    let signals: Vec<&str> = found
        .eviction
        .thresholds
        .iter()
        .map(|t| t.signal.as_str())
        .collect();
    let others = [
        "memory.available",
        "nodefs.inodesFree",
        "imagefs.available",
        "pid.available",
    ];
    assert_eq!(signals, others, "one is off, the others stay as they were");
    for (text, path) in [
        ("kubeReserved: {gold: 1}", "kubeReserved"),
        ("kubeReserved: {memory: much}", "kubeReserved"),
        ("evictionHard: {memory.free: 1Mi}", "evictionHard"),
        ("evictionSoft: {memory.available: 1Mi}", "evictionSoft"),
        (
            "enforceNodeAllocatable: [system-reserved]",
            "enforceNodeAllocatable",
        ),
        (
            "evictionPressureTransitionPeriod: soon",
            "evictionPressureTransitionPeriod",
        ),
    ] {
        let error = kubelet(text).unwrap_err().to_string();
        let path = format!("modules.edged.tailoredKubeletConfig.{path}");
        assert!(error.contains(&path), "{text}: {error}");
    }
}

#[test]
fn the_service_bus_is_off_and_kubeedges_keys_turn_it_on() {
    let of = |text: &str| {
        let text = format!("modules:\n  serviceBus: {text}\n");
        with_file(&text).map(|config| config.service_bus)
    };
    assert!(of("{enable: false, port: 9060}").unwrap().is_none());
    let on = of("{enable: true}").unwrap().unwrap();
    assert_eq!(on.listen, "127.0.0.1:9060");
    assert_eq!((on.timeout.as_secs(), on.tls), (60, None));
    let on = of("{enable: true, server: '::1', port: 1, timeout: 5, \
                 tlsCertFile: /a.crt, tlsPrivateKeyFile: /a.key}");
    let on = on.unwrap().unwrap();
    assert_eq!(on.listen, "[::1]:1");
    let tls = on.tls.unwrap();
    assert_eq!((tls.cert, tls.key), ("/a.crt".into(), "/a.key".into()));
    assert_eq!(tls.client_ca, None);
    for wrong in [
        "{enable: true, port: 0}",
        "{enable: true, timeout: 0}",
        "{enable: true, tlsCertFile: /only.crt}",
    ] {
        assert!(of(wrong).is_err(), "{wrong}");
    }
}
