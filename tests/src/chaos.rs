//! Chaos: pods come and go while one of edgecore, containerd, a shim or a logger is killed at a
//! seeded step. After each round the pod has been what it should be, and nothing of it is left.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::arena::{Arena, IMAGE, restarts};
use crate::grpc_proxy::Side;
use crate::rounds::{Dice, say};

/// Calls that name the pod, for each container: what a step is chosen from.
const STEPS_CREATING: u64 = 5;
const STEPS_DELETING: u64 = 7;
/// A step that never comes (the pod needed fewer calls) is given up after this.
const STEP_MAX: Duration = Duration::from_secs(2);
/// Longest between creation or deletion and the blow, if it is not aimed at a step.
const BLOW_MAX_MS: u64 = 700;
/// Longest that a killed daemon stays away.
const AWAY_MAX_MS: u64 = 400;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    pub rounds: u64,
    pub seed: u64,
    /// Directory with another version of containerd.
    pub binaries: Option<PathBuf>,
    /// A line a round.
    pub is_verbose: bool,
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    Edgecore,
    Containerd,
    Shim,
    Logger,
}

/// In which part of the pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Creating,
    Running,
    Deleting,
}

/// When exactly.
#[derive(Clone, Copy, Debug)]
enum Moment {
    After(Duration),
    /// At the call with this number that names the pod.
    Step(u32, Side),
}

#[derive(Clone, Copy, Debug)]
struct Blow {
    victim: Victim,
    phase: Phase,
    moment: Moment,
    away: Duration,
}

impl Blow {
    fn pick(rng: &mut Dice, shape: Shape) -> Self {
        let victim = rng.pick(&[
            Victim::Edgecore,
            Victim::Edgecore,
            Victim::Containerd,
            Victim::Containerd,
            Victim::Shim,
            Victim::Shim,
            Victim::Logger,
        ]);
        let phase = rng.pick(&[
            Phase::Creating,
            Phase::Creating,
            Phase::Deleting,
            Phase::Deleting,
            Phase::Running,
        ]);
        let moment = if phase != Phase::Running && rng.chance(70) {
            let all = if phase == Phase::Creating {
                STEPS_CREATING * shape.in_order()
            } else {
                STEPS_DELETING * shape.containers
            };
            let step = u32::try_from(rng.below(all)).unwrap_or(0);
            Moment::Step(step, rng.pick(&[Side::Before, Side::After]))
        } else {
            Moment::After(Duration::from_millis(rng.below(BLOW_MAX_MS)))
        };
        Self {
            victim,
            phase,
            moment,
            away: Duration::from_millis(rng.below(AWAY_MAX_MS)),
        }
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} killed while {:?}, ", self.victim, self.phase)?;
        match self.moment {
            Moment::After(time) => write!(f, "after {} ms", time.as_millis()),
            Moment::Step(step, side) => write!(f, "{side:?} call {step}"),
        }
    }
}

/// What kind of pod.
#[derive(Clone, Copy, Debug)]
struct Shape {
    containers: u64,
    has_init: bool,
    has_sidecar: bool,
    has_volumes: bool,
    host_port: Option<u64>,
    shares_processes: bool,
    grace: u32,
}

impl Shape {
    fn pick(rng: &mut Dice, round: u64) -> Self {
        Self {
            containers: 1 + rng.below(2),
            has_init: rng.chance(30),
            has_sidecar: SIDECARS && rng.chance(25),
            has_volumes: rng.chance(50),
            host_port: rng.chance(30).then_some(41_000 + round % 1000),
            shares_processes: SHARED_PROCESSES && rng.chance(20),
            grace: if rng.chance(20) { 0 } else { 5 },
        }
    }

    /// Containers of every sort.
    fn in_order(&self) -> u64 {
        self.containers + u64::from(self.has_init) + u64::from(self.has_sidecar)
    }

