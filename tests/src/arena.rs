//! A node under attack: hub, node, a private containerd, a proxy between the last two, and the
//! leak checker over all of it. Faults are injected here; what should come of them is the caller's.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::Method;
use serde_json::Value;

use crate::api;
use crate::containerd::{self, PrivateContainerd};
use crate::ground::Ground;
use crate::grpc_proxy::GrpcProxy;
use crate::leaks::{Inventory, Scope};
use crate::oci;
use crate::process::tail;
use crate::scenario::Settings;
use crate::wait;
use crate::world::{NODE, Place, World};

/// The image that the node has.
pub const IMAGE: &str = "docker.io/library/busybox:arena";
/// Longest that anything may take.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Longest until what a pod had is gone after the pod is.
const CLEAN_WITHIN: Duration = Duration::from_secs(30);
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Everything.
pub struct Arena {
    pub world: World,
    pub containerd: PrivateContainerd,
    pub proxy: GrpcProxy,
    calls: cloudhub::cli::client::Connection,
    /// Uids of the pods made so far.
    pub uids: BTreeSet<String>,
    /// What was there before the first pod that counts.
    before: Option<Inventory>,
    /// Last: cleared when the daemons are gone.
    pub dir: Ground,
}

impl Arena {
    /// Hub, node and containerd from `binaries` (of the machine: `None`).
    pub async fn start(name: &str, binaries: Option<PathBuf>) -> Result<Self> {
        Self::start_with(name, binaries, Vec::new()).await
    }

    /// As [`Self::start`], with further keys in the node's configuration.
    pub async fn start_with(
        name: &str,
        binaries: Option<PathBuf>,
        settings: Settings,
    ) -> Result<Self> {
        let dir = Ground::temporary(&format!("outpost-{name}-"))?;
        std::fs::create_dir(dir.path().join("statics"))?;
        let containerd_dir = dir.path().join("containerd");
        let containerd = PrivateContainerd::start_from(&containerd_dir, binaries)?;
        let proxy = GrpcProxy::start(&dir.path().join("proxy.sock"), &containerd.address())?;
        let place = Place::new(name, dir.path())?;
        let mut world = World::start_hub(place).await?;
        world.more = vec![
            (
                "modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint",
                format!("unix://{}", proxy.address().display()),
            ),
            (
                "modules.edged.tailoredKubeletConfig.staticPodPath",
                dir.path().join("statics").display().to_string(),
            ),
        ];
        world.more.extend(settings);
        let token = world.token()?;
        world.join(&token).await?;
        world.edge_up()?;
        world.node_is("True", PATIENCE).await?;
        let archive = dir.path().join("busybox.tar");
        oci::write_archive(&oci::ImageSpec::busybox(IMAGE), &archive)?;
        world.import(&archive)?;
        let kubeconfig = world.hub_dir().join("admin.kubeconfig");
        Ok(Self {
            calls: api::connect(&kubeconfig).await?,
            world,
            containerd,
            proxy,
            uids: BTreeSet::new(),
            before: None,
            dir,
        })
    }

    /// Where leaks are looked for now.
    pub fn scope(&self) -> Scope {
        let edge_dir = self.world.edge_dir();
        let place = &self.world.place;
        let edgecore = self.world.edge.as_ref().map(crate::process::Process::pid);
        let hub = self.world.hub.as_ref().map(crate::process::Process::pid);
        Scope {
            ctr: containerd::ctr(self.containerd.binaries()),
            containerd: self.containerd.address(),
            namespace: place.namespace.clone(),
            dirs: vec![
                edge_dir.join("run"),
                edge_dir.join("pods"),
                edge_dir.join("logs"),
            ],
            // containerd's own directories are looked at for mounts alone: a bundle that it was killed
            // while deleting, or whose shim was killed while it started, stays until it restarts.
            mounts: vec![edge_dir, self.dir.path().join("containerd")],
            cgroup_root: self.dir.cgroup_root(),
            edgecore,
            known: [edgecore, hub, self.containerd.pid()]
                .into_iter()
                .flatten()
                .collect(),
            pods: self.uids.clone(),
        }
    }

    /// What is there now is what may be there; the pods made so far must be gone.
    pub async fn settle(&mut self) -> Result<()> {
        self.nothing_runs().await?;
        self.before = Some(self.scope().take());
        Ok(())
    }

    /// What is there now, running pods included, is what may be there from now on.
    pub fn adopt_as_given(&mut self) {
        self.before = Some(self.scope().take());
    }

