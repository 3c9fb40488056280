//! Commands in running containers.

mod sessions;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use edgecore::edged::runtime::containerd::ContainerdRuntime;
use edgecore::edged::runtime::session::{AttachRequest, ExecRequest, Input, Output, Session, Size};
use edgecore::edged::runtime::{
    ContainerSpec, EXEC_OUTPUT_BYTES_MAX, ExecOutput, Runtime, RuntimeError, SandboxSpec,
};

use crate::wait;
use crate::world::{PATIENCE, World, note};

/// A world with one pod whose one container sleeps.
struct Sleeper {
    world: World,
    pod: SandboxSpec,
    id: String,
}

impl Sleeper {
    async fn new() -> Option<Self> {
        Self::with(|spec| spec).await
    }

    async fn with(change: impl FnOnce(ContainerSpec) -> ContainerSpec) -> Option<Self> {
        let world = World::new().await?;
        let pod = SandboxSpec {
            host_network: true,
            ..world.pod()
        };
        world.runtime.ensure_sandbox(&pod).await.unwrap();
        let spec = change(world.container(&pod, "main", "trap 'exit 0' TERM; sleep 1000 & wait"));
        let id = world.runtime.start(&spec).await.unwrap();
        Some(Self { world, pod, id })
    }

    /// Whose container runs `script` instead.
    async fn running(script: &str) -> Option<Self> {
        Self::with(|spec| ContainerSpec {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..spec
        })
        .await
    }

    fn log(&self) -> PathBuf {
        let logs = self.world.directory.path().join("logs");
        logs.join(&self.pod.pod_uid).join("main/0.log")
    }

    async fn until_logged(&self, word: &str) {
        wait::until(&format!("`{word}` to be logged"), PATIENCE, async || {
            let text = std::fs::read_to_string(self.log())?;
            Ok(text.contains(word).then_some(()))
        })
        .await
        .unwrap();
    }

    async fn run(&self, script: &str, limit: Duration) -> Result<ExecOutput, RuntimeError> {
        let command = ["sh", "-c", script].map(str::to_owned);
        self.world
            .runtime
            .exec_sync(&self.id, &command, limit)
            .await
    }

    async fn output(&self, script: &str) -> (i32, String) {
        let ran = self.run(script, PATIENCE).await.unwrap();
        (ran.exit_code, String::from_utf8(ran.output).unwrap())
    }

    /// Directories of commands that are still there.
    fn places(&self) -> Vec<String> {
        let root = self.world.config.state_dir.join("exec");
        let mut found = Vec::new();
        for home in std::fs::read_dir(root).into_iter().flatten().flatten() {
            for place in std::fs::read_dir(home.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                found.push(place.path().display().to_string());
            }
        }
        found
    }

    /// Commands go in the background; waits until the last directory is gone.
    async fn until_nothing_is_left(&self) {
        wait::until("no command's directory", PATIENCE, async || {
            let places = self.places();
            ensure!(places.is_empty(), "{places:?}");
            Ok(Some(()))
        })
        .await
        .unwrap();
        let pids = self.world.ctr(&["tasks", "ps", &self.id]);
        assert!(!pids.contains("exec_id"), "{pids}");
    }

