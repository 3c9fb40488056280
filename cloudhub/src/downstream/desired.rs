//! When each desired value of a Device was written, by the hub's clock. A node that was offline
//! needs it to know whether a value set there in the meantime is newer (device twins, conflict
//! rule `newest`); the object itself says only when it changed as a whole.
//!
//! Key: `/outpost/desired/<namespace>/<name>`. It travels as an annotation of what is sent to our
//! own edges; the object in the API does not have it.

use std::collections::BTreeMap;

use apiserver::store::{Require, Store, StoreError, Txn};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// `{property: Unix milliseconds}` as JSON text.
const ANNOTATION: &str = "outpost.dev/desired-at";

/// A desired value and when it was first seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Wish {
    value: String,
    at: i64,
}

type Record = BTreeMap<String, Wish>;

fn record_key(id: &str) -> String {
    format!("/outpost/desired/{id}")
}

/// What the record should be: values that are known keep their time.
fn renewed(known: &Record, device: &Value, now_ms: i64) -> Record {
    let properties = device.pointer("/spec/properties").and_then(Value::as_array);
    let wish = |property: &Value| {
        let name = property.get("name")?.as_str()?;
        let value = property.pointer("/desired/value")?.as_str()?;
        let wish = known.get(name).filter(|wish| wish.value == value);
        let wish = wish.cloned().unwrap_or_else(|| Wish {
            value: value.to_owned(),
            at: now_ms,
        });
        (!value.is_empty()).then(|| (name.to_owned(), wish))
    };
    properties.into_iter().flatten().filter_map(wish).collect()
}

async fn load(store: &dyn Store, id: &str) -> Result<(Record, Option<u64>), StoreError> {
    Ok(match store.get(&record_key(id)).await? {
        Some(entry) => (
            serde_json::from_slice(&entry.value).unwrap_or_default(),
            Some(entry.revision),
        ),
        None => (Record::new(), None),
    })
}

/// Takes a Device in as it is now; `id` is `namespace/name`.
pub async fn note(
    store: &dyn Store,
    id: &str,
    device: &Value,
    now_ms: i64,
) -> Result<(), StoreError> {
    let (known, revision) = load(store, id).await?;
    let record = renewed(&known, device, now_ms);
    if record == known {
        return Ok(());
    }
    let key = record_key(id);
    let txn = match revision {
        Some(at) => Txn::new().require(Require::At(key.clone(), at)),
        None => Txn::new().require(Require::Absent(key.clone())),
    };
    let record = serde_json::to_vec(&record).map_err(|e| StoreError::Refused(e.to_string()))?;
    match store.txn(txn.put(key, record)).await {
        // Somebody else noted it.
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Forgets a Device.
pub async fn forget(store: &dyn Store, id: &str) -> Result<(), StoreError> {
    store.txn(Txn::new().delete(record_key(id))).await?;
    Ok(())
}

/// Says in the object when its desired values were written. One that is not noted yet was written
/// just now.
pub async fn annotate(
    store: &dyn Store,
    id: &str,
    device: &mut Value,
    now_ms: i64,
) -> Result<(), StoreError> {
    let (known, _) = load(store, id).await?;
    let times: BTreeMap<String, i64> = renewed(&known, device, now_ms)
        .into_iter()
        .map(|(name, wish)| (name, wish.at))
        .collect();
    let Some(metadata) = device.get_mut("metadata").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let (false, Some(annotations)) = (times.is_empty(), annotations.as_object_mut()) {
        annotations.insert(ANNOTATION.to_owned(), json!(times).to_string().into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use apiserver::store::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn a_value_keeps_the_time_of_its_writing() {
        let store = MemoryStore::new();
        let device = |a: &str, b: &str| {
            json!({"metadata": {"name": "t"}, "spec": {"properties": [
                {"name": "a", "desired": {"value": a}}, {"name": "b", "desired": {"value": b}},
                {"name": "none"}]}})
        };
        let told = |mut device: Value, now_ms: i64| {
            let store = &store;
            async move {
                annotate(store, "x/t", &mut device, now_ms).await.unwrap();
                let text = device["metadata"]["annotations"][ANNOTATION].clone();
                serde_json::from_str::<Value>(text.as_str().unwrap_or("{}")).unwrap()
            }
        };
        note(&store, "x/t", &device("1", ""), 10).await.unwrap();
        assert_eq!(told(device("1", ""), 99).await, json!({"a": 10}));
        note(&store, "x/t", &device("1", "5"), 20).await.unwrap();
        note(&store, "x/t", &device("2", "5"), 30).await.unwrap();
        assert_eq!(told(device("2", "5"), 99).await, json!({"a": 30, "b": 20}));
        // Not noted yet.
        assert_eq!(told(device("2", "6"), 99).await, json!({"a": 30, "b": 99}));
        forget(&store, "x/t").await.unwrap();
        assert_eq!(told(device("2", ""), 99).await, json!({"a": 99}));
        assert_eq!(told(device("", ""), 99).await, json!({}));
    }
}