    fn spec(&self) -> Value {
        let script = "trap 'exit 0' TERM; sleep 100000 & wait $!";
        let mounts = if self.has_volumes {
            json!([{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}])
        } else {
            json!([])
        };
        let container = |name: String, script: &str| {
            json!({
                "name": name, "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["sh", "-c", script], "volumeMounts": mounts,
            })
        };
        let mut containers: Vec<Value> = (0..self.containers)
            .map(|number| container(format!("main-{number}"), script))
            .collect();
        if let Some(port) = self.host_port {
            containers[0]["ports"] = json!([{"containerPort": 80, "hostPort": port}]);
        }
        let mut inits = Vec::new();
        if self.has_init {
            inits.push(container("init".to_owned(), "echo ready"));
        }
        if self.has_sidecar {
            let mut sidecar = container("sidecar".to_owned(), script);
            sidecar["restartPolicy"] = "Always".into();
            inits.push(sidecar);
        }
        let mut spec = json!({
            "containers": containers, "initContainers": inits,
            "terminationGracePeriodSeconds": self.grace,
            "automountServiceAccountToken": false,
        });
        if self.has_volumes {
            spec["volumes"] = json!([
                {"name": "disk", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
            ]);
        }
        if self.shares_processes {
            spec["shareProcessNamespace"] = true.into();
        }
        spec
    }
}

/// Features that are driven once the node has them.
const SIDECARS: bool = true;
const SHARED_PROCESSES: bool = true;

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}c", self.containers)?;
        for (has, word) in [
            (self.has_init, "init"),
            (self.has_sidecar, "sidecar"),
            (self.has_volumes, "volumes"),
            (self.host_port.is_some(), "hostPort"),
            (self.shares_processes, "pid"),
            (self.grace == 0, "grace0"),
        ] {
            if has {
                write!(f, "+{word}")?;
            }
        }
        Ok(())
    }
}

/// What a run has seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub rounds: u64,
    /// Blows that hit somebody.
    pub hits: BTreeMap<Victim, u64>,
    pub restarts: u64,
}

/// Runs the rounds; the first that goes wrong ends it, with the seed and the logs in the error.
pub async fn run(options: &Options) -> Result<Report> {
    let mut arena = Arena::start("chaos", options.binaries.clone()).await?;
    let mut rng = Dice::new(options.seed);
    let mut report = Report::default();
    let outcome = rounds(&mut arena, options, &mut rng, &mut report).await;
    outcome.map_err(|error| {
        let (round, logs) = (report.rounds, arena.logs());
        error.context(format!("seed {}, round {round}\n{logs}", options.seed))
    })?;
    Ok(report)
}

async fn rounds(
    arena: &mut Arena,
    options: &Options,
    rng: &mut Dice,
    report: &mut Report,
) -> Result<()> {
    // Networks, cgroup parents and directories that stay are made by the first pod.
    arena
        .create(
            "first",
            Shape {
                host_port: Some(40_999),
                shares_processes: SHARED_PROCESSES,
                ..Shape::pick(rng, 0)
            }
            .spec(),
        )
        .await?;
    arena.running("first").await?;
    arena.delete("first", 0).await?;
    arena.gone("first").await?;
    arena.settle().await?;
    // One that is over gives back what it held, again after each restart of a daemon.
    arena.create("done", done()).await?;
    let over = arena.over("done").await?["status"].clone();
    ensure!(over["phase"] == "Succeeded", "{over:#}");
    arena.create("bystander", plain().spec()).await?;
    let bystander = identity(&arena.running("bystander").await?);
    arena.adopt_as_given();
    for round in 0..options.rounds {
        report.rounds = round;
        let shape = Shape::pick(rng, round);
        let blow = Blow::pick(rng, shape);
        let title = format!("{shape}; {blow}");
        let began = Instant::now();
        let told = one_round(arena, round, shape, blow, report)
            .await
            .with_context(|| title.clone())?;
        if options.is_verbose {
            say(&format!(
                "round {round}: {title}; {told}; {} ms",
                began.elapsed().as_millis()
            ));
        }
    }
    let pod = arena.running("bystander").await?;
    ensure!(
        identity(&pod) == bystander,
        "the bystander was hurt: {:#}",
        pod["status"]
    );
    let still = arena.over("done").await?["status"].clone();
    ensure!(still == over, "what was over changed: {over:#} {still:#}");
    for name in ["bystander", "done"] {
        arena.delete(name, 0).await?;
        arena.gone(name).await?;
    }
    arena.nothing_leaked().await?;
    let bad = arena.world.complaints();
    ensure!(bad.is_empty(), "errors in the logs:\n{}", bad.join("\n"));
    report.rounds = options.rounds;
    Ok(())
}

