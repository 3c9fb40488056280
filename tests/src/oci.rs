//! Small images without a registry: an OCI archive made of the host's static busybox.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where Debian's `busybox-static` puts it, and where others do.
const BUSYBOX: [&str; 3] = ["/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox"];

/// The applets that examples and tests call by name.
const APPLETS: [&str; 20] = [
    "sh", "cat", "echo", "sleep", "true", "false", "ls", "ps", "id", "env", "hostname", "ip", "nc",
    "wget", "kill", "mount", "head", "httpd", "date", "touch",
];

/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What an image is to be.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// Full reference written into the archive, e.g. `docker.io/library/busybox:demo`.
    pub name: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub user: String,
    pub working_dir: String,
    /// Extra files: path inside the image, host file, mode.
    pub files: Vec<(String, PathBuf, u32)>,
}

impl ImageSpec {
    /// Busybox with a shell as its command.
    pub fn busybox(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            entrypoint: Vec::new(),
            cmd: vec!["sh".to_owned()],
            env: vec!["PATH=/bin".to_owned()],
            user: String::new(),
            working_dir: String::new(),
            files: Vec::new(),
        }
    }
}

/// The host's busybox, if it has one.
pub fn find_busybox() -> Option<PathBuf> {
    BUSYBOX.iter().map(PathBuf::from).find(|path| path.exists())
}

/// An image's three blobs.
#[derive(Clone, Debug)]
pub struct Content {
    pub layer: Vec<u8>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

/// Makes an image of one layer.
///
/// # Errors
/// No busybox on this host, or a file could not be read.
pub fn content(image: &ImageSpec) -> io::Result<Content> {
    let busybox = find_busybox()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no busybox on this host"))?;
    let layer = layer(image, &busybox)?;
    let config = config(image, &digest(&layer)).to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    })
    .to_string()
    .into_bytes();
    Ok(Content {
        layer,
        config,
        manifest,
    })
}

/// Writes an OCI archive with one image of one layer to `target`.
///
/// # Errors
/// No busybox on this host, or a file could not be read or written.
pub fn write_archive(image: &ImageSpec, target: &Path) -> io::Result<()> {
    let Content {
        layer,
        config,
        manifest,
    } = content(image)?;
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["annotations"] = json!({ "io.containerd.image.name": image.name });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] })
        .to_string()
        .into_bytes();

    let mut archive = tar::Builder::new(std::fs::File::create(target)?);
    let blob = |bytes: &[u8]| format!("blobs/{}", digest(bytes).replacen(':', "/", 1));
    add(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    )?;
    add(&mut archive, "index.json", &index, 0o644)?;
    for bytes in [&manifest, &config, &layer] {
        add(&mut archive, &blob(bytes), bytes, 0o644)?;
    }
    archive.into_inner()?.flush()
}

/// `sha256:…` of a blob.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

fn config(image: &ImageSpec, layer_digest: &str) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": image.user,
            "Env": image.env,
            "Entrypoint": image.entrypoint,
            "Cmd": image.cmd,
            "WorkingDir": image.working_dir,
        },
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
    })
}

fn layer(image: &ImageSpec, busybox: &Path) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (directory, mode) in [
        ("bin/", 0o755),
        ("etc/", 0o755),
        ("tmp/", 0o1777),
        ("dev/", 0o755),
        ("proc/", 0o555),
        ("sys/", 0o555),
        ("root/", 0o700),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        archive.append_data(&mut header, directory, io::empty())?;
    }
    add(&mut archive, "bin/busybox", &std::fs::read(busybox)?, 0o755)?;
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        archive.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nguest:x:405:100:guest:/tmp:/bin/sh\n";
    add(&mut archive, "etc/passwd", passwd, 0o644)?;
    let group = b"root:x:0:\nwheel:x:10:guest\nusers:x:100:\n";
    add(&mut archive, "etc/group", group, 0o644)?;
    for (path, source, mode) in &image.files {
        let name = path.trim_start_matches('/');
        add(&mut archive, name, &std::fs::read(source)?, *mode)?;
    }
    archive.into_inner()
}

fn add<W: Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    bytes: &[u8],
    mode: u32,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    let size = u64::try_from(bytes.len()).map_err(io::Error::other)?;
    header.set_size(size);
    archive.append_data(&mut header, name, bytes)
}
