//! The fifos of one command.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};

/// Makes a fifo that root alone may open; one that is there already is kept.
pub(in super::super) fn make_fifo(path: &Path) -> io::Result<()> {
    match mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// Which streams there are besides standard output.
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stderr: bool,
}

/// Both ends of every stream, as long as the shim has not opened its own: without a writer the
/// reader would see the end before the beginning.
pub(super) struct Ends {
    directory: PathBuf,
    stdin: Option<Sender>,
    stdout: (Receiver, Sender),
    stderr: Option<(Receiver, Sender)>,
}

impl Ends {
    pub(super) fn make(directory: &Path, wanted: &Wanted) -> io::Result<Self> {
        let make = |name: &str| -> io::Result<PathBuf> {
            let path = directory.join(name);
            make_fifo(&path)?;
            Ok(path)
        };
        let pair = |name: &str| -> io::Result<(Receiver, Sender)> {
            let path = make(name)?;
            let reader = OpenOptions::new().open_receiver(&path)?;
            let writer = OpenOptions::new().open_sender(&path)?;
            Ok((reader, writer))
        };
        Ok(Self {
            directory: directory.to_owned(),
            stdin: if wanted.stdin {
                let path = make("stdin")?;
                Some(OpenOptions::new().read_write(true).open_sender(path)?)
            } else {
                None
            },
            stdout: pair("stdout")?,
            stderr: if wanted.stderr {
                Some(pair("stderr")?)
            } else {
                None
            },
        })
    }

    /// A stream's path as the daemon wants it: empty for none.
    pub(super) fn path_of(&self, name: &str, wanted: bool) -> String {
        if wanted {
            self.directory.join(name).display().to_string()
        } else {
            String::new()
        }
    }

    /// Lets go of the shim's side, which it holds itself now.
    pub(super) fn into_ours(self) -> io::Result<(Option<Sender>, Receiver, Option<Receiver>)> {
        let stdin = match self.stdin {
            None => None,
            // A writer only, so that a write to a process that reads no more fails.
            Some(both) => {
                let writer = OpenOptions::new().open_sender(self.directory.join("stdin"))?;
                drop(both);
                Some(writer)
            }
        };
        Ok((
            stdin,
            self.stdout.0,
            self.stderr.map(|(reader, _writer)| reader),
        ))
    }
}