    async fn end(self) {
        self.until_nothing_is_left().await;
        self.world.clean(&self.pod).await;
        assert_eq!(self.world.leftovers(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_answers_with_its_code_and_its_output() {
    let Some(sleeper) = Sleeper::with(|spec| ContainerSpec {
        run_as_user: Some(405),
        working_dir: Some("/tmp".to_owned()),
        env: vec![("COLOUR".to_owned(), "blue".to_owned())],
        ..spec
    })
    .await
    else {
        return;
    };
    let began = Instant::now();
    assert_eq!(sleeper.output("exit 0").await, (0, String::new()));
    note(&format!("exec: {:?}", began.elapsed()));
    for code in [1, 7, 255] {
        assert_eq!(
            sleeper.output(&format!("echo $COLOUR; exit {code}")).await,
            (code, "blue\n".to_owned())
        );
    }
    let (code, text) = sleeper.output("id -u; pwd; echo err >&2; cat").await;
    assert_eq!(code, 0, "standard input is empty, not open");
    assert!(
        text.contains("405\n/tmp\n") && text.contains("err\n"),
        "{text}"
    );
    assert_eq!(sleeper.output("kill -9 $$").await.0, 137);

    let much = sleeper.run("yes | head -c 1000000; exit 3", PATIENCE).await;
    let much = much.unwrap();
    assert_eq!(
        (much.exit_code, much.output.len()),
        (3, EXEC_OUTPUT_BYTES_MAX)
    );
    sleeper.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_cannot_be_run_says_why() {
    let Some(sleeper) = Sleeper::new().await else {
        return;
    };
    let runtime = &sleeper.world.runtime;
    for (command, expected, says) in [
        ("nope", 127, "executable file not found in $PATH"),
        ("/bin/nope", 127, "no such file or directory"),
        ("/etc", 126, ""),
    ] {
        let refused = runtime
            .exec_sync(&sleeper.id, &[command.to_owned()], PATIENCE)
            .await;
        let Err(RuntimeError::Exec { exit_code, reason }) = refused else {
            panic!("{command}: {refused:?}");
        };
        note(&reason);
        assert_eq!(exit_code, expected, "{reason}");
        assert!(reason.contains(says), "{reason}");
        assert!(
            !reason.contains("OCI runtime") && !reason.contains(": unknown"),
            "{reason}"
        );
    }
    let command = ["true".to_owned()];
    let unknown = runtime.exec_sync("nobody", &command, PATIENCE).await;
    assert!(
        matches!(unknown, Err(RuntimeError::NotFound { .. })),
        "{unknown:?}"
    );
    runtime.kill(&sleeper.id).await.unwrap();
    sleeper.world.exited(&sleeper.id).await;
    let ended = runtime.exec_sync(&sleeper.id, &command, PATIENCE).await;
    note(&format!("{ended:?}"));
    assert!(ended.is_err(), "{ended:?}");
    sleeper.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_limit_and_a_child_in_the_background_hold_nobody_up() {
    let Some(sleeper) = Sleeper::new().await else {
        return;
    };
    let began = Instant::now();
    let limit = Duration::from_secs(1);
    let late = sleeper.run("exec sleep 100", limit).await;
    assert!(
        matches!(late, Err(RuntimeError::Timeout { limit: l, .. }) if l == limit),
        "{late:?}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );

    let began = Instant::now();
    let (code, text) = sleeper.output("sleep 15 & echo started; exit 4").await;
    assert_eq!((code, text.as_str()), (4, "started\n"));
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );

    // An asker that goes away.
    let gone = tokio::time::timeout(
        Duration::from_millis(300),
        sleeper.run("exec sleep 100", PATIENCE),
    );
    assert!(gone.await.is_err());
    sleeper.until_nothing_is_left().await;
    let (_, processes) = sleeper.output("ps").await;
    assert!(!processes.contains("sleep 100\n"), "{processes}");
    sleeper.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_limit_ends_all_that_the_command_started() {
    let Some(sleeper) = Sleeper::new().await else {
        return;
    };
    // A child, an orphan, and one that has left the session.
    let script = "sleep 4711 & (sleep 4712 &); setsid sleep 4713 & wait";
    let late = sleeper.run(script, Duration::from_secs(1)).await;
    assert!(
        matches!(late, Err(RuntimeError::Timeout { .. })),
        "{late:?}"
    );
    sleeper.until_nothing_is_left().await;
    let (_, processes) = sleeper.output("ps").await;
    assert!(!processes.contains("sleep 471"), "{processes}");
    assert!(
        processes.contains("sleep 1000"),
        "the container's own: {processes}"
    );

    // What ends by itself may leave somebody behind, as with kubelet.
    assert_eq!(sleeper.output("sleep 4714 > /dev/null 2>&1 &").await.0, 0);
    assert!(sleeper.output("ps").await.1.contains("sleep 4714"));
    sleeper.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_commands_at_once_leave_nothing() {
    let Some(sleeper) = Sleeper::new().await else {
        return;
    };
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..50 {
        let runtime = sleeper.world.runtime.clone();
        let id = sleeper.id.clone();
        running.spawn(async move {
            let script = format!("echo {number}; exit {number}");
            let command = ["sh".to_owned(), "-c".to_owned(), script];
            (
                number,
                runtime.exec_sync(&id, &command, PATIENCE).await.unwrap(),
            )
        });
    }
    for (number, ran) in running.join_all().await {
        assert_eq!(ran.exit_code, number);
        assert_eq!(ran.output, format!("{number}\n").as_bytes());
    }
    note(&format!("50 commands: {:?}", began.elapsed()));
    sleeper.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_under_a_command_and_a_crash_of_ours() {
    let Some(mut sleeper) = Sleeper::new().await else {
        return;
    };
    // The daemon is killed and comes back; the shim has kept the process and its code.
    let runtime = sleeper.world.runtime.clone();
    let id = sleeper.id.clone();
    let marker = "/tmp/started";
    let script =
        format!("touch {marker}; while [ -e {marker} ]; do sleep 0.1; done; echo done; exit 9");
    let asked = tokio::spawn(async move {
        let command = ["sh".to_owned(), "-c".to_owned(), script];
        runtime.exec_sync(&id, &command, PATIENCE).await
    });
    let wait = format!("until [ -e {marker} ]; do sleep 0.05; done");
    assert_eq!(sleeper.output(&wait).await.0, 0);
    sleeper.world.daemon.kill().unwrap();
    sleeper.world.daemon.restart().unwrap();
    assert_eq!(sleeper.output(&format!("rm {marker}")).await.0, 0);
    let ran = asked.await.unwrap().unwrap();
    assert_eq!(
        (ran.exit_code, ran.output.as_slice()),
        (9, b"done\n".as_slice())
    );
    sleeper.until_nothing_is_left().await;

    // What a crash of ours leaves: a process, its record, its directory and a lock nobody holds.
    let home = sleeper.world.config.state_dir.join("exec/0123");
    let place = home.join("ecrashed");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("container"), &sleeper.id).unwrap();
    std::fs::write(home.with_extension("lock"), "").unwrap();
    sleeper.world.ctr(&[
        "tasks",
        "exec",
        "-d",
        "--exec-id",
        "ecrashed",
        &sleeper.id,
        "sleep",
        "777",
    ]);
    assert!(sleeper.output("ps").await.1.contains("sleep 777"));
    sleeper.world.runtime = ContainerdRuntime::connect(sleeper.world.config.clone()).unwrap();
    sleeper.until_nothing_is_left().await;
    assert!(!sleeper.output("ps").await.1.contains("sleep 777"));
    assert!(!home.with_extension("lock").exists());
    sleeper.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_container_uses_is_told() {
    let script = "head -c 3000000 /dev/zero > /file; i=0; \
        while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000";
    let Some(sleeper) = Sleeper::running(script).await else {
        return;
    };
    sleeper.until_logged("done").await;
    let pods = sleeper.world.runtime.stats().await.unwrap();
    let [pod] = pods.as_slice() else {
        panic!("{pods:?}");
    };
    note(&format!("{pod:?}"));
    assert_eq!(
        (pod.uid.as_str(), pod.name.as_str()),
        (sleeper.pod.pod_uid.as_str(), "web")
    );
    assert_eq!(
        (pod.received_bytes, pod.sent_bytes),
        (0, 0),
        "the host's network"
    );
    let [one] = pod.containers.as_slice() else {
        panic!("{pod:?}");
    };
    assert!(
        one.cpu_ns > 1_000_000 && one.memory_working_set_bytes > 0,
        "{one:?}"
    );
    assert!(
        one.processes >= 1 && one.rootfs_bytes >= 3_000_000,
        "{one:?}"
    );
    assert_eq!(
        one.log_bytes,
        std::fs::metadata(sleeper.log()).unwrap().len()
    );
    sleeper.end().await;
}
