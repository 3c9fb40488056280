//! One test's world: hub, node and a containerd of its own, taken down and looked over at the end.

#![expect(
    clippy::expect_used,
    reason = "a scenario is a test: without a world it fails, or says that it was skipped"
)]

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::containerd::{self, PrivateContainerd};
use crate::ground::Ground;
use crate::process::tail;
use crate::world::{Place, World, path};
use crate::{containers, oci};

/// Longest that anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The image that [`Run::image`] puts on the node.
pub const IMAGE: &str = "docker.io/library/busybox:e2e";

/// Keys of the node's configuration and their values.
pub type Settings = Vec<(&'static str, String)>;

/// A world of one's own.
#[derive(Debug)]
pub struct Run {
    pub world: World,
    _containerd: PrivateContainerd,
    /// Last: cleared when the daemons are gone.
    pub dir: Ground,
}

impl Run {
    /// `None` where the neighbours are missing and nobody insists on them.
    async fn start(name: &str, settings: Settings) -> Result<Option<Self>> {
        if containerd::skipped() {
            return Ok(None);
        }
        let dir = Ground::temporary(&format!("outpost-{name}-"))?;
        let containerd = PrivateContainerd::start(&dir.path().join("containerd"))?;
        let place = Place::new(name, dir.path())?;
        let mut world = World::start_hub(place).await?;
        world.more = settings;
        let token = world.token()?;
        world.join(&token).await?;
        world.edge_up()?;
        world.node_is("True", PATIENCE).await?;
        Ok(Some(Self {
            world,
            _containerd: containerd,
            dir,
        }))
    }

    /// Puts [`IMAGE`] on the node.
    pub fn image(&self) -> Result<()> {
        let archive = self.dir.path().join("busybox.tar");
        oci::write_archive(&oci::ImageSpec::busybox(IMAGE), &archive)?;
        self.world.import(&archive)?;
        Ok(())
    }

    /// `kubectl apply`.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        let file = self.dir.path().join("manifest.yaml");
        std::fs::write(&file, manifest)?;
        self.world
            .kubectl()
            .run(&["apply", "-f", path(&file)?])
            .await
    }

    /// Takes the pods away, so that nothing of this run is left on the machine.
    async fn end(mut self) -> Result<()> {
        self.world.delete_pods().await?;
        self.world.edge()?.stop().await?;
        self.world.hub()?.stop().await?;
        let left = containers::all(&self.world)?;
        ensure!(left.is_empty(), "containers left behind: {left:?}");
        self.world.no_complaints()
    }

    /// The ends of all logs in the world's directory.
    fn logs(&self) -> String {
        let entries = std::fs::read_dir(self.dir.path());
        let files = entries.into_iter().flatten().flatten();
        let mut logs: Vec<_> = files
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "log"))
            .collect();
        logs.sort();
        let shown = logs.iter().map(|path| {
            let log = std::fs::read_to_string(path).unwrap_or_default();
            let name = path.file_name().unwrap_or_default().display();
            format!("--- {name}\n{}", tail(&log, 60))
        });
        shown.collect::<Vec<_>>().join("\n")
    }
}

/// Runs a scenario; a failure shows the logs.
///
/// # Panics
/// The story failed, or the daemons logged errors or left containers behind.
pub fn scenario(name: &str, story: impl AsyncFnOnce(&mut Run) -> Result<()>) {
    scenario_with(name, Vec::new(), story);
}

/// As [`scenario`], with further keys in the node's configuration.
///
/// # Panics
/// As [`scenario`].
pub fn scenario_with(
    name: &str,
    settings: Settings,
    story: impl AsyncFnOnce(&mut Run) -> Result<()>,
) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let Some(mut run) = Run::start(name, settings).await.expect("a world") else {
            return;
        };
        if let Err(error) = story(&mut run).await {
            panic!("{error:#}\n{}", run.logs());
        }
        let logs = run.logs();
        if let Err(error) = run.end().await {
            panic!("{error:#}\n{logs}");
        }
    });
}
