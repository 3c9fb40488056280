//! Host ports, from wherever somebody may knock, and the site's own networks.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::world::{PATIENCE, World, note};
use edgecore::edged::runtime::containerd::{ContainerdConfig, ContainerdRuntime};
use edgecore::edged::runtime::{ContainerSpec, NetworkWish, Runtime, RuntimeError, SandboxSpec};

/// The node's address towards the outside, if it has one.
fn node_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent; the kernel chooses the route.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

fn port_free() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What is answered over TCP; tried until the server listens.
fn ask_tcp(address: SocketAddr) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let answered =
            TcpStream::connect_timeout(&address, Duration::from_secs(2)).and_then(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                Ok(text)
            });
        match answered {
            Ok(text) if !text.is_empty() => return text,
            other => assert!(Instant::now() < end, "{address}: {other:?}"),
        }
        std::thread::yield_now();
    }
}

/// Ends the echo.
const LAST: &[u8] = b"last";

/// Sends back what comes, from inside the pod's network.
fn udp_echo(namespace: std::path::PathBuf, port: u16) -> std::thread::JoinHandle<()> {
    use std::os::fd::AsFd as _;
    let (ready, made) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        let pinned = std::fs::File::open(namespace).unwrap();
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(pinned.as_fd(), Some(kind)).unwrap();
        let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 64];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..length], from).unwrap();
            if &buffer[..length] == LAST {
                return;
            }
        }
    });
    made.recv().unwrap();
    thread
}

fn ask_udp(target: SocketAddr, text: &[u8]) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket.connect(target).unwrap();
    socket.send(text).unwrap();
    let mut answer = [0; 64];
    let length = socket
        .recv(&mut answer)
        .unwrap_or_else(|error| panic!("{target}: {error}"));
    assert_eq!(&answer[..length], text, "{target}");
}

