//! An image at the registries that have it: mirrors first, each asked in turn.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::content::{ByteStream, Patience, digest_of};
use super::image::{Descriptor, ImageError, Manifest};
use super::import::Source;
use super::reference::Reference;
use super::registry::{Client, MANIFEST_TYPES, Registries, RegistryError, Tokens};
use crate::edged::runtime::RegistryAuth;

/// Attempts in a row that bring nothing: with the delays between them about two minutes.
const ATTEMPTS: u32 = 7;

/// One endpoint, and how often a transfer from it broke.
struct Place {
    client: Client,
    broke: AtomicU32,
}

/// One reference at its registries.
pub(super) struct Remote {
    places: Vec<Place>,
    reference: Reference,
    patience: Patience,
    /// The document that the reference stood for, so that it is not fetched twice.
    root: Mutex<Option<(String, Bytes)>>,
    /// Index of the place that served last.
    last: Mutex<Option<usize>>,
}

/// What a reference stands for at its registry.
pub(super) enum Resolved {
    /// Still what is present.
    Same,
    Other(Descriptor),
}

impl Remote {
    pub(super) fn new(
        registries: &Registries,
        reference: &Reference,
        auths: &[RegistryAuth],
        tokens: &Arc<Tokens>,
    ) -> Result<Self, ImageError> {
        let (registry, repository) = (&reference.registry, &reference.repository);
        let mut places = Vec::new();
        let mut errors = Vec::new();
        for endpoint in registries.endpoints(registry).map_err(one)? {
            let tokens = Arc::clone(tokens);
            match Client::new(registries, endpoint, registry, repository, auths, tokens) {
                Ok(client) => places.push(Place {
                    client,
                    broke: AtomicU32::new(0),
                }),
                Err(error) => errors.push(error),
            }
        }
        if places.is_empty() {
            return Err(ImageError::Registry(errors));
        }
        for error in errors {
            tracing::warn!(%error, "a mirror is passed over");
        }
        Ok(Self {
            places,
            reference: reference.clone(),
            patience: Patience {
                stall: registries.stall,
                attempts: ATTEMPTS,
                first_delay: registries.first_delay,
            },
            root: Mutex::new(None),
            last: Mutex::new(None),
        })
    }

    /// In their order, those that broke transfers after the others.
    fn in_turn(&self) -> Vec<(usize, &Place)> {
        let mut places: Vec<(usize, &Place)> = self.places.iter().enumerate().collect();
        places.sort_by_key(|(_, place)| place.broke.load(Ordering::Relaxed));
        places
    }

    fn served(&self, index: usize) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(index);
    }

    /// What the reference stands for now. With `present`, a registry that names the same digest is
    /// not asked for more: that costs nothing where pulls are counted.
    pub(super) async fn resolve(&self, present: Option<&str>) -> Result<Resolved, ImageError> {
        let asked = self.reference.digest.as_deref();
        let name = asked.or(self.reference.tag.as_deref()).unwrap_or("latest");
        let mut errors = Vec::new();
        for (index, place) in self.in_turn() {
            if asked.is_none() && !place.client.endpoint().resolves() {
                continue;
            }
            match self.resolve_at(&place.client, name, present).await {
                Ok(resolved) => {
                    self.served(index);
                    return Ok(resolved);
                }
                Err(ImageError::Registry(error)) => errors.extend(error),
                // What one place got wrong another may have right.
                Err(error) if self.places.len() > 1 => {
                    let host = place.client.endpoint().host();
                    tracing::warn!(%error, host, "a mirror is passed over");
                }
                Err(error) => return Err(error),
            }
        }
        Err(ImageError::Registry(errors))
    }

    async fn resolve_at(
        &self,
        client: &Client,
        name: &str,
        present: Option<&str>,
    ) -> Result<Resolved, ImageError> {
        if let Some(present) = present
            && client.digest(name).await.map_err(one)?.as_deref() == Some(present)
        {
            return Ok(Resolved::Same);
        }
        let bytes = client.manifest(name).await.map_err(one)?;
        let digest = digest_of(&bytes);
        if let Some(asked) = &self.reference.digest
            && *asked != digest
        {
            return Err(ImageError::invalid(format!(
                "registry `{}` answered {digest} for {asked}",
                client.endpoint().host()
            )));
        }
        let manifest = Manifest::parse(&bytes)?;
        let media_type = match (manifest.media_type.as_str(), manifest.is_index()) {
            ("", true) => MANIFEST_TYPES[0].to_owned(),
            ("", false) => MANIFEST_TYPES[2].to_owned(),
            (written, _) => written.to_owned(),
        };
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        *self.root.lock().unwrap_or_else(PoisonError::into_inner) = Some((digest.clone(), bytes));
        Ok(Resolved::Other(Descriptor {
            media_type,
            digest,
            size,
            ..Descriptor::default()
        }))
    }
}

fn one(error: RegistryError) -> ImageError {
    ImageError::Registry(vec![error])
}

#[async_trait]
impl Source for Remote {
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, ImageError> {
        {
            let root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((digest, bytes)) = &*root
                && *digest == descriptor.digest
            {
                return Ok(bytes.clone());
            }
        }
        let mut errors = Vec::new();
        for (index, place) in self.in_turn() {
            match place.client.manifest(&descriptor.digest).await {
                Ok(bytes) if digest_of(&bytes) == descriptor.digest => {
                    self.served(index);
                    return Ok(bytes);
                }
                Ok(_) => errors.push(RegistryError::garbled(
                    place.client.endpoint().host(),
                    &descriptor.digest,
                )),
                Err(error) => errors.push(error),
            }
        }
        Err(ImageError::Registry(errors))
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<ByteStream, ImageError> {
        let mut errors = Vec::new();
        for (index, place) in self.in_turn() {
            match place.client.blob(&descriptor.digest, offset).await {
                Ok(part) => {
                    self.served(index);
                    return Ok(part);
                }
                Err(error) => errors.push(error),
            }
        }
        // Nondistributable layers lie where their maker put them.
        if let Some(place) = self.places.first() {
            for url in &descriptor.urls {
                match place.client.foreign(url, offset).await {
                    Ok(part) => return Ok(part),
                    Err(error) => errors.push(error),
                }
            }
        }
        Err(ImageError::Registry(errors))
    }

    fn broke(&self) {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = last.and_then(|index| self.places.get(index)) {
            place.broke.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn patience(&self) -> Option<Patience> {
        Some(self.patience)
    }

    fn origin(&self) -> Option<(String, String)> {
        Some((
            format!(
                "containerd.io/distribution.source.{}",
                self.reference.registry
            ),
            self.reference.repository.clone(),
        ))
    }
}
