//! A hub, a node and the cable between them, as processes in a private directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::ground::cgroup_root;
use crate::kubectl::{self, Kubectl};
use crate::process::Process;
use crate::proxy::Link;
use crate::wait;

/// Name of the node.
pub const NODE: &str = "edge-1";
/// Longest a daemon may take to come up in an unoptimised build on a busy machine.
const START_MAX: Duration = Duration::from_secs(30);

/// Where programs and state are.
#[derive(Clone, Debug)]
pub struct Place {
    /// Directory of the built programs.
    pub bins: PathBuf,
    /// Private directory of this run.
    pub dir: PathBuf,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// containerd namespace of this run.
    pub namespace: String,
    /// Broker's address; port 0 is chosen here so that it survives a restart of the node.
    pub mqtt: SocketAddr,
}

impl Place {
    /// A run named `name` in `dir`, on a containerd that is (or will be) started in `dir/containerd`.
    ///
    /// # Errors
    /// No free port, or no idea where the programs are.
    pub fn new(name: &str, dir: &Path) -> Result<Self> {
        Ok(Self {
            bins: bins()?,
            dir: dir.to_owned(),
            containerd: dir.join("containerd/containerd.sock"),
            namespace: format!("{name}-{}", std::process::id()),
            mqtt: free_port()?,
        })
    }
}

/// The whole system.
#[derive(Debug)]
pub struct World {
    pub place: Place,
    pub hub: Option<Process>,
    pub edge: Option<Process>,
    pub link: Option<Link>,
    pub ports: Ports,
    /// Further keys of the node's configuration, for [`World::join`].
    pub more: Vec<(&'static str, String)>,
}

/// Where the hub listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub api: SocketAddr,
    pub websocket: SocketAddr,
    pub bootstrap: SocketAddr,
}

/// A loopback port that is free now.
pub fn free_port() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Directory of the programs built beside the one that runs (`target/<profile>`).
pub fn bins() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("no parent directory")?;
    Ok(if dir.ends_with("deps") {
        dir.parent().context("no parent")?.to_owned()
    } else {
        dir.to_owned()
    })
}

impl World {
    /// Starts the hub; no node yet.
    pub async fn start_hub(place: Place) -> Result<Self> {
        std::fs::create_dir_all(&place.dir)?;
        let ports = Ports {
            api: free_port()?,
            websocket: free_port()?,
            bootstrap: free_port()?,
        };
        let mut world = Self {
            place,
            hub: None,
            edge: None,
            link: None,
            ports,
            more: Vec::new(),
        };
        world.hub_up().await?;
        Ok(world)
    }

    fn bin(&self, name: &str) -> Command {
        let mut command = Command::new(self.place.bins.join(name));
        command.env("RUST_BACKTRACE", "1").env_remove("RUST_LOG");
        command
    }

    pub fn hub_dir(&self) -> PathBuf {
        self.place.dir.join("hub")
    }

    pub fn edge_dir(&self) -> PathBuf {
        self.place.dir.join("edge")
    }

    pub fn edge_config(&self) -> PathBuf {
        self.edge_dir().join("edgecore.yaml")
    }

    /// Starts the hub on its ports and waits until its API answers.
    pub async fn hub_up(&mut self) -> Result<()> {
        let dir = self.hub_dir();
        std::fs::create_dir_all(&dir)?;
        let mut command = self.bin("cloudhub");
        command
            .arg("run")
            .args(["--data-dir", path(&dir)?])
            .args(["--advertise", "127.0.0.1"])
            .args(["--api-listen", &self.ports.api.to_string()])
            .args(["--websocket-listen", &self.ports.websocket.to_string()])
            .args(["--bootstrap-listen", &self.ports.bootstrap.to_string()]);
        self.hub = Some(Process::start(
            "cloudhub",
            &self.place.dir.join("cloudhub.log"),
            &mut command,
        )?);
        let kubectl = self.kubectl();
        wait::until("the hub's API", START_MAX, async || {
            self.hub.as_mut().context("no hub")?.check()?;
            Ok(kubectl.run(&["get", "--raw", "/readyz"]).await.ok())
        })
        .await?;
        Ok(())
    }

    /// kubectl with the admin's kubeconfig.
    pub fn kubectl(&self) -> Kubectl {
        self.kubectl_by(kubectl::on_path())
    }

