//! What is given to the daemons wrong, and what breaks around them: each says what is wrong, nothing
//! that was acknowledged is lost, nobody else is hurt.

mod disk;
/// Shared with the tests of the broker, which own the file.
#[path = "../../../broker/tests/broker/frames.rs"]
mod frames;
mod mqtt;
mod pods;
mod refused;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use outpost_tests::containerd::{self, PrivateContainerd};
use outpost_tests::device::Thermometer;
use outpost_tests::ground::Ground;
use outpost_tests::process::{Process, tail};
use outpost_tests::world::{NODE, Place, World, path};
use outpost_tests::{containers, ledger, oci, wait};

const PATIENCE: Duration = Duration::from_secs(60);
const IMAGE: &str = "docker.io/library/busybox:faults";

/// A hub and a directory; the node comes when the story asks for it.
struct Stage {
    world: World,
    dir: Ground,
}

impl Stage {
    async fn new(name: &str) -> Result<Self> {
        let dir = Ground::temporary(&format!("outpost-{name}-"))?;
        let place = Place::new(name, dir.path())?;
        let world = World::start_hub(place).await?;
        Ok(Self { world, dir })
    }

    async fn node(&mut self) -> Result<()> {
        let token = self.world.token()?;
        self.world.join(&token).await?;
        self.world.edge_up()?;
        self.linked().await
    }

    async fn linked(&self) -> Result<()> {
        self.status("the link", |status| status["link"]["state"] == "connected")
            .await
    }

    async fn status(&self, what: &str, is: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
        wait::until(what, PATIENCE, async || {
            Ok(self.world.status().is_ok_and(|s| is(&s)).then_some(()))
        })
        .await
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        // What should have been refused at once must not run for ever.
        Ok(Command::new("timeout")
            .args(["--kill-after=1", "20"])
            .arg(self.world.place.bins.join(program))
            .env_remove("RUST_LOG")
            .args(args)
            .output()?)
    }

    /// What a program says when it refuses.
    fn refused(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.run(program, args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{program} {args:?} was accepted");
        Ok(said)
    }

    fn token(&self, node: &str, more: &[&str]) -> Result<String> {
        let hub = self.world.hub_dir();
        let mut args = vec!["token", "create", "--node", node, "--data-dir", path(&hub)?];
        args.extend(more);
        let output = self.run("cloudhub", &args)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    async fn apply(&self, manifest: &str) -> Result<String> {
        let file = self.dir.path().join("manifest.yaml");
        std::fs::write(&file, manifest)?;
        let kubectl = self.world.kubectl();
        kubectl.run(&["apply", "-f", path(&file)?]).await
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

fn scenario(name: &str, story: impl AsyncFnOnce(&mut Stage) -> Result<()>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut stage = Stage::new(name).await.unwrap();
        let outcome = story(&mut stage).await;
        for log in ["cloudhub.log", "edgecore.log"] {
            let text = stage.log(log);
            assert!(!text.contains("panicked"), "{log}:\n{text}");
            if outcome.is_err() {
                eprintln!("--- {log}\n{}", tail(&text, 40));
            }
        }
        if let Err(error) = outcome {
            panic!("{error:#}");
        }
    });
}

fn says(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "`{word}` is missing in: {text}");
    }
    Ok(())
}

fn device(namespace: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {{name: thermometer, namespace: {namespace}}}
spec:
  protocol: mqtt
  properties: [{{name: temperature, type: INT, accessMode: ReadOnly}}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: t1, namespace: {namespace}}}
spec:
  deviceModelRef: {{name: thermometer}}
  nodeName: {NODE}
  protocol: {{protocolName: mqtt}}
  properties: [{{name: temperature, reportToCloud: true}}]
"
    )
}
