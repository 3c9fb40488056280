//! The commands for a person on the node, as processes, with the hub out of reach.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use outpost_tests::scenario::{IMAGE, PATIENCE, Run, scenario};
use outpost_tests::{oci, wait};

const MAIN: &str = "trap 'echo bye; exit 0' TERM; echo started; echo complaint >&2; \
    while true; do sleep 1 & wait $!; done";

fn manifest() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: default}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 5
  containers:
    - {{name: main, image: \"{IMAGE}\", imagePullPolicy: IfNotPresent, command: [sh, -c, \"{MAIN}\"]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: two, namespace: default}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
    - {{name: a, image: \"{IMAGE}\", imagePullPolicy: IfNotPresent, command: [sh, -c, \"{MAIN}\"]}}
    - {{name: b, image: \"{IMAGE}\", imagePullPolicy: IfNotPresent, command: [sh, -c, \"{MAIN}\"]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: crash, namespace: default}}
spec:
  hostNetwork: true
  containers:
    - {{name: main, image: \"{IMAGE}\", imagePullPolicy: IfNotPresent, command: [sh, -c, \"echo try; exit 3\"]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: shell, namespace: default}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
    - {{name: main, image: \"{IMAGE}\", imagePullPolicy: IfNotPresent, stdin: true, tty: true, command: [sh, -c, \"while read line; do echo heard $line; done\"]}}
"
    )
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(world: &Run, command: &str, arguments: &[&str]) -> Result<Output> {
    Ok(world
        .world
        .on_node(command)?
        .args(arguments)
        .stdin(Stdio::null())
        .output()?)
}

/// Standard output of a command that must succeed.
fn say(world: &Run, command: &str, arguments: &[&str]) -> Result<String> {
    let output = run(world, command, arguments)?;
    ensure!(
        output.status.success(),
        "edgecore {command} {arguments:?}: {} {}",
        output.status,
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

/// Exit code and error text of a command that must fail.
fn refusal(world: &Run, command: &str, arguments: &[&str]) -> Result<(i32, String)> {
    let output = run(world, command, arguments)?;
    ensure!(!output.status.success(), "{}", text(&output.stdout));
    let code = output.status.code().context("killed")?;
    Ok((code, text(&output.stderr)))
}

async fn all_started(run: &Run) -> Result<()> {
    wait::until("the pods on the node", PATIENCE, async || {
        let pods: serde_json::Value = serde_json::from_str(&say(run, "pods", &["-o", "json"])?)?;
        let is_up = |name: &str| {
            pods.as_array().is_some_and(|pods| {
                pods.iter().any(|pod| {
                    pod["name"] == name && pod["ready"] == pod["containers"] && pod["ready"] != 0
                })
            })
        };
        let crashes = pods
            .as_array()
            .and_then(|pods| pods.iter().find(|pod| pod["name"] == "crash"))
            .is_some_and(|pod| {
                pod["restarts"].as_i64() > Some(0) && pod["reason"] == "CrashLoopBackOff"
            });
        let is_done = ["web", "two", "shell"].into_iter().all(is_up) && crashes;
        Ok(is_done.then_some(()))
    })
    .await
}

fn pods_and_errors(run: &Run) -> Result<()> {
    let table = say(run, "pods", &[])?;
    ensure!(table.starts_with("NAMESPACE   NAME"), "{table}");
    let crash = table
        .lines()
        .find(|line| line.contains("crash"))
        .context("no crash")?;
    ensure!(
        crash.contains("0/1") && crash.contains("CrashLoopBackOff"),
        "{table}"
    );
    let wide = say(run, "pods", &["-n", "default", "-o", "wide"])?;
    ensure!(wide.contains("127.0.0.1") && wide.contains("a,b"), "{wide}");
    ensure!(say(run, "pods", &["-n", "none"])?.starts_with("No pods"));

    let (code, why) = refusal(run, "exec", &["two", "--", "true"])?;
    ensure!(
        code == 1 && why.contains("pod default/two has 2 containers, choose one with -c: a, b"),
        "{code} {why}"
    );
    let (_, why) = refusal(run, "logs", &["nobody"])?;
    ensure!(why.contains("pod nobody is not on this node"), "{why}");
    let (_, why) = refusal(run, "exec", &["-n", "other", "web", "--", "true"])?;
    ensure!(
        why.contains("pod other/web is not on this node, but default/web is"),
        "{why}"
    );
    let (code, _) = refusal(run, "logs", &["web", "--since", "soon"])?;
    ensure!(code == 64);
    Ok(())
}

fn commands(run: &Run) -> Result<()> {
    ensure!(say(run, "exec", &["web", "--", "echo", "hello"])? == "hello\n");
    let (code, why) = refusal(
        run,
        "exec",
        &["web", "--", "sh", "-c", "echo no >&2; exit 42"],
    )?;
    ensure!(code == 42 && why == "no\n", "{code} {why}");
    let (code, why) = refusal(run, "exec", &["default/web", "--", "nope"])?;
    ensure!(
        code == 127 && why.contains("executable file not found"),
        "{code} {why}"
    );
    ensure!(say(run, "exec", &["two", "-c", "b", "--", "id", "-u"])? == "0\n");
    // Input to its end.
    let mut cat = run
        .world
        .on_node("exec")?
        .args(["-i", "web", "--", "sh", "-c", "cat; exit 6"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    cat.stdin
        .take()
        .context("stdin")?
        .write_all(b"one\ntwo\n")?;
    let output = cat.wait_with_output()?;
    ensure!(output.status.code() == Some(6) && output.stdout == b"one\ntwo\n");
    Ok(())
}

/// With a terminal, by util-linux' `script`.
fn terminal(run: &Run) -> Result<()> {
    let exec = run.world.on_node("exec")?;
    let mut line = exec.get_program().to_string_lossy().into_owned();
    for argument in exec.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line.push_str(" -it web -- sh -c 'stty size; tty; exit 9'");
    let line = format!("stty cols 91 rows 17; {line}");
    let output = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .context("script (package util-linux)")?;
    let said = text(&output.stdout);
    ensure!(
        said.contains("17 91") && said.contains("/dev/") && output.status.code() == Some(9),
        "{}: {said}",
        output.status
    );
    Ok(())
}

fn logs(run: &Run) -> Result<()> {
    let all = say(run, "logs", &["web"])?;
    let mut lines: Vec<&str> = all.lines().collect();
    lines.sort_unstable();
    ensure!(lines == ["complaint", "started"], "{all}");
    let start = say(run, "logs", &["web", "--limit-bytes", "3"])?;
    ensure!(start.len() == 3 && all.starts_with(&start), "{start}");
    let stamped = say(run, "logs", &["web", "--timestamps", "--since", "1h"])?;
    ensure!(
        stamped.lines().count() == 2 && stamped.lines().all(|line| line.starts_with("20")),
        "{stamped}"
    );
    ensure!(say(run, "logs", &["two", "-c", "a", "--tail", "0"])?.is_empty());
    let previous = say(run, "logs", &["crash", "--previous"])?;
    ensure!(previous == "try\n", "{previous}");
    let (_, why) = refusal(run, "logs", &["web", "-p"])?;
    ensure!(
        why.contains("container main of pod default/web has no previous log"),
        "{why}"
    );
    Ok(())
}

/// Input for a container that has a terminal, and what it answers, read from its log.
fn attach(run: &Run) -> Result<()> {
    let mut attached = run
        .world
        .on_node("attach")?
        .args(["-i", "shell"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = attached.stdin.take().context("stdin")?;
    let mut lines = BufReader::new(attached.stdout.take().context("stdout")?).lines();
    stdin.write_all(b"ping\n")?;
    while !lines.next().context("no answer")??.contains("heard ping") {}
    attached.kill()?;
    attached.wait()?;
    // It goes on without us.
    ensure!(say(run, "logs", &["shell"])?.contains("heard ping"));
    Ok(())
}

fn top(run: &Run) -> Result<()> {
    let config = run.world.edge_config();
    let top = |arguments: &[&str]| -> Result<String> {
        let mut command = run.world.on_node("top")?;
        // The subcommand comes before its flags.
        let program = command.get_program().to_owned();
        command = Command::new(program);
        let output = command
            .arg("top")
            .args(arguments)
            .arg("--config")
            .arg(&config)
            .output()?;
        ensure!(output.status.success(), "{}", text(&output.stderr));
        Ok(text(&output.stdout))
    };
    let pods = top(&["pods"])?;
    ensure!(
        pods.contains("CPU(cores)") && pods.contains("web"),
        "{pods}"
    );
    let web = top(&["pods", "web", "--containers"])?;
    let figures: Vec<&str> = web
        .lines()
        .nth(1)
        .context("no row")?
        .split_whitespace()
        .collect();
    ensure!(figures.get(2) == Some(&"main"), "{web}");
    let node = top(&["node"])?;
    ensure!(node.contains("edge-1") && node.contains('%'), "{node}");
    Ok(())
}

/// `logs -f` ends by itself when the container does, with its last words.
async fn follow(run: &mut Run) -> Result<()> {
    let following = run
        .world
        .on_node("logs")?
        .args(["-f", "--tail", "0", "web"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    run.world.link()?.restore();
    run.world
        .kubectl()
        .run(&["delete", "pod", "web", "--timeout=60s"])
        .await?;
    let output = tokio::task::spawn_blocking(move || following.wait_with_output()).await??;
    ensure!(
        output.status.success() && text(&output.stdout).contains("bye"),
        "{} {}",
        output.status,
        text(&output.stdout)
    );
    Ok(())
}

fn images(run: &Run, command: &str) -> Result<String> {
    let output = run.world.on_images(command)?.output()?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    Ok(text(&output.stdout))
}

/// An image that no pod names goes, the pods' own stays.
fn prune(run: &Run) -> Result<()> {
    let unused = "localhost/unused:1";
    let archive = run.dir.path().join("unused.tar");
    let spec = oci::ImageSpec {
        env: vec!["PATH=/bin".to_owned(), "UNUSED=yes".to_owned()],
        ..oci::ImageSpec::busybox(unused)
    };
    oci::write_archive(&spec, &archive)?;
    run.world.import(&archive)?;
    let before = images(run, "list")?;
    ensure!(
        before.contains(unused) && before.contains(IMAGE),
        "{before}"
    );
    let told = images(run, "prune")?;
    ensure!(told.ends_with(" MiB freed\n"), "{told}");
    let after = images(run, "list")?;
    ensure!(!after.contains(unused) && after.contains(IMAGE), "{after}");
    ensure!(say(run, "exec", &["web", "--", "echo", "still"])? == "still\n");
    Ok(())
}

#[test]
fn a_person_on_the_node_sees_and_enters_pods_without_a_hub_and_without_the_daemon() {
    scenario("cli", async |run| {
        run.image()?;
        run.apply(&manifest()).await?;
        all_started(run).await?;
        run.world.link()?.cut();

        pods_and_errors(run)?;
        commands(run)?;
        terminal(run)?;
        logs(run)?;
        attach(run)?;
        top(run)?;
        prune(run)?;

        // The daemon is gone as well.
        run.world.edge()?.kill9()?;
        ensure!(say(run, "logs", &["web", "--tail", "5"])?.contains("started\n"));
        let output = self::run(run, "pods", &[])?;
        ensure!(
            text(&output.stdout).contains("Running")
                && text(&output.stderr).contains("edgecore is not running"),
            "{} {}",
            text(&output.stdout),
            text(&output.stderr)
        );
        ensure!(say(run, "exec", &["web", "--", "echo", "still"])? == "still\n");
        run.world.edge_up()?;
        all_started(run).await?;
        follow(run).await
    });
}
