//! `chaos [--rounds 300] [--seed n] [--containerd <directory>]`: kills daemons, shims and loggers
//! while pods come and go, and looks for what is left behind. See `outpost_tests::chaos`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use outpost_tests::chaos::{self, Options};

#[tokio::main]
async fn main() -> ExitCode {
    match go().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("chaos: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn go() -> Result<()> {
    let mut options = Options {
        rounds: 300,
        seed: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        binaries: outpost_tests::containerd::binaries(),
        is_verbose: true,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--seed" => options.seed = value.parse()?,
            "--containerd" => options.binaries = Some(PathBuf::from(value)),
            other => bail!("unknown flag {other}"),
        }
    }
    say(&format!("seed {}, {} rounds", options.seed, options.rounds));
    let report = chaos::run(&options).await?;
    say(&format!(
        "clean: {} rounds, hits {:?}, {} restarts; nothing left behind",
        report.rounds, report.hits, report.restarts
    ));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a command-line tool's account")]
fn say(line: &str) {
    println!("{line}");
}
