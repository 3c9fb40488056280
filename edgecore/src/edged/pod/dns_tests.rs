use serde_json::{Value, json};

use super::*;

const NODE: &str = "# made by dhcp\nnameserver 192.0.2.1\nsearch old.example\n\
                    nameserver 192.0.2.2\nsearch site.example. lan\noptions ndots:1 edns0\n";

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"},
        "spec": spec,
    }))
    .unwrap()
}

fn cluster() -> Site {
    Site {
        cluster_dns: vec!["169.254.96.16".parse().unwrap()],
        ..Site::default()
    }
}

fn made(spec: Value, site: &Site) -> String {
    resolvers(&pod(spec), &Resolvers::parse(NODE), site)
        .0
        .text()
}

#[test]
fn each_policy_with_and_without_a_cluster() {
    let node = "search site.example lan\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n\
                options ndots:1 edns0\n";
    let inside = "search shop.svc.cluster.local svc.cluster.local cluster.local site.example lan\n\
                  nameserver 169.254.96.16\noptions ndots:5\n";
    for (policy, host_network, alone, with_cluster) in [
        (json!(null), false, node, inside),
        (json!("ClusterFirst"), false, node, inside),
        (json!("ClusterFirst"), true, node, node),
        (json!("ClusterFirstWithHostNet"), true, node, inside),
        (json!("Default"), false, node, node),
        (json!("None"), false, "", ""),
    ] {
        let spec = json!({"dnsPolicy": policy, "hostNetwork": host_network, "containers": []});
        assert_eq!(
            made(spec.clone(), &Site::default()),
            alone,
            "{policy} {host_network}"
        );
        assert_eq!(
            made(spec, &cluster()),
            with_cluster,
            "{policy} {host_network}"
        );
    }
}

#[test]
fn the_pods_own_settings_are_merged() {
    let spec = json!({
        "dnsPolicy": "Default", "containers": [],
        "dnsConfig": {
            "nameservers": ["192.0.2.2", "198.51.100.7"], "searches": ["lan", "own.example"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}, {"value": "x"}],
        },
    });
    assert_eq!(
        made(spec, &Site::default()),
        "search site.example lan own.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n\
         nameserver 198.51.100.7\noptions edns0 ndots:2 rotate\n"
    );
    let alone = json!({
        "dnsPolicy": "None", "containers": [], "dnsConfig": {"nameservers": ["192.0.2.9"]},
    });
    assert_eq!(made(alone, &cluster()), "nameserver 192.0.2.9\n");
}

#[test]
fn too_much_is_cut_and_told() {
    let many: Vec<String> = (0..40).map(|i| format!("d{i}.example")).collect();
    let long: Vec<String> = (0..20).map(|i| format!("{}{i}", "x".repeat(200))).collect();
    let told = |config: Value| {
        let spec = json!({"dnsPolicy": "None", "containers": [], "dnsConfig": config});
        resolvers(&pod(spec), &Resolvers::default(), &Site::default())
    };
    let (found, notices) =
        told(json!({"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]}));
    assert_eq!(found.nameservers.len(), 3);
    assert!(
        notices[0]
            .message
            .ends_with("line is: 1.1.1.1 2.2.2.2 3.3.3.3"),
        "{notices:?}"
    );
    let (found, notices) = told(json!({"searches": many}));
    assert_eq!((found.searches.len(), notices.len()), (32, 1));
    let (found, notices) = told(json!({"searches": long}));
    assert!(found.searches.join(" ").len() <= 2048 && !found.searches.is_empty());
    assert_eq!(notices.len(), 1);
    assert!(told(json!({"searches": ["a"]})).1.is_empty());
}

#[test]
fn who_wants_the_clusters_names_is_told_that_there_are_none() {
    let notices = |policy: &str, site: &Site| {
        let spec = json!({"dnsPolicy": policy, "hostNetwork": true, "containers": []});
        resolvers(&pod(spec), &Resolvers::default(), site).1
    };
    let told = notices("ClusterFirstWithHostNet", &Site::default());
    assert_eq!(told[0].reason, "MissingClusterDNS");
    // Which the API writes where nobody chose.
    assert!(notices("ClusterFirst", &Site::default()).is_empty());
    assert!(notices("Default", &Site::default()).is_empty());
    assert!(notices("ClusterFirstWithHostNet", &cluster()).is_empty());
}

#[test]
fn a_subdomain_makes_a_whole_name() {
    let site = Site::default();
    let called = |spec: Value| {
        let names = names(&pod(spec), "machine", &site);
        (names.host, names.domain.unwrap_or_default(), names.kernel)
    };
    let want = |host: &str, domain: &str, kernel: &str| {
        (host.to_owned(), domain.to_owned(), kernel.to_owned())
    };
    let domain = "db.shop.svc.cluster.local";
    let none = json!([]);
    for (spec, expected) in [
        (json!({"containers": none}), want("web", "", "web")),
        (
            json!({"containers": none, "hostname": "h", "subdomain": "db"}),
            want("h", domain, "h"),
        ),
        (
            json!({"containers": none, "subdomain": "db", "setHostnameAsFQDN": true}),
            want("web", domain, "web.db.shop.svc.cluster.local"),
        ),
        (
            json!({"containers": none, "setHostnameAsFQDN": true}),
            want("web", "", "web"),
        ),
        (
            json!({"containers": none, "hostname": "h", "subdomain": "db", "hostNetwork": true}),
            want("machine", "", "machine"),
        ),
        (
            json!({"containers": none, "hostname": format!("{}-x", "a".repeat(62))}),
            want(&"a".repeat(62), "", &"a".repeat(62)),
        ),
    ] {
        assert_eq!(called(spec.clone()), expected, "{spec}");
    }
    let long = json!({"containers": none, "hostname": "a".repeat(50), "subdomain": "db",
        "setHostnameAsFQDN": true});
    let refused = names(&pod(long), "machine", &site).check().unwrap_err();
    assert!(refused.0.contains("76 characters requested"), "{refused}");
}
