use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn node_of(cpu_milli: i64, mebibytes: i64, pods: i64) -> Amounts {
    Amounts {
        cpu_milli,
        memory_bytes: mebibytes << 20,
        storage_bytes: 1 << 30,
        pods,
        hugepages: BTreeMap::new(),
    }
}

fn labels() -> BTreeMap<String, String> {
    [
        ("kubernetes.io/arch", "arm64"),
        ("kubernetes.io/os", "linux"),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect()
}

fn pod(uid: &str, created: u32, spec: &Value) -> Pod {
    let mut pod = json!({
        "metadata": {
            "name": uid, "namespace": "default", "uid": uid,
            "creationTimestamp": format!("2026-01-01T00:{:02}:{:02}Z", created / 60, created % 60),
        },
        "spec": {"containers": [{"name": "c", "image": "x"}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        match key.as_str() {
            "requests" => {
                pod["spec"]["containers"][0]["resources"] = json!({"requests": value});
            }
            "ports" => pod["spec"]["containers"][0]["ports"] = value.clone(),
            "annotations" => pod["metadata"]["annotations"] = value.clone(),
            "labels" => pod["metadata"]["labels"] = value.clone(),
            _ => pod["spec"][key] = value.clone(),
        }
    }
    serde_json::from_value(pod).unwrap()
}

fn decide(pods: &[(&Pod, Standing)], allocatable: &Amounts, pressure: Pressure) -> Review {
    let subjects: Vec<Subject<'_>> = pods
        .iter()
        .map(|(pod, standing)| Subject {
            uid: pod.metadata.uid.as_deref().unwrap(),
            pod,
            standing: *standing,
        })
        .collect();
    let node = Node {
        allocatable,
        pressure,
        labels: &labels(),
    };
    review(&subjects, &node)
}

/// Reason of the one pod's refusal, `take` or `wait`.
fn outcome(review: &Review, uid: &str) -> String {
    match &review.decisions[uid] {
        Decision::Take => "take".to_owned(),
        Decision::Wait => "wait".to_owned(),
        Decision::Refuse(refusal) => refusal.reason.clone(),
    }
}

#[test]
fn a_pod_that_does_not_fit_is_refused_with_kubelets_words() {
    let first = pod(
        "first",
        1,
        &json!({"requests": {"cpu": "600m", "memory": "64Mi"}}),
    );
    let big = pod("big", 2, &json!({"requests": {"memory": "1Gi"}}));
    let review = decide(
        &[(&first, Standing::Taken), (&big, Standing::New)],
        &node_of(1000, 512, 110),
        Pressure::default(),
    );
    let Decision::Refuse(refusal) = &review.decisions["big"] else {
        panic!("{review:?}");
    };
    let verdict = refusal.verdict();
    assert_eq!(verdict.reason, "OutOfmemory");
    assert_eq!(
        verdict.message,
        "Pod was rejected: Node didn't have enough resource: memory, requested: 1073741824, \
         used: 67108864, capacity: 536870912"
    );
    assert!(verdict.grace.is_zero());
}

#[test]
fn each_reason() {
    let taken = pod(
        "taken",
        1,
        &json!({
            "requests": {"cpu": "600m", "memory": "64Mi"},
            "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"}]
        }),
    );
    let port = |port: i32, protocol: &str, ip: &str| json!({"ports": [{"containerPort": 1, "hostPort": port, "protocol": protocol, "hostIP": ip}]});
    let selector = |key: &str, operator: &str, values: &[&str]| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [
                {"key": key, "operator": operator, "values": values}]}]}}}})
    };
    for (name, spec, want) in [
        ("empty", json!({}), "take"),
        (
            "cpu",
            json!({"requests": {"cpu": "500m", "memory": "1Ti"}}),
            "OutOfcpu",
        ),
        ("cpu left", json!({"requests": {"cpu": "400m"}}), "take"),
        (
            "storage",
            json!({"requests": {"ephemeral-storage": "2Gi"}}),
            "OutOfephemeral-storage",
        ),
        (
            "huge pages",
            json!({"requests": {"hugepages-2Mi": "2Mi"}}),
            "OutOfhugepages-2Mi",
        ),
        (
            "somebody else's",
            json!({"requests": {"example.com/card": "1"}}),
            "take",
        ),
        ("port", port(8080, "TCP", ""), "NodePorts"),
        (
            "port at an address",
            port(8080, "TCP", "192.0.2.1"),
            "NodePorts",
        ),
        ("other protocol", port(8080, "UDP", ""), "take"),
        ("other address", port(53, "UDP", "192.0.2.2"), "take"),
        (
            "host network",
            json!({"hostNetwork": true, "ports": [{"containerPort": 8080}]}),
            "NodePorts",
        ),
        (
            "architecture",
            json!({"nodeSelector": {"kubernetes.io/arch": "amd64"}}),
            "NodeAffinity",
        ),
        (
            "unknown label",
            json!({"nodeSelector": {"site": "hut"}}),
            "take",
        ),
        (
            "affinity",
            selector("kubernetes.io/arch", "In", &["amd64"]),
            "NodeAffinity",
        ),
        (
            "not in",
            selector("kubernetes.io/arch", "NotIn", &["amd64"]),
            "take",
        ),
        ("unknown", selector("site", "In", &["hut"]), "take"),
        (
            "os",
            json!({"os": {"name": "windows"}}),
            "PodOSNotSupported",
        ),
        (
            "os label",
            json!({"labels": {"kubernetes.io/os": "windows"}}),
            "PodOSSelectorNodeLabelDoesNotMatch",
        ),
    ] {
        let new = pod("new", 2, &spec);
        let pods = [(&taken, Standing::Taken), (&new, Standing::New)];
        let review = decide(&pods, &node_of(1000, 512, 110), Pressure::default());
        assert_eq!(outcome(&review, "new"), want, "{name}");
        assert_eq!(
            review.decisions.len(),
            1,
            "{name}: the other is not looked at"
        );
    }
    let new = pod("new", 2, &json!({}));
    let pods = [(&taken, Standing::Taken), (&new, Standing::New)];
    let review = decide(&pods, &node_of(1000, 512, 1), Pressure::default());
    assert_eq!(outcome(&review, "new"), "OutOfpods");
}

