//! From messages of nodes to the writer: whose device is it?

use std::{collections::HashMap, sync::Arc};

use apiserver::store::Store;
use serde_json::Value;
use wire::{
    extension::{Batch, Entry},
    message::Message,
};

use super::{Readings, ReadingsError, parse, parse::Row};
use crate::{keys, kube::text};

/// Takes what nodes send.
#[derive(Clone)]
pub struct Intake {
    readings: Option<Readings>,
    store: Arc<dyn Store>,
}

impl Intake {
    /// Keeps in `readings`, if there are any; devices are looked up in `store`.
    pub fn new(readings: Option<Readings>, store: Arc<dyn Store>) -> Self {
        Self { readings, store }
    }

    /// Keeps what a batch carries, once.
    pub async fn keep(&self, node: &str, batch: &Batch) -> Result<(), ReadingsError> {
        self.entries(node, &batch.epoch, &batch.entries).await
    }

    /// Keeps what a message of a plain peer carries. It has no sequence number: the message's id
    /// stands for one, which tells the repeats that come soon after.
    pub async fn keep_plain(&self, node: &str, message: &Message) -> Result<(), ReadingsError> {
        let entry = Entry {
            seq: 1,
            stream: String::new(),
            message: message.clone(),
            history: false,
        };
        let epoch = format!("plain:{}", message.header.id);
        self.entries(node, &epoch, std::slice::from_ref(&entry))
            .await
    }

    async fn entries(
        &self,
        node: &str,
        epoch: &str,
        entries: &[Entry],
    ) -> Result<(), ReadingsError> {
        let Some(readings) = &self.readings else {
            return Ok(());
        };
        let mut owned = HashMap::new();
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut rows = parse::rows(&entry.message);
            if let Some(device) = rows.first().and_then(Row::device)
                && !self.owns(node, device, &mut owned).await
            {
                rows.clear();
            }
            for row in &mut rows {
                row.history = entry.history;
            }
            kept.push((entry.seq, rows));
        }
        readings.append(node, epoch, kept).await
    }

    /// Whether the device is the node's; a store that cannot be read knows no device.
    async fn owns(&self, node: &str, device: &str, known: &mut HashMap<String, bool>) -> bool {
        if let Some(owned) = known.get(device) {
            return *owned;
        }
        let (namespace, name) = device.split_once('/').unwrap_or_default();
        let found = self.store.get(&keys::device(namespace, name)).await;
        let object = found.ok().flatten();
        let object: Value = object
            .and_then(|entry| serde_json::from_slice(&entry.value).ok())
            .unwrap_or_default();
        let owned = text(&object, "/spec/nodeName") == node;
        known.insert(device.to_owned(), owned);
        owned
    }
}