    pub fn kubectl_by(&self, program: PathBuf) -> Kubectl {
        Kubectl::new(
            program,
            &self.hub_dir().join("admin.kubeconfig"),
            &self.place.dir,
        )
    }

    /// A one-time token for [`NODE`].
    pub fn token(&self) -> Result<String> {
        let output = self
            .bin("cloudhub")
            .args([
                "token",
                "create",
                "--node",
                NODE,
                "--data-dir",
                path(&self.hub_dir())?,
            ])
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "cloudhub token create: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let token = said
            .split_whitespace()
            .find(|word| word.matches('.').count() == 3);
        token
            .map(ToOwned::to_owned)
            .with_context(|| format!("no token in: {said}"))
    }

    /// Joins the node through a link that can be cut later.
    pub async fn join(&mut self, token: &str) -> Result<String> {
        let link = Link::start(self.ports.websocket).await?;
        std::fs::create_dir_all(self.edge_dir())?;
        let mut command = self.bin("edgecore");
        command
            .args([
                "join",
                "--hub",
                &format!("https://{}", self.ports.bootstrap),
            ])
            .args(["--token", token, "--node-name", NODE, "--force"])
            .args(["--websocket", &link.address().to_string()])
            .args(["--config", path(&self.edge_config())?])
            .args(["--data-dir", path(&self.edge_dir())?]);
        for (key, value) in self.settings()?.iter().chain(&self.more) {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let output = command.output()?;
        if !output.status.success() {
            bail!("edgecore join: {}", String::from_utf8_lossy(&output.stderr));
        }
        self.link = Some(link);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Tries to join from another machine's disk: what somebody who copied the token would do.
    pub fn join_from_elsewhere(&self, token: &str) -> Result<String> {
        let dir = self.place.dir.join("elsewhere");
        std::fs::create_dir_all(&dir)?;
        let output = self
            .bin("edgecore")
            .args([
                "join",
                "--hub",
                &format!("https://{}", self.ports.bootstrap),
            ])
            .args(["--token", token, "--node-name", NODE])
            .args([
                "--config",
                path(&dir.join("edgecore.yaml"))?,
                "--data-dir",
                path(&dir)?,
            ])
            .output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What differs from a node that has the machine to itself.
    fn settings(&self) -> Result<Vec<(&'static str, String)>> {
        let dir = self.edge_dir();
        let dir = path(&dir)?;
        let Place {
            containerd,
            namespace,
            mqtt,
            bins,
            ..
        } = &self.place;
        Ok(vec![
            (
                "modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint",
                format!("unix://{}", path(containerd)?),
            ),
            (
                "modules.edged.tailoredKubeletConfig.podLogsDir",
                format!("{dir}/logs"),
            ),
            (
                // What is proven here must not depend on how full the machine's disk is.
                "modules.edged.tailoredKubeletConfig.evictionHard",
                "{nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}".into(),
            ),
            ("modules.edged.nodeIP", "127.0.0.1".into()),
            ("modules.edged.rootDirectory", format!("{dir}/pods")),
            (
                "modules.eventBus.mqttServerInternal",
                format!("tcp://{mqtt}"),
            ),
            ("outpost.containerdNamespace", namespace.clone()),
            ("outpost.cgroupRoot", cgroup_root(&self.place.dir)),
            ("outpost.cniConfDirectory", format!("{dir}/cni")),
            (
                "outpost.loggerPath",
                path(&bins.join("edged-logger"))?.to_owned(),
            ),
            ("modules.deviceTwin.dmiSockPath", format!("{dir}/dmi")),
            ("outpost.runDirectory", format!("{dir}/run")),
        ])
    }

    /// Starts the node's daemon. Does not wait for the hub: the node must not need one.
    pub fn edge_up(&mut self) -> Result<()> {
        let mut command = self.bin("edgecore");
        command.args(["run", "--config", path(&self.edge_config())?]);
        let log = self.place.dir.join("edgecore.log");
        self.edge = Some(Process::start("edgecore", &log, &mut command)?);
        Ok(())
    }

    /// Points the node at the hub itself, without the cable that this process holds, and starts its
    /// daemon anew. Its pods do not notice.
    pub async fn take_cable_away(&mut self) -> Result<()> {
        let link = self.link.take().context("the node has not joined")?;
        let config = std::fs::read_to_string(self.edge_config())?;
        let direct = config.replace(
            &link.address().to_string(),
            &self.ports.websocket.to_string(),
        );
        ensure!(
            direct != config,
            "the configuration does not name {}",
            link.address()
        );
        std::fs::write(self.edge_config(), direct)?;
        self.edge()?.stop().await?;
        self.edge_up()
    }

    pub fn edge(&mut self) -> Result<&mut Process> {
        self.edge.as_mut().context("edgecore does not run")
    }

    pub fn hub(&mut self) -> Result<&mut Process> {
        self.hub.as_mut().context("cloudhub does not run")
    }

    pub fn link(&self) -> Result<&Link> {
        self.link.as_ref().context("the node has not joined")
    }

    /// `edgecore status -o json`.
    pub fn status(&self) -> Result<Value> {
        let output = self
            .bin("edgecore")
            .args([
                "status",
                "-o",
                "json",
                "--config",
                path(&self.edge_config())?,
            ])
            .output()?;
        if !output.status.success() {
            bail!(
                "edgecore status: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Imports an image archive on the node.
    pub fn import(&self, archive: &Path) -> Result<String> {
        let output = self
            .bin("edgecore")
            .args([
                "image",
                "import",
                path(archive)?,
                "--config",
                path(&self.edge_config())?,
            ])
            .output()?;
        if !output.status.success() {
            bail!(
                "edgecore image import: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A command of `edgecore` on this node, to be given its arguments.
    pub fn on_node(&self, command: &str) -> Result<Command> {
        let mut on_node = self.bin("edgecore");
        on_node.args([command, "--config", path(&self.edge_config())?]);
        Ok(on_node)
    }

    /// `edgecore image` on this node.
    pub fn on_images(&self, command: &str) -> Result<Command> {
        let mut on_node = self.bin("edgecore");
        on_node.args(["image", command, "--config", path(&self.edge_config())?]);
        Ok(on_node)
    }

    /// Waits until the pod is Ready; the pod.
    pub async fn pod_is_ready(&self, pod: &str, limit: Duration) -> Result<Value> {
        self.kubectl()
            .until(
                &format!("pod {pod} Ready"),
                limit,
                &["get", "pod", pod],
                |pod| (condition(pod, "Ready")? == "True").then(|| pod.clone()),
            )
            .await
    }

    /// Deletes every pod of the default namespace and waits until they are gone.
    pub async fn delete_pods(&self) -> Result<()> {
        let all = ["delete", "pods", "--all", "--grace-period=1"];
        self.kubectl()
            .run(&[all.as_slice(), &["--timeout=90s"]].concat())
            .await?;
        Ok(())
    }

    /// Errors and panics that the daemons have logged.
    pub fn complaints(&self) -> Vec<String> {
        let is_bad = |line: &&str| line.contains(" ERROR ") || line.contains("panicked");
        let logs = ["cloudhub.log", "edgecore.log"].map(|name| self.place.dir.join(name));
        let texts = logs.map(|log| std::fs::read_to_string(log).unwrap_or_default());
        let lines = texts.iter().flat_map(|text| text.lines());
        lines.filter(is_bad).map(str::to_owned).collect()
    }

    /// Fails with what the daemons have complained about.
    pub fn no_complaints(&self) -> Result<()> {
        let errors = self.complaints();
        ensure!(
            errors.is_empty(),
            "errors in the logs:\n{}",
            errors.join("\n")
        );
        Ok(())
    }

    /// Waits until the node's Ready condition in the hub has this status.
    pub async fn node_is(&self, status: &str, limit: Duration) -> Result<Duration> {
        let started = Instant::now();
        self.kubectl()
            .until(
                &format!("node Ready={status}"),
                limit,
                &["get", "node", NODE],
                |node| (condition(node, "Ready")? == status).then_some(()),
            )
            .await?;
        Ok(started.elapsed())
    }
}

/// Status of a condition of an object.
pub fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == name)?["status"]
        .as_str()
}

/// The reported value of a device's property in its `DeviceStatus`.
pub fn reported<'a>(device_status: &'a Value, property: &str) -> Option<&'a str> {
    device_status["status"]["twins"]
        .as_array()?
        .iter()
        .find(|twin| twin["propertyName"] == property)?["reported"]["value"]
        .as_str()
}

/// A path as an argument.
pub fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
