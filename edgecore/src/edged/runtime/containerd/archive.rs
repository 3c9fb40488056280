//! Images in a tar file: an OCI image layout (image-spec `image-layout.md`, also what `docker save`
//! writes since 25), or the older docker archive, which gets a manifest made here.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::content::{ByteStream, DOCUMENT_BYTES_MAX, digest_of};
use super::image::{Descriptor, ImageError, Manifest};
use super::import::Source;
use super::unpack;

/// Member name -> where its bytes lie in the archive.
type Members = BTreeMap<String, (u64, u64)>;

/// An archive and its table of members.
pub(super) struct Archive {
    path: PathBuf,
    /// A compressed archive's plain form, in a file without a name; `path` then leads to it.
    _plain: Option<std::fs::File>,
    members: Members,
    /// Manifests made for a docker archive, by digest.
    made: BTreeMap<String, Bytes>,
}

/// One image of a docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default, deserialize_with = "super::spec::null_is_default")]
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// An image that an archive holds, with the name it gives it.
pub(super) type Named = (Descriptor, Option<String>);

/// More members than any real archive has; bounds the memory a hostile one can take.
const MEMBERS_MAX: usize = 100_000;

impl Archive {
    /// Reads the table of members. A compressed archive is unpacked beside the system's other
    /// temporary files first: its members are read in the order in which images need them.
    pub(super) async fn open(path: &Path) -> Result<Self, ImageError> {
        let owned = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let plain = unpack::plain(&owned)?;
            let path = match &plain {
                Some(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
                None => owned,
            };
            let members = list_members(&path)?;
            Ok::<_, io::Error>((path, plain, members))
        })
        .await
        .map_err(|error| ImageError::invalid(format!("reading the archive: {error}")))?;
        let (path, plain, members) = opened.map_err(|error| ImageError::invalid(told(&error)))?;
        Ok(Self {
            path,
            _plain: plain,
            members,
            made: BTreeMap::new(),
        })
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let missing = || ImageError::invalid(absent(name));
        let &(offset, size) = self.members.get(name).ok_or_else(missing)?;
        if i64::try_from(size).map_or(true, |size| size > DOCUMENT_BYTES_MAX) {
            return Err(ImageError::invalid(format!("`{name}` has {size} bytes")));
        }
        let read = || -> io::Result<Vec<u8>> {
            let mut file = std::fs::File::open(&self.path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.take(size).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error| ImageError::invalid(told(&error)))
    }

    /// The images the archive holds.
    pub(super) async fn images(&mut self) -> Result<Vec<Named>, ImageError> {
        if !self.members.contains_key("index.json") && self.members.contains_key("manifest.json") {
            return self.docker_images().await;
        }
        let index = Manifest::parse(&self.document("index.json")?)?;
        Ok(index
            .manifests
            .into_iter()
            .map(|descriptor| {
                // containerd and nerdctl write the full name, plain OCI tools only a tag.
                let name = [
                    "io.containerd.image.name",
                    "org.opencontainers.image.ref.name",
                ]
                .iter()
                .find_map(|key| descriptor.annotations.get(*key).cloned());
                (descriptor, name)
            })
            .collect())
    }

    /// Makes a manifest for each image: the layers lie in the archive as plain tars under names
    /// that say nothing, so they are read once for their digests.
    async fn docker_images(&mut self) -> Result<Vec<Named>, ImageError> {
        const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
        const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        let listed: Vec<DockerImage> = serde_json::from_slice(&self.document("manifest.json")?)
            .map_err(|error| ImageError::invalid(format!("manifest.json: {error}")))?;
        let mut images = Vec::new();
        for image in listed {
            let config = self.adopt_member(&image.config, CONFIG).await?;
            let mut layers = Vec::with_capacity(image.layers.len());
            for layer in &image.layers {
                layers.push(self.adopt_member(layer, LAYER).await?);
            }
            let manifest = serde_json::json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": config,
                "layers": layers,
            });
            let bytes = Bytes::from(manifest.to_string());
            let descriptor = Descriptor {
                media_type: MANIFEST.to_owned(),
                digest: digest_of(&bytes),
                size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
                ..Descriptor::default()
            };
            self.made.insert(descriptor.digest.clone(), bytes);
            let names: Vec<Option<String>> = match image.repo_tags.as_slice() {
                [] => vec![None],
                tags => tags.iter().cloned().map(Some).collect(),
            };
            images.extend(names.into_iter().map(|name| (descriptor.clone(), name)));
        }
        Ok(images)
    }

    /// Makes a member reachable by its digest.
    async fn adopt_member(
        &mut self,
        name: &str,
        media_type: &str,
    ) -> Result<Descriptor, ImageError> {
        let missing = || ImageError::invalid(absent(name));
        let place = *self.members.get(name).ok_or_else(missing)?;
        let path = self.path.clone();
        let digest = tokio::task::spawn_blocking(move || hash_member(&path, place))
            .await
            .map_err(|error| ImageError::invalid(format!("reading the archive: {error}")))?
            .map_err(|error| ImageError::invalid(told(&error)))?;
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size: i64::try_from(place.1).unwrap_or(i64::MAX),
            ..Descriptor::default()
        };
        self.members.insert(Self::member(&descriptor), place);
        Ok(descriptor)
    }

    fn member(descriptor: &Descriptor) -> String {
        format!("blobs/{}", descriptor.digest.replacen(':', "/", 1))
    }
}

