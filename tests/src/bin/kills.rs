use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use outpost_tests::kills::{self, Broker, Options, Victim};
use outpost_tests::rounds::{self, Schedule, say};

/// Kills daemons while twenty devices publish, and looks for readings that are lost, repeated or
/// out of order
///
/// In each round twenty devices publish twenty readings each at QoS 1, and one or two victims are
/// killed with SIGKILL at seeded moments and started again. Now and then the link to the hub is cut
/// for several rounds, so that a backlog becomes history. After each round the hub has nothing
/// twice and, of each device, live readings and history each in order; a round or a few later it
/// has everything that was acknowledged.
#[derive(Debug, Parser)]
#[command(name = "kills", version)]
struct Arguments {
    #[command(flatten)]
    schedule: Schedule,
    /// Where the devices publish
    #[arg(long, value_enum, default_value_t = Broker::Inside)]
    broker: Broker,
    /// Who is killed [default: everybody there is]
    #[arg(long, value_enum, value_delimiter = ',')]
    victims: Vec<Victim>,
}

#[tokio::main]
async fn main() -> ExitCode {
    rounds::end("kills", run(Arguments::parse()).await)
}

async fn run(arguments: Arguments) -> Result<String> {
    let options = Options {
        rounds: arguments.schedule.rounds,
        seed: arguments.schedule.seed()?,
        broker: arguments.broker,
        victims: arguments.victims,
        is_verbose: true,
    };
    say(&format!("seed {}, {} rounds", options.seed, options.rounds));
    let report = kills::run(options).await?;
    Ok(format!(
        "clean: {} rounds, hits {:?}, {} outages; {} readings acknowledged, each once and in \
         order in the hub, {} of them as history",
        report.rounds, report.hits, report.outages, report.readings, report.history
    ))
}
