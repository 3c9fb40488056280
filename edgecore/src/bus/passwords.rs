//! Users' passwords: a file in the format of `mosquitto_passwd`, one `user:hash` a line.
//!
//! A hash is `$7$<iterations>$<salt>$<hash>`, PBKDF2 with HMAC-SHA-512, salt and hash in base64
//! (mosquitto, `lib/password_mosq.c`). The file is read again when it has changed.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::pbkdf2::{self, PBKDF2_HMAC_SHA512};
use ring::rand::{SecureRandom, SystemRandom};

use crate::files::{self, Stamp};

/// Iterations of new hashes: about 50 ms on a small board, and a guess costs the same.
const ITERATIONS: u32 = 20_000;
/// What a foreign file may ask of this node for one login.
const ITERATIONS_MAX: u32 = 1_000_000;
const HASH_BYTES: usize = 64;
const SALT_BYTES: usize = 16;
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hash {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    digest: Vec<u8>,
}

impl Hash {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("$7$")?.split('$');
        let iterations: u32 = parts.next()?.parse().ok()?;
        let salt = BASE64.decode(parts.next()?).ok()?;
        let digest = BASE64.decode(parts.next()?).ok()?;
        let is_sane = iterations <= ITERATIONS_MAX && !digest.is_empty() && parts.next().is_none();
        let iterations = NonZeroU32::new(iterations)?;
        is_sane.then_some(Self {
            iterations,
            salt,
            digest,
        })
    }

    fn is_of(&self, password: &[u8]) -> bool {
        let Self {
            iterations,
            salt,
            digest,
        } = self;
        pbkdf2::verify(PBKDF2_HMAC_SHA512, *iterations, salt, password, digest).is_ok()
    }
}

/// What the file said when it was last read.
#[derive(Debug, Default)]
struct Known {
    stamp: Stamp,
    users: Arc<BTreeMap<String, Hash>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Passwords {
    path: PathBuf,
    known: Mutex<Known>,
}

impl Passwords {
    /// Reads the file, so that one that cannot be read is told at the start.
    pub(super) fn new(path: PathBuf) -> Self {
        let passwords = Self {
            path,
            known: Mutex::default(),
        };
        passwords.users();
        passwords
    }

    /// Whether this is the user's password. Slow on purpose, for users that do not exist too.
    pub(super) fn is_right(&self, user: &str, password: &[u8]) -> bool {
        let users = self.users();
        let Some(hash) = users.get(user) else {
            let nobody = Hash {
                iterations: NonZeroU32::MIN.saturating_add(ITERATIONS - 1),
                salt: vec![0; SALT_BYTES],
                digest: vec![0; HASH_BYTES],
            };
            let _ = nobody.is_of(password);
            return false;
        };
        hash.is_of(password)
    }

    fn users(&self) -> Arc<BTreeMap<String, Hash>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = files::stamp(&self.path);
        if stamp.is_none() || stamp != known.stamp {
            match read(&self.path) {
                Ok(users) => known.users = Arc::new(users),
                Err(error) => {
                    // Nobody comes in with a password, rather than somebody who left long ago.
                    known.users = Arc::default();
                    tracing::warn!(path = %self.path.display(), %error, "MQTT passwords cannot be read");
                }
            }
            known.stamp = stamp;
        }
        Arc::clone(&known.users)
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<String, Hash>> {
    if std::fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too big"));
    }
    let text = std::fs::read_to_string(path)?;
    let mut users = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = line
            .rsplit_once(':')
            .and_then(|(user, hash)| Some((user, Hash::parse(hash)?)));
        if let Some((user, hash)) = parsed {
            users.insert(user.to_owned(), hash);
        } else {
            tracing::warn!(
                path = %path.display(),
                line = number + 1,
                "not a user with a hash of kind 7; left out"
            );
        }
    }
    Ok(users)
}

fn line(user: &str, password: &[u8]) -> io::Result<String> {
    let mut salt = [0; SALT_BYTES];
    SystemRandom::new()
        .fill(&mut salt)
        .map_err(|_| io::Error::other("no random numbers"))?;
    let iterations = NonZeroU32::MIN.saturating_add(ITERATIONS - 1);
    let mut hash = [0; HASH_BYTES];
    pbkdf2::derive(PBKDF2_HMAC_SHA512, iterations, &salt, password, &mut hash);
    let (salt, hash) = (BASE64.encode(salt), BASE64.encode(hash));
    Ok(format!("{user}:$7${iterations}${salt}${hash}"))
}

/// Writes the user's password into the file, or takes the user out of it.
pub fn change(path: &Path, user: &str, password: Option<&[u8]>) -> io::Result<()> {
    if user.is_empty() || user.contains(char::is_control) || user.starts_with('#') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a user name",
        ));
    }
    let old = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let mut lines: Vec<String> = old
        .lines()
        .filter(|line| line.rsplit_once(':').is_none_or(|(name, _)| name != user))
        .map(ToOwned::to_owned)
        .collect();
    if let Some(password) = password {
        lines.push(line(user, password)?);
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    // A temporary file is readable by its owner only, and stays so under its new name.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    for line in lines {
        writeln!(file, "{line}")?;
    }
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `mosquitto_passwd -b` of mosquitto 2.0.
    const OF_MOSQUITTO: &str = "eve:$7$101$7R/nbGgPi5FO0Eq+$u0lekBfH87d1lbLH5J1/ASLkTXi3Ml9JvZ/Pc6RFYLzseJUcqDBMpmjmU9JsVkDLTyPrlrULWIflQKj5Rk1/hw==";

    #[test]
    fn what_is_written_is_known_and_changes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwords");
        let passwords = Passwords::new(path.clone());
        assert!(!passwords.is_right("ann", b"secret"), "no file, nobody");
        change(&path, "ann", Some(b"secret")).unwrap();
        change(&path, "default/thermometer", Some(b"warm")).unwrap();
        for (user, password, is_right) in [
            ("ann", "secret", true),
            ("ann", "Secret", false),
            ("ann", "", false),
            ("bob", "secret", false),
            ("default/thermometer", "warm", true),
        ] {
            assert_eq!(
                passwords.is_right(user, password.as_bytes()),
                is_right,
                "{user}"
            );
        }
        change(&path, "ann", None).unwrap();
        assert!(!passwords.is_right("ann", b"secret"));
        assert!(passwords.is_right("default/thermometer", b"warm"));
        assert!(change(&path, "", Some(b"x")).is_err());
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&path).unwrap().permissions(),
        );
        assert_eq!(mode & 0o077, 0, "nobody else reads it");
    }

    #[test]
    fn files_of_mosquitto_are_read_and_nonsense_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwords");
        let text = format!("# people\n\nbroken\nx:$6$a$b\ny:$7$0$AA==$AA==\n{OF_MOSQUITTO}\n");
        std::fs::write(&path, text).unwrap();
        let passwords = Passwords::new(path);
        assert!(passwords.is_right("eve", b"hunter2"));
        assert_eq!(passwords.users().len(), 1);
    }
}