/// The node's rules that mention a text.
fn rules(needle: &str) -> Vec<String> {
    let output = Command::new("iptables-save").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let text = text.unwrap_or_default();
    text.lines()
        .filter(|line| line.contains(needle))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_ports_answer_from_everywhere_and_leave_nothing() {
    let Some(world) = World::new().await else {
        return;
    };
    let (tcp, udp) = (port_free(), port_free());
    let pod = SandboxSpec {
        port_mappings: vec![
            (tcp, 80, "tcp".to_owned(), String::new()),
            (udp, 5353, "udp".to_owned(), String::new()),
        ],
        ..world.pod()
    };
    let sandbox = world.runtime.ensure_sandbox(&pod).await.unwrap();
    let web = "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp";
    world
        .runtime
        .start(&world.container(&pod, "web", web))
        .await
        .unwrap();
    let namespace = world
        .config
        .state_dir
        .join("sandboxes")
        .join(&pod.pod_uid)
        .join("ns/net");
    let echo = udp_echo(namespace, 5353);

    let pod_ip: std::net::IpAddr = sandbox.ips[0].parse().unwrap();
    let mut knocked = vec![
        SocketAddr::from((pod_ip, 80)),
        SocketAddr::from(([127, 0, 0, 1], tcp)),
    ];
    knocked.extend(node_address().map(|ip| SocketAddr::from((ip, tcp))));
    for address in &knocked {
        assert!(ask_tcp(*address).ends_with("served\n"), "{address}");
    }
    // Somebody else's network: another pod asks the node's address, or the bridge's.
    let other = world.pod();
    world.runtime.ensure_sandbox(&other).await.unwrap();
    let gateway = "$(busybox ip route | busybox awk '/default/ {print $3}')";
    let script = format!("wget -q -O - http://{gateway}:{tcp}/");
    let client = world.container(&other, "client", &script);
    let id = world.runtime.start(&client).await.unwrap();
    assert_eq!(world.exited(&id).await.0, 0, "{:?}", World::log(&client));
    assert_eq!(World::log(&client)[0].1, "served");

    for target in std::iter::once(std::net::IpAddr::from([127, 0, 0, 1])).chain(node_address()) {
        ask_udp(SocketAddr::from((target, udp)), b"hello");
    }
    ask_udp(SocketAddr::from((pod_ip, 5353)), LAST);
    echo.join().unwrap();

    assert!(
        !rules(&pod.pod_uid).is_empty(),
        "the mapping is in the node's rules"
    );
    world.clean(&other).await;
    world.clean(&pod).await;
    assert_eq!(rules(&pod.pod_uid), Vec::<String>::new());
    assert!(rules(&format!("{}/32", sandbox.ips[0])).is_empty());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sites_own_network_is_used_with_two_families_and_a_rate() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let conf = world.directory.path().join("net.d");
    std::fs::create_dir_all(&conf).unwrap();
    let bridge = format!("st{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let data = world.directory.path().join("leases");
    let list = serde_json::json!({ "cniVersion": "1.0.0", "name": "site", "plugins": [
        { "type": "bridge", "bridge": bridge, "isGateway": true, "ipam": {
            "type": "host-local", "dataDir": data, "ranges": [
                [{ "subnet": "10.201.77.0/24" }], [{ "subnet": "fd77:201::/64" }]] } },
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
    ]});
    std::fs::write(conf.join("10-site.conflist"), list.to_string()).unwrap();
    let config = ContainerdConfig {
        cni_conf_dir: conf,
        ..world.config.clone()
    };
    world.runtime = ContainerdRuntime::connect(config).unwrap();
    assert!(world.runtime.info().await.network_ready);
    let pod = SandboxSpec {
        network: NetworkWish {
            ingress_bits: Some(8_000_000),
            ..NetworkWish::default()
        },
        ..world.pod()
    };
    let made = world.runtime.ensure_sandbox(&pod).await;
    // A kernel without ifb or tbf cannot bound a rate; the plugin says so and that is passed on.
    let (pod, sandbox) = match made {
        Ok(sandbox) => (pod, sandbox),
        Err(error) => {
            note(&format!("no bandwidth here: {error}"));
            assert!(error.to_string().contains("bandwidth"), "{error}");
            let pod = world.pod();
            let sandbox = world.runtime.ensure_sandbox(&pod).await.unwrap();
            (pod, sandbox)
        }
    };
    assert_eq!(sandbox.ips.len(), 2, "{sandbox:?}");
    assert!(sandbox.ips[0].starts_with("10.201.77.") && sandbox.ips[1].starts_with("fd77:201::"));
    let spec: ContainerSpec = world.container(&pod, "main", "busybox ip addr show dev eth0");
    let id = world.runtime.start(&spec).await.unwrap();
    assert_eq!(world.exited(&id).await.0, 0);
    let text: Vec<String> = World::log(&spec).into_iter().map(|line| line.1).collect();
    for ip in &sandbox.ips {
        assert!(text.iter().any(|line| line.contains(ip)), "{ip}: {text:?}");
    }

    // The pod's directory is gone, only the note of its network is left: it is found and undone.
    world.runtime.kill(&id).await.unwrap();
    world.runtime.remove(&id).await.unwrap();
    let results = world.config.state_dir.join("cni/results");
    let note_of_pod = results.join(format!("{}.json", pod.pod_uid));
    let kept = std::fs::read(&note_of_pod).unwrap();
    world.clean(&pod).await;
    std::fs::write(&note_of_pod, kept).unwrap();
    let listed = world.runtime.sandboxes().await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    world.runtime.remove_sandbox(&pod.pod_uid).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
    let leases: Vec<String> = std::fs::read_dir(data.join("site"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
        .collect();
    assert_eq!(leases, Vec::<String>::new());
    let removed = Command::new("ip").args(["link", "del", &bridge]).output();
    assert!(removed.is_ok_and(|o| o.status.success()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_appears_or_changes_is_used_without_a_restart() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let conf = world.directory.path().join("net.d");
    std::fs::create_dir_all(&conf).unwrap();
    let file = conf.join("10-site.conflist");
    std::fs::write(&file, "{").unwrap();
    let config = ContainerdConfig {
        cni_conf_dir: conf,
        ..world.config.clone()
    };
    world.runtime = ContainerdRuntime::connect(config).unwrap();
    let info = world.runtime.info().await;
    assert!(!info.network_ready && info.network_reason.contains("10-site.conflist"));
    let refused = world.runtime.ensure_sandbox(&world.pod()).await;
    assert!(
        matches!(refused, Err(RuntimeError::Network { .. })),
        "{refused:?}"
    );

    let bridge = format!("st{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let mut changes = world.runtime.changes();
    let mut pods = Vec::new();
    for (count, net) in [(1, "10.201.78"), (2, "10.201.79")] {
        let list = serde_json::json!({ "cniVersion": "1.0.0", "name": format!("site{count}"), "plugins": [
            { "type": "bridge", "bridge": bridge, "ipam": {
                "type": "host-local", "dataDir": world.directory.path().join("leases"),
                "ranges": [[{ "subnet": format!("{net}.0/24") }]] } },
        ]});
        std::fs::write(&file, list.to_string()).unwrap();
        let counted = async {
            while world.runtime.network_changes() < count {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, counted)
            .await
            .expect("nothing was noticed");
        assert!(world.runtime.info().await.network_ready);
        let pod = world.pod();
        let sandbox = world.runtime.ensure_sandbox(&pod).await.unwrap();
        assert!(sandbox.ips[0].starts_with(net), "{sandbox:?}");
        pods.push((pod, sandbox));
    }
    let (first, sandbox) = &pods[0];
    let same = world.runtime.ensure_sandbox(first).await.unwrap();
    assert_eq!(same.ips, sandbox.ips, "who stands keeps what it has");
    for (pod, _) in &pods {
        world.clean(pod).await;
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
    let removed = Command::new("ip").args(["link", "del", &bridge]).output();
    assert!(removed.is_ok_and(|o| o.status.success()));
}
