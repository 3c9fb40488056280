//! Secrets at rest: AES-256-GCM under a key file that only root reads (design D10).

use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

const KEY_BYTES: usize = 32;

/// Why a secret cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    #[error("cannot read or write the key file `{path}`")]
    KeyFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the key file `{path}` does not hold {KEY_BYTES} bytes")]
    KeyLength { path: PathBuf },
    #[error("the value was not sealed by this node's key, or was changed")]
    Open,
    #[error("the random source or the cipher failed")]
    Cipher,
}

/// Seals and opens values. The object's path is bound into each, so rows cannot be swapped.
#[derive(Debug)]
pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Sealer {
    /// From 32 bytes of key.
    pub fn new(key: &[u8; KEY_BYTES]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Cipher)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            random: SystemRandom::new(),
        })
    }

    /// From the key file; makes one (0600) if there is none.
    pub fn from_file(path: &Path) -> Result<Self, SealError> {
        let at = |source| SealError::KeyFile {
            path: path.to_owned(),
            source,
        };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut fresh = [0; KEY_BYTES];
                SystemRandom::new()
                    .fill(&mut fresh)
                    .map_err(|_| SealError::Cipher)?;
                crate::files::write_atomic(path, &fresh, 0o600).map_err(at)?;
                fresh.to_vec()
            }
            Err(error) => return Err(at(error)),
        };
        let key = bytes.try_into().map_err(|_| SealError::KeyLength {
            path: path.to_owned(),
        })?;
        Self::new(&key)
    }

    /// `nonce || ciphertext || tag`
    pub fn seal(&self, path: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        self.random
            .fill(&mut nonce)
            .map_err(|_| SealError::Cipher)?;
        let mut sealed = plain.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(path.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| SealError::Cipher)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// The inverse of [`Sealer::seal`].
    pub fn open(&self, path: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, body) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(SealError::Open)?;
        let mut body = body.to_vec();
        let plain = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(path.as_bytes()),
                &mut body,
            )
            .map_err(|_| SealError::Open)?;
        Ok(plain.to_vec())
    }
}
