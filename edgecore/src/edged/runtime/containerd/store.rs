//! The images of our namespace: found, adopted from neighbours, pulled, imported.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use tokio::sync::{OnceCell, Semaphore, watch};

use super::archive::Archive;
use super::channel::Daemon;
use super::collect::{LastUsed, image_lock};
use super::flight::{Failure, Flights, KeyLocks};
use super::image::{self, Descriptor, ImageError, ImageFacts};
use super::import::{Bring, Neighbour, Source};
use super::pull::{Remote, Resolved};
use super::reference::{Reference, normalize};
use super::registry::Tokens;
use super::{ContainerdConfig, snapshot};
use crate::edged::runtime::{Image, PullOptions, PullProgress, RegistryAuth, RuntimeError};

/// Images whose documents are kept parsed; more are read again when needed.
const FACTS_MAX: usize = 64;

/// What a present image is: the record's target and what its documents say.
pub(super) type Found = (Descriptor, Arc<ImageFacts>);

/// Images of one namespace of one daemon.
pub(super) struct ImageStore {
    pub(super) config: ContainerdConfig,
    pub(super) daemon: Daemon,
    /// By manifest digest, so never stale.
    facts: Mutex<HashMap<String, Arc<ImageFacts>>>,
    pub(super) locks: KeyLocks,
    pub(super) used: LastUsed,
    /// Directory of the snapshotter.
    pub(super) root: OnceCell<String>,
    flights: Flights,
    tokens: Arc<Tokens>,
    /// Images that come in at the same time.
    slots: Semaphore,
}

impl ImageStore {
    pub(super) fn new(config: ContainerdConfig, daemon: Daemon) -> Arc<Self> {
        Arc::new(Self {
            slots: Semaphore::new(config.pulls_max.max(1)),
            config,
            daemon,
            facts: Mutex::new(HashMap::new()),
            locks: KeyLocks::default(),
            used: LastUsed::default(),
            root: OnceCell::new(),
            flights: Flights::default(),
            tokens: Arc::default(),
        })
    }

    fn known_facts(&self, digest: &str) -> Option<Arc<ImageFacts>> {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.get(digest).cloned()
    }

    fn remember(&self, digest: &str, facts: ImageFacts) -> Arc<ImageFacts> {
        let shared = Arc::new(facts);
        let mut known = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= FACTS_MAX {
            known.clear();
        }
        known.insert(digest.to_owned(), Arc::clone(&shared));
        shared
    }

    /// What the documents behind `target` say.
    pub(super) async fn facts_of(
        &self,
        target: &Descriptor,
    ) -> Result<Arc<ImageFacts>, ImageError> {
        if let Some(known) = self.known_facts(&target.digest) {
            return Ok(known);
        }
        let facts = image::read_facts(&self.daemon, target).await?;
        Ok(self.remember(&target.digest, facts))
    }

    /// The image under `name` with its facts, unpacked; `None` if it is not there with all its
    /// content.
    pub(super) async fn present(&self, name: &str) -> Result<Option<Found>, ImageError> {
        let target = match image::target(&self.daemon, name).await? {
            Some(target) => Some(target),
            None => self.same_content(name).await?,
        };
        let Some(target) = target else {
            return Ok(None);
        };
        let facts = match self.facts_of(&target).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        self.used.touch(&target.digest);
        let snapshotter = &self.config.snapshotter;
        if !snapshot::is_unpacked(&self.daemon, snapshotter, &facts.chain_id).await? {
            let lease = snapshot::Lease::take(&self.daemon).await?;
            let unpacked = snapshot::unpack(&lease.daemon, snapshotter, &self.locks, &facts).await;
            lease.release().await;
            match unpacked {
                Err(error) if error.is_not_found() => return Ok(None),
                other => other?,
            }
        }
        Ok(Some((target, facts)))
    }

    /// What `repository@digest` names is there under a tag: imported, or pulled by its tag before.
    /// It gets this name too, so that whoever looks for unused images sees it in use.
    async fn same_content(&self, name: &str) -> Result<Option<Descriptor>, ImageError> {
        let Ok(Reference {
            registry,
            repository,
            digest: Some(digest),
            ..
        }) = normalize(name)
        else {
            return Ok(None);
        };
        let records = image::records(&self.daemon).await?;
        let found = records.into_iter().find(|record| {
            record.target.digest == digest
                && normalize(&record.name)
                    .is_ok_and(|it| it.registry == registry && it.repository == repository)
        });
        let Some(found) = found else {
            return Ok(None);
        };
        image::record(&self.daemon, name, &found.target).await?;
        Ok(Some(found.target))
    }

    /// An image that someone preloaded into another namespace of the daemon, brought into ours
    /// without a byte copied.
    pub(super) async fn adopt(&self, name: &str) -> Result<Option<Found>, ImageError> {
        for namespace in &self.config.adopt_namespaces {
            if *namespace == self.config.namespace {
                continue;
            }
            let Ok(neighbour) = self.daemon.with_namespace(namespace) else {
                continue;
            };
            let Some(target) = image::target(&neighbour, name).await? else {
                continue;
            };
            let source = Neighbour(neighbour);
            let unheard = watch::Sender::new(PullProgress::default());
            match self.bring(&source, &target, name, &unheard).await {
                Ok(found) => {
                    tracing::info!(image = name, namespace, "image adopted");
                    return Ok(Some(found));
                }
                Err(error) => {
                    tracing::warn!(%error, image = name, namespace, "image not adopted");
                }
            }
        }
        Ok(None)
    }

