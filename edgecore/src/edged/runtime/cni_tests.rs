use std::os::unix::fs::PermissionsExt;

use super::builtin::{builtin_conflist, free_subnet};
use super::*;
use crate::edged::runtime::NetworkHealth;

/// A plugin that records how it was called and answers with one address.
fn script(directory: &Path, name: &str, body: &str) {
    let path = directory.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

struct Fixture {
    directory: tempfile::TempDir,
    cni: Cni,
}

impl Fixture {
    fn new(second: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let (conf, bin) = (at("conf"), at("bin"));
        let log = directory.path().join("calls").display().to_string();
        let record = format!(
            "printf '%s %s %s\\n' \"$CNI_COMMAND\" \"$0\" \"$CNI_IFNAME\" >> {log}\ncat >> {log}.$CNI_COMMAND"
        );
        let answer = r#"echo '{"cniVersion":"0.4.0","ips":[{"address":"10.1.2.3/24"}]}'"#;
        script(&bin, "first", &format!("{record}\n{answer}"));
        script(&bin, "second", &format!("{record}\n{second}\n{answer}"));
        std::fs::write(
            conf.join("10-test.conflist"),
            r#"{"cniVersion":"0.4.0","name":"net","plugins":[{"type":"first"},
                {"type":"second","capabilities":{"portMappings":true,"bandwidth":true,"dns":true}}]}"#,
        )
        .unwrap();
        let cni = Cni::new(conf, vec![bin], directory.path().join("state"));
        Self { directory, cni }
    }

    fn attachment(&self) -> Attachment {
        Attachment {
            pod_uid: "u1".to_owned(),
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            netns: self.directory.path().to_owned(),
            port_mappings: vec![(8080, 80, "tcp".to_owned(), String::new())],
            wish: NetworkWish {
                ingress_bits: Some(1_000_000),
                ..NetworkWish::default()
            },
        }
    }

    fn calls(&self) -> Vec<String> {
        std::fs::read_to_string(self.directory.path().join("calls"))
            .unwrap_or_default()
            .lines()
            .map(|line| {
                let mut words = line.split(' ');
                let command = words.next().unwrap();
                let plugin = words.next().unwrap().rsplit('/').next().unwrap();
                assert_eq!(words.next(), Some("eth0"));
                format!("{command} {plugin}")
            })
            .collect()
    }
}

