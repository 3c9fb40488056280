//! The cases of kubelet's own tests (`kubelet_pods_test.go: TestPodPhaseWith…`).

use serde_json::{Value, json};

use super::*;

fn waiting() -> Value {
    json!({"state": {"waiting": {"reason": "x"}}, "started": false})
}

/// Waits to run again after it ended so.
fn again(exit_code: i32) -> Value {
    json!({"state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": exit_code}}})
}

fn running() -> Value {
    json!({"state": {"running": {}}, "started": true})
}

fn starting() -> Value {
    json!({"state": {"running": {}}, "started": false})
}

fn ended(exit_code: i32) -> Value {
    json!({"state": {"terminated": {"exitCode": exit_code}}})
}

struct Case {
    restart: RestartPolicy,
    /// Init containers and sidecars: whether it is one, and its status.
    inits: Vec<(bool, Value)>,
    mains: Vec<Value>,
    terminal: bool,
}

fn phase(case: &Case) -> &'static str {
    let named = |prefix: &str, at: usize, mut value: Value| {
        value["name"] = json!(format!("{prefix}{at}"));
        value["ready"] = json!(false);
        value["image"] = json!("");
        value["imageID"] = json!("");
        value["restartCount"] = json!(0);
        value
    };
    let containers = |prefix: &str, sidecars: &[bool]| -> Vec<Container> {
        let each = sidecars.iter().enumerate().map(|(at, sidecar)| Container {
            name: format!("{prefix}{at}"),
            restart_policy: sidecar.then(|| "Always".to_owned()),
            ..Container::default()
        });
        each.collect()
    };
    let statuses = |prefix: &str, values: Vec<Value>| -> Vec<ContainerStatus> {
        let each = values.into_iter().enumerate();
        let known = each.filter(|(_, value)| !value.is_null());
        let known = known.map(|(at, value)| named(prefix, at, value));
        known
            .map(|value| serde_json::from_value(value).unwrap())
            .collect()
    };
    let sidecars: Vec<bool> = case.inits.iter().map(|(sidecar, _)| *sidecar).collect();
    let inits = containers("i", &sidecars);
    let mains = containers("c", &vec![false; case.mains.len()]);
    let init_values = case.inits.iter().map(|(_, value)| value.clone()).collect();
    let (init_statuses, main_statuses) = (
        statuses("i", init_values),
        statuses("c", case.mains.clone()),
    );
    of(&Facts {
        restart: case.restart,
        inits: &inits.iter().collect::<Vec<_>>(),
        init_statuses: &init_statuses,
        mains: &mains.iter().collect::<Vec<_>>(),
        statuses: &main_statuses,
        terminal: case.terminal,
    })
}

use RestartPolicy::{Always, Never, OnFailure};

#[test]
fn main_containers_alone() {
    for (name, restart, mains, terminal, expected) in [
        (
            "all running",
            Always,
            vec![running(), running()],
            false,
            "Running",
        ),
        (
            "all stopped",
            Always,
            vec![ended(0), ended(0)],
            false,
            "Running",
        ),
        (
            "all stopped, the pod is over",
            Always,
            vec![ended(0), ended(0)],
            true,
            "Succeeded",
        ),
        (
            "all failed, the pod is over",
            Always,
            vec![ended(1), ended(0)],
            true,
            "Failed",
        ),
        ("mixed", Always, vec![running(), ended(1)], false, "Running"),
        (
            "mixed, one unknown",
            Always,
            vec![running(), Value::Null],
            false,
            "Pending",
        ),
        (
            "mixed, one waiting",
            Always,
            vec![running(), waiting()],
            false,
            "Pending",
        ),
        (
            "mixed, one crash-loops",
            Always,
            vec![running(), again(1)],
            false,
            "Running",
        ),
        ("crash-loops", Always, vec![again(1)], false, "Running"),
        (
            "all running",
            Never,
            vec![running(), running()],
            false,
            "Running",
        ),
        (
            "all succeeded",
            Never,
            vec![ended(0), ended(0)],
            false,
            "Succeeded",
        ),
        (
            "all failed",
            Never,
            vec![ended(1), ended(1)],
            false,
            "Failed",
        ),
        ("mixed", Never, vec![running(), ended(0)], false, "Running"),
        (
            "mixed, one unknown",
            Never,
            vec![running(), Value::Null],
            false,
            "Pending",
        ),
        (
            "all succeeded",
            OnFailure,
            vec![ended(0), ended(0)],
            false,
            "Succeeded",
        ),
        (
            "all failed",
            OnFailure,
            vec![ended(1), ended(1)],
            false,
            "Running",
        ),
        (
            "mixed",
            OnFailure,
            vec![running(), ended(0)],
            false,
            "Running",
        ),
        (
            "mixed, one waiting",
            OnFailure,
            vec![running(), waiting()],
            false,
            "Pending",
        ),
        (
            "one crash-loops",
            OnFailure,
            vec![ended(0), again(1)],
            false,
            "Running",
        ),
        ("nothing known", Always, vec![Value::Null], false, "Pending"),
    ] {
        let case = Case {
            restart,
            inits: vec![],
            mains,
            terminal,
        };
        assert_eq!(phase(&case), expected, "{restart:?}: {name}");
    }
}

