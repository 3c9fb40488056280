//! Which mapper is owed what. Level-triggered: the answer follows from the stored objects and the
//! registrations alone, whatever was missed and whoever sent the change.

use std::collections::BTreeMap;

use ::dmi::v1beta1 as pb;
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;
use sha2::{Digest, Sha256};
use wire::resource::Kind;

use super::convert;
use super::rows::{self, Mapper};
use crate::clock::UnixMillis;
use crate::store::StoreError;
use crate::twin::{self, Outcome};

/// Names the mapper of a device where several serve its protocol.
pub const MAPPER_ANNOTATION: &str = "outpost.dev/mapper";

/// A model or a device. Models come first, as devices need them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item {
    pub is_device: bool,
    pub namespace: String,
    pub name: String,
}

/// Recognises a changed message: the start of the digest of its bytes.
pub(super) type Print = i64;

/// What a mapper has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owed {
    pub items: BTreeMap<Item, Print>,
    /// The models of devices that have one.
    pub models: BTreeMap<Item, Item>,
    /// Devices whose model is not on the node yet.
    pub waiting: usize,
    /// What the mapper is not told of its devices, by device and property.
    pub withheld: BTreeMap<Item, BTreeMap<String, Withheld>>,
}

/// Why a mapper is not told of a property, and what is desired of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Withheld {
    pub reason: String,
    pub desired: String,
}

impl Owed {
    /// Whether a mapper that was `told` this knows the model of a device as it is owed: with an
    /// older one, a stock mapper ends at a property that is new. True for all else.
    pub(super) fn has_its_model(&self, item: &Item, told: &BTreeMap<Item, Print>) -> bool {
        let model = self.models.get(item);
        model.is_none_or(|model| told.get(model) == self.items.get(model))
    }

    fn withhold(
        &mut self,
        device: &Item,
        reasons: BTreeMap<String, String>,
        desired: &BTreeMap<String, String>,
    ) {
        if reasons.is_empty() {
            return;
        }
        let of = |(name, reason): (String, String)| {
            let desired = desired.get(&name).cloned().unwrap_or_default();
            (name, Withheld { reason, desired })
        };
        let all = reasons.into_iter().map(of).collect();
        self.withheld.insert(device.clone(), all);
    }
}

/// What goes to a mapper.
#[derive(Clone, Debug)]
pub(super) enum Parcel {
    Model(pb::DeviceModel),
    Device(pb::Device),
}

impl Parcel {
    fn print(&self) -> Print {
        let bytes = match self {
            Self::Model(model) => model.encode_to_vec(),
            Self::Device(device) => device.encode_to_vec(),
        };
        let mut start = [0; 8];
        for (to, from) in start.iter_mut().zip(Sha256::digest(&bytes)) {
            *to = from;
        }
        i64::from_be_bytes(start)
    }
}

/// What each of `mappers` is owed, by name. A device belongs to one mapper: the one its annotation
/// names, else the latest registration of its protocol, as in KubeEdge; a mapper that lost it is
/// told to forget it.
pub(super) fn owed(
    tx: &Connection,
    mappers: &[Mapper],
) -> Result<BTreeMap<String, Owed>, StoreError> {
    let mut all: BTreeMap<String, Owed> = mappers
        .iter()
        .map(|mapper| (mapper.name.clone(), Owed::default()))
        .collect();
    if all.is_empty() {
        return Ok(all);
    }
    let mut models: BTreeMap<(String, String), Option<(Value, Print)>> = BTreeMap::new();
    let mut query = tx.prepare_cached(
        "SELECT namespace, name, value FROM objects WHERE kind = ?1 ORDER BY namespace, name",
    )?;
    let mut rows = query.query([Kind::Device.as_str()])?;
    while let Some(row) = rows.next()? {
        let (namespace, name): (String, String) = (row.get(0)?, row.get(1)?);
        let Some(object) = parsed(
            row.get_ref(2)?.as_bytes().unwrap_or_default(),
            &namespace,
            &name,
        ) else {
            continue;
        };
        let Some(owed) = owner(&object, mappers).and_then(|mapper| all.get_mut(&mapper.name))
        else {
            continue;
        };
        let desired = twin::desired_values(tx, &namespace, &name)?.unwrap_or_default();
        let device = Item {
            is_device: true,
            namespace: namespace.clone(),
            name,
        };
        let reference = model_of(&object);
        let model = if reference.is_empty() {
            None
        } else {
            let key = (namespace.clone(), reference.to_owned());
            let known = match models.entry(key) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(room) => {
                    let found = stored(tx, &Kind::DeviceModel, &namespace, reference)?;
                    room.insert(found.map(|object| {
                        let print = Parcel::Model(convert::model(&object)).print();
                        (object, print)
                    }))
                }
            };
            let Some((object, print)) = known else {
                owed.waiting += 1;
                let reason = format!("model {reference} is not on the node");
                owed.withhold(&device, convert::all_withheld(&object, &reason), &desired);
                continue;
            };
            let item = Item {
                is_device: false,
                namespace,
                name: reference.to_owned(),
            };
            owed.items.insert(item.clone(), *print);
            owed.models.insert(device.clone(), item);
            Some(&*object)
        };
        let print = Parcel::Device(convert::device(&object, model, &desired)).print();
        owed.withhold(&device, convert::withheld(&object, model), &desired);
        owed.items.insert(device, print);
    }
    Ok(all)
}

