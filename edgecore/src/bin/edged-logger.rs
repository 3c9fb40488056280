//! Writes one container's output to its log file in the CRI format, for as long as the container
//! lives, whether or not edgecore or containerd do.
//!
//! containerd's shim starts it (`binary://…?--config=<file>`) with fd 3 = stdout, fd 4 = stderr,
//! fd 5 = a pipe to close when ready. The shim closes the write ends and sends SIGTERM when the
//! task is deleted; what is in the pipes then is written, nothing is waited for.
//!
//! The same program stands before runc (`binary_name` of the shim's options) where a container has
//! input without a terminal: the shim gives such a container none.
//!
//! While the container's first process lives, and until what it said is written, the log is locked
//! (`flock`): whoever follows it knows by that when there is no more to come.
//!
//! If this process died, the container would get SIGPIPE on its next write. So: fixed buffers, no
//! panics, and a line that cannot be written is dropped.

#[path = "edged-logger/init.rs"]
mod init;
#[path = "edged-logger/log.rs"]
mod log;
#[path = "edged-logger/quota.rs"]
mod quota;
#[path = "edged-logger/runc.rs"]
mod runc;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use init::Init;
use log::Log;
use rustix::event::{PollFd, PollFlags, poll};

/// CRI splits longer lines into partial ones (kubelet reads up to this much per entry).
const LINE_BYTES_MAX: usize = 16 << 10;
/// Time after which a prompt is written without its line's end.
const PROMPT_AFTER: rustix::event::Timespec = rustix::event::Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// Time after which the container's first process is looked for again.
const LOOK_AFTER: rustix::event::Timespec = rustix::event::Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};
const NO_WAIT: rustix::event::Timespec = rustix::event::Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    path: PathBuf,
    #[serde(default)]
    bytes_max: u64,
    #[serde(default)]
    files_max: u32,
    /// Most bytes of all logs of the pod, and of the node; 0 is no limit.
    #[serde(default)]
    pod_bytes_max: u64,
    #[serde(default)]
    node_bytes_max: u64,
    /// A line that is not finished after a moment is written as it is: a prompt on a terminal.
    #[serde(default)]
    is_terminal: bool,
    /// The container's input, for one session.
    #[serde(default)]
    holds: Option<Holds>,
}

/// Fifos of an input that lasts for one session: until then somebody must hold it open.
#[derive(Debug, serde::Deserialize)]
struct Holds {
    input: PathBuf,
    /// Whatever comes here says that the session is over.
    end: PathBuf,
}

/// The fifos, open.
struct Held {
    _input: File,
    end: File,
}

impl Held {
    /// For reading and writing, so that neither waits for another side.
    fn open(holds: &Holds) -> io::Result<Self> {
        let open = |path| File::options().read(true).write(true).open(path);
        Ok(Self {
            _input: open(&holds.input)?,
            end: open(&holds.end)?,
        })
    }
}

fn main() -> std::process::ExitCode {
    if !std::env::args()
        .nth(1)
        .is_some_and(|first| first.starts_with("--config"))
    {
        return runc::run();
    }
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        // Standard error is /dev/null here; the agent sees the missing log file.
        Err(_) => std::process::ExitCode::FAILURE,
    }
}

fn run() -> io::Result<()> {
    let file = config_path(std::env::args())
        .ok_or_else(|| io::Error::other("--config <file> is missing"))?;
    let config: Config = serde_json::from_slice(&std::fs::read(file)?).map_err(io::Error::from)?;
    // Not the first to go when memory runs out; without the capability it stays as it is.
    drop(std::fs::write("/proc/self/oom_score_adj", "-999"));
    let is_terminal = config.is_terminal;
    let held = config.holds.as_ref().map(Held::open).transpose()?;
    let mut log = Log::open(config)?;
    let (stdout, stderr, ready) = inherited::take()?;
    let stop = inherited::stop_signal()?;
    drop(ready);
    let pipes = [stdout, stderr];
    pump(&mut log, pipes, &stop, is_terminal, held, Init::awaited())
}

/// The shim passes `?--config=<file>` as two arguments; by hand one is handier.
fn config_path(mut arguments: impl Iterator<Item = String>) -> Option<String> {
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            return arguments.next();
        }
        if let Some(file) = argument.strip_prefix("--config=") {
            return Some(file.to_owned());
        }
    }
    None
}

