//! The person's terminal.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::edged::runtime::session::Size;

/// The terminal's size, if there is one.
pub(super) fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdout())
        .or_else(|_| tcgetwinsize(io::stdin()))
        .ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(Size {
        width: size.ws_col,
        height: size.ws_row,
    })
}

/// Every key goes to the other side as long as this lives.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing restored.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
