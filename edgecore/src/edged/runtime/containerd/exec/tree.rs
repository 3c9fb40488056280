//! Ends a command with everything it started. runc makes each command the leader of a session of
//! its own, so its members are found even when their parents are gone; who left the session is
//! found as long as its parent stands.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How often new members are looked for. Those that were found are stopped and start nobody, so
/// the second look is usually the last.
const LOOKS_MAX: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kin {
    parent: i32,
    session: i32,
}

/// From `/proc/<pid>/stat`; the name in it may hold anything (proc(5)).
fn parse(stat: &str) -> Option<Kin> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Kin { parent, session })
}

fn kin(pid: i32) -> Option<Kin> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn processes() -> Vec<(i32, Kin)> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, kin(pid)?))
        })
        .collect()
}

/// Kills the leader's session and everybody's children. Blocks for some milliseconds.
pub(super) fn end(leader: i32) {
    // 0 and 1 are never a command's.
    if leader <= 1 {
        return;
    }
    let mut held: BTreeMap<i32, OwnedFd> = BTreeMap::new();
    for _ in 0..LOOKS_MAX {
        let before = held.len();
        let belongs = |pid: i32, kin: &Kin, held: &BTreeMap<i32, OwnedFd>| {
            pid == leader || kin.session == leader || held.contains_key(&kin.parent)
        };
        for (pid, found) in processes() {
            if held.contains_key(&pid) || !belongs(pid, &found, &held) {
                continue;
            }
            // Looked at again with the descriptor in hand: the number may have gone to another.
            let Some(process) = open(pid) else { continue };
            if kin(pid).is_some_and(|now| belongs(pid, &now, &held)) {
                signal(&process, Signal::STOP);
                held.insert(pid, process);
            }
        }
        if held.len() == before {
            break;
        }
    }
    for process in held.values() {
        signal(process, Signal::KILL);
    }
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

fn signal(process: &OwnedFd, signal: Signal) {
    // It may have ended by itself.
    let _ = pidfd_send_signal(process, signal);
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        assert_eq!(
            parse("7 (a) b) S 3 7 5 0 -1"),
            Some(Kin {
                parent: 3,
                session: 5
            })
        );
        for wrong in ["", "7 (a", "7 (a) S", "7 (a) S x y z"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    /// A session of its own: the leader, a child, an orphan, and a child that left the session.
    #[test]
    fn children_orphans_and_who_left_the_session_go_too() {
        let script = "sleep 1000 & echo $!; (sleep 1000 & echo $!) ; setsid sleep 1000 & echo $!; \
                      echo done; wait";
        let mut leader = Command::new("setsid")
            .args(["sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines: Vec<String> = BufReader::new(leader.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap)
            .take_while(|line| line != "done")
            .collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        end(i32::try_from(leader.id()).unwrap());
        let status = leader.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
        for pid in lines {
            let path = format!("/proc/{pid}/stat");
            let began = std::time::Instant::now();
            // Gone, or a zombie that nobody has waited for.
            while std::fs::read_to_string(&path).is_ok_and(|stat| !stat.contains(") Z ")) {
                assert!(began.elapsed().as_secs() < 10, "{pid} lives");
                std::thread::yield_now();
            }
        }
    }
}
