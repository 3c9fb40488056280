use super::*;

fn ask(command: &[String], tty: bool) -> Ask<'_> {
    Ask {
        id: "c",
        command,
        tty,
        stdin: false,
        size: None,
    }
}

fn described(spec: &str, tty: bool) -> Value {
    let command = ["id".to_owned(), "-u".to_owned()];
    let bytes = describe(spec.as_bytes(), &ask(&command, tty)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

const SPEC: &str = r#"{"ociVersion":"1.0.2","process":{"terminal":true,"consoleSize":{"width":1,"height":2},
"args":["sleep"],"env":["A=b"],"cwd":"/w","user":{"uid":405,"additionalGids":[7]},
"noNewPrivileges":true,"capabilities":{"bounding":["CAP_KILL"]},"rlimits":[{"type":"RLIMIT_NOFILE","hard":9,"soft":9}],
"selinuxLabel":"l"}}"#;

#[test]
fn everything_but_the_arguments_is_the_containers() {
    let plain = described(SPEC, false);
    assert_eq!(plain["args"], serde_json::json!(["id", "-u"]));
    assert_eq!(plain["terminal"], Value::Bool(false));
    assert_eq!(plain.get("consoleSize"), None);
    let own: Value = serde_json::from_str(SPEC).unwrap();
    for key in [
        "env",
        "cwd",
        "user",
        "noNewPrivileges",
        "capabilities",
        "rlimits",
        "selinuxLabel",
    ] {
        assert_eq!(plain[key], own["process"][key], "{key}");
    }
}

#[test]
fn a_terminal_has_a_type() {
    let tty = described(SPEC, true);
    assert_eq!(tty["terminal"], Value::Bool(true));
    assert_eq!(tty["env"], serde_json::json!(["A=b", "TERM=xterm"]));
    let own = described(&SPEC.replace("A=b", "TERM=linux"), true);
    assert_eq!(own["env"], serde_json::json!(["TERM=linux"]));
    let none = described(r#"{"process":{"cwd":"/"}}"#, true);
    assert_eq!(none["env"], serde_json::json!(["TERM=xterm"]));
}

#[test]
fn a_terminal_has_its_size_from_the_start() {
    let command = ["sh".to_owned()];
    let size = Size {
        width: 91,
        height: 17,
    };
    let sized = |tty| Ask {
        size: Some(size),
        ..ask(&command, tty)
    };
    let described = |tty| -> Value {
        serde_json::from_slice(&describe(SPEC.as_bytes(), &sized(tty)).unwrap()).unwrap()
    };
    let told = serde_json::json!({"width": 91, "height": 17});
    assert_eq!(described(true)["consoleSize"], told);
    assert_eq!(described(false).get("consoleSize"), None);
}

#[test]
fn what_cannot_be_run_is_an_error() {
    let command = ["id".to_owned()];
    for spec in ["", "{}", r#"{"process":7}"#, "[]"] {
        assert!(
            matches!(
                describe(spec.as_bytes(), &ask(&command, false)),
                Err(RuntimeError::Other { .. })
            ),
            "{spec}"
        );
    }
    assert!(matches!(
        describe(SPEC.as_bytes(), &ask(&[], false)),
        Err(RuntimeError::Exec { exit_code: 126, .. })
    ));
}
