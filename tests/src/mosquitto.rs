//! mosquitto as the broker of a node, with a memory of its sessions, and its client programs.
//!
//! What mosquitto has acknowledged is in its memory. It writes all of it to its file at intervals
//! (mosquitto.conf(5), `autosave_interval`); here after each change, which is the most it can be
//! asked for. A `kill -9` in between loses what it acknowledged: its promise, not the node's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::Process;
use crate::wait;
use crate::world::path;

const PROGRAM: &str = "/usr/sbin/mosquitto";
/// Longest that a client program may take to subscribe.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker that runs.
#[derive(Debug)]
pub struct Mosquitto {
    address: SocketAddr,
    dir: PathBuf,
    process: Process,
}

impl Mosquitto {
    /// Starts it with its configuration, file and log in `dir`, which is made.
    ///
    /// # Errors
    /// There is no mosquitto on this machine.
    pub fn start(address: SocketAddr, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let config = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n\
             persistence_location {}/\nautosave_on_changes true\nautosave_interval 1\n\
             max_queued_messages 0\nlog_type error\nlog_type warning\nlog_type notice\n\
             log_type information\nlog_type unsubscribe\n",
            address.port(),
            path(dir)?
        );
        std::fs::write(dir.join("mosquitto.conf"), config)?;
        Ok(Self {
            address,
            dir: dir.to_owned(),
            process: spawn(dir)?,
        })
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// Starts it on the same port, with what its file remembers.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.dir)?;
        Ok(())
    }

    /// How often clients have left this filter, by its log.
    pub fn left(&self, filter: &str) -> usize {
        let log = self.process.log();
        let of_it = |line: &&str| line.ends_with(&format!(" {filter}"));
        log.lines().filter(of_it).count()
    }

    /// Publishes at QoS 1; mosquitto has it when this returns.
    pub async fn publish(&self, topic: &str, payload: &str) -> Result<()> {
        publish(self.address, topic, payload).await
    }

    /// Listens on a topic; the log has what comes. Returns once the subscription stands.
    pub async fn listen(&self, topic: &str, log: &Path) -> Result<Process> {
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", "mosquitto_sub", "-d", "-h", "127.0.0.1"])
            .args(["-p", &self.address.port().to_string(), "-q", "1"])
            .args(["-t", topic]);
        let listener = Process::start("mosquitto_sub", log, &mut command)?;
        wait::until("the subscription", PATIENCE, async || {
            Ok(listener.log().contains("Subscribed").then_some(()))
        })
        .await?;
        Ok(listener)
    }
}

fn spawn(dir: &Path) -> Result<Process> {
    let mut command = Command::new(PROGRAM);
    command.args(["-c", path(&dir.join("mosquitto.conf"))?]);
    Process::start("mosquitto", &dir.join("mosquitto.log"), &mut command)
}

/// Publishes at QoS 1 with `mosquitto_pub`; the broker has it when this returns.
pub async fn publish(broker: SocketAddr, topic: &str, payload: &str) -> Result<()> {
    let output = tokio::process::Command::new("mosquitto_pub")
        .args(["-h", &broker.ip().to_string()])
        .args(["-p", &broker.port().to_string()])
        .args(["-q", "1", "-t", topic, "-m", payload])
        .output()
        .await
        .context("mosquitto_pub (package mosquitto-clients)")?;
    ensure!(
        output.status.success(),
        "mosquitto_pub: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
