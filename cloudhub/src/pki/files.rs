//! The hub's files: authority, server certificate, administrator, secrets. Made at first start.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;

use super::{ADMIN_GROUP, Authority, Leaf, TokenSecret, ca::SignError};

/// The hub's key material could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("`{path}` could not be {what}")]
    File {
        /// Which.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error(
        "`{path}` does not hold a usable {what}; restore it from a backup, or remove it to make a new one (every node must then join again)"
    )]
    Content {
        /// Which.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
    },
    /// The authority's certificate is there, its key is not.
    #[error(
        "`{key}` is missing, the key of `{certificate}`; restore it from a backup, or remove the certificate to make a new authority (every node must then join again)"
    )]
    KeyMissing {
        /// What is there.
        certificate: PathBuf,
        /// What is not.
        key: PathBuf,
    },
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// What the hub needs to prove who it is and to know its administrator.
pub struct Pki {
    /// The authority.
    pub authority: Arc<Authority>,
    /// The hub's server certificate.
    pub server: Leaf,
    /// The administrator's client certificate.
    pub admin: Leaf,
    /// SHA-256 of the administrator's token.
    pub admin_token_hash: [u8; 32],
    /// The secret for join tokens, raw.
    token_secret: Vec<u8>,
    dir: PathBuf,
}

impl Pki {
    /// Reads `dir`, making whatever is missing. `names` go into the server certificate.
    pub fn open(dir: &Path, names: &[String], now_secs: u64) -> Result<Self, PkiError> {
        let authority = Arc::new(open_authority(dir, now_secs)?);
        let server = open_server(dir, &authority, names, now_secs)?;
        let admin = open_admin(dir, &authority, now_secs)?;
        let token = open_secret(&dir.join("admin.token"))?;
        let token_secret = open_secret(&dir.join("join.secret"))?.into_bytes();
        let admin_token_hash = Sha256::digest(token.as_bytes()).into();
        Ok(Self {
            authority,
            server,
            admin,
            admin_token_hash,
            token_secret,
            dir: dir.to_owned(),
        })
    }

    /// The secret for join tokens.
    pub fn token_secret(&self) -> TokenSecret {
        TokenSecret::new(&self.token_secret)
    }

    /// Whether `token` is the administrator's: hashes are compared, in constant time by nature.
    pub fn is_admin_token(&self, token: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        hash == self.admin_token_hash
    }

    /// Writes `<dir>/admin.kubeconfig` for a server at `url`.
    pub fn write_kubeconfig(&self, url: &str) -> Result<PathBuf, PkiError> {
        let path = self.dir.join("admin.kubeconfig");
        let b64 = |text: &str| STANDARD.encode(text);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: outpost\nclusters:\n- name: outpost\n  cluster:\n    server: {url}\n    \
             certificate-authority-data: {ca}\nusers:\n- name: admin\n  user:\n    client-certificate-data: {certificate}\n    \
             client-key-data: {key}\ncontexts:\n- name: outpost\n  context:\n    cluster: outpost\n    user: admin\n",
            ca = b64(self.authority.pem()),
            certificate = b64(&self.admin.certificate_pem),
            key = b64(&self.admin.key_pem),
        );
        write_private(&path, text.as_bytes())?;
        Ok(path)
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    let fail = |source| PkiError::File {
        path: path.to_owned(),
        what: "written",
        source,
    };
    let partial = path.with_extension("partial");
    let _ = std::fs::remove_file(&partial);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .map_err(fail)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(fail)?;
    std::fs::rename(&partial, path).map_err(fail)
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File {
            path: path.to_owned(),
            what: "read",
            source,
        }),
    }
}

fn open_authority(dir: &Path, now_secs: u64) -> Result<Authority, PkiError> {
    let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
    match (read(&certificate)?, read(&key)?) {
        (Some(pem), Some(key_pem)) => {
            Authority::load(&pem, &key_pem).map_err(|_| PkiError::Content {
                path: certificate,
                what: "certificate authority",
            })
        }
        // A certificate without its key is an accident, not a first start.
        (Some(_), None) => Err(PkiError::KeyMissing { certificate, key }),
        (None, _) => {
            let (authority, key_pem) = Authority::generate(now_secs)?;
            write_private(&key, key_pem.as_bytes())?;
            write_private(&certificate, authority.pem().as_bytes())?;
            Ok(authority)
        }
    }
}

