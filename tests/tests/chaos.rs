//! The short version of `make chaos`: fixed seeds, so that what fails here fails again.

use anyhow::Result;
use outpost_tests::chaos::{self, Options, Victim};
use outpost_tests::containerd;

#[test]
fn pods_come_and_go_while_daemons_are_killed() {
    if containerd::skipped() {
        return;
    }
    let options = Options {
        rounds: 20,
        seed: 20,
        binaries: containerd::binaries(),
        is_verbose: true,
    };
    let report = run(&options).unwrap_or_else(|error| panic!("{error:#}"));
    for victim in [Victim::Edgecore, Victim::Containerd, Victim::Shim] {
        assert!(
            report.hits.contains_key(&victim),
            "{victim:?} was never hit: {report:?}"
        );
    }
}

fn run(options: &Options) -> Result<chaos::Report> {
    tokio::runtime::Runtime::new()?.block_on(chaos::run(options))
}