/// Copies until both streams end, or until told to stop and both are empty.
fn pump(
    log: &mut Log,
    [stdout, stderr]: [File; 2],
    stop: &File,
    is_terminal: bool,
    mut held: Option<Held>,
    mut init: Init,
) -> io::Result<()> {
    let mut streams = [
        Some(Stream::new("stdout", stdout)?),
        Some(Stream::new("stderr", stderr)?),
    ];
    let mut stopping = false;
    while streams.iter().any(Option::is_some) {
        init.look(Path::new("."));
        let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(5);
        for stream in streams.iter().flatten() {
            polled.push(PollFd::new(&stream.source, PollFlags::IN));
        }
        let session = also(&mut polled, held.as_ref().map(|held| held.end.as_fd()));
        let process = also(&mut polled, init.process());
        let told = also(&mut polled, (!stopping).then(|| stop.as_fd()));
        let has_prompt = is_terminal && streams.iter().flatten().any(Stream::is_unfinished);
        let wait = match &init {
            _ if stopping => Some(&NO_WAIT),
            Init::Ended => Some(&NO_WAIT),
            Init::Awaited { .. } => Some(&LOOK_AFTER),
            Init::Alive(_) | Init::Over => has_prompt.then_some(&PROMPT_AFTER),
        };
        let ready = match poll(&mut polled, wait) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let fired = |at: Option<usize>| {
            let source = at.and_then(|at| polled.get(at));
            source.is_some_and(|fd| !fd.revents().is_empty())
        };
        let (is_told, is_over, has_ended) = (fired(told), fired(session), fired(process));
        drop(polled);
        if is_told {
            stopping = true;
            continue;
        }
        if is_over {
            held = None;
            continue;
        }
        if has_ended {
            init = Init::Ended;
            continue;
        }
        if ready == 0 && stopping {
            break;
        }
        if ready == 0 && matches!(init, Init::Ended) {
            for stream in streams.iter_mut().flatten() {
                stream.finish(log);
            }
            log.complete();
            init = Init::Over;
            continue;
        }
        if ready == 0 {
            for stream in streams.iter_mut().flatten().filter(|_| is_terminal) {
                stream.prompt(log);
            }
            continue;
        }
        for slot in &mut streams {
            if let Some(stream) = slot
                && stream.read_into(log)
            {
                stream.finish(log);
                *slot = None;
            }
        }
    }
    for stream in streams.iter_mut().flatten() {
        stream.finish(log);
    }
    Ok(())
}

/// Waits for this, too; where it stands in the list.
fn also<'a>(polled: &mut Vec<PollFd<'a>>, source: Option<BorrowedFd<'a>>) -> Option<usize> {
    polled.push(PollFd::from_borrowed_fd(source?, PollFlags::IN));
    Some(polled.len() - 1)
}

/// One of the container's two streams, cut into lines.
struct Stream {
    name: &'static str,
    source: File,
    line: Vec<u8>,
    chunk: Vec<u8>,
}

impl Stream {
    fn new(name: &'static str, source: File) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&source)?;
        rustix::fs::fcntl_setfl(&source, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self {
            name,
            source,
            line: Vec::with_capacity(LINE_BYTES_MAX),
            chunk: vec![0; LINE_BYTES_MAX],
        })
    }

    /// Reads once; true at the end of the stream.
    fn read_into(&mut self, log: &mut Log) -> bool {
        let length = match self.source.read(&mut self.chunk) {
            Ok(0) => return true,
            Ok(length) => length,
            Err(error) => {
                return !matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                );
            }
        };
        for byte in self.chunk.iter().take(length) {
            if *byte == b'\n' {
                log.write(self.name, b"F", &self.line);
                self.line.clear();
            } else {
                self.line.push(*byte);
                if self.line.len() >= LINE_BYTES_MAX {
                    log.write(self.name, b"P", &self.line);
                    self.line.clear();
                }
            }
        }
        false
    }

    fn is_unfinished(&self) -> bool {
        !self.line.is_empty()
    }

    /// Writes what there is of a line; its rest follows.
    fn prompt(&mut self, log: &mut Log) {
        if !self.line.is_empty() {
            log.write(self.name, b"P", &self.line);
            self.line.clear();
        }
    }

    /// The last line, if the container ended without a newline.
    fn finish(&mut self, log: &mut Log) {
        if !self.line.is_empty() {
            log.write(self.name, b"F", &self.line);
            self.line.clear();
        }
    }
}

