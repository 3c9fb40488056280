//! A containerd that comes and goes, and a clock that is wrong.

use super::*;

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: {IMAGE}
      imagePullPolicy: IfNotPresent
      command: [sh, -c, \"trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done\"]
---
"
    )
}

#[test]
fn pods_come_up_whatever_containerd_and_the_clock_do() {
    if containerd::skipped() {
        return;
    }
    scenario("containerd", async |stage| {
        let mut containerd = PrivateContainerd::start(&stage.dir.path().join("containerd"))?;
        stage.node().await?;
        let archive = stage.dir.path().join("busybox.tar");
        oci::write_archive(&oci::ImageSpec::busybox(IMAGE), &archive)?;
        stage.world.import(&archive)?;
        stage.world.edge()?.kill9()?;

        // Absent at the start.
        containerd.kill()?;
        std::fs::remove_file(containerd.address())?;
        stage.world.edge_up()?;
        stage.linked().await?;
        let config = stage.world.edge_config();
        let said = stage.run("edgecore", &["check", "--config", path(&config)?])?;
        says(
            &String::from_utf8_lossy(&said.stdout),
            &["containerd", "no socket at", "systemctl start"],
        )?;
        stage.apply(&pod("p0")).await?;
        stage.world.node_is("False", PATIENCE).await?;
        containerd.restart()?;
        stage.world.pod_is_ready("p0", PATIENCE).await?;
        stage.world.node_is("True", PATIENCE).await?;

        // Restarted under a running pod.
        let before = containers::running(&stage.world, "p0")?;
        containerd.restart()?;
        // Killed while pods are being made.
        stage
            .apply(&format!("{}{}{}", pod("p1"), pod("p2"), pod("p3")))
            .await?;
        wait::until("the first record of a new pod", PATIENCE, async || {
            Ok((containers::all(&stage.world)?.len() > 1).then_some(()))
        })
        .await?;
        containerd.restart()?;
        for name in ["p1", "p2", "p3"] {
            stage.world.pod_is_ready(name, PATIENCE).await?;
        }
        ensure!(
            containers::running(&stage.world, "p0")? == before,
            "the restart of containerd restarted a pod"
        );
        in_1970(stage, before.pid).await?;
        let delete = ["delete", "pods", "--all", "--timeout=60s"];
        stage.world.kubectl().run(&delete).await?;
        let left = containers::all(&stage.world)?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        stage.world.edge()?.stop().await?;
        Ok(())
    });
}

/// Where Debian puts the library that lies about the time.
fn faketime() -> Option<PathBuf> {
    let of = |arch: &str| {
        PathBuf::from(format!(
            "/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1"
        ))
    };
    ["x86_64", "aarch64"]
        .into_iter()
        .map(of)
        .find(|path| path.exists())
}

/// The node boots with a clock in 1970 while its hub is away, and meets it later.
async fn in_1970(stage: &mut Stage, pid: u32) -> Result<()> {
    let Some(library) = faketime() else {
        containerd::left_out(Some("no libfaketime: run scripts/setup.sh".to_owned()));
        return Ok(());
    };
    stage.world.edge()?.kill9()?;
    stage.world.link()?.cut();
    let killed = containers::running(&stage.world, "p1")?;
    Command::new("kill")
        .args(["-9", &killed.pid.to_string()])
        .status()?;
    let config = stage.world.edge_config();
    let mut command = Command::new(stage.world.place.bins.join("edgecore"));
    command
        .args(["run", "--config", path(&config)?])
        .env("LD_PRELOAD", &library)
        .env("FAKETIME", "@1970-01-02 00:00:00")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1");
    let log = stage.dir.path().join("edgecore.log");
    stage.world.edge = Some(Process::start("edgecore", &log, &mut command)?);
    stage
        .status("every pod from the store", |status| {
            let pods = status["pods"].as_array().cloned().unwrap_or_default();
            pods.iter().filter(|pod| pod["phase"] == "Running").count() == 4
        })
        .await?;
    wait::until("the killed pod again", PATIENCE, async || {
        Ok(containers::running(&stage.world, "p1").ok())
    })
    .await?;
    ensure!(
        containers::running(&stage.world, "p0")?.pid == pid,
        "p0 was restarted"
    );
    let mut thermometer = Thermometer::new(stage.world.place.mqtt, "dev/clock");
    thermometer.publish(1..11, 100, PATIENCE).await?;
    stage.world.link()?.restore();
    stage.linked().await?;
    stage.world.node_is("True", PATIENCE).await?;
    stage.world.pod_is_ready("p1", PATIENCE).await?;
    let log = stage.log("edgecore.log");
    ensure!(log.contains("1970-01-02"), "the clock was not in 1970");
    Ok(())
}
