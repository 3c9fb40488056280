//! A pod with a claim and a token: bound, used, kept offline and over pods, and gone when told.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use outpost_tests::kubectl;
use outpost_tests::scenario::{IMAGE, PATIENCE, scenario};
use outpost_tests::world::{World, path};
use outpost_tests::{containers, wait};

fn manifest() -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 1Mi}}}}
---
{}",
        pod()
    )
}

fn pod() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: keeper}}
spec:
  automountServiceAccountToken: true
  terminationGracePeriodSeconds: 1
  securityContext: {{runAsUser: 405, runAsGroup: 405, fsGroup: 4000}}
  containers:
    - name: main
      image: {IMAGE}
      imagePullPolicy: IfNotPresent
      command: [sh, -c, \"cat /var/run/secrets/kubernetes.io/serviceaccount/namespace >> /data/starts; \
                echo >> /data/starts; while true; do sleep 1 & wait $!; done\"]
      volumeMounts:
        - {{name: data, mountPath: /data}}
  volumes:
    - {{name: data, persistentVolumeClaim: {{claimName: data}}}}
---
"
    )
}

/// The one file of that name somewhere below.
fn find(below: PathBuf, name: &str) -> Option<PathBuf> {
    let mut stack = vec![below];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_name() == name {
                return Some(entry.path());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                stack.push(entry.path());
            }
        }
    }
    None
}

fn starts(world: &World) -> Result<usize> {
    let file = find(world.edge_dir().join("pods/storage"), "starts").context("no data")?;
    let text = std::fs::read_to_string(file)?;
    ensure!(text.lines().all(|line| line == "default"), "{text}");
    Ok(text.lines().count())
}

async fn started(world: &World, times: usize) -> Result<()> {
    let what = format!("{times} starts in the volume");
    wait::until(&what, PATIENCE, async || {
        Ok(starts(world).is_ok_and(|n| n >= times).then_some(()))
    })
    .await
}

fn token(world: &World) -> Result<String> {
    let file = find(world.edge_dir().join("run/volumes"), "token").context("no token")?;
    Ok(std::fs::read_to_string(file)?)
}

/// Who the hub says that somebody with this token is.
fn whoami(world: &World, token: &str) -> Result<String> {
    let output = Command::new(kubectl::on_path())
        .args(["--kubeconfig", "/dev/null", "--token", token])
        .args(["--server", &format!("https://{}", world.ports.api)])
        .arg("--certificate-authority")
        .arg(world.hub_dir().join("ca.crt"))
        .args([
            "auth",
            "whoami",
            "-o",
            "jsonpath={.status.userInfo.username}",
        ])
        .env("HOME", &world.place.dir)
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl auth whoami: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const ACCOUNT: &str = "system:serviceaccount:default:default";

#[test]
fn data_and_token_stay_with_the_node_and_go_when_told() {
    scenario("storage", async |run| {
        run.image()?;
        run.apply(&manifest()).await?;
        let kubectl = run.world.kubectl();
        run.world.pod_is_ready("keeper", PATIENCE).await?;
        started(&run.world, 1).await?;
        let first = token(&run.world)?;
        ensure!(whoami(&run.world, &first)? == ACCOUNT, "the pod's token");
        let by_hand = kubectl.run(&["create", "token", "default"]).await?;
        ensure!(
            whoami(&run.world, by_hand.trim())? == ACCOUNT,
            "a person's token"
        );
        let database = std::fs::read(run.world.edge_dir().join("edgecore.db"))?;
        let wal = std::fs::read(run.world.edge_dir().join("edgecore.db-wal")).unwrap_or_default();
        let leaks = |bytes: &[u8]| {
            let clear = first.as_bytes();
            bytes.windows(clear.len()).any(|window| window == clear)
        };
        ensure!(
            !leaks(&database) && !leaks(&wal),
            "the token is on disk in clear text"
        );

        // A reboot with the cable cut: the pod comes back with its data and its last token.
        run.world.hub()?.kill9()?;
        run.world.edge()?.kill9()?;
        for container in containers::all(&run.world)? {
            Command::new("kill")
                .args(["-9", &container.pid.to_string()])
                .status()?;
        }
        let volumes = run.world.edge_dir().join("run/volumes");
        unmount_and_forget(&volumes)?;
        run.world.edge_up()?;
        started(&run.world, 2).await?;
        ensure!(token(&run.world)? == first, "another token, without a hub");
        run.world.hub_up().await?;
        run.world.node_is("True", PATIENCE).await?;

        // The data is the claim's, not the pod's.
        kubectl
            .run(&["delete", "pod", "keeper", "--timeout=60s"])
            .await?;
        run.apply(&pod()).await?;
        run.world.pod_is_ready("keeper", PATIENCE).await?;
        started(&run.world, 3).await?;
        ensure!(token(&run.world)? != first, "a token of a pod that is gone");
        ensure!(
            whoami(&run.world, &first).is_err(),
            "the hub takes it all the same"
        );

        kubectl
            .run(&["delete", "pod", "keeper", "--timeout=60s"])
            .await?;
        ensure!(starts(&run.world)? >= 3, "the data went with a pod");
        kubectl
            .run(&["delete", "pvc", "data", "--timeout=60s"])
            .await?;
        let storage = run.world.edge_dir().join("pods/storage");
        wait::until("the data to go", PATIENCE, async || {
            Ok((std::fs::read_dir(&storage)?.count() == 0).then_some(()))
        })
        .await?;
        wait::until("the volume to go", PATIENCE, async || {
            let volumes = kubectl.json(&["get", "pv"]).await?;
            Ok((volumes["items"] == serde_json::json!([])).then_some(()))
        })
        .await
    });
}

/// What a reboot does to a tmpfs.
fn unmount_and_forget(dir: &std::path::Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|point| std::path::Path::new(point).starts_with(dir));
    for point in below {
        Command::new("umount").args(["-l", point]).status()?;
    }
    ensure!(path(dir).is_ok(), "the directory's name");
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
