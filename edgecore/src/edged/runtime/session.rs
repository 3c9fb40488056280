//! A conversation with a process in a container, whatever carries it: the local API today, the
//! hub's tunnel as well. Both directions are bounded channels of small messages, so that a slow
//! side slows the other down and nothing is lost.

use bytes::Bytes;
use tokio::sync::mpsc;

/// Messages that wait in either direction.
pub const MESSAGES_MAX: usize = 16;
/// Most bytes of a stream in one message.
pub const CHUNK_BYTES_MAX: usize = 32 << 10;

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    pub width: u16,
    pub height: u16,
}

/// What the person says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Stdin(Bytes),
    /// There is no more input; the process sees the end of its standard input.
    StdinEnd,
    Resize(Size),
}

/// What the process says. `Exited` or `Failed` is the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    Exited(i32),
    Failed(String),
}

/// Both ends of a conversation. Dropping `output` hangs up: a process that was started for the
/// session is killed. Dropping `input` is [`Input::StdinEnd`].
#[derive(Debug)]
pub struct Session {
    pub input: mpsc::Sender<Input>,
    pub output: mpsc::Receiver<Output>,
}

/// The process' side of a [`Session`].
#[derive(Debug)]
pub struct Served {
    pub input: mpsc::Receiver<Input>,
    pub output: mpsc::Sender<Output>,
}

/// A new conversation.
pub fn pair() -> (Session, Served) {
    let (input, heard) = mpsc::channel(MESSAGES_MAX);
    let (said, output) = mpsc::channel(MESSAGES_MAX);
    (
        Session { input, output },
        Served {
            input: heard,
            output: said,
        },
    )
}

/// A process to be started in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExecRequest {
    pub command: Vec<String>,
    /// Input is sent; otherwise the process has none.
    pub stdin: bool,
    /// With a terminal, which has one output stream.
    pub tty: bool,
    pub size: Option<Size>,
}

/// Joining the process that a container runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AttachRequest {
    /// Input is sent; the container must have `stdin: true`.
    pub stdin: bool,
    pub size: Option<Size>,
}
