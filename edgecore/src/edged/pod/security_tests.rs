use serde_json::{Value, json};

use super::*;

fn pod(spec: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u-1"},
        "spec": spec,
    }))
    .unwrap()
}

fn asked(shared: &Value, own: &Value, rules: &Rules) -> Result<ContainerSpec, ConfigError> {
    let pod = pod(&json!({
        "securityContext": shared, "containers": [{"name": "c", "securityContext": own}]
    }));
    of(&pod, &pod.spec.as_ref().unwrap().containers[0], rules)
}

#[test]
fn non_root_is_verified() {
    for (name, context, user, want) in [
        ("not asked", json!({}), "", true),
        ("image is root", json!({"runAsNonRoot": true}), "", false),
        ("image is 0", json!({"runAsNonRoot": true}), "0:0", false),
        (
            "image is a number",
            json!({"runAsNonRoot": true}),
            "65532:65532",
            true,
        ),
        (
            "image is a name",
            json!({"runAsNonRoot": true}),
            "nobody",
            false,
        ),
        (
            "pod says a number",
            json!({"runAsNonRoot": true, "runAsUser": 5}),
            "",
            true,
        ),
        (
            "pod says 0",
            json!({"runAsNonRoot": true, "runAsUser": 0}),
            "7",
            false,
        ),
    ] {
        let pod = pod(&json!({"containers": [{"name": "c", "securityContext": context}]}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(
            verify_non_root(&pod, container, user).is_ok(),
            want,
            "{name}"
        );
    }
}

#[test]
fn seccomp_is_the_runtimes_unless_something_else_is_said() {
    let strict = Rules::default();
    let plain = Rules {
        unconfined_by_default: true,
        ..Rules::default()
    };
    let none = json!({});
    let profile = |kind: &str| json!({"seccompProfile": {"type": kind}});
    let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "p/a.json"}});
    let name = SeccompChoice::Localhost("p/a.json".to_owned());
    for (shared, own, rules, expected) in [
        (&none, &none, &strict, Some(SeccompChoice::RuntimeDefault)),
        (&none, &none, &plain, Some(SeccompChoice::Unconfined)),
        (
            &none,
            &profile("RuntimeDefault"),
            &plain,
            Some(SeccompChoice::RuntimeDefault),
        ),
        (
            &profile("Unconfined"),
            &none,
            &strict,
            Some(SeccompChoice::Unconfined),
        ),
        (&profile("Unconfined"), &local, &strict, Some(name.clone())),
        (&local, &none, &strict, Some(name.clone())),
        (&profile("Localhost"), &none, &strict, None),
        (&profile("Whatever"), &none, &strict, None),
    ] {
        let found = asked(shared, own, rules).ok().map(|spec| spec.seccomp);
        assert_eq!(found, expected, "{shared} {own}");
    }
}

#[test]
fn what_cannot_be_had_is_refused_in_words() {
    let rules = Rules::default();
    let of_pod = |spec: Value| {
        let pod = pod(&spec);
        of(&pod, &pod.spec.as_ref().unwrap().containers[0], &rules)
    };
    let refused = of_pod(json!({"hostUsers": false, "containers": [{"name": "c"}]}));
    assert!(refused.unwrap_err().0.contains("hostUsers"));
    assert!(of_pod(json!({"hostUsers": true, "containers": [{"name": "c"}]})).is_ok());
    let windows = json!({"windowsOptions": {"runAsUserName": "x"}});
    assert!(asked(&windows, &json!({}), &rules).is_err());
    assert!(asked(&json!({}), &windows, &rules).is_err());
}

#[test]
fn apparmor_by_field_then_annotation() {
    let found = |annotation: &str, own: Value| {
        let mut pod = pod(&json!({"containers": [{"name": "c", "securityContext": own}]}));
        pod.metadata.annotations = Some(std::collections::BTreeMap::from([(
            format!("{APPARMOR_ANNOTATION}c"),
            annotation.to_owned(),
        )]));
        of(
            &pod,
            &pod.spec.as_ref().unwrap().containers[0],
            &Rules::default(),
        )
        .map(|s| s.apparmor)
    };
    let local = AppArmorChoice::Localhost("mine".to_owned());
    assert_eq!(
        found("runtime/default", json!({})),
        Ok(AppArmorChoice::RuntimeDefault)
    );
    assert_eq!(
        found("unconfined", json!({})),
        Ok(AppArmorChoice::Unconfined)
    );
    assert_eq!(found("localhost/mine", json!({})), Ok(local.clone()));
    let field = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}});
    assert_eq!(found("unconfined", field), Ok(local));
    assert!(found("localhost/", json!({})).is_err());
    assert!(found("whatever", json!({})).is_err());
}

#[test]
fn container_settings_go_over_the_pods() {
    let shared = json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [5, 4, 3],
        "supplementalGroupsPolicy": "Strict"});
    let own = json!({"runAsUser": 9, "procMount": "Unmasked", "privileged": true,
        "allowPrivilegeEscalation": false});
    let spec = asked(&shared, &own, &Rules::default()).unwrap();
    assert_eq!((spec.run_as_user, spec.run_as_group), (Some(9), Some(2)));
    assert_eq!(spec.supplemental_groups, [3, 4, 5]);
    assert_eq!(spec.groups_policy, GroupsPolicy::Strict);
    assert!(spec.unmasked_proc && spec.privileged && !spec.no_new_privileges);
}
