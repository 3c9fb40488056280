//! Each call that edgecore makes of containerd while a pod is created and deleted, answered once as a
//! failing daemon answers: the pod runs all the same, or goes all the same, nothing counts as a
//! restart that was none, and nothing is left behind.

use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use outpost_tests::arena::{Arena, IMAGE, restarts};
use outpost_tests::containerd;
use outpost_tests::grpc_proxy::{Fault, Rule};
use serde_json::{Value, json};

/// gRPC `UNAVAILABLE` and `UNKNOWN` (what runc's errors arrive as).
const UNAVAILABLE: u16 = 14;
const UNKNOWN: u16 = 2;

/// Calls that a pod's creation makes with its uid in them.
const CREATING: [&str; 5] = [
    "Containers/Create",
    "Snapshots/Prepare",
    "Store/Create",
    "Tasks/Create",
    "Tasks/Start",
];
/// Calls that its deletion makes.
const DELETING: [&str; 6] = [
    "Tasks/Kill",
    "Tasks/Get",
    "Tasks/Delete",
    "Store/Delete",
    "Containers/Delete",
    "Snapshots/Remove",
];
/// Calls about everything, which each pod waits for.
const GENERAL: [&str; 3] = ["Containers/List", "Tasks/List", "Images/Get"];

const ONCE: [Fault; 4] = [
    Fault::Error(UNAVAILABLE),
    Fault::Error(UNKNOWN),
    Fault::CutBefore,
    Fault::CutAfter,
];

fn spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": false,
        "containers": [{
            "name": "main", "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait $!"],
        }],
    })
}

fn on_arena(name: &str, story: impl AsyncFnOnce(&mut Arena) -> Result<()>) {
    if containerd::skipped() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut arena = Arena::start(name, containerd::binaries()).await.unwrap();
        let outcome = async {
            arena.create("first", spec()).await?;
            arena.running("first").await?;
            arena.delete("first", 5).await?;
            arena.gone("first").await?;
            arena.settle().await?;
            story(&mut arena).await?;
            let bad = arena.world.complaints();
            ensure!(bad.is_empty(), "errors in the log:\n{}", bad.join("\n"));
            Ok(())
        };
        if let Err(error) = outcome.await {
            panic!("{error:#}\n{}", arena.logs());
        }
    });
}

/// One pod, one call that goes wrong once.
async fn one(
    arena: &mut Arena,
    name: &str,
    method: &str,
    fault: Fault,
    while_deleting: bool,
) -> Result<()> {
    let rule = Rule {
        method: method.to_owned(),
        needle: String::new(),
        fault,
        times: 1,
    };
    let mut hits = (!while_deleting).then(|| arena.proxy.inject(rule.clone()));
    arena.create(name, spec()).await?;
    let pod = arena.running(name).await?;
    // What the runtime itself says of a start is a failed start (`StartError`) and counts, as with
    // kubelet; a call that was lost does not.
    let is_refused = matches!(fault, Fault::Error(UNKNOWN)) && method.starts_with("Tasks/");
    ensure!(
        restarts(&pod) == 0 || (is_refused && restarts(&pod) == 1),
        "a restart that was none: {:#}",
        pod["status"]
    );
    if while_deleting {
        hits = Some(arena.proxy.inject(rule));
    }
    arena.delete(name, 5).await?;
    arena.gone(name).await?;
    let count = hits.map_or(0, |hits| {
        *hits.lock().unwrap_or_else(PoisonError::into_inner)
    });
    arena.proxy.calm();
    arena.nothing_leaked().await?;
    if count == 0 && !method.starts_with("Store/") {
        bail!("{method} was never called");
    }
    Ok(())
}

#[test]
fn a_call_that_fails_once_while_a_pod_is_made() {
    on_arena("made", async |arena| {
        for method in CREATING.iter().chain(&GENERAL) {
            for fault in ONCE {
                let name = title(method, fault);
                one(arena, &name, method, fault, false)
                    .await
                    .with_context(|| format!("{method} {fault:?}"))?;
                eprintln!("ok {method} {fault:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_call_that_fails_once_while_a_pod_goes() {
    on_arena("goes", async |arena| {
        for method in DELETING {
            for fault in ONCE {
                let name = title(method, fault);
                one(arena, &name, method, fault, true)
                    .await
                    .with_context(|| format!("{method} {fault:?}"))?;
                eprintln!("ok {method} {fault:?}");
            }
        }
        Ok(())
    });
}

/// A call without an answer holds its own pod only, and for no longer than its deadline.
#[test]
fn a_call_that_hangs_holds_one_pod_for_a_while() {
    on_arena("hangs", async |arena| {
        let calls = ["Containers/Create", "Snapshots/Prepare", "Store/Create"];
        let mut uids = Vec::new();
        for method in calls {
            let name = title(method, Fault::Hang);
            // The rule cannot know the uid before the pod is made, and a pod is quickly made: any
            // pod's call will do, and there is one of each kind.
            let hits = arena.proxy.inject(Rule {
                method: method.to_owned(),
                needle: String::new(),
                fault: Fault::Hang,
                times: 1,
            });
            arena.create(&name, spec()).await?;
            uids.push((name, hits));
        }
        arena.create("unhindered", spec()).await?;
        for name in uids
            .iter()
            .map(|(name, _)| name.as_str())
            .chain(["unhindered"])
        {
            let pod = arena.running(name).await?;
            ensure!(restarts(&pod) == 0, "{name} was restarted");
        }
        for (name, _) in &uids {
            arena.delete(name, 5).await?;
        }
        arena.delete("unhindered", 5).await?;
        for name in uids
            .iter()
            .map(|(name, _)| name.as_str())
            .chain(["unhindered"])
        {
            arena.gone(name).await?;
        }
        arena.proxy.calm();
        arena.nothing_leaked().await
    });
}

/// A daemon that answers late is waited for; nothing is done twice.
#[test]
fn calls_that_are_slow_change_nothing() {
    on_arena("slow", async |arena| {
        for method in CREATING.iter().chain(&DELETING) {
            arena.proxy.inject(Rule {
                method: (*method).to_owned(),
                needle: String::new(),
                fault: Fault::Delay(Duration::from_millis(300)),
                times: 3,
            });
        }
        for name in ["slow-1", "slow-2"] {
            arena.create(name, spec()).await?;
        }
        for name in ["slow-1", "slow-2"] {
            let pod = arena.running(name).await?;
            ensure!(restarts(&pod) == 0, "{name} was restarted");
            arena.delete(name, 5).await?;
        }
        for name in ["slow-1", "slow-2"] {
            arena.gone(name).await?;
        }
        arena.proxy.calm();
        arena.nothing_leaked().await
    });
}

/// A pod's name from what happens to it.
fn title(method: &str, fault: Fault) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let name: String = format!("{method}-{fault:?}").chars().map(plain).collect();
    name.trim_matches('-').to_owned()
}
