//! Debian's `docker-registry` on loopback, and the little of its protocol that a push takes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::oci::{self, ImageSpec};
use crate::process::Process;
use crate::wait;
use crate::world::{free_port, path};

/// The one user of a registry that asks for one.
pub const USER: &str = "edge";
pub const PASSWORD: &str = "s3cret";
/// `htpasswd -nbB -C 5 edge s3cret`
const HTPASSWD: &str = "edge:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n";
/// `edge:s3cret`
const BASIC: &str = "ZWRnZTpzM2NyZXQ=";

/// A registry that runs.
#[derive(Debug)]
pub struct Registry {
    pub address: SocketAddr,
    is_guarded: bool,
    process: Process,
}

/// An answer's status and headers.
struct Answer {
    status: u16,
    head: String,
}

impl Registry {
    /// Starts one under `dir`; `is_guarded` asks for [`USER`] and [`PASSWORD`].
    pub async fn start(dir: &Path, is_guarded: bool) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let address = free_port()?;
        let htpasswd = dir.join("htpasswd");
        std::fs::write(&htpasswd, HTPASSWD)?;
        let auth = if is_guarded {
            format!(
                "auth: {{htpasswd: {{realm: edge, path: {}}}}}\n",
                path(&htpasswd)?
            )
        } else {
            String::new()
        };
        let config = dir.join("config.yml");
        let storage = dir.join("storage");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: \"{address}\"}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\n{auth}",
                path(&storage)?
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command.args(["serve", path(&config)?]);
        let process = Process::start("docker-registry", &dir.join("log"), &mut command)?;
        let mut registry = Self {
            address,
            is_guarded,
            process,
        };
        wait::until("the registry", Duration::from_secs(20), async || {
            registry.process.check()?;
            Ok(TcpStream::connect(address).ok())
        })
        .await?;
        Ok(registry)
    }

    /// Pushes an image as `repository:tag`; returns the reference to pull.
    pub fn push(&self, image: &ImageSpec, repository: &str, tag: &str) -> Result<String> {
        let content = oci::content(image)?;
        for blob in [&content.layer, &content.config] {
            let begun = self.call("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"")?;
            ensure!(begun.status == 202, "upload: {}", begun.head);
            let location = begun
                .head
                .lines()
                .find_map(|line| line.strip_prefix("Location: "))
                .context("no Location")?;
            // Absolute in this registry's answers.
            let target = location
                .split_once("//")
                .and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]))
                .unwrap_or(location);
            let put = format!("{target}&digest={}", oci::digest(blob));
            let done = self.call("PUT", &put, "application/octet-stream", blob)?;
            ensure!(done.status == 201, "blob: {}", done.head);
        }
        let target = format!("/v2/{repository}/manifests/{tag}");
        let done = self.call("PUT", &target, oci::MANIFEST, &content.manifest)?;
        ensure!(done.status == 201, "manifest: {}", done.head);
        Ok(format!("{}/{repository}:{tag}", self.address))
    }

    fn call(&self, method: &str, target: &str, media: &str, body: &[u8]) -> Result<Answer> {
        let mut stream = TcpStream::connect(self.address)?;
        let authorization = if self.is_guarded {
            format!("Authorization: Basic {BASIC}\r\n")
        } else {
            String::new()
        };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\n{authorization}Content-Type: {media}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer).replace("\r\n", "\n");
        let Some(status) = text.split_whitespace().nth(1).and_then(|s| s.parse().ok()) else {
            bail!("the registry said: {text}");
        };
        Ok(Answer { status, head: text })
    }
}