/// An item as it is sent, with its print; `None` if it is gone.
pub(super) fn parcel(tx: &Connection, item: &Item) -> Result<Option<(Parcel, Print)>, StoreError> {
    let kind = if item.is_device {
        Kind::Device
    } else {
        Kind::DeviceModel
    };
    let Some(object) = stored(tx, &kind, &item.namespace, &item.name)? else {
        return Ok(None);
    };
    let parcel = if item.is_device {
        let model = stored_model(tx, &object, &item.namespace)?;
        let desired = twin::desired_values(tx, &item.namespace, &item.name)?.unwrap_or_default();
        Parcel::Device(convert::device(&object, model.as_ref(), &desired))
    } else {
        Parcel::Model(convert::model(&object))
    };
    let print = parcel.print();
    Ok(Some((parcel, print)))
}

/// Whether a device as it was sent to `mapper` is what the mapper is owed still.
pub(super) fn is_owed(
    tx: &Connection,
    mapper: &Mapper,
    item: &Item,
    sent: Print,
) -> Result<bool, StoreError> {
    let Some(object) = stored(tx, &Kind::Device, &item.namespace, &item.name)? else {
        return Ok(false);
    };
    let mappers = rows::all(tx)?;
    let is_its = owner(&object, &mappers)
        .is_some_and(|owner| (&owner.name, owner.number) == (&mapper.name, mapper.number));
    Ok(is_its && parcel(tx, item)?.is_some_and(|(_, print)| print == sent))
}

/// Notes that a mapper took a device as it is now.
pub(super) fn taken(tx: &Connection, item: &Item, now: UnixMillis) -> Result<Outcome, StoreError> {
    if !twin::is_undelivered(tx, &item.namespace, &item.name)? {
        return Ok(Outcome::default());
    }
    let Some(object) = stored(tx, &Kind::Device, &item.namespace, &item.name)? else {
        return Ok(Outcome::default());
    };
    let model = stored_model(tx, &object, &item.namespace)?;
    let withheld = convert::withheld(&object, model.as_ref());
    twin::mapper_took(tx, &item.namespace, &item.name, &withheld, now)
}

/// Notes what no mapper is told of a device; nothing, if the device is gone.
pub(super) fn not_served(
    tx: &Connection,
    item: &Item,
    withheld: &BTreeMap<String, String>,
    now: UnixMillis,
) -> Result<Outcome, StoreError> {
    match stored(tx, &Kind::Device, &item.namespace, &item.name)? {
        Some(object) => twin::not_served(tx, &object, withheld, now),
        None => Ok(Outcome::default()),
    }
}

fn stored_model(
    tx: &Connection,
    device: &Value,
    namespace: &str,
) -> Result<Option<Value>, StoreError> {
    match model_of(device) {
        "" => Ok(None),
        reference => stored(tx, &Kind::DeviceModel, namespace, reference),
    }
}

/// The mapper that serves a device now.
pub(super) fn owner<'a>(object: &Value, mappers: &'a [Mapper]) -> Option<&'a Mapper> {
    let protocol = object["spec"]["protocol"]["protocolName"].as_str()?;
    let mut serving = mappers
        .iter()
        .filter(|mapper| mapper.protocol == protocol && !protocol.is_empty());
    match object["metadata"]["annotations"][MAPPER_ANNOTATION].as_str() {
        Some(name) => serving.find(|mapper| mapper.name == name),
        None => serving.next_back(),
    }
}

fn model_of(object: &Value) -> &str {
    object["spec"]["deviceModelRef"]["name"]
        .as_str()
        .unwrap_or_default()
}

/// A stored object; names come from its path where the body has none.
pub(super) fn stored(
    tx: &Connection,
    kind: &Kind,
    namespace: &str,
    name: &str,
) -> Result<Option<Value>, StoreError> {
    let bytes: Option<Vec<u8>> = tx
        .prepare_cached("SELECT value FROM objects WHERE kind=?1 AND namespace=?2 AND name=?3")?
        .query_row(params![kind.as_str(), namespace, name], |row| row.get(0))
        .optional()?;
    Ok(bytes.and_then(|bytes| parsed(&bytes, namespace, name)))
}

fn parsed(bytes: &[u8], namespace: &str, name: &str) -> Option<Value> {
    let mut object: Value = serde_json::from_slice(bytes).ok()?;
    let metadata = object
        .as_object_mut()?
        .entry("metadata")
        .or_insert_with(|| Value::Object(serde_json::Map::new()))
        .as_object_mut()?;
    metadata.insert("namespace".to_owned(), namespace.into());
    metadata.insert("name".to_owned(), name.into());
    Some(object)
}
