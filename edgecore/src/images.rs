//! `edgecore image …`: images of this node, straight from containerd; the daemon need not run.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::app;
use crate::config::{Config, RuntimeConfig};
use crate::edged::image_gc;
use crate::edged::runtime::containerd::ContainerdRuntime;
use crate::edged::runtime::{
    Image, OnProgress, PullOptions, Runtime, RuntimeError, full_reference,
};

/// Why an image command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImagesError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("image `{reference}` is used by {users}; remove it all the same with --force")]
    InUse { reference: String, users: String },
    #[error("image `{reference}` is not on this node")]
    NotPresent { reference: String },
}

/// The node's images.
pub struct Images(Arc<ContainerdRuntime>);

impl Images {
    /// Must be called inside a tokio runtime.
    pub fn connect(config: &Config, runtime: &RuntimeConfig) -> Result<Self, ImagesError> {
        let containerd = app::containerd(runtime, &config.run_dir);
        Ok(Self(ContainerdRuntime::connect(containerd)?))
    }

    /// Brings in the images of an archive; `name` instead of the one it gives its only image.
    pub async fn import(&self, file: &Path, name: Option<&str>) -> Result<String, ImagesError> {
        let images = self.0.import_archive(file, name).await?;
        let lines: Vec<String> = images.iter().map(line).collect();
        Ok(lines.concat())
    }

    /// Pulls with the node's own credentials; `tell` hears how far it is, once a second.
    pub async fn pull(
        &self,
        reference: &str,
        tell: Box<dyn Fn(String) + Send + Sync>,
    ) -> Result<String, ImagesError> {
        const EVERY: Duration = Duration::from_secs(1);
        let last: Mutex<Option<Instant>> = Mutex::new(None);
        let name = reference.to_owned();
        let progress: OnProgress = Box::new(move |progress| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let now = crate::clock::monotonic();
            if last.is_none_or(|at| now.duration_since(at) >= EVERY) {
                *last = Some(now);
                tell(image_gc::progress_text(&name, progress));
            }
        });
        let options = PullOptions {
            progress: Some(progress),
            ..PullOptions::default()
        };
        Ok(line(&self.0.pull(reference, &options).await?))
    }

    /// Every complete image, by name.
    pub async fn list(&self, json: bool) -> Result<String, ImagesError> {
        let mut images = self.0.images().await?;
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        if json {
            let listed: Vec<_> = images
                .iter()
                .map(|image| {
                    serde_json::json!({
                        "reference": image.reference,
                        "digest": image.digest,
                        "sizeBytes": image.size_bytes,
                        "pinned": image.pinned,
                    })
                })
                .collect();
            return Ok(format!("{}\n", serde_json::Value::from(listed)));
        }
        let width = images.iter().map(|image| image.reference.len()).max();
        let width = width.unwrap_or(0).max("IMAGE".len());
        let mut text = format!(
            "{:width$}  {:19}  {:>9}  PINNED\n",
            "IMAGE", "DIGEST", "SIZE"
        );
        for image in &images {
            let digest = image.digest.get(..19).unwrap_or(&image.digest);
            let tenths = image.size_bytes.saturating_mul(10) >> 20;
            let size = format!("{}.{} MiB", tenths / 10, tenths % 10);
            let pinned = if image.pinned { "yes" } else { "" };
            let row = format!(
                "{:width$}  {digest:19}  {size:>9}  {pinned}",
                image.reference
            );
            text.push_str(row.trim_end());
            text.push('\n');
        }
        Ok(text)
    }

    /// Forgets an image by name. One that a container was made from stays, unless `force`.
    pub async fn remove(&self, reference: &str, force: bool) -> Result<String, ImagesError> {
        let name = full_reference(reference)?;
        let images = self.0.images().await?;
        let Some(image) = images.iter().find(|image| image.reference == name) else {
            return Err(ImagesError::NotPresent { reference: name });
        };
        let others = images
            .iter()
            .filter(|other| other.digest == image.digest && other.reference != name);
        let users: Vec<String> = self
            .0
            .containers()
            .await?
            .into_iter()
            .filter(|container| container.image_id.ends_with(&image.digest))
            .map(|c| {
                format!(
                    "container {} of pod {}/{}",
                    c.name, c.pod_namespace, c.pod_name
                )
            })
            .collect();
        if !force && !users.is_empty() && others.count() == 0 {
            return Err(ImagesError::InUse {
                reference: name,
                users: users.join(", "),
            });
        }
        self.0.remove_image(&name).await?;
        Ok(format!("{name} removed\n"))
    }

    /// Keeps an image from being collected, or ends that.
    pub async fn pin(&self, reference: &str, pinned: bool) -> Result<String, ImagesError> {
        self.0.pin_image(reference, pinned).await?;
        let done = if pinned { "pinned" } else { "no longer pinned" };
        Ok(format!("{reference} {done}\n"))
    }
}

fn line(image: &Image) -> String {
    format!("{}  {}\n", image.reference, image.digest)
}