    /// Brings an image in from `source`; one at a time of one digest.
    async fn bring(
        &self,
        source: &dyn Source,
        target: &Descriptor,
        name: &str,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Found, ImageError> {
        let available = match self.disk().await {
            Ok(disk) => Some(disk.available_bytes),
            Err(error) => {
                tracing::debug!(%error, "free space is not known");
                None
            }
        };
        let bring = Bring {
            available,
            daemon: &self.daemon,
            snapshotter: &self.config.snapshotter,
            locks: &self.locks,
            layers_at_once: self.config.layers_max,
            progress,
            source,
        };
        let _mine = self.locks.lock(&image_lock(&target.digest)).await;
        let facts = bring.image(target, name).await?;
        Ok((target.clone(), self.remember(&target.digest, facts)))
    }

    /// Pulls `reference`, or joins the pull that is under way.
    pub(super) async fn pull(
        self: &Arc<Self>,
        reference: &str,
        options: &PullOptions,
    ) -> Result<Image, RuntimeError> {
        let parsed = normalize(reference)?;
        let key = flight_key(&parsed, &options.auths);
        let seat = self.flights.board(&key, |progress| {
            let store = Arc::clone(self);
            let (written, auths) = (reference.to_owned(), options.auths.clone());
            async move {
                let pulled = store.fetch(&parsed, &auths, &progress).await;
                pulled.map_err(|error| Failure::from(error.into_pull(&written)))
            }
            .boxed()
        });
        seat.ride(options.progress.as_ref()).await
    }

    async fn fetch(
        &self,
        reference: &Reference,
        auths: &[RegistryAuth],
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Image, ImageError> {
        let name = reference.whole();
        // A digest says it all: where its content is, no registry need be asked.
        if reference.digest.is_some()
            && let Some((target, facts)) = self.present(&name).await?
        {
            return Ok(image::describe(&name, &target, &facts));
        }
        // Never closed; were it, pulling without a slot is right.
        let _slot = self.slots.acquire().await.ok();
        let remote = Remote::new(&self.config.registries, reference, auths, &self.tokens)?;
        let present = self.present(&name).await?;
        let known = present.as_ref().map(|(target, _)| target.digest.as_str());
        let resolved = remote.resolve(known).await?;
        let target = match (resolved, present) {
            (Resolved::Same, Some((target, facts))) => {
                return Ok(image::describe(&name, &target, &facts));
            }
            (Resolved::Other(other), Some((target, facts))) if other.digest == target.digest => {
                return Ok(image::describe(&name, &target, &facts));
            }
            (Resolved::Other(target), _) => target,
            (Resolved::Same, None) => {
                return Err(ImageError::invalid("nothing was asked for".to_owned()));
            }
        };
        let (target, facts) = self.bring(&remote, &target, &name, progress).await?;
        Ok(image::describe(&name, &target, &facts))
    }

    /// Brings in the images of an archive.
    pub(super) async fn import(
        &self,
        path: &Path,
        name: Option<&str>,
    ) -> Result<Vec<Image>, RuntimeError> {
        let failed = |error: ImageError| error.into_import(path);
        let mut archive = Archive::open(path).await.map_err(failed)?;
        let found = archive.images().await.map_err(failed)?;
        if name.is_some() && found.len() != 1 {
            return Err(failed(ImageError::invalid(format!(
                "the archive holds {} images, a name fits one",
                found.len()
            ))));
        }
        let mut images = Vec::with_capacity(found.len());
        for (target, written) in found {
            let asked = name
                .map(str::to_owned)
                .or(written)
                .ok_or_else(|| failed(ImageError::invalid("the image has no name".to_owned())))?;
            let full = normalize(&asked)?.whole();
            let unheard = watch::Sender::new(PullProgress::default());
            let brought = self.bring(&archive, &target, &full, &unheard).await;
            let (target, facts) = brought.map_err(failed)?;
            images.push(image::describe(&full, &target, &facts));
        }
        Ok(images)
    }

    /// Every complete image.
    pub(super) async fn list(&self) -> Result<Vec<Image>, RuntimeError> {
        let mut images = Vec::new();
        for record in image::records(&self.daemon).await? {
            match self.facts_of(&record.target).await {
                Ok(facts) => images.push(Image {
                    pinned: record.is_pinned,
                    ..image::describe(&record.name, &record.target, &facts)
                }),
                Err(error) => {
                    tracing::debug!(%error, image = record.name, "image not complete");
                }
            }
        }
        Ok(images)
    }

    pub(super) async fn pin(&self, reference: &str, pinned: bool) -> Result<(), RuntimeError> {
        let name = normalize(reference)?.whole();
        match image::pin(&self.daemon, &name, pinned).await {
            Err(error) if error.is_not_found() => Err(RuntimeError::ImageNotPresent {
                reference: reference.to_owned(),
            }),
            other => Ok(other?),
        }
    }

    pub(super) async fn remove(&self, reference: &str) -> Result<(), RuntimeError> {
        let name = normalize(reference)?.whole();
        Ok(image::forget(&self.daemon, &name).await?)
    }
}

/// Only a hash of the credentials is kept.
fn flight_key(reference: &Reference, auths: &[RegistryAuth]) -> String {
    let mut hasher = DefaultHasher::new();
    auths.hash(&mut hasher);
    format!("{} {:016x}", reference.whole(), hasher.finish())
}
