//! A containerd of one's own: root, state and socket under a directory that the caller owns, CRI
//! plugin off, killed when dropped. Runs next to the host's daemon without touching it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the daemon may take to open its socket.
const START_MAX: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A private daemon.
#[derive(Debug)]
pub struct PrivateContainerd {
    binary: PathBuf,
    binaries: Option<PathBuf>,
    directory: PathBuf,
    child: Option<Child>,
}

/// Why a test that needs containerd (as root) cannot run here; `None` if it can.
pub fn missing() -> Option<String> {
    if find("containerd").is_none() || find("runc").is_none() {
        return Some("containerd or runc is not installed".to_owned());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_root = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"));
    (!is_root).then(|| "not root".to_owned())
}

/// Whether the test that runs here is left out for want of containerd, said aloud.
///
/// # Panics
/// As [`left_out`].
pub fn skipped() -> bool {
    left_out(missing())
}

/// Says that this test, or the rest of it, is left out, if there is a reason to.
///
/// # Panics
/// There is a reason, and `OUTPOST_REQUIRE_NEIGHBOURS` lets none count.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn left_out(why: Option<String>) -> bool {
    let Some(why) = why else {
        return false;
    };
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    let is_required = std::env::var("OUTPOST_REQUIRE_NEIGHBOURS")
        .is_ok_and(|value| !value.is_empty() && value != "0");
    assert!(!is_required, "{test}: {why}");
    eprintln!("SKIPPED {test}: {why}");
    true
}

/// Directory with the programs of another version of containerd (`OUTPOST_CONTAINERD_DIR`).
pub fn binaries() -> Option<PathBuf> {
    let directory = std::env::var_os("OUTPOST_CONTAINERD_DIR")?;
    (!directory.is_empty()).then(|| PathBuf::from(directory))
}

/// containerd's own client, of the same version as the daemon.
pub fn ctr(binaries: Option<&Path>) -> PathBuf {
    let own = binaries.map(|directory| directory.join("ctr"));
    own.filter(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from("ctr"))
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"])
        .map(|directory| Path::new(directory).join(name))
        .find(|candidate| candidate.is_file())
}

impl PrivateContainerd {
    /// Starts a daemon under `directory` and waits for its socket.
    ///
    /// # Errors
    /// containerd is not installed, or did not open its socket in time; its log is
    /// `<directory>/containerd.log`.
    pub fn start(directory: &Path) -> io::Result<Self> {
        Self::start_from(directory, binaries())
    }

    /// As [`Self::start`], with the programs of another directory (`None`: the machine's).
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_from(directory: &Path, binaries: Option<PathBuf>) -> io::Result<Self> {
        let binary = match &binaries {
            Some(directory) => Some(directory.join("containerd")),
            None => find("containerd"),
        };
        let binary = binary.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "containerd"))?;
        let mut daemon = Self {
            binary,
            binaries,
            directory: directory.to_owned(),
            child: None,
        };
        daemon.restart()?;
        Ok(daemon)
    }

    /// Path of the daemon's socket.
    pub fn address(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    /// Directory of the programs, if they are not the machine's.
    pub fn binaries(&self) -> Option<&Path> {
        self.binaries.as_deref()
    }

    /// What the daemon's own client says of a namespace.
    ///
    /// # Errors
    /// The client cannot be started.
    pub fn ctr(&self, namespace: &str, arguments: &[&str]) -> io::Result<String> {
        let output = Command::new(ctr(self.binaries()))
            .arg("--address")
            .arg(self.address())
            .args(["--namespace", namespace])
            .args(arguments)
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The daemon's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts the daemon (again) on the same directories.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        std::fs::create_dir_all(&self.directory)?;
        let config = self.directory.join("config.toml");
        let text = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \"io.containerd.internal.v1.tracing\"]\n\
             [grpc]\n  address = \"{0}/containerd.sock\"\n[ttrpc]\n  address = \"{0}/containerd.sock.ttrpc\"\n",
            self.directory.display()
        );
        std::fs::write(&config, text)?;
        match std::fs::remove_file(self.address()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join("containerd.log"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let path = match &self.binaries {
            // The shim is looked for here.
            Some(directory) => format!("{}:{path}", directory.display()),
            None => path,
        };
        let child = Command::new(&self.binary)
            .env("PATH", path)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let deadline = Instant::now() + START_MAX;
        while std::os::unix::net::UnixStream::connect(self.address()).is_err() {
            let ended = match &mut self.child {
                Some(child) => child.try_wait()?,
                None => None,
            };
            if ended.is_some() || Instant::now() > deadline {
                return Err(io::Error::other("containerd did not open its socket"));
            }
            // A daemon of its own: a socket that is not there yet cannot be waited on.
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Ends the daemon as a crash would (SIGKILL). Containers and their shims live on.
    ///
    /// # Errors
    /// The process could not be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for PrivateContainerd {
    fn drop(&mut self) {
        // Nothing to report to: the directory goes with the test.
        let _ = self.kill();
    }
}
