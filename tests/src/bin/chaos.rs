use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use outpost_tests::chaos::{self, Options};
use outpost_tests::rounds::{self, Schedule, say};

/// Kills daemons, shims and loggers while pods come and go, and looks for what is left behind
///
/// Needs root and containerd. Each round makes a pod and deletes it; edgecore, containerd, a shim
/// or a logger is killed with SIGKILL at a seeded step in between. After the round the pod has been
/// what it should be, and no container, mount, network, cgroup or process of it is left.
#[derive(Debug, Parser)]
#[command(name = "chaos", version)]
struct Arguments {
    #[command(flatten)]
    schedule: Schedule,
    /// Directory with another version of containerd (its programs, and runc)
    #[arg(long, value_name = "DIRECTORY")]
    containerd: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    rounds::end("chaos", run(Arguments::parse()).await)
}

async fn run(arguments: Arguments) -> Result<String> {
    let containerd = arguments.containerd;
    let options = Options {
        rounds: arguments.schedule.rounds,
        seed: arguments.schedule.seed()?,
        binaries: containerd.or_else(outpost_tests::containerd::binaries),
        is_verbose: true,
    };
    say(&format!("seed {}, {} rounds", options.seed, options.rounds));
    let report = chaos::run(&options).await?;
    Ok(format!(
        "clean: {} rounds, hits {:?}, {} restarts; nothing left behind",
        report.rounds, report.hits, report.restarts
    ))
}
