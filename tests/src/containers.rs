//! Containers as containerd itself tells them, by its own client `ctr`: no tool of ours.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::world::World;

/// One container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    pub pid: u32,
    pub running: bool,
}

fn ctr(world: &World, args: &[&str]) -> Result<String> {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(&world.place.containerd)
        .args(["--namespace", &world.place.namespace])
        .args(args)
        .output()
        .context("ctr (package containerd)")?;
    if !output.status.success() {
        bail!(
            "ctr {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every task of this run's containerd namespace.
pub fn all(world: &World) -> Result<Vec<Container>> {
    let listed = ctr(world, &["tasks", "list"])?;
    Ok(listed
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let id = words.next()?.to_owned();
            let pid = words.next()?.parse().ok()?;
            Some(Container {
                id,
                pid,
                running: words.next()? == "RUNNING",
            })
        })
        .collect())
}

/// The running container of the pod named `pod`.
pub fn running(world: &World, pod: &str) -> Result<Container> {
    let filter = format!("labels.\"io.kubernetes.pod.name\"=={pod}");
    let ids = ctr(world, &["containers", "list", "--quiet", &filter])?;
    all(world)?
        .into_iter()
        .find(|container| container.running && ids.lines().any(|id| id == container.id))
        .with_context(|| format!("pod {pod} has no running container"))
}
