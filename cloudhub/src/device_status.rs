//! Keeps one DeviceStatus per Device: made with it, removed with it (device plane §4.4). Notes when
//! desired values change.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use apiserver::store::{ListQuery, Require, Store, StoreError, Txn};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    downstream::desired,
    follow::is_over,
    keys::{self, DEVICES_GROUP, ObjectKey, REGISTRY},
    kube::text,
    ledger::new_status,
};

/// Runs until `stop`.
pub async fn run(store: Arc<dyn Store>, stop: CancellationToken) -> Result<(), anyhow::Error> {
    loop {
        if let ControlFlow::Break(end) = is_over(follow(&*store, &stop).await, &stop) {
            return end;
        }
    }
}

async fn follow(store: &dyn Store, stop: &CancellationToken) -> Result<(), StoreError> {
    let prefix = |plural: &str| format!("{REGISTRY}{DEVICES_GROUP}/{plural}/");
    let list = |prefix| ListQuery {
        prefix,
        ..ListQuery::default()
    };
    let devices = store.list(list(prefix("devices"))).await?;
    let statuses = store.list(list(prefix("devicestatuses"))).await?;
    let mut known = BTreeSet::new();
    for entry in &devices.entries {
        let Some(key) = ObjectKey::parse(&entry.key) else {
            continue;
        };
        known.insert(key.id());
        if let Ok(device) = serde_json::from_slice::<Value>(&entry.value) {
            ensure(store, &key, &device).await?;
        }
    }
    for entry in &statuses.entries {
        let Some(key) = ObjectKey::parse(&entry.key) else {
            continue;
        };
        if !known.contains(&key.id()) {
            store.txn(Txn::new().delete(&*entry.key)).await?;
        }
    }
    let mut watcher = store.watch(&prefix("devices"), devices.revision).await?;
    loop {
        // Both may be cancelled: the watcher keeps its position.
        let events = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            events = watcher.next() => events?,
        };
        for event in events {
            let Some(key) = ObjectKey::parse(&event.key) else {
                continue;
            };
            match event.object() {
                Some(device) => ensure(store, &key, &device).await?,
                None => remove(store, &key).await?,
            }
        }
    }
}

async fn ensure(store: &dyn Store, key: &ObjectKey<'_>, device: &Value) -> Result<(), StoreError> {
    desired::note(store, &key.id(), device, clock::unix_millis()).await?;
    let status_key = keys::device_status(key.namespace, key.name);
    let uid = text(device, "/metadata/uid");
    let (require, make) = match store.get(&status_key).await? {
        None => (Require::Absent(status_key.clone()), true),
        Some(entry) => {
            let status: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
            let owner = text(&status, "/metadata/ownerReferences/0/uid");
            // The status of a device that was deleted and made anew starts again.
            (
                Require::At(status_key.clone(), entry.revision),
                owner != uid,
            )
        }
    };
    if !make {
        return Ok(());
    }
    let object = new_status(device, key.namespace, key.name).to_string();
    match store
        .txn(Txn::new().require(require).put(status_key, object))
        .await
    {
        // A report made it first.
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn remove(store: &dyn Store, key: &ObjectKey<'_>) -> Result<(), StoreError> {
    desired::forget(store, &key.id()).await?;
    let device_key = keys::device(key.namespace, key.name);
    let txn = Txn::new()
        .require(Require::Absent(device_key))
        .delete(keys::device_status(key.namespace, key.name));
    match store.txn(txn).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