fn absent(name: &str) -> String {
    format!(
        "it has no `{name}`: it is incomplete, or no image archive (OCI layout or `docker save`)"
    )
}

fn told(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        "it is truncated".to_owned()
    } else {
        error.to_string()
    }
}

/// Long names and pax records are read into memory: no real ones are larger.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Refuses an archive whose extension headers would take any amount of memory.
fn check_extensions(file: &std::fs::File) -> io::Result<()> {
    let mut archive = tar::Archive::new(file);
    for (count, entry) in archive.entries_with_seek()?.raw(true).enumerate() {
        let header = entry?.header().clone();
        let kind = header.entry_type();
        let is_extension = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if is_extension && header.entry_size()? > EXTENSION_BYTES_MAX {
            return Err(io::Error::other("a member's name or record is too long"));
        }
        // Each member may have a few of them.
        if count > 4 * MEMBERS_MAX {
            return Err(io::Error::other("too many members"));
        }
    }
    Ok(())
}

fn list_members(path: &Path) -> io::Result<Members> {
    let mut file = std::fs::File::open(path)?;
    check_extensions(&file)?;
    file.rewind()?;
    let length = file.metadata()?.len();
    let mut archive = tar::Archive::new(file);
    let mut members = Members::new();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if members.len() >= MEMBERS_MAX {
            return Err(io::Error::other("too many members"));
        }
        let name = entry.path()?.to_string_lossy().into_owned();
        let name = name.trim_start_matches("./").to_owned();
        let end = entry.raw_file_position().saturating_add(entry.size());
        if entry.header().entry_type().is_file() && end > length {
            return Err(io::Error::other(format!(
                "it is truncated: `{name}` would end at byte {end}, the archive ends at {length}"
            )));
        }
        members.insert(name, (entry.raw_file_position(), entry.size()));
    }
    Ok(members)
}

fn hash_member(path: &Path, (offset, size): (u64, u64)) -> io::Result<String> {
    const READ_BYTES: usize = 256 << 10;
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut rest = file.take(size);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(format!("sha256:{}", hex::encode(hash.finalize()))),
            length => hash.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}

#[async_trait]
impl Source for Archive {
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, ImageError> {
        if let Some(made) = self.made.get(&descriptor.digest) {
            return Ok(made.clone());
        }
        Ok(self.document(&Self::member(descriptor))?.into())
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<ByteStream, ImageError> {
        const READ_BYTES: usize = 256 << 10;
        let name = Self::member(descriptor);
        let &(start, size) = self
            .members
            .get(&name)
            .ok_or_else(|| ImageError::invalid(absent(&name)))?;
        let mut file = tokio::fs::File::open(&self.path)
            .await
            .map_err(ImageError::transfer)?;
        file.seek(SeekFrom::Start(start + offset))
            .await
            .map_err(ImageError::transfer)?;
        let rest = file.take(size.saturating_sub(offset));
        Ok(tokio_util::io::ReaderStream::with_capacity(rest, READ_BYTES).boxed())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn archive(kind: tar::EntryType, bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("x").unwrap();
        header.set_size(bytes as u64);
        header.set_cksum();
        let mut tar = tar::Builder::new(&mut file);
        tar.append(&header, &vec![b'a'; bytes][..]).unwrap();
        let mut last = tar::Header::new_gnu();
        last.set_path("index.json").unwrap();
        last.set_size(2);
        last.set_cksum();
        tar.append(&last, &b"{}"[..]).unwrap();
        tar.finish().unwrap();
        drop(tar);
        file.flush().unwrap();
        file
    }

    #[test]
    fn a_name_without_end_is_not_read_into_memory() {
        let long = usize::try_from(EXTENSION_BYTES_MAX).unwrap() + 1;
        for kind in [
            tar::EntryType::GNULongName,
            tar::EntryType::GNULongLink,
            tar::EntryType::XHeader,
            tar::EntryType::XGlobalHeader,
        ] {
            let file = archive(kind, long);
            let error = list_members(file.path()).unwrap_err().to_string();
            assert!(error.contains("too long"), "{kind:?}: {error}");
        }
        let plain = archive(tar::EntryType::Regular, long);
        assert_eq!(list_members(plain.path()).unwrap().len(), 2);
        let named = archive(tar::EntryType::GNULongName, 300);
        let members = list_members(named.path()).unwrap();
        assert!(members.contains_key(&"a".repeat(300)), "{members:?}");
    }
}
