//! What the programs have in common that kill something again and again: a seeded schedule, how it
//! is asked for, and what they say.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

/// How often, and which schedule.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Schedule {
    /// How many rounds to run
    #[arg(long, default_value_t = 300)]
    pub rounds: u64,
    /// Schedule to follow, to repeat a run [default: the time of day; it is printed]
    #[arg(long)]
    seed: Option<u64>,
}

impl Schedule {
    /// The seed that was asked for, or one that nobody has used.
    ///
    /// # Errors
    /// The machine's clock is before 1970.
    pub fn seed(&self) -> Result<u64> {
        self.seed.map_or_else(
            || Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()),
            Ok,
        )
    }
}

/// SplitMix64: the same schedule with every version of every crate.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// # Panics
    /// There is nothing to pick from.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let index = usize::try_from(self.below(from.len() as u64)).unwrap_or(0);
        from[index]
    }
}

/// Says how it ended; the exit code.
pub fn end(name: &str, outcome: Result<String>) -> ExitCode {
    match outcome {
        Ok(account) => {
            say(&account);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("{name}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command-line tool's account")]
pub fn say(line: &str) {
    println!("{line}");
}
