//! Pods: start, share, exit, survive, leave nothing.

use std::path::Path;
use std::time::Instant;

use crate::world::{IMAGE, PATIENCE, World, note};
use edgecore::edged::logs;
use edgecore::edged::runtime::containerd::{ContainerdConfig, ContainerdRuntime};
use edgecore::edged::runtime::{
    ContainerSpec, ContainerState, Mount, PullOptions, Runtime, RuntimeError, SandboxSpec,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_logs_exits_and_leaves_nothing() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    let began = Instant::now();
    let sandbox = world.runtime.ensure_sandbox(&pod).await.unwrap();
    note(&format!("sandbox with network: {:?}", began.elapsed()));
    assert_eq!(sandbox.ips.len(), 1);
    assert_eq!(world.runtime.ensure_sandbox(&pod).await.unwrap(), sandbox);

    let script = "echo out; echo err >&2; hostname; cat /proc/net/dev | grep -c eth0; exit 7";
    let spec = world.container(&pod, "main", script);
    let began = Instant::now();
    let id = world.runtime.start(&spec).await.unwrap();
    note(&format!("start: {:?}", began.elapsed()));
    let (code, container) = world.exited(&id).await;
    assert_eq!(code, 7);
    assert_eq!((container.name.as_str(), container.attempt), ("main", 0));
    assert_eq!(container.spec_hash, "h1");
    assert!(
        container
            .image_id
            .starts_with("docker.io/library/busybox@sha256:")
    );
    assert_eq!(
        world.runtime.start(&spec).await.unwrap(),
        id,
        "started once"
    );

    world.runtime.remove(&id).await.unwrap();
    world.runtime.remove(&id).await.unwrap();
    let mut lines = World::log(&spec);
    lines.sort();
    let expect = |stream: &str, text: &str| (stream.to_owned(), text.to_owned());
    assert_eq!(
        lines,
        [
            expect("stderr", "err"),
            expect("stdout", "1"),
            expect("stdout", "out"),
            expect("stdout", "web-0"),
        ]
    );
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_a_pod_share_one_shim_and_one_network() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = SandboxSpec {
        port_mappings: vec![(38_999, 80, "tcp".to_owned(), String::new())],
        ..world.pod()
    };
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let server = world.container(
        &pod,
        "server",
        "echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp",
    );
    let server = world.runtime.start(&server).await.unwrap();
    let script = "until wget -q -O - http://127.0.0.1/; do sleep 0.05; done; ls -l /dev/shm >/dev/null && id -u";
    let client = ContainerSpec {
        run_as_user: Some(405),
        ..world.container(&pod, "client", script)
    };
    let id = world.runtime.start(&client).await.unwrap();
    assert_eq!(world.exited(&id).await.0, 0);
    world.runtime.remove(&id).await.unwrap();
    let texts: Vec<String> = World::log(&client).into_iter().map(|line| line.1).collect();
    assert!(
        texts.ends_with(&["hello".to_owned(), "405".to_owned()]),
        "{texts:?}"
    );

    // The host port, through the host's own loopback.
    let address = "127.0.0.1:38999".parse().unwrap();
    let connected = std::net::TcpStream::connect_timeout(&address, PATIENCE);
    assert!(connected.is_ok(), "{connected:?}");

    let shims = world.shims();
    assert_eq!(shims.len(), 1, "{shims:?}");
    let listed = world.runtime.containers().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(matches!(listed[0].state, ContainerState::Running { .. }));
    world.runtime.signal_stop(&server).await.unwrap();
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_runtime_adopts_what_runs() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    let sandbox = world.runtime.ensure_sandbox(&pod).await.unwrap();
    let spec = world.container(&pod, "main", "sleep 1000");
    let id = world.runtime.start(&spec).await.unwrap();

    world.runtime = ContainerdRuntime::connect(world.config.clone()).unwrap();
    assert_eq!(
        world.runtime.sandboxes().await.unwrap(),
        std::slice::from_ref(&sandbox)
    );
    assert_eq!(world.runtime.ensure_sandbox(&pod).await.unwrap(), sandbox);
    let found = &world.runtime.containers().await.unwrap()[0];
    assert_eq!((&found.id, &found.log_path), (&id, &spec.log_path));
    assert!(matches!(found.state, ContainerState::Running { .. }));

    let busy = world.runtime.remove(&id).await;
    assert!(matches!(busy, Err(RuntimeError::Other { .. })), "{busy:?}");
    world.runtime.kill(&id).await.unwrap();
    assert_eq!(world.exited(&id).await.0, 137);
    let again = ContainerSpec {
        attempt: 1,
        ..spec.clone()
    };
    let second = world.runtime.start(&again).await.unwrap();
    assert_ne!(second, id);
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_survive_a_daemon_that_was_killed() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let gate = world.directory.path().join("gate");
    std::fs::create_dir(&gate).unwrap();
    let ends = ContainerSpec {
        mounts: vec![Mount {
            source: gate.clone(),
            target: "/gate".into(),
            ..Mount::default()
        }],
        ..world.container(
            &pod,
            "ends",
            "until [ -e /gate/open ]; do sleep 0.02; done; touch /gate/done; exit 4",
        )
    };
    let ends = world.runtime.start(&ends).await.unwrap();
    let stays = world.container(&pod, "stays", "sleep 1000");
    let stays = world.runtime.start(&stays).await.unwrap();

    world.daemon.kill().unwrap();
    let down = world.runtime.containers().await;
    assert!(
        matches!(down, Err(RuntimeError::Unavailable { .. })),
        "{down:?}"
    );
    assert!(!world.runtime.info().await.ready);
    std::fs::write(gate.join("open"), b"").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !gate.join("done").exists() {
        assert!(Instant::now() < deadline, "container did not go on");
        tokio::task::yield_now().await;
    }
    world.daemon.restart().unwrap();

    assert_eq!(world.exited(&ends).await.0, 4);
    world
        .until(&stays, |state| {
            matches!(state, ContainerState::Running { .. })
        })
        .await;
    assert!(
        world
            .runtime
            .info()
            .await
            .version
            .starts_with("containerd://")
    );
    world.runtime.kill(&stays).await.unwrap();
    assert_eq!(world.exited(&stays).await.0, 137);
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_name_the_reason() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = SandboxSpec {
        host_network: true,
        ..world.pod()
    };
    let sandbox = world.runtime.ensure_sandbox(&pod).await.unwrap();
    assert!(sandbox.ips.is_empty());
    let absent = ContainerSpec {
        image: "busybox:absent".to_owned(),
        ..world.container(&pod, "absent", "true")
    };
    let refused = world.runtime.start(&absent).await;
    assert!(
        matches!(refused, Err(RuntimeError::ImageNotPresent { .. })),
        "{refused:?}"
    );
    assert_eq!(world.runtime.image("busybox:absent").await.unwrap(), None);
    assert!(world.runtime.image(IMAGE).await.unwrap().is_some());

    let bad = ContainerSpec {
        command: vec!["/no/such/program".to_owned()],
        ..world.container(&pod, "bad", "")
    };
    let refused = world.runtime.start(&bad).await;
    let Err(RuntimeError::Create { reason } | RuntimeError::Start { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("no such file or directory"), "{reason}");
    let elsewhere = ContainerSpec {
        pod_uid: "no-such-pod".to_owned(),
        ..world.container(&pod, "elsewhere", "true")
    };
    assert!(world.runtime.start(&elsewhere).await.is_err());
    let unreachable = world
        .runtime
        .pull("127.0.0.1:1/x/y:z", &PullOptions::default())
        .await;
    assert!(
        matches!(unreachable, Err(RuntimeError::RegistryUnavailable { .. })),
        "{unreachable:?}"
    );
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// The shim keeps the pipes of a container that has ended open until its task is deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_words_are_told_and_following_ends_while_the_task_is_still_there() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let script = "seq 20000; printf 'last words'; exit 4";
    let spec = world.container(&pod, "main", script);
    let id = world.runtime.start(&spec).await.unwrap();
    let (out, mut chunks) = tokio::sync::mpsc::channel::<logs::Chunk>(logs::CHUNKS_MAX);
    let query = logs::Query {
        follow: true,
        ..logs::Query::default()
    };
    let ended = Instant::now();
    let ends = async { drop(world.exited(&id).await) };
    let reading = async {
        let mut text = String::new();
        while let Some(chunk) = chunks.recv().await {
            text.push_str(&String::from_utf8_lossy(&chunk.bytes));
        }
        text
    };
    let pumping = logs::pump(&spec.log_path, &query, ends, out);
    let (pumped, text) = tokio::join!(pumping, reading);
    pumped.unwrap();
    note(&format!("followed to the end: {:?}", ended.elapsed()));
    assert!(text.ends_with("20000\nlast words\n"), "{}", text.len());
    assert!(
        ended.elapsed() < logs::COMPLETE_WITHIN,
        "it was not waited for"
    );
    let tasks = world.ctr(&["tasks", "ls"]);
    assert!(tasks.contains("STOPPED"), "{tasks}");
    world.runtime.remove(&id).await.unwrap();
    world.clean(&pod).await;
}

/// containerd takes a logger that dies before it is ready for a ready one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logger_that_dies_at_once_is_noticed() {
    let Some(world) = World::new().await else {
        return;
    };
    let runtime = ContainerdRuntime::connect(ContainerdConfig {
        logger_path: "/bin/true".into(),
        ..world.config.clone()
    })
    .unwrap();
    let pod = SandboxSpec {
        host_network: true,
        ..world.pod()
    };
    runtime.ensure_sandbox(&pod).await.unwrap();
    let refused = runtime.start(&world.container(&pod, "mute", "true")).await;
    let Err(RuntimeError::Create { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("the logger did not open"), "{reason}");
    assert_eq!(runtime.containers().await.unwrap(), Vec::new());
    world.clean(&pod).await;
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// tonic takes 4 MiB unless it is told otherwise; containerd sends up to 16.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_more_than_four_mebibytes_is_read() {
    let Some(world) = World::empty() else {
        return;
    };
    let value = "x".repeat(100 << 10);
    let variables: Vec<String> = (0..10).map(|n| format!("V{n}={value}")).collect();
    let rootfs = world.directory.path().display().to_string();
    for number in 0..6 {
        let id = format!("big-{number}");
        let mut arguments = vec!["containers", "create", "--rootfs"];
        arguments.extend(["--label", "io.outpost.managed=true"]);
        for variable in &variables {
            arguments.extend(["--env", variable]);
        }
        arguments.extend([rootfs.as_str(), id.as_str()]);
        world.ctr(&arguments);
    }
    assert_eq!(world.runtime.containers().await.unwrap().len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_over_the_limit_is_told_as_such() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let mut spec = world.container(&pod, "eater", "");
    spec.command = [
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=128M",
        "count=1",
    ]
    .map(str::to_owned)
    .to_vec();
    spec.resources.memory_limit_bytes = Some(16 << 20);
    spec.resources.oom_score_adj = Some(-997);
    let id = world.runtime.start(&spec).await.unwrap();
    let (code, container) = world.exited(&id).await;
    assert_eq!(code, 137);
    assert!(matches!(
        container.state,
        ContainerState::Exited {
            oom_killed: true,
            ..
        }
    ));
    world.clean(&pod).await;
    let cgroup = format!("/sys/fs/cgroup/memory{}", pod.cgroup_parent);
    assert!(!Path::new(&cgroup).exists());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_another_namespace_is_adopted() {
    let Some(world) = World::new().await else {
        return;
    };
    let other = ContainerdConfig {
        namespace: format!("t{}", uuid::Uuid::new_v4().simple()),
        state_dir: world.directory.path().join("other"),
        adopt_namespaces: vec![world.config.namespace.clone()],
        ..world.config.clone()
    };
    let other = ContainerdRuntime::connect(other).unwrap();
    let found = other.image("busybox:test").await.unwrap().unwrap();
    assert_eq!(found, world.runtime.image(IMAGE).await.unwrap().unwrap());
}

/// How many containers the latency is taken from.
const RUNS: u32 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_latency() {
    let Some(world) = World::new().await else {
        return;
    };
    let pod = world.pod();
    world.runtime.ensure_sandbox(&pod).await.unwrap();
    let mut took = Vec::new();
    for attempt in 0..RUNS {
        let spec = ContainerSpec {
            attempt,
            ..world.container(&pod, "main", "sleep 1000")
        };
        let began = Instant::now();
        let id = world.runtime.start(&spec).await.unwrap();
        took.push(began.elapsed());
        let listed = world.runtime.containers().await.unwrap();
        let found = listed.iter().find(|container| container.id == id).unwrap();
        assert!(matches!(found.state, ContainerState::Running { .. }));
        world.runtime.kill(&id).await.unwrap();
        world.exited(&id).await;
        world.runtime.remove(&id).await.unwrap();
    }
    took.sort();
    note(&format!(
        "start, {RUNS} runs: fastest {:?}, median {:?}",
        took[0],
        took[took.len() / 2]
    ));
    // Far above what it takes on an idle machine (docs/limits.md); this catches a wait.
    assert!(took[0] < std::time::Duration::from_secs(1), "{took:?}");
    world.clean(&pod).await;
}
