//! `kills [--rounds 300] [--seed n]`: kills edgecore while twenty devices publish, and looks for
//! readings that are lost, repeated or out of order. See `outpost_tests::kills`.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use outpost_tests::kills::{self, Options};

#[tokio::main]
async fn main() -> ExitCode {
    match go().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("kills: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn go() -> Result<()> {
    let mut options = Options {
        rounds: 300,
        seed: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--seed" => options.seed = value.parse()?,
            other => bail!("unknown flag {other}"),
        }
    }
    say(&format!("seed {}, {} rounds", options.seed, options.rounds));
    let report = kills::run(options).await?;
    say(&format!(
        "clean: {} rounds, {} readings acknowledged, each once and in order in the hub",
        report.rounds, report.readings
    ));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a command-line tool's account")]
fn say(line: &str) {
    println!("{line}");
}
