//! A disk that fills under a node.

use super::*;

/// A small disk of its own at `at`, as long as this lives.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let disk = Self { at: at.to_owned() };
        disk.call(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])?;
        Ok(disk)
    }

    fn resize(&self, size: &str) -> Result<()> {
        self.call(&["-o", &format!("remount,size={size}")])
    }

    fn call(&self, args: &[&str]) -> Result<()> {
        let output = Command::new("mount").args(args).arg(&self.at).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "mount {args:?}: {said}");
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that a failed test leaves behind may still hold it for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[test]
fn a_full_disk_stops_acknowledgements_and_nothing_else() {
    if containerd::skipped() {
        return;
    }
    scenario("full", async |stage| {
        let disk = SmallDisk::mount(&stage.world.edge_dir(), "2m")?;
        stage.node().await?;
        stage.apply(&device("dev")).await?;
        stage
            .status("the device", |s| s["devices"].to_string().contains("t1"))
            .await?;
        mqtt::nonsense_on_mqtt(stage).await?;

        // Nothing drains the outbox until the disk is full.
        stage.world.link()?.cut();
        let count = 3000;
        let mut thermometer = Thermometer::new(stage.world.place.mqtt, "dev/t1");
        let progress = Arc::clone(&thermometer.progress);
        let not_stored = "a message was not stored";
        let fill = async {
            wait::until("a full disk", PATIENCE, async || {
                Ok(stage.log("edgecore.log").contains(not_stored).then_some(()))
            })
            .await?;
            let stuck = progress.load(Ordering::Relaxed);
            ensure!(stuck < count, "the disk never filled");
            stage
                .status("a node that answers", |s| {
                    s["devices"].to_string().contains("t1")
                })
                .await?;
            disk.resize("64m")?;
            stage.world.link()?.restore();
            anyhow::Ok(())
        };
        let (published, filled) =
            tokio::join!(thermometer.publish(1..count + 1, 3000, PATIENCE), fill);
        filled?;
        published?;
        stage.world.edge()?.check()?;
        let ledger_path = format!("/outpost/v1/ledger/{NODE}");
        let wanted: Vec<String> = (1..=count).map(|n| n.to_string()).collect();
        let kubectl = stage.world.kubectl();
        let got = kubectl
            .until(
                "every reading",
                PATIENCE,
                &["get", "--raw", &ledger_path],
                |found| {
                    let values = ledger::values(found, "twin/dev/t1", "temperature");
                    (values.len() >= wanted.len()).then_some(values)
                },
            )
            .await?;
        let wrong = wanted.iter().zip(&got).position(|(a, b)| a != b);
        ensure!(
            got == wanted,
            "{} readings; first difference at {wrong:?}",
            got.len()
        );
        stage.world.edge()?.stop().await?;
        Ok(())
    });
}
