//! What is given to the daemons wrong: refused, with what is wrong and what to do.

use super::*;

#[test]
fn what_is_refused_says_what_is_wrong_and_what_to_do() {
    scenario("refused", async |stage| {
        let file = stage.dir.path().join("wrong.yaml");
        for (program, text, words) in [
            ("cloudhub", "listen:\n  apii: 1\n", ["listen", "apii"]),
            (
                "cloudhub",
                "session:\n  nodesMax: many\n",
                ["session.nodesMax", "many"],
            ),
            (
                "edgecore",
                "modules:\n  edgeHub:\n    heartbeet: 3\n",
                ["modules.edgeHub", "heartbeet"],
            ),
            (
                "edgecore",
                "modules:\n  edgeHub:\n    heartbeat: often\n",
                ["modules.edgeHub.heartbeat", "often"],
            ),
        ] {
            std::fs::write(&file, text)?;
            let said = stage.refused(program, &["run", "--config", path(&file)?])?;
            says(&said, &words).context(program)?;
        }
        for (spec, words) in [
            ("{containrs: []}", "spec.containrs"),
            (
                "{containers: [{name: a, image: b, ports: [{containerPort: many}]}]}",
                "containerPort",
            ),
            ("{containers: [{name: a, image: b, env: {A: b}}]}", "env"),
        ] {
            let manifest =
                format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n");
            let said = stage
                .apply(&manifest)
                .await
                .err()
                .context(words)?
                .to_string();
            says(&said, &[words])?;
        }
        tokens(stage).await?;
        not_a_database(stage).await
    });
}

async fn tokens(stage: &mut Stage) -> Result<()> {
    let short = stage.token(NODE, &["--ttl", "1s"])?;
    let made = SystemTime::now();
    let other = stage.token("edge-2", &[])?;
    let said = stage
        .world
        .join_from_elsewhere(&other)
        .err()
        .context("joined")?;
    says(&said.to_string(), &["edge-2", NODE, "--node-name"])?;
    wait::until("the token's end", PATIENCE, async || {
        Ok((made.elapsed()? > Duration::from_secs(2)).then_some(()))
    })
    .await?;
    let said = stage
        .world
        .join_from_elsewhere(&short)
        .err()
        .context("joined")?;
    says(&said.to_string(), &["expired", "cloudhub token create"])?;

    let token = stage.world.token()?;
    stage.world.join(&token).await?;
    stage.world.edge_up()?;
    stage.linked().await?;
    let said = stage
        .world
        .join_from_elsewhere(&token)
        .err()
        .context("joined")?;
    says(&said.to_string(), &["already used", "--replace"])?;

    // A second machine of the same name: nobody gets it by accident, and the first is told.
    let hub = stage.world.hub_dir();
    let create = ["token", "create", "--node", NODE, "--data-dir", path(&hub)?];
    says(
        &stage.refused("cloudhub", &create)?,
        &["has already joined", "--replace"],
    )?;
    stage
        .world
        .join_from_elsewhere(&stage.token(NODE, &["--replace"])?)?;
    stage.world.edge()?.kill9()?;
    stage.world.edge_up()?;
    stage
        .status("the reason at the first machine", |status| {
            status["link"]
                .to_string()
                .contains("replaced by a later join")
        })
        .await?;
    says(
        &stage.log("cloudhub.log"),
        &["node refused", "replaced by a later join"],
    )
}

async fn not_a_database(stage: &mut Stage) -> Result<()> {
    stage.world.edge()?.stop().await?;
    stage.world.hub()?.stop().await?;
    let hub = stage.world.hub_dir();
    let file = hub.join("hub.db");
    let garbage = b"this is no database\n".repeat(400);
    // A log beside it would show the old state over the garbage.
    for side in ["hub.db-wal", "hub.db-shm"] {
        let _ = std::fs::remove_file(hub.join(side));
    }
    std::fs::write(&file, &garbage)?;
    let any = "127.0.0.1:0";
    let said = stage.refused(
        "cloudhub",
        &[
            "run",
            "--data-dir",
            path(&hub)?,
            "--api-listen",
            any,
            "--websocket-listen",
            any,
            "--bootstrap-listen",
            any,
        ],
    )?;
    says(
        &said,
        &[path(&file)?, "not a database", "restore", "move it"],
    )?;
    ensure!(std::fs::read(&file)? == garbage, "the file was touched");

    let file = stage.world.edge_dir().join("edgecore.db");
    std::fs::write(&file, &garbage)?;
    std::fs::write(file.with_extension("db-wal"), b"the log beside it")?;
    stage.world.edge_up()?;
    stage.status("a node with a new database", |_| true).await?;
    says(
        &stage.log("edgecore.log"),
        &["not a database", "was set aside as"],
    )?;
    let kept: Vec<Vec<u8>> = std::fs::read_dir(stage.world.edge_dir())?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("corrupt-"))
        .filter_map(|entry| std::fs::read(entry.path()).ok())
        .collect();
    ensure!(kept.contains(&garbage), "the old database is gone");
    ensure!(
        kept.contains(&b"the log beside it".to_vec()),
        "its log is gone"
    );
    Ok(())
}