/// The only unsafe part: descriptors that the shim left us, and the signal that ends us.
mod inherited {
    #![expect(
        unsafe_code,
        reason = "adopting inherited descriptors and installing a handler"
    )]

    use std::fs::File;
    use std::io;
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
    use std::sync::atomic::{AtomicI32, Ordering};

    const STDOUT: RawFd = 3;
    const STDERR: RawFd = 4;
    const READY: RawFd = 5;
    const SIGTERM: i32 = 15;

    static WAKE: AtomicI32 = AtomicI32::new(-1);

    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
        fn write(fd: i32, bytes: *const u8, length: usize) -> isize;
    }

    extern "C" fn on_term(_: i32) {
        // SAFETY: write(2) is async-signal-safe and the buffer outlives the call; a full or
        // closed pipe is no matter, the first byte is enough.
        unsafe { write(WAKE.load(Ordering::Relaxed), b"t".as_ptr(), 1) };
    }

    /// Standard output, standard error and the ready pipe.
    pub(super) fn take() -> io::Result<(File, File, File)> {
        for fd in [STDOUT, STDERR, READY] {
            if std::fs::metadata(format!("/proc/self/fd/{fd}")).is_err() {
                return Err(io::Error::other("started without containerd's pipes"));
            }
        }
        // SAFETY: called once, before anything of ours opened a descriptor that it keeps; the
        // three are open (checked above) and by containerd's logging protocol ours to own.
        Ok(unsafe {
            (
                File::from_raw_fd(STDOUT),
                File::from_raw_fd(STDERR),
                File::from_raw_fd(READY),
            )
        })
    }

    /// Becomes readable on SIGTERM.
    pub(super) fn stop_signal() -> io::Result<File> {
        let (reader, writer) = io::pipe()?;
        WAKE.store(OwnedFd::from(writer).into_raw_fd(), Ordering::Relaxed);
        // SAFETY: the handler only calls write(2) on a descriptor stored before this line.
        unsafe { signal(SIGTERM, on_term) };
        Ok(File::from(OwnedFd::from(reader)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::*;

    #[test]
    fn config_in_one_argument_or_two() {
        let path = |words: &[&str]| config_path(words.iter().map(|w| (*w).to_owned()));
        assert_eq!(path(&["x", "--config", "/a"]).as_deref(), Some("/a"));
        assert_eq!(path(&["x", "--config=/a"]).as_deref(), Some("/a"));
        assert_eq!(path(&["x", "--config"]), None);
    }

    fn log(dir: &Path, bytes_max: u64, files_max: u32) -> Log {
        let path = dir.join("0.log");
        Log::open(Config {
            path,
            bytes_max,
            files_max,
            pod_bytes_max: 0,
            node_bytes_max: 0,
            is_terminal: false,
            holds: None,
        })
        .unwrap()
    }

    fn feed(log: &mut Log, bytes: &[u8]) {
        let (reader, mut writer) = io::pipe().unwrap();
        let (quiet, _) = io::pipe().unwrap();
        let (stop, _keep) = io::pipe().unwrap();
        let file = |pipe| File::from(std::os::fd::OwnedFd::from(pipe));
        let owned = bytes.to_vec();
        let feeder = std::thread::spawn(move || writer.write_all(&owned).unwrap());
        let pipes = [file(reader), file(quiet)];
        pump(log, pipes, &file(stop), false, None, Init::Over).unwrap();
        feeder.join().unwrap();
    }

    #[test]
    fn lines_partials_and_the_last_line_without_newline() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 0, 0);
        let mut input = b"one\n\n".to_vec();
        input.extend(std::iter::repeat_n(b'x', LINE_BYTES_MAX + 3));
        input.extend(b"\nend");
        feed(&mut log, &input);
        let text = std::fs::read_to_string(dir.path().join("0.log")).unwrap();
        let tags: Vec<(&str, usize)> = text
            .lines()
            .map(|line| {
                let mut parts = line.splitn(4, ' ');
                assert!(parts.next().unwrap().ends_with('Z'));
                assert_eq!(parts.next(), Some("stdout"));
                (parts.next().unwrap(), parts.next().unwrap().len())
            })
            .collect();
        assert_eq!(
            tags,
            [
                ("F", 3),
                ("F", 0),
                ("P", LINE_BYTES_MAX),
                ("F", 3),
                ("F", 3)
            ]
        );
    }

    #[test]
    fn told_to_stop_it_writes_what_is_there_and_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 0, 0);
        let file = |pipe| File::from(std::os::fd::OwnedFd::from(pipe));
        let (reader, mut still_open) = io::pipe().unwrap();
        let (quiet, _also_open) = io::pipe().unwrap();
        let (stop, mut term) = io::pipe().unwrap();
        still_open.write_all(b"last words\nunfinished").unwrap();
        term.write_all(b"t").unwrap();
        pump(
            &mut log,
            [file(reader), file(quiet)],
            &File::from(std::os::fd::OwnedFd::from(stop)),
            false,
            None,
            Init::Over,
        )
        .unwrap();
        let text = std::fs::read_to_string(dir.path().join("0.log")).unwrap();
        let said: Vec<&str> = text
            .lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap())
            .collect();
        assert_eq!(said, ["last words", "unfinished"]);
    }

    #[test]
    fn a_log_is_locked_until_the_process_has_ended_and_its_words_are_written() {
        use rustix::fs::{FlockOperation, flock};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        // Rotated on the way: the lock goes along.
        let mut log = log(dir.path(), 200, 3);
        let is_locked = || {
            // Between the two renames of a rotation there is none; somebody is at it then.
            File::open(&path).map_or(true, |current| {
                flock(&current, FlockOperation::NonBlockingLockShared).is_err()
            })
        };
        assert!(is_locked());
        let file = |pipe| File::from(std::os::fd::OwnedFd::from(pipe));
        // The shim keeps these open long after.
        let (reader, mut still_open) = io::pipe().unwrap();
        let (quiet, also_open) = io::pipe().unwrap();
        let (stop, _keep) = io::pipe().unwrap();
        let mut process = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = rustix::process::Pid::from_child(&process);
        let alive = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let (pipes, stop, init) = (
            [file(reader), file(quiet)],
            file(stop),
            Init::Alive(alive.unwrap()),
        );
        let pumping = std::thread::spawn(move || pump(&mut log, pipes, &stop, false, None, init));
        for _ in 0..20 {
            still_open.write_all(b"a line of some length\n").unwrap();
        }
        still_open.write_all(b"last words").unwrap();
        let until = |what: &str, is_so: &dyn Fn() -> bool| {
            let began = std::time::Instant::now();
            while !is_so() {
                assert!(began.elapsed().as_secs() < 10, "never {what}");
                std::thread::yield_now();
            }
        };
        until("rotated", &|| dir.path().join("0.log.2").exists());
        assert!(is_locked(), "it still runs");
        drop(process.stdin.take());
        process.wait().unwrap();
        until("complete", &|| !is_locked());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with(" stdout F last words\n"), "{text}");
        assert!(!pumping.is_finished(), "what comes now is written too");
        drop((still_open, also_open));
        pumping.join().unwrap().unwrap();
    }

    #[test]
    fn a_process_is_found_by_the_number_that_the_runtime_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let mut init = Init::awaited();
        init.look(dir.path());
        assert!(matches!(init, Init::Awaited { .. }), "not yet");
        std::fs::write(dir.path().join("init.pid"), std::process::id().to_string()).unwrap();
        init.look(dir.path());
        assert!(matches!(init, Init::Alive(_)));
        for (text, is_over) in [("4194305000", true), ("no number", true)] {
            std::fs::write(dir.path().join("init.pid"), text).unwrap();
            let mut init = Init::awaited();
            init.look(dir.path());
            assert_eq!(matches!(init, Init::Over), is_over, "{text}");
        }
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        let pid = gone.id();
        gone.wait().unwrap();
        std::fs::write(dir.path().join("init.pid"), pid.to_string()).unwrap();
        let mut init = Init::awaited();
        init.look(dir.path());
        assert!(matches!(init, Init::Ended));
    }

    #[test]
    fn rotation_keeps_the_newest_files_without_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 2_000, 3);
        let input: Vec<String> = (0..100).map(|n| format!("line {n:03}\n")).collect();
        feed(&mut log, input.concat().as_bytes());
        let mut numbers = Vec::new();
        for name in ["0.log.2", "0.log.1", "0.log"] {
            let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(text.len() <= 2_000);
            numbers.extend(
                text.lines()
                    .map(|l| l.rsplit(' ').next().unwrap().parse::<u32>().unwrap()),
            );
        }
        assert!(!dir.path().join("0.log.3").exists());
        let expected: Vec<u32> = (100 - u32::try_from(numbers.len()).unwrap()..100).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn a_prompt_is_written_before_its_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = log(dir.path(), 0, 0);
        let file = |pipe| File::from(std::os::fd::OwnedFd::from(pipe));
        let (reader, mut terminal) = io::pipe().unwrap();
        let (quiet, _) = io::pipe().unwrap();
        let (stop, _keep) = io::pipe().unwrap();
        let (pipes, stop) = ([file(reader), file(quiet)], file(stop));
        let pumping =
            std::thread::spawn(move || pump(&mut log, pipes, &stop, true, None, Init::Over));
        terminal.write_all(b"login: ").unwrap();
        let began = std::time::Instant::now();
        let read = || std::fs::read_to_string(&path).unwrap();
        while !read().contains("stdout P login: \n") {
            assert!(began.elapsed().as_secs() < 10, "{}", read());
            std::thread::yield_now();
        }
        terminal.write_all(b"root\n").unwrap();
        drop(terminal);
        pumping.join().unwrap().unwrap();
        assert!(read().ends_with(" stdout F root\n"), "{}", read());
    }
}
