//! Keys that leave a session while what runs goes on (docker's `--detach-keys`).

use std::collections::VecDeque;
use std::str::FromStr;

/// What docker's users have in their fingers.
pub const DEFAULT: &str = "ctrl-p,ctrl-q";

/// A sequence of keys; empty for none. Notation: docker's (moby/term `ToBytes`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

/// A key that is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no key: one character, `DEL`, or `ctrl-` with a letter or one of @ [ \\ ] ^ _; several \
     with commas, e.g. {DEFAULT}; empty for none"
)]
pub struct KeyError(String);

impl FromStr for DetachKeys {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        keys.map(Self).ok_or_else(|| KeyError(text.to_owned()))
    }
}

fn key(name: &str) -> Option<u8> {
    if name == "DEL" {
        return Some(127);
    }
    let single = |text: &str| match text.as_bytes() {
        [byte] if byte.is_ascii() => Some(*byte),
        _ => None,
    };
    let Some(of) = name.strip_prefix("ctrl-") else {
        return single(name);
    };
    match single(of)?.to_ascii_uppercase() {
        // Control characters are their letters without the upper bits.
        byte @ b'@'..=b'_' => Some(byte & 0x1f),
        _ => None,
    }
}

/// Looks for the keys in what is typed. The beginning of the sequence is held back until the next
/// key says whether it was one.
#[derive(Debug)]
pub(super) struct Typed {
    keys: DetachKeys,
    held: VecDeque<u8>,
}

impl Typed {
    pub(super) fn new(keys: DetachKeys) -> Self {
        Self {
            keys,
            held: VecDeque::new(),
        }
    }

    /// What is to be passed on, and whether the keys came; nothing after them counts.
    pub(super) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            self.held.push_back(*byte);
            while !self.is_beginning() {
                passed.extend(self.held.pop_front());
            }
            if !self.held.is_empty() && self.held.len() == self.keys.0.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }

    fn is_beginning(&self) -> bool {
        self.held.len() <= self.keys.0.len()
            && self
                .held
                .iter()
                .eq(self.keys.0.iter().take(self.held.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_docker_reads_them() {
        for (text, keys) in [
            ("ctrl-p,ctrl-q", Some(vec![16, 17])),
            ("ctrl-P", Some(vec![16])),
            ("a,b", Some(vec![b'a', b'b'])),
            ("ctrl-@,ctrl-[,ctrl-_,DEL", Some(vec![0, 27, 31, 127])),
            ("", Some(vec![])),
            ("ctrl-1", None),
            ("ctrl-", None),
            ("ab", None),
            ("a,", None),
            ("é", None),
        ] {
            let read = text.parse::<DetachKeys>().map(|keys| keys.0);
            assert_eq!(read.as_ref().ok(), keys.as_ref(), "{text}: {read:?}");
        }
    }

    #[test]
    fn nothing_is_lost_unless_the_whole_sequence_came() {
        for (keys, typed, passed, left) in [
            (
                "ctrl-p,ctrl-q",
                &[b"ab\x10\x11c".as_slice()][..],
                "ab",
                true,
            ),
            ("ctrl-p,ctrl-q", &[b"a\x10", b"\x11"], "a", true),
            ("ctrl-p,ctrl-q", &[b"\x10", b"x\x11"], "\x10x\x11", false),
            ("ctrl-p,ctrl-q", &[b"\x10\x10\x11"], "\x10", true),
            ("a,a,b", &[b"aaab"], "a", true),
            ("a,a,b", &[b"aa", b"c"], "aac", false),
            ("x", &[b"yx"], "y", true),
            ("", &[b"\x10\x11"], "\x10\x11", false),
        ] {
            let mut watched = Typed::new(keys.parse().unwrap());
            let (mut all, mut has_left) = (Vec::new(), false);
            for part in typed {
                let (some, now) = watched.pass(part);
                all.extend(some);
                has_left |= now;
            }
            assert_eq!(
                (all, has_left),
                (passed.as_bytes().to_vec(), left),
                "{keys} {typed:?}"
            );
        }
    }
}