#[test]
fn what_leaves_is_waited_for_and_what_is_over_counts_nothing() {
    let old = pod(
        "old",
        1,
        &json!({"requests": {"cpu": "1"}, "ports": [{"containerPort": 1, "hostPort": 80}]}),
    );
    let new = pod(
        "new",
        2,
        &json!({"ports": [{"containerPort": 1, "hostPort": 80}]}),
    );
    let node = node_of(1000, 512, 110);
    for (standing, want) in [
        (Standing::Taken, "NodePorts"),
        (Standing::Leaving, "wait"),
        (Standing::Over, "take"),
    ] {
        let review = decide(
            &[(&old, standing), (&new, Standing::New)],
            &node,
            Pressure::default(),
        );
        assert_eq!(outcome(&review, "new"), want, "{standing:?}");
    }
    // What waits holds its place.
    let later = pod(
        "later",
        3,
        &json!({"ports": [{"containerPort": 1, "hostPort": 80}]}),
    );
    let pods = [
        (&later, Standing::New),
        (&old, Standing::Leaving),
        (&new, Standing::New),
    ];
    let review = decide(&pods, &node, Pressure::default());
    assert_eq!(
        (outcome(&review, "new"), outcome(&review, "later")),
        ("wait".into(), "NodePorts".into())
    );
}