#[test]
fn with_init_containers() {
    for (name, restart, init, mains, expected) in [
        (
            "empty, waiting",
            OnFailure,
            Value::Null,
            vec![waiting()],
            "Pending",
        ),
        ("initializing", OnFailure, running(), vec![], "Pending"),
        ("running", OnFailure, running(), vec![waiting()], "Pending"),
        (
            "has failed, to run again",
            OnFailure,
            again(1),
            vec![waiting()],
            "Pending",
        ),
        (
            "failed, crash-loops",
            Always,
            again(1),
            vec![waiting()],
            "Pending",
        ),
        (
            "failed for good",
            Never,
            ended(1),
            vec![waiting()],
            "Failed",
        ),
        (
            "failed for good, waits",
            Never,
            again(1),
            vec![waiting()],
            "Failed",
        ),
        ("waiting", Never, waiting(), vec![], "Pending"),
        (
            "done, nothing known",
            Never,
            ended(0),
            vec![Value::Null],
            "Pending",
        ),
        (
            "done, running",
            Always,
            ended(0),
            vec![running()],
            "Running",
        ),
        ("done, done", Never, ended(0), vec![ended(0)], "Succeeded"),
        ("done, failed", Never, ended(0), vec![ended(1)], "Failed"),
    ] {
        let case = Case {
            restart,
            inits: vec![(false, init)],
            mains,
            terminal: false,
        };
        assert_eq!(phase(&case), expected, "{restart:?}: {name}");
    }
}

#[test]
fn with_sidecars() {
    for (name, restart, sidecar, mains, expected) in [
        (
            "nothing known",
            Always,
            Value::Null,
            vec![Value::Null],
            "Pending",
        ),
        ("waiting", Always, waiting(), vec![waiting()], "Pending"),
        ("starts up", Always, starting(), vec![waiting()], "Pending"),
        (
            "up, main waits",
            Always,
            running(),
            vec![waiting()],
            "Pending",
        ),
        (
            "up, main runs",
            Always,
            running(),
            vec![running()],
            "Running",
        ),
        (
            "ended, main waits",
            Always,
            ended(1),
            vec![waiting()],
            "Pending",
        ),
        (
            "starts up again, main runs",
            Always,
            starting(),
            vec![running()],
            "Running",
        ),
        (
            "ended, main runs",
            Always,
            ended(1),
            vec![running()],
            "Running",
        ),
        (
            "waits to run again, main runs",
            Always,
            again(1),
            vec![running()],
            "Running",
        ),
        ("up, main done", Never, running(), vec![ended(0)], "Running"),
        (
            "failed as it was ended, main done",
            Never,
            ended(137),
            vec![ended(0)],
            "Succeeded",
        ),
        (
            "ended, main failed",
            Never,
            ended(0),
            vec![ended(1)],
            "Failed",
        ),
        (
            "ended, main failed",
            OnFailure,
            ended(0),
            vec![ended(1)],
            "Running",
        ),
    ] {
        let case = Case {
            restart,
            inits: vec![(true, sidecar)],
            mains,
            terminal: false,
        };
        assert_eq!(phase(&case), expected, "{restart:?}: {name}");
    }
}
