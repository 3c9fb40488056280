//! In runc's place: runs runc with the same arguments, and gives `create` the container's fifo as
//! standard input, which runc hands to the container's process.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::{Mode, OFlags, fcntl_setfl, open};

/// What a shell says when a command cannot be run.
const CANNOT_RUN: u8 = 126;

/// Does not come back if runc is there.
pub(crate) fn run() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut runc = Command::new("runc");
    runc.args(&arguments);
    let input = bundle(&arguments).map_or(Ok(None), |bundle| input(Path::new(bundle)));
    let error = match input {
        Ok(input) => {
            if let Some(input) = input {
                runc.stdin(Stdio::from(input));
            }
            runc.exec()
        }
        Err(error) => io::Error::other(format!("standard input: {error}")),
    };
    // The shim takes what is said here for runc's own words.
    let _ = io::Write::write_all(&mut io::stderr(), format!("runc: {error}\n").as_bytes());
    ExitCode::from(CANNOT_RUN)
}

/// Where a container is described that is to be made.
fn bundle(arguments: &[OsString]) -> Option<&OsString> {
    let after = |word: &str, from: usize| {
        let rest = arguments.get(from..)?;
        Some(from + rest.iter().position(|one| one == word)? + 1)
    };
    arguments.get(after("--bundle", after("create", 0)?)?)
}

fn input(bundle: &Path) -> io::Result<Option<File>> {
    let spec: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bundle.join("config.json"))?)?;
    let annotation = |key: &str| spec["annotations"][key].as_str();
    let Some(fifo) = annotation("io.outpost.stdin") else {
        return Ok(None);
    };
    if annotation("io.outpost.stdin-once") != Some("true") {
        // The container holds both ends: its input never ends, whoever comes and goes.
        let both = File::options().read(true).write(true).open(fifo)?;
        return Ok(Some(both));
    }
    // Somebody holds the other end until the session is over; nothing is waited for if not.
    let reader = open(
        fifo,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    fcntl_setfl(&reader, OFlags::RDONLY)?;
    Ok(Some(File::from(reader)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_create_has_a_bundle() {
        for (line, expected) in [
            (
                "--root /r --log /l create --bundle /b --pid-file /p id",
                Some("/b"),
            ),
            ("--root /r create --pid-file /p --bundle /b id", Some("/b")),
            ("--root /r exec --process /p id", None),
            ("--root create delete id", None),
            ("--root /r create --bundle", None),
            ("", None),
        ] {
            let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let found = bundle(&arguments).map(|b| b.to_str().unwrap());
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn a_container_that_wants_no_input_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(input(dir.path()).is_err(), "no description");
        let config = dir.path().join("config.json");
        std::fs::write(&config, "{}").unwrap();
        assert!(input(dir.path()).unwrap().is_none());
        let text = r#"{"annotations":{"io.outpost.stdin":"/none/such"}}"#;
        std::fs::write(&config, text).unwrap();
        assert!(input(dir.path()).is_err());
    }
}
