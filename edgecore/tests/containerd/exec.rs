//! Commands in running containers.

use std::time::{Duration, Instant};

use edgecore::edged::runtime::containerd::ContainerdRuntime;
use edgecore::edged::runtime::session::{AttachRequest, ExecRequest, Input, Output, Session, Size};
use edgecore::edged::runtime::{
    ContainerSpec, EXEC_OUTPUT_BYTES_MAX, ExecOutput, Runtime, RuntimeError, SandboxSpec,
};

use crate::world::{PATIENCE, World, note, skipped};

/// A world with one pod whose one container sleeps.
struct Sleeper {
    world: World,
    pod: SandboxSpec,
    id: String,
}

impl Sleeper {
    async fn new() -> Self {
        Self::with(|spec| spec).await
    }

    async fn with(change: impl FnOnce(ContainerSpec) -> ContainerSpec) -> Self {
        let world = World::new().await;
        let pod = SandboxSpec {
            host_network: true,
            ..World::pod()
        };
        world.runtime.ensure_sandbox(&pod).await.unwrap();
        let spec = change(world.container(&pod, "main", "trap 'exit 0' TERM; sleep 1000 & wait"));
        let id = world.runtime.start(&spec).await.unwrap();
        Self { world, pod, id }
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
        let began = Instant::now();
        while !self.places().is_empty() {
            assert!(began.elapsed() < PATIENCE, "{:?}", self.places());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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
    if skipped("a_command_answers_with_its_code_and_its_output") {
        return;
    }
    let sleeper = Sleeper::with(|spec| ContainerSpec {
        run_as_user: Some(405),
        working_dir: Some("/tmp".to_owned()),
        env: vec![("COLOUR".to_owned(), "blue".to_owned())],
        ..spec
    })
    .await;
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
    if skipped("a_command_that_cannot_be_run_says_why") {
        return;
    }
    let sleeper = Sleeper::new().await;
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
    if skipped("a_time_limit_and_a_child_in_the_background_hold_nobody_up") {
        return;
    }
    let sleeper = Sleeper::new().await;
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
async fn fifty_commands_at_once_leave_nothing() {
    if skipped("fifty_commands_at_once_leave_nothing") {
        return;
    }
    let sleeper = Sleeper::new().await;
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
    if skipped("a_daemon_killed_under_a_command_and_a_crash_of_ours") {
        return;
    }
    let mut sleeper = Sleeper::new().await;
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

/// Everything a session says from now on, and its end.
async fn rest(session: &mut Session) -> (String, String, Output) {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    loop {
        let said = tokio::time::timeout(PATIENCE, session.output.recv()).await;
        match said.expect("the session says nothing").unwrap() {
            Output::Stdout(bytes) => stdout.push_str(std::str::from_utf8(&bytes).unwrap()),
            Output::Stderr(bytes) => stderr.push_str(std::str::from_utf8(&bytes).unwrap()),
            last => return (stdout, stderr, last),
        }
    }
}

impl Sleeper {
    async fn talk(&self, script: &str, tty: bool) -> Session {
        let request = ExecRequest {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            stdin: true,
            tty,
            size: tty.then_some(Size {
                width: 80,
                height: 24,
            }),
        };
        self.world.runtime.exec(&self.id, &request).await.unwrap()
    }
}

async fn say(session: &Session, text: &str) {
    let input = Input::Stdin(text.as_bytes().to_vec().into());
    session.input.send(input).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_has_input_two_outputs_and_an_end() {
    if skipped("a_session_has_input_two_outputs_and_an_end") {
        return;
    }
    let sleeper = Sleeper::new().await;
    let mut session = sleeper.talk("cat; echo err >&2; exit 5", false).await;
    say(&session, "one\n").await;
    say(&session, "two\n").await;
    session.input.send(Input::StdinEnd).await.unwrap();
    let (stdout, stderr, end) = rest(&mut session).await;
    assert_eq!((stdout.as_str(), stderr.as_str()), ("one\ntwo\n", "err\n"));
    assert_eq!(end, Output::Exited(5));

    // More than every buffer holds, both ways at once.
    let mut session = sleeper.talk("cat", false).await;
    let input = session.input.clone();
    let block = "x".repeat(32 << 10);
    let writer = tokio::spawn(async move {
        for _ in 0..64 {
            let bytes = block.clone().into_bytes().into();
            input.send(Input::Stdin(bytes)).await.unwrap();
        }
        input.send(Input::StdinEnd).await.unwrap();
    });
    let (stdout, _, end) = rest(&mut session).await;
    writer.await.unwrap();
    assert_eq!((stdout.len(), end), (64 * (32 << 10), Output::Exited(0)));

    // A process that reads nothing ends all the same.
    let mut session = sleeper.talk("exec true", false).await;
    let input = session.input.clone();
    let eager = tokio::spawn(async move {
        let bytes = bytes_of(1 << 20);
        while input.send(Input::Stdin(bytes.clone())).await.is_ok() {}
    });
    assert_eq!(rest(&mut session).await.2, Output::Exited(0));
    drop(session);
    eager.await.unwrap();

    // Somebody hangs up: the process goes.
    let session = sleeper.talk("exec sleep 4321", false).await;
    assert!(sleeper.output("ps").await.1.contains("sleep 4321"));
    drop(session);
    sleeper.until_nothing_is_left().await;
    assert!(!sleeper.output("ps").await.1.contains("sleep 4321"));
    sleeper.end().await;
}

fn bytes_of(length: usize) -> bytes::Bytes {
    vec![b'y'; length].into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_a_size_that_changes() {
    if skipped("a_terminal_has_a_size_that_changes") {
        return;
    }
    let sleeper = Sleeper::new().await;
    let script = "read a; stty size; read b; stty size; tty; echo $TERM; exit 3";
    let mut session = sleeper.talk(script, true).await;
    say(&session, "a\n").await;
    let mut seen = String::new();
    while !seen.contains("24 80") {
        match session.output.recv().await.unwrap() {
            Output::Stdout(bytes) => seen.push_str(std::str::from_utf8(&bytes).unwrap()),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    let size = Size {
        width: 132,
        height: 43,
    };
    session.input.send(Input::Resize(size)).await.unwrap();
    say(&session, "b\n").await;
    let (stdout, stderr, end) = rest(&mut session).await;
    assert!(
        stdout.contains("43 132") && stdout.contains("/dev/"),
        "{stdout}"
    );
    assert!(
        stdout.contains("xterm") && stderr.is_empty(),
        "{stdout} {stderr}"
    );
    assert_eq!(end, Output::Exited(3));
    sleeper.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_with_a_terminal_is_joined_and_left() {
    if skipped("a_container_with_a_terminal_is_joined_and_left") {
        return;
    }
    let script = "printf 'name: '; read a; echo heard $a; read b; stty size; read c; exit 11";
    let sleeper = Sleeper::with(|spec| ContainerSpec {
        tty: true,
        stdin: true,
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..spec
    })
    .await;
    let runtime = &sleeper.world.runtime;
    let request = AttachRequest {
        stdin: true,
        size: Some(Size {
            width: 80,
            height: 24,
        }),
    };
    let mut first = runtime.attach(&sleeper.id, &request).await.unwrap();
    say(&first, "one\n").await;
    let mut seen = String::new();
    while !seen.contains("heard one") {
        match first.output.recv().await.unwrap() {
            Output::Stdout(bytes) => seen.push_str(std::str::from_utf8(&bytes).unwrap()),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    drop(first);
    // Another comes; the container has not noticed.
    let mut second = runtime.attach(&sleeper.id, &request).await.unwrap();
    let size = Size {
        width: 100,
        height: 30,
    };
    second.input.send(Input::Resize(size)).await.unwrap();
    say(&second, "two\n").await;
    say(&second, "three\n").await;
    let (stdout, _, end) = rest(&mut second).await;
    assert!(stdout.contains("30 100"), "{stdout}");
    assert!(!stdout.contains("heard one"), "only what is new: {stdout}");
    assert_eq!(end, Output::Exited(11));
    sleeper.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_without_input_is_listened_to() {
    if skipped("a_container_without_input_is_listened_to") {
        return;
    }
    let sleeper = Sleeper::with(|spec| {
        let script = "trap 'echo bye; echo bad >&2; exit 0' TERM; while true; do sleep 0.1; done";
        ContainerSpec {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..spec
        }
    })
    .await;
    let runtime = &sleeper.world.runtime;
    let wants = AttachRequest {
        stdin: true,
        size: None,
    };
    let refused = runtime.attach(&sleeper.id, &wants).await.unwrap_err();
    assert!(refused.to_string().contains("`stdin: true`"), "{refused}");
    let mut session = runtime
        .attach(&sleeper.id, &AttachRequest::default())
        .await
        .unwrap();
    runtime.signal_stop(&sleeper.id).await.unwrap();
    let (stdout, stderr, end) = rest(&mut session).await;
    assert_eq!((stdout.as_str(), stderr.as_str()), ("bye\n", "bad\n"));
    assert_eq!(end, Output::Exited(0));
    sleeper.end().await;
}

/// Watches of directories that this process holds; the kernel gives each user 128.
fn watches() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy().contains("inotify"))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_a_silent_container_leaves_no_watch() {
    if skipped("who_leaves_a_silent_container_leaves_no_watch") {
        return;
    }
    let sleeper = Sleeper::new().await;
    let before = watches();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let request = AttachRequest::default();
        let joined = sleeper.world.runtime.attach(&sleeper.id, &request).await;
        sessions.push(joined.unwrap());
    }
    let began = Instant::now();
    while watches() < before + 3 {
        assert!(began.elapsed() < PATIENCE, "{}", watches());
        tokio::task::yield_now().await;
    }
    drop(sessions);
    let began = Instant::now();
    while watches() > before {
        assert!(began.elapsed() < PATIENCE, "{} of {before}", watches());
        tokio::task::yield_now().await;
    }
    sleeper.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_container_uses_is_told() {
    if skipped("what_a_container_uses_is_told") {
        return;
    }
    let sleeper = Sleeper::with(|spec| {
        let script = "head -c 3000000 /dev/zero > /file; i=0; \
            while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000";
        ContainerSpec {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..spec
        }
    })
    .await;
    let began = Instant::now();
    let log = sleeper
        .world
        .config
        .state_dir
        .parent()
        .unwrap()
        .join("logs");
    let log = log.join(&sleeper.pod.pod_uid).join("main/0.log");
    while !std::fs::read_to_string(&log).unwrap().contains("done") {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
    assert_eq!(one.log_bytes, std::fs::metadata(&log).unwrap().len());
    sleeper.end().await;
}