    /// Waits until no process, mount, container or task of a pod is left.
    pub async fn nothing_runs(&self) -> Result<()> {
        wait::until("no pod's process or mount", CLEAN_WITHIN, async || {
            let now = self.scope().take();
            let left = now.since(&Inventory::default());
            let is_pods = |line: &String| {
                ["process", "mount", "container", "task"]
                    .iter()
                    .any(|k| line.starts_with(k))
            };
            let left: Vec<String> = left.into_iter().filter(is_pods).collect();
            if left.is_empty() {
                Ok(Some(()))
            } else {
                bail!("{}", left.join("\n"))
            }
        })
        .await
    }

    /// Fails with what is there that was not at [`Self::settle`], if it does not go in time.
    pub async fn nothing_leaked(&self) -> Result<()> {
        let before = self.before.as_ref().context("settle first")?;
        wait::until("nothing to be left behind", CLEAN_WITHIN, async || {
            let leaks = self.scope().take().since(before);
            if leaks.is_empty() {
                Ok(Some(()))
            } else {
                bail!("left behind:\n  {}", leaks.join("\n  "))
            }
        })
        .await
    }

    /// Creates a pod bound to the node; its uid.
    pub async fn create(&mut self, name: &str, mut spec: Value) -> Result<String> {
        spec["nodeName"] = NODE.into();
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": spec,
        });
        let made = self.calls.call(Method::POST, PODS, Some(&pod)).await?;
        let uid = made["metadata"]["uid"]
            .as_str()
            .context("no uid")?
            .to_owned();
        self.uids.insert(uid.clone());
        Ok(uid)
    }

    /// Asks for the pod's end.
    pub async fn delete(&mut self, name: &str, grace_seconds: u32) -> Result<()> {
        let path = format!("{PODS}/{name}?gracePeriodSeconds={grace_seconds}");
        self.calls.call(Method::DELETE, &path, None).await?;
        Ok(())
    }

    /// The pod as the hub has it; `None` if it is gone.
    pub async fn pod(&mut self, name: &str) -> Result<Option<Value>> {
        let list = self.calls.call(Method::GET, PODS, None).await?;
        let items = list["items"].as_array().context("no list")?;
        Ok(items
            .iter()
            .find(|pod| pod["metadata"]["name"] == name)
            .cloned())
    }

    /// Waits until the pod runs with every container ready.
    pub async fn running(&mut self, name: &str) -> Result<Value> {
        self.running_after(name, 0).await
    }

    /// As [`Self::running`], with at least so many restarts.
    pub async fn running_after(&mut self, name: &str, restarted: u64) -> Result<Value> {
        let mut last = Value::Null;
        let outcome = wait::until(&format!("pod {name} to run"), PATIENCE, async || {
            let Some(pod) = self.pod(name).await? else {
                bail!("pod {name} is gone");
            };
            last = pod["status"].clone();
            let is_so = is_running(&pod) && restarts(&pod) >= restarted;
            Ok(is_so.then_some(pod))
        })
        .await;
        outcome.with_context(|| format!("last status: {last:#}"))
    }

    /// Waits until the pod has ended for good.
    pub async fn over(&mut self, name: &str) -> Result<Value> {
        wait::until(&format!("pod {name} to end"), PATIENCE, async || {
            let Some(pod) = self.pod(name).await? else {
                bail!("pod {name} is gone");
            };
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            Ok(matches!(phase, "Succeeded" | "Failed").then_some(pod))
        })
        .await
    }

    /// Waits until the hub has forgotten the pod.
    pub async fn gone(&mut self, name: &str) -> Result<()> {
        let mut last = Value::Null;
        let outcome = wait::until(&format!("pod {name} to go"), PATIENCE, async || {
            last = self.pod(name).await?.unwrap_or_default();
            Ok(last.is_null().then_some(()))
        })
        .await;
        outcome.with_context(|| format!("last seen: {last:#}"))
    }

    /// The end of both logs, for a failure.
    pub fn logs(&self) -> String {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let edge = read(self.dir.path().join("edgecore.log"));
        let containerd = read(self.dir.path().join("containerd/containerd.log"));
        format!(
            "--- edgecore.log\n{}\n--- containerd.log\n{}",
            tail(&edge, 80),
            tail(&containerd, 40)
        )
    }
}

/// Phase Running and every container ready.
pub fn is_running(pod: &Value) -> bool {
    let status = &pod["status"];
    let wanted = pod["spec"]["containers"].as_array().map_or(0, Vec::len);
    let statuses = status["containerStatuses"].as_array();
    status["phase"] == "Running"
        && statuses.is_some_and(|all| {
            all.len() == wanted && all.iter().all(|container| container["ready"] == true)
        })
}

/// Restarts of all containers of the pod, init containers left out.
pub fn restarts(pod: &Value) -> u64 {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let counts = statuses
        .into_iter()
        .flatten()
        .filter_map(|c| c["restartCount"].as_u64());
    counts.sum()
}