#[test]
fn pressure_refuses_by_class() {
    let best = pod("best", 1, &json!({}));
    let patient = pod(
        "patient",
        2,
        &json!({"tolerations": [
        {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]}),
    );
    let burstable = pod("burstable", 3, &json!({"requests": {"cpu": "1m"}}));
    let critical = pod("critical", 4, &json!({"priority": 2_000_001_000}));
    let pods = [
        (&best, Standing::New),
        (&patient, Standing::New),
        (&burstable, Standing::New),
        (&critical, Standing::New),
    ];
    let node = node_of(1000, 512, 110);
    let memory = Pressure {
        memory: true,
        ..Pressure::default()
    };
    let disk = Pressure {
        disk: true,
        ..memory
    };
    let seen = |review: &Review| -> Vec<String> {
        ["best", "patient", "burstable", "critical"]
            .iter()
            .map(|uid| outcome(review, uid))
            .collect()
    };
    let review = decide(&pods, &node, memory);
    assert_eq!(seen(&review), ["Evicted", "take", "take", "take"]);
    let review = decide(&pods, &node, disk);
    assert_eq!(seen(&review), ["Evicted", "Evicted", "Evicted", "take"]);
    let Decision::Refuse(refusal) = &review.decisions["best"] else {
        panic!("{review:?}");
    };
    assert_eq!(
        refusal.verdict().message,
        "Pod was rejected: The node had condition: [MemoryPressure DiskPressure]. "
    );
}

#[test]
fn a_critical_pod_takes_the_place_of_the_least_important() {
    let best = pod("best", 1, &json!({"requests": {}}));
    let small = pod("small", 2, &json!({"requests": {"memory": "100Mi"}}));
    let large = pod("large", 3, &json!({"requests": {"memory": "400Mi"}}));
    let from_file = pod(
        "file",
        4,
        &json!({
        "annotations": {"kubernetes.io/config.source": "file"}, "requests": {"memory": "300Mi"}}),
    );
    let node = node_of(1000, 512, 110);
    let pods = [
        (&best, Standing::Taken),
        (&small, Standing::Taken),
        (&large, Standing::Taken),
        (&from_file, Standing::New),
    ];
    let review = decide(&pods, &node, Pressure::default());
    assert_eq!(outcome(&review, "file"), "wait");
    assert_eq!(
        review.preempted,
        BTreeSet::from(["large".to_owned()]),
        "the one that is enough"
    );
    // Next round: the one that goes is on its way, nobody else is ended.
    let pods = [
        (&best, Standing::Taken),
        (&small, Standing::Taken),
        (&large, Standing::Leaving),
        (&from_file, Standing::New),
    ];
    let review = decide(&pods, &node, Pressure::default());
    assert_eq!(
        (outcome(&review, "file"), review.preempted.len()),
        ("wait".into(), 0)
    );
    // Between critical ones nobody gives way, and what can never fit ends nobody.
    let huge = pod(
        "huge",
        5,
        &json!({"priority": 2_000_001_000, "requests": {"memory": "1Gi"}}),
    );
    let pods = [
        (&from_file, Standing::Taken),
        (&small, Standing::Taken),
        (&huge, Standing::New),
    ];
    let review = decide(&pods, &node, Pressure::default());
    assert_eq!(
        (outcome(&review, "huge"), review.preempted.len()),
        ("OutOfmemory".into(), 0)
    );
}

fn arbitrary() -> impl Strategy<Value = Vec<(u32, i64, i64, u8, bool)>> {
    proptest::collection::vec(
        (0u32..100, 0i64..800, 0i64..300, 0u8..4, any::<bool>()),
        1..12,
    )
}

proptest! {
    /// Never more is taken than there is, whatever was there before; who is taken does not depend
    /// on the order in which pods are listed; and a second look changes nothing.
    #[test]
    fn never_too_much_and_always_the_same(given in arbitrary(), pods_max in 1i64..10) {
        let pods: Vec<(Pod, Standing)> = given
            .iter()
            .enumerate()
            .map(|(i, (created, cpu, memory, standing, critical))| {
                let pod = pod(&format!("p{i}"), *created, &json!({
                    "requests": {"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")},
                    "priority": if *critical { 2_000_000_000 } else { 0 },
                }));
                let standing = match standing {
                    0 => Standing::Taken,
                    1 => Standing::Leaving,
                    2 => Standing::Over,
                    _ => Standing::New,
                };
                (pod, standing)
            })
            .collect();
        let node = node_of(1000, 512, pods_max);
        let listed: Vec<(&Pod, Standing)> = pods.iter().map(|(p, s)| (p, *s)).collect();
        let review = decide(&listed, &node, Pressure::default());
        let backwards: Vec<(&Pod, Standing)> = listed.iter().rev().copied().collect();
        prop_assert_eq!(&decide(&backwards, &node, Pressure::default()), &review);

        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap();
        let mut before = Used::default();
        let mut after = Used::default();
        let mut next = Vec::new();
        for (pod, standing) in &listed {
            let uid = uid(pod);
            let decision = review.decisions.get(&uid);
            prop_assert_eq!(decision.is_some(), *standing == Standing::New);
            if matches!(standing, Standing::Taken | Standing::Leaving) {
                before.add(pod);
                after.add(pod);
            }
            // One that is new and gives way at once never begins.
            if decision == Some(&Decision::Take) && !review.preempted.contains(&uid) {
                after.add(pod);
            }
            if review.preempted.contains(&uid) {
                prop_assert_eq!(*standing == Standing::Taken || decision == Some(&Decision::Take), true);
            }
            next.push((*pod, match decision {
                Some(Decision::Take) => Standing::Taken,
                Some(Decision::Refuse(_)) => Standing::Over,
                Some(Decision::Wait) | None => *standing,
            }));
        }
        // Of what was there before there may be too much already; none of it is added to.
        prop_assert!(after.pods <= pods_max.max(before.pods));
        for (name, amount) in &after.requests {
            let held = before.requests.get(name).copied().unwrap_or(0);
            let capacity = node.get(name).unwrap();
            prop_assert!(*amount <= capacity.max(held), "{name}: {amount}");
        }
        let again = decide(&next, &node, Pressure::default());
        prop_assert!(again.decisions.values().all(|d| *d != Decision::Take) || !review.preempted.is_empty());
    }
}