#[tokio::test]
async fn add_walks_forward_and_del_back() {
    let fixture = Fixture::new("");
    assert_eq!(fixture.cni.status(), Ok(()));
    let ips = fixture.cni.add(&fixture.attachment()).await.unwrap();
    assert_eq!(ips, ["10.1.2.3"]);
    let input = std::fs::read_to_string(fixture.directory.path().join("calls.ADD")).unwrap();
    let mut inputs = serde_json::Deserializer::from_str(&input).into_iter::<Value>();
    let (first, second) = (
        inputs.next().unwrap().unwrap(),
        inputs.next().unwrap().unwrap(),
    );
    assert!(first.get("prevResult").is_none() && first.get("runtimeConfig").is_none());
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
    assert_eq!(second["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
    assert_eq!(
        second["runtimeConfig"]["bandwidth"]["ingressRate"],
        1_000_000
    );
    assert!(
        second["runtimeConfig"].get("dns").is_none(),
        "nothing was said"
    );
    assert!(second.get("capabilities").is_none());

    // The configuration is gone and we have restarted: what was cached undoes it.
    std::fs::remove_dir_all(fixture.directory.path().join("conf")).unwrap();
    fixture.cni.clone().del("u1").await.unwrap();
    assert_eq!(
        fixture.calls(),
        ["ADD first", "ADD second", "DEL second", "DEL first"]
    );
    fixture.cni.del("u1").await.unwrap();
    assert_eq!(fixture.calls().len(), 4, "nothing cached, nothing done");
}

#[tokio::test]
async fn check_asks_every_plugin_with_the_whole_result_where_it_may() {
    let fixture = Fixture::new("");
    assert_eq!(fixture.cni.check("u1").await, NetworkHealth::Good);
    fixture.cni.add(&fixture.attachment()).await.unwrap();
    assert_eq!(fixture.cni.check("u1").await, NetworkHealth::Good);
    assert_eq!(fixture.calls()[2..], ["CHECK first", "CHECK second"]);
    let input = std::fs::read_to_string(fixture.directory.path().join("calls.CHECK")).unwrap();
    for input in serde_json::Deserializer::from_str(&input).into_iter::<Value>() {
        let input = input.unwrap();
        assert_eq!(input["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
    }
    fixture.cni.del("u1").await.unwrap();
    for (version, more) in [("0.3.1", ""), ("1.0.0", r#""disableCheck":true,"#)] {
        let text = format!(
            r#"{{"cniVersion":"{version}",{more}"name":"net","plugins":[{{"type":"first"}}]}}"#
        );
        let conf = fixture.directory.path().join("conf/10-test.conflist");
        std::fs::write(conf, &text).unwrap();
        fixture.cni.add(&fixture.attachment()).await.unwrap();
        let before = fixture.calls().len();
        assert_eq!(fixture.cni.check("u1").await, NetworkHealth::Good);
        assert_eq!(fixture.calls().len(), before, "nobody is asked: {text}");
        fixture.cni.del("u1").await.unwrap();
    }
}

#[tokio::test]
async fn a_network_is_gone_when_plugin_and_kernel_say_so() {
    let refuse = r#"[ "$CNI_COMMAND" != CHECK ] || { echo '{"code":9,"msg":"no veth"}'; exit 1; }"#;
    let fixture = Fixture::new(refuse);
    // Its namespace is none.
    fixture.cni.add(&fixture.attachment()).await.unwrap();
    let said = "plugin `second`: no veth (code 9)";
    let gone = NetworkHealth::Gone {
        reason: format!("its network namespace is gone; {said}"),
    };
    assert_eq!(fixture.cni.check("u1").await, gone);
}

#[tokio::test]
async fn a_failed_add_is_undone_and_says_why() {
    let refuse = r#"[ "$CNI_COMMAND" = DEL ] || { echo '{"code":7,"msg":"no address","details":"range full"}'; exit 1; }"#;
    let fixture = Fixture::new(refuse);
    let error = fixture.cni.add(&fixture.attachment()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "plugin `second`: no address range full (code 7)"
    );
    assert_eq!(
        fixture.calls(),
        ["ADD first", "ADD second", "DEL second", "DEL first"]
    );
}

#[tokio::test]
async fn a_plugin_that_hangs_is_ended_with_what_it_started() {
    let mut fixture = Fixture::new("[ \"$CNI_COMMAND\" = DEL ] || { sleep 3456 & wait; }");
    fixture.cni.plugin_max = Duration::from_millis(300);
    let error = fixture.cni.add(&fixture.attachment()).await.unwrap_err();
    assert!(
        error.to_string().contains("no answer within 300ms"),
        "{error}"
    );
    assert!(fixture.cni.attached().is_empty(), "undone");
    let sleeps = || {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| line == b"sleep\x003456\0").count()
    };
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while sleeps() > 0 {
        assert!(std::time::Instant::now() < end, "its child lives on");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_was_connected_is_listed_until_it_is_undone() {
    let fixture = Fixture::new("");
    fixture.cni.add(&fixture.attachment()).await.unwrap();
    assert_eq!(fixture.cni.attached(), BTreeSet::from(["u1".to_owned()]));
    fixture.cni.del("u1").await.unwrap();
    assert!(fixture.cni.attached().is_empty());
}

#[test]
fn missing_plugins_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().to_owned();
    let cni = Cni::new(empty.clone(), vec![empty.clone()], empty.join("state"));
    let reason = cni.status().unwrap_err();
    assert!(reason.contains("`bridge`"), "{reason}");
}

#[test]
fn built_in_network_avoids_routes_of_others() {
    let routes = "Iface\tDestination\tGateway\ndocker0\t0007580A\t00000000\nedgex\t0009580A\t0\n";
    assert_eq!(free_subnet(routes, "edgex", 7), 8);
    assert_eq!(free_subnet(routes, "edgex", 9), 9, "our own bridge's route");
    assert_eq!(free_subnet("", "edgex", 255), 255);
}

#[test]
fn without_iptables_there_is_a_bridge_alone() {
    let kinds = |has_iptables| {
        let list = builtin_conflist(
            "edge0",
            "10.42.7.0/24",
            Path::new("/run/ipam"),
            has_iptables,
        );
        assert_eq!(list["plugins"][0]["ipMasq"], false);
        assert_eq!(list["outpostMasquerade"].is_object(), has_iptables);
        let ranges = &list["plugins"][0]["ipam"]["ranges"];
        assert_eq!(ranges[0][0]["subnet"], "10.42.7.0/24");
        let kinds: Vec<String> = plugins(&list).map(|p| plugin_type(p).to_owned()).collect();
        kinds
    };
    assert_eq!(kinds(true), ["bridge", "portmap"]);
    assert_eq!(kinds(false), ["bridge"]);
}

#[test]
fn plugins_without_anything_to_do_are_left_out() {
    let cached = |runtime: Value| Cached {
        conflist: json!({}),
        netns: PathBuf::new(),
        args: String::new(),
        runtime,
        result: None,
    };
    let plain = cached(runtime_config(&Attachment::default()));
    let busy = cached(json!({
        "portMappings": [{"hostPort": 1}], "bandwidth": {"ingressRate": 1}
    }));
    for (plugin, idle) in [
        (json!({"type": "portmap"}), false),
        (json!({"type": "bandwidth"}), false),
        (json!({"type": "bandwidth", "ingressRate": 5}), true),
        (json!({"type": "bridge"}), true),
    ] {
        assert_eq!(concerns(&plugin, &plain), idle, "{plugin}");
        assert!(concerns(&plugin, &busy), "{plugin}");
    }
}