/// A pod that ends by itself, and well.
fn done() -> Value {
    let mut spec = Shape {
        has_init: true,
        host_port: Some(40_998),
        shares_processes: SHARED_PROCESSES,
        ..plain()
    }
    .spec();
    spec["restartPolicy"] = "Never".into();
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        container["command"] = json!(["sh", "-c", "exit 0"]);
    }
    spec
}

fn plain() -> Shape {
    Shape {
        containers: 2,
        has_init: false,
        has_sidecar: false,
        has_volumes: true,
        host_port: None,
        shares_processes: false,
        grace: 1,
    }
}

/// What must not change while a pod is left alone.
fn identity(pod: &Value) -> Vec<Value> {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let one = |s: &Value| json!([s["containerID"], s["restartCount"], s["state"]]);
    statuses.into_iter().flatten().map(one).collect()
}

async fn one_round(
    arena: &mut Arena,
    round: u64,
    shape: Shape,
    blow: Blow,
    report: &mut Report,
) -> Result<String> {
    let name = format!("round-{round}");
    let uid = arena.create(&name, shape.spec()).await?;
    let mut told = String::new();
    let mut hit = false;
    if blow.phase == Phase::Creating {
        hit = strike(arena, &uid, blow, &mut told).await?;
    }
    let mut pod = arena.running(&name).await.context("after creation")?;
    if blow.phase == Phase::Running {
        hit = strike(arena, &uid, blow, &mut told).await?;
        // A shim takes its containers along; each is started again. Nobody else's end does that.
        let lost = if hit && blow.victim == Victim::Shim {
            shape.containers
        } else {
            0
        };
        pod = arena
            .running_after(&name, lost)
            .await
            .context("after the blow")?;
    }
    if blow.phase != Phase::Deleting && matches!(blow.victim, Victim::Edgecore | Victim::Containerd)
    {
        ensure!(restarts(&pod) == 0, "restarted: {:#}", pod["status"]);
    }
    report.restarts += restarts(&pod);
    arena.delete(&name, shape.grace).await?;
    if blow.phase == Phase::Deleting {
        hit = strike(arena, &uid, blow, &mut told).await?;
    }
    arena.gone(&name).await.context("after deletion")?;
    if hit {
        *report.hits.entry(blow.victim).or_default() += 1;
    }
    arena.proxy.calm();
    arena.nothing_leaked().await?;
    Ok(told)
}

/// Waits for the moment and kills; whether somebody was there to be killed.
async fn strike(arena: &mut Arena, uid: &str, blow: Blow, told: &mut String) -> Result<bool> {
    let held = match blow.moment {
        Moment::After(time) => {
            // When the blow falls is the schedule's, not an event's.
            tokio::time::sleep(time).await;
            None
        }
        Moment::Step(step, side) => {
            let caught = arena.proxy.trap(uid, step, side);
            tokio::time::timeout(STEP_MAX, caught)
                .await
                .ok()
                .and_then(Result::ok)
        }
    };
    if let Some(held) = &held {
        told.push_str(&held.method);
    }
    let hit = match blow.victim {
        Victim::Edgecore => {
            arena.world.edge()?.kill9()?;
            if let Some(held) = held {
                held.let_go();
            }
            // As long as the schedule says.
            tokio::time::sleep(blow.away).await;
            arena.world.edge_up()?;
            true
        }
        Victim::Containerd => {
            arena.containerd.kill()?;
            if let Some(held) = held {
                held.let_go();
            }
            // As long as the schedule says.
            tokio::time::sleep(blow.away).await;
            tokio::task::block_in_place(|| arena.containerd.restart())?;
            true
        }
        Victim::Shim => {
            let hit = kill_matching(&["containerd-shim-runc-v2", uid])?;
            if let Some(held) = held {
                held.let_go();
            }
            hit
        }
        Victim::Logger => {
            let hit = kill_matching(&["edged-logger", uid])?;
            if let Some(held) = held {
                held.let_go();
            }
            hit
        }
    };
    if !hit {
        told.push_str(" (missed)");
    }
    Ok(hit)
}

/// Kills every process whose command line has all of these words in it.
fn kill_matching(words: &[&str]) -> Result<bool> {
    let mut hit = false;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.parse::<u32>().is_ok()) else {
            continue;
        };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        if words.iter().all(|word| command.contains(word)) {
            hit |= Command::new("kill")
                .args(["-KILL", pid])
                .status()?
                .success();
        }
    }
    Ok(hit)
}