/// The stored leaf, if it is ours, has the wanted names and lives for another 30 days.
fn usable(pem: &str, authority: &Authority, names: &[String], now_secs: u64) -> bool {
    use rustls_pki_types::pem::PemObject;
    let Ok(der) = rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()) else {
        return false;
    };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else {
        return false;
    };
    let Ok((_, ca)) = x509_parser::parse_x509_certificate(authority.der()) else {
        return false;
    };
    let lives = u64::try_from(certificate.validity().not_after.timestamp())
        .is_ok_and(|end| end > now_secs + 30 * 86_400);
    let has: Vec<String> = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => extension
            .value
            .general_names
            .iter()
            .filter_map(name_text)
            .collect(),
        _ => Vec::new(),
    };
    lives && certificate.issuer() == ca.subject() && names.iter().all(|name| has.contains(name))
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(dns) = name {
        return Some((*dns).to_owned());
    }
    let GeneralName::IPAddress(bytes) = name else {
        return None;
    };
    if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    let v6 = <[u8; 16]>::try_from(*bytes).ok()?;
    Some(std::net::Ipv6Addr::from(v6).to_string())
}

fn open_leaf(
    (certificate, key): (PathBuf, PathBuf),
    authority: &Authority,
    names: &[String],
    now_secs: u64,
    make: impl FnOnce() -> Result<Leaf, SignError>,
) -> Result<Leaf, PkiError> {
    if let (Some(certificate_pem), Some(key_pem)) = (read(&certificate)?, read(&key)?)
        && usable(&certificate_pem, authority, names, now_secs)
    {
        return Ok(Leaf {
            certificate_pem,
            key_pem,
        });
    }
    let leaf = make()?;
    write_private(&key, leaf.key_pem.as_bytes())?;
    write_private(&certificate, leaf.certificate_pem.as_bytes())?;
    Ok(leaf)
}

fn open_server(
    dir: &Path,
    authority: &Authority,
    names: &[String],
    now_secs: u64,
) -> Result<Leaf, PkiError> {
    let files = (dir.join("hub.crt"), dir.join("hub.key"));
    open_leaf(files, authority, names, now_secs, || {
        authority.server(names, now_secs)
    })
}

fn open_admin(dir: &Path, authority: &Authority, now_secs: u64) -> Result<Leaf, PkiError> {
    let files = (dir.join("admin.crt"), dir.join("admin.key"));
    open_leaf(files, authority, &[], now_secs, || {
        authority.client("kubernetes-admin", ADMIN_GROUP, now_secs)
    })
}

/// 32 random bytes as text, made once.
fn open_secret(path: &Path) -> Result<String, PkiError> {
    if let Some(text) = read(path)? {
        let text = text.trim().to_owned();
        if text.len() >= 32 {
            return Ok(text);
        }
        return Err(PkiError::Content {
            path: path.to_owned(),
            what: "secret",
        });
    }
    let bytes: [u8; 32] = rand::random();
    let text = hex::encode(bytes);
    write_private(path, text.as_bytes())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_made_once_private_and_reissued_for_new_names() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let first = Pki::open(dir.path(), &names, 1_800_000_000).unwrap();
        let again = Pki::open(dir.path(), &names, 1_800_000_100).unwrap();
        assert_eq!(first.authority.der(), again.authority.der());
        assert_eq!(first.server.certificate_pem, again.server.certificate_pem);
        assert_eq!(first.admin_token_hash, again.admin_token_hash);
        let more = [names[0].clone(), "hub.example".to_owned()];
        let third = Pki::open(dir.path(), &more, 1_800_000_200).unwrap();
        assert_ne!(first.server.certificate_pem, third.server.certificate_pem);
        third.write_kubeconfig("https://127.0.0.1:6443").unwrap();
        for name in [
            "ca.key",
            "hub.key",
            "admin.token",
            "join.secret",
            "admin.kubeconfig",
        ] {
            let mode = std::fs::metadata(dir.path().join(name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let token = std::fs::read_to_string(dir.path().join("admin.token")).unwrap();
        assert!(third.is_admin_token(&token) && !third.is_admin_token("x"));
        std::fs::write(dir.path().join("ca.crt"), "nonsense").unwrap();
        assert!(matches!(
            Pki::open(dir.path(), &names, 1_800_000_300),
            Err(PkiError::Content { .. })
        ));
    }
}
