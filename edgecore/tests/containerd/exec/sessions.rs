//! Talking with commands, and with containers themselves.

use super::*;

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
    let Some(sleeper) = Sleeper::new().await else {
        return;
    };
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
    let Some(sleeper) = Sleeper::new().await else {
        return;
    };
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
    let script = "printf 'name: '; read a; echo heard $a; read b; stty size; read c; exit 11";
    let Some(sleeper) = Sleeper::with(|spec| ContainerSpec {
        tty: true,
        stdin: true,
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..spec
    })
    .await
    else {
        return;
    };
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

/// What a session says until the words have come.
async fn until(session: &mut Session, words: &str) {
    let mut seen = String::new();
    while !seen.contains(words) {
        let said = tokio::time::timeout(PATIENCE, session.output.recv()).await;
        match said
            .unwrap_or_else(|_| panic!("{words} after {seen}"))
            .unwrap()
        {
            Output::Stdout(bytes) => seen.push_str(std::str::from_utf8(&bytes).unwrap()),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
}

const LISTENER: &str =
    "trap 'exit 12' TERM; while read a; do echo heard $a; done; echo over; exit 6";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_hears_without_a_terminal_as_long_as_it_lives() {
    let Some(sleeper) = Sleeper::with(|spec| ContainerSpec {
        stdin: true,
        run_as_user: Some(405),
        command: ["sh", "-c", LISTENER].map(str::to_owned).to_vec(),
        ..spec
    })
    .await
    else {
        return;
    };
    let runtime = &sleeper.world.runtime;
    let request = AttachRequest {
        stdin: true,
        size: None,
    };
    let mut first = runtime.attach(&sleeper.id, &request).await.unwrap();
    say(&first, "one\n").await;
    until(&mut first, "heard one").await;
    first.input.send(Input::StdinEnd).await.unwrap();
    drop(first);
    let mut second = runtime.attach(&sleeper.id, &request).await.unwrap();
    say(&second, "two\n").await;
    until(&mut second, "heard two").await;
    // More than the fifo holds, while another looks on.
    let line = format!("{}\n", "x".repeat(1000));
    for _ in 0..200 {
        say(&second, &line).await;
    }
    say(&second, "last\n").await;
    until(&mut second, "heard last").await;
    assert_eq!(sleeper.output("exit 3").await.0, 3, "commands run as ever");
    runtime.kill(&sleeper.id).await.unwrap();
    assert_eq!(rest(&mut second).await.2, Output::Exited(137));
    sleeper.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_for_one_session_ends_with_it() {
    let script = format!("while read a; do echo heard $a; done; {LISTENER}");
    for hangs_up in [false, true] {
        let Some(sleeper) = Sleeper::with(|spec| ContainerSpec {
            stdin: true,
            stdin_once: true,
            command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
            ..spec
        })
        .await
        else {
            return;
        };
        let runtime = &sleeper.world.runtime;
        let request = AttachRequest {
            stdin: true,
            size: None,
        };
        let mut listens = runtime
            .attach(&sleeper.id, &AttachRequest::default())
            .await
            .unwrap();
        let mut first = runtime.attach(&sleeper.id, &request).await.unwrap();
        say(&first, "one\n").await;
        until(&mut first, "heard one").await;
        if !hangs_up {
            first.input.send(Input::StdinEnd).await.unwrap();
        }
        drop(first);
        let (stdout, _, end) = rest(&mut listens).await;
        assert!(stdout.ends_with("over\n"), "{stdout}");
        assert_eq!(end, Output::Exited(6));
        let refused = runtime.attach(&sleeper.id, &request).await.unwrap_err();
        assert!(refused.to_string().contains("stdinOnce"), "{refused}");
        sleeper.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_without_input_is_listened_to() {
    let script = "trap 'echo bye; echo bad >&2; exit 0' TERM; echo ready; \
        while true; do sleep 0.1; done";
    let Some(sleeper) = Sleeper::running(script).await else {
        return;
    };
    // A signal before the trap would be lost: nobody but a handler hears one as process 1.
    sleeper.until_logged("ready").await;
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
    let Some(sleeper) = Sleeper::new().await else {
        return;
    };
    let before = watches();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let request = AttachRequest::default();
        let joined = sleeper.world.runtime.attach(&sleeper.id, &request).await;
        sessions.push(joined.unwrap());
    }
    wait::until("three watches", PATIENCE, async || {
        Ok((watches() == before + 3).then_some(()))
    })
    .await
    .unwrap();
    drop(sessions);
    wait::until("no watch", PATIENCE, async || {
        Ok((watches() == before).then_some(()))
    })
    .await
    .unwrap();
    sleeper.end().await;
}
