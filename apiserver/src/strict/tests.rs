use proptest::prelude::*;
use serde_json::json;

use super::*;

#[test]
fn recorded_messages() {
    for (kind, api_version, body, message) in [
        (
            "ConfigMap",
            "v1",
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"z"},"data":{"a":1}}"#,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            "Deployment",
            "apps/v1",
            r#"{"spec": {"replicas": "x"}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "Secret",
            "v1",
            r#"{"data": {"a": "!!"}}"#,
            "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 0",
        ),
        (
            "Pod",
            "v1",
            r#"{"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "abc"}}}]}}"#,
            "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            "Pod",
            "v1",
            r#"{"spec": {"containers": {"name": "c"}}}"#,
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            "Pod",
            "v1",
            "{",
            "couldn't get version/kind; json parse error: unexpected end of JSON input",
        ),
    ] {
        assert_eq!(
            decode(body.as_bytes(), api_version, kind)
                .unwrap_err()
                .to_string(),
            message
        );
    }
}

#[test]
fn problems() {
    let body = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"z","creationTimestamp":null},"data":{"a":"1","a":"2"},"x":1}"#;
    let (value, problems) = decode(body, "v1", "ConfigMap").unwrap();
    assert_eq!(value["data"]["a"], "2");
    assert_eq!(
        problems,
        ["duplicate field \"data.a\"", "unknown field \"x\""]
    );
    assert_eq!(
        strict_message("v1", "ConfigMap", &problems),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.a\", unknown field \"x\""
    );
    let body = br#"{"spec":{"template":{"spec":{"containers":[{"name":"c","imaeg":"x"}],"volumes":[{"name":"v","hostPath":{"path":"/","zz":1}}]}}}}"#;
    let (_, problems) = decode(body, "apps/v1", "Deployment").unwrap();
    assert_eq!(
        problems,
        [
            "unknown field \"spec.template.spec.containers[0].imaeg\"",
            "unknown field \"spec.template.spec.volumes[0].hostPath.zz\""
        ]
    );
}

#[test]
fn custom_resources_pass_through() {
    let (value, problems) = decode(br#"{"spec":{"a":1}}"#, "ex.io/v1", "Thing").unwrap();
    assert_eq!((value, problems), (json!({"spec": {"a": 1}}), vec![]));
}

#[test]
fn schemas_of_crds_are_understood() {
    let crd = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "string"}, "default": ["x"],
            "x-kubernetes-list-type": "set"}}, "additionalProperties": true}}}]}});
    assert_eq!(
        check_value(&crd, "apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        Ok(vec![])
    );
}

#[test]
fn pruning() {
    let mut pod = json!({"kind": "Pod", "zz": 1, "spec": {"containers": [{"name": "c", "q": {}}], "volumes": [{"name": "v", "emptyDir": {}}]}});
    assert_eq!(prune(&mut pod, "v1", "Pod"), ["spec.containers[0].q", "zz"]);
    assert_eq!(
        pod,
        json!({"kind": "Pod", "spec": {"containers": [{"name": "c"}], "volumes": [{"name": "v", "emptyDir": {}}]}})
    );
}

proptest! {
    #[test]
    fn never_panics(body in proptest::collection::vec(any::<u8>(), 0..60), text in r#"[{}\[\]",:a1 \\]{0,40}"#) {
        drop(decode(&body, "v1", "Pod"));
        drop(decode(text.as_bytes(), "v1", "Pod"));
    }
}
