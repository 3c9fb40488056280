//! Pulls: begun with the pod's credentials, told of while they go on.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::super::env::References;
use super::super::{image, sources};
use super::Worker;
use crate::edged::events::{Recorder, Severity};
use crate::edged::image_gc::progress_text;
use crate::edged::runtime::{OnProgress, PullOptions};

/// Least time between two events about one pull's progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

impl Worker {
    pub(super) fn begin_pull(&mut self, name: String, reference: String) {
        let message = format!("Pulling image \"{reference}\"");
        self.event(Severity::Normal, "Pulling", Some(&name), &message);
        let context = self.context.clone();
        let namespace = self.id.namespace.clone();
        let progress = self.progress(&name, &reference);
        let spec = self.pod.spec.as_ref();
        let secrets: BTreeSet<String> = spec
            .iter()
            .flat_map(|s| s.image_pull_secrets.iter().flatten())
            .map(|reference| reference.name.clone())
            .collect();
        self.pulls.spawn(async move {
            let refs = References {
                secrets,
                ..References::default()
            };
            let sources = sources::fetch(&*context.desired, &namespace, &refs).await;
            // Without its credentials the pull is tried as a stranger: the image may be public.
            let sources = sources.unwrap_or_default();
            let options = PullOptions {
                auths: image::auths_for(&reference, sources.secrets.values().flatten()),
                progress: Some(progress),
            };
            let begun = Instant::now();
            let result = context.runtime.pull(&reference, &options).await;
            (name, begun.elapsed(), result)
        });
    }

    /// Tells how far a pull is as an event, now and then.
    fn progress(&self, name: &str, reference: &str) -> OnProgress {
        let (sink, node) = (self.context.sink.clone(), self.context.node_name.clone());
        let recorder = Recorder::new(sink, node, self.id.clone());
        let told = Mutex::new((recorder, Instant::now()));
        let (path, reference) = (self.field_path(name), reference.to_owned());
        let context = self.context.clone();
        Box::new(move |progress| {
            let now = Instant::now();
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            let done = progress.done_bytes >= progress.total_bytes;
            if done || now.duration_since(told.1) < PROGRESS_EVERY {
                return;
            }
            told.1 = now;
            let message = progress_text(&reference, progress);
            let now_ms = (context.now_ms)();
            let normal = Severity::Normal;
            told.0
                .record_as("progress", normal, "Pulling", Some(&path), &message, now_ms);
        })
    }
}
