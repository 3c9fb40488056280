//! A hub that goes and comes, a node that starts without it.

use std::time::Instant;

use anyhow::Result;
use outpost_tests::world::World;
use outpost_tests::{containers, wait};

use crate::PATIENCE;
use crate::figures::{Figures, millis, say};

/// The hub is killed and comes back; how long until the node's session stands again.
pub(crate) async fn reconnect(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("hub killed and back …");
    world.hub()?.kill9()?;
    wait::until("the node to notice", PATIENCE, async || {
        Ok((world.status()?["link"]["state"] != "connected").then_some(()))
    })
    .await?;
    world.hub_up().await?;
    let up = Instant::now();
    wait::until("the session", PATIENCE, async || {
        Ok((world.status()?["link"]["state"] == "connected").then_some(()))
    })
    .await?;
    figures.insert("hub_back_to_session_ms", millis(up.elapsed()));
    Ok(())
}

/// No hub, edgecore killed: until it knows all pods running (adopted); then the containers are
/// killed too, as after a reboot: until all run again.
pub(crate) async fn offline_start(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("offline start …");
    let stand = containers::all(world)?.len();
    world.hub()?.kill9()?;
    world.edge()?.kill9()?;
    let started = Instant::now();
    world.edge_up()?;
    wait::until("all pods known running", PATIENCE, async || {
        let Ok(status) = world.status() else {
            // Its socket is not there yet.
            return Ok(None);
        };
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let running = pods.iter().filter(|pod| pod["phase"] == "Running").count();
        Ok((running == stand).then_some(()))
    })
    .await?;
    figures.insert("offline_start_to_pods_known_ms", millis(started.elapsed()));
    world.edge()?.kill9()?;
    for container in containers::all(world)? {
        std::process::Command::new("kill")
            .args(["-9", &container.pid.to_string()])
            .status()?;
    }
    let started = Instant::now();
    world.edge_up()?;
    wait::until("all pods to run again", PATIENCE, async || {
        let running = containers::all(world)?.iter().filter(|c| c.running).count();
        Ok((running == stand).then_some(()))
    })
    .await?;
    figures.insert(
        "offline_reboot_to_pods_running_ms",
        millis(started.elapsed()),
    );
    world.hub_up().await
}
