//! The decision: what an event does to a device.

use std::collections::BTreeMap;

use crate::delta::delta;
use crate::device::{Attribute, Device, PROPERTIES_MAX};
use crate::effect::{DocumentEntry, Effect};
use crate::error::Rejected;
use crate::event::{Change, Event, SyncChange, Wanted};
use crate::twin::{FromCloud, Property, Stamped};
use crate::value::{Kind, check_name, check_value};
use crate::version::Version;

/// States a device may report (KubeEdge `dtmanager/device.go`).
const STATES: [&str; 5] = ["online", "offline", "ok", "unknown", "unhealthy"];

/// The next state and what to tell whom once it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The device after the event.
    pub next: Device,
    /// In the order in which to perform them.
    pub effects: Vec<Effect>,
}

/// Decides what `event` does to `device` at `now_ms`. Pure: the same arguments give the same
/// decision, and a refusal changes nothing.
///
/// # Errors
/// [`Rejected`] with the code and sentence for the sender. Trying again does not help.
pub fn apply(device: &Device, event: Event, now_ms: i64) -> Result<Decision, Rejected> {
    match event {
        Event::Update { event_id, changes } => update(device, event_id, changes, now_ms),
        Event::Sync { event_id, changes } => Ok(sync(device, event_id, &changes, now_ms)),
        Event::Desired {
            object_uid,
            version,
            values,
        } => Ok(desired(device, object_uid, version, &values, now_ms)),
        Event::State { state } => state_told(device, state, now_ms),
        Event::Described {
            description,
            attributes,
        } => Ok(described(device, description, attributes)),
    }
}

/// Spec: device plane 2.4. The first wrong property refuses the whole request.
fn update(
    device: &Device,
    event_id: String,
    changes: BTreeMap<String, Option<Change>>,
    now_ms: i64,
) -> Result<Decision, Rejected> {
    for (name, change) in &changes {
        check_name(name)?;
        let values = change.iter().flat_map(|c| [&c.desired, &c.reported]);
        for value in values.flatten() {
            check_value(value)?;
        }
    }
    let mut next = device.clone();
    let mut written: BTreeMap<String, Option<Property>> = BTreeMap::new();
    let mut properties = BTreeMap::new();
    for (name, change) in changes {
        let Some(change) = change else {
            if let Some(deleted) = remove_property(&mut next, &name)? {
                written.insert(name.clone(), None);
                properties.insert(name, deleted);
            }
            continue;
        };
        if let Some(parts) = write_property(&mut next, &name, change, now_ms)? {
            written.insert(name.clone(), Some(parts.clone()));
            properties.insert(name, parts);
        }
    }
    let entries = document(device, &next, properties.keys());
    let mut effects = vec![Effect::Result {
        event_id: event_id.clone(),
        changed: written,
    }];
    if !entries.is_empty() {
        effects.push(Effect::Document { event_id, entries });
    }
    effects.extend(delta(&next).map(Effect::Delta));
    if !properties.is_empty() {
        effects.push(Effect::Report { properties });
    }
    Ok(Decision { next, effects })
}

/// Marks a property as removed; `None` if it may not be, or already is.
fn remove_property(next: &mut Device, name: &str) -> Result<Option<Property>, Rejected> {
    let property = next
        .properties
        .get_mut(name)
        .ok_or_else(|| Rejected::bad("the request body is wrong"))?;
    if !property.optional || property.is_deleted() {
        return Ok(None);
    }
    property.delete();
    Ok(Some(property.parts(true, true)))
}

/// Writes the given parts; returns what was written, `None` if nothing was. An equal value is
/// written again (new version, new time): each reading counts.
fn write_property(
    next: &mut Device,
    name: &str,
    change: Change,
    now_ms: i64,
) -> Result<Option<Property>, Rejected> {
    make_room(next, name)?;
    let stored = next.properties.get(name);
    let is_new = stored.is_none_or(Property::is_deleted);
    let kind = match stored {
        Some(known) if !is_new && known.kind != Kind::Unknown => known.kind,
        // No property yet, a removed one, or one that only the cloud has spoken of.
        Some(_) | None => Kind::parse(change.kind.as_deref())?.unwrap_or(Kind::String),
    };
    for value in [&change.desired, &change.reported].into_iter().flatten() {
        kind.check(value)?;
    }
    let kind_differs = change
        .kind
        .as_deref()
        .is_some_and(|given| matches!(Kind::parse(Some(given)), Ok(Some(k)) if k != kind));
    let property = next
        .properties
        .entry(name.to_owned())
        .or_insert_with(|| Property::new(kind));
    let loses_optional = property.optional && change.optional == Some(false);
    property.optional = if is_new {
        change.optional.unwrap_or(true)
    } else {
        property.optional && !loses_optional
    };
    property.kind = kind;
    let (has_desired, has_reported) = (change.desired.is_some(), change.reported.is_some());
    let stamp = |value| Stamped {
        value,
        at_ms: now_ms,
    };
    if let Some(value) = change.desired {
        property.desired = Some(stamp(value));
        property.desired_version = Some(edge_written(property.desired_version));
    }
    if let Some(value) = change.reported {
        property.reported = Some(stamp(value));
        property.reported_version = Some(edge_written(property.reported_version));
    }
    let is_changed = is_new || has_desired || has_reported || loses_optional || kind_differs;
    Ok(is_changed.then(|| property.parts(has_desired, has_reported)))
}

fn edge_written(version: Option<Version>) -> Version {
    version.unwrap_or_default().after_edge_write()
}

fn make_room(device: &Device, name: &str) -> Result<(), Rejected> {
    if device.properties.len() < PROPERTIES_MAX || device.properties.contains_key(name) {
        Ok(())
    } else {
        Err(Rejected::bad("the device has too many properties"))
    }
}

/// Spec: device plane 2.5. Never refused as a whole: the edge wins property by property, and the
/// cloud is told what the edge has.
fn sync(
    device: &Device,
    event_id: String,
    changes: &BTreeMap<String, SyncChange>,
    now_ms: i64,
) -> Decision {
    let mut next = device.clone();
    let mut report = BTreeMap::new();
    for (name, change) in changes {
        if let Some(local) = sync_property(&mut next, name, change, now_ms) {
            report.insert(name.clone(), local);
        }
    }
    let entries = document(device, &next, changes.keys());
    let mut effects = Vec::new();
    if !entries.is_empty() {
        effects.push(Effect::Document { event_id, entries });
    }
    effects.extend(delta(&next).map(Effect::Delta));
    if !report.is_empty() {
        effects.push(Effect::Report { properties: report });
    }
    Decision { next, effects }
}

/// Takes what the version test admits; returns what the cloud must be told instead.
fn sync_property(
    next: &mut Device,
    name: &str,
    sync: &SyncChange,
    now_ms: i64,
) -> Option<Property> {
    let change = &sync.change;
    if change.kind.as_deref() == Some("deleted") {
        return sync_removal(next.properties.get_mut(name)?, sync);
    }
    let stored = next.properties.get(name);
    let has_no_value = change.desired.is_none() && change.reported.is_none();
    if check_name(name).is_err()
        || make_room(next, name).is_err()
        || (stored.is_none() && has_no_value)
    {
        return None;
    }
    let mut draft = sync_draft(stored, change);
    for value in [&change.desired, &change.reported].into_iter().flatten() {
        draft.kind.check(value).ok()?;
    }
    let desired = verdict(
        change.desired.as_ref(),
        draft.desired_version,
        sync.desired_version,
    );
    let reported = verdict(
        change.reported.as_ref(),
        draft.reported_version,
        sync.reported_version,
    );
    let answer = match (desired, reported) {
        // The remaining part is skipped once one is refused.
        (Verdict::Refuse, _) => return stored.map(|local| local.parts(true, false)),
        (_, Verdict::Refuse) => match stored {
            Some(local) => Some(local.parts(false, true)),
            None => return None,
        },
        (_, _) => None,
    };
    let mut is_taken = answer.is_none();
    if let Verdict::Take(value, version) = desired {
        take(
            &mut draft.desired,
            &mut draft.desired_version,
            value,
            version,
            now_ms,
        );
        is_taken = true;
    }
    if let Verdict::Take(value, version) = reported {
        take(
            &mut draft.reported,
            &mut draft.reported_version,
            value,
            version,
            now_ms,
        );
    }
    if is_taken {
        next.properties.insert(name.to_owned(), draft);
    }
    answer
}

/// The property as it would be without its new values: typed, revived if it had been removed.
fn sync_draft(stored: Option<&Property>, change: &Change) -> Property {
    let given = Kind::parse(change.kind.as_deref()).ok().flatten();
    let given = given.unwrap_or(Kind::String);
    let mut draft = stored.cloned().unwrap_or_else(|| Property::new(given));
    if draft.is_deleted() || draft.kind == Kind::Unknown {
        draft.kind = given;
        draft.optional = true;
    }
    draft.optional &= change.optional != Some(false);
    draft
}

/// What the version test says about one part.
#[derive(Clone, Copy)]
enum Verdict<'a> {
    NotGiven,
    Take(&'a str, Version),
    Refuse,
}

fn verdict(value: Option<&String>, local: Option<Version>, remote: Option<Version>) -> Verdict<'_> {
    match (value, remote) {
        (None, _) => Verdict::NotGiven,
        (Some(value), Some(remote)) if remote.covers(local.unwrap_or_default()) => {
            Verdict::Take(value, remote)
        }
        (Some(_), _) => Verdict::Refuse,
    }
}

/// Removes a property for the cloud if no local version has moved on.
fn sync_removal(property: &mut Property, sync: &SyncChange) -> Option<Property> {
    let admits = |local: Option<Version>, remote: Option<Version>| {
        remote.is_none_or(|remote| remote.covers(local.unwrap_or_default()))
    };
    if property.is_deleted() {
        return None;
    }
    if !admits(property.desired_version, sync.desired_version)
        || !admits(property.reported_version, sync.reported_version)
    {
        return Some(property.parts(true, true));
    }
    property.delete();
    None
}

/// Stores a synced value; the same value under the same version changes nothing.
fn take(
    slot: &mut Option<Stamped>,
    slot_version: &mut Option<Version>,
    value: &str,
    version: Version,
    now_ms: i64,
) {
    let is_same =
        *slot_version == Some(version) && slot.as_ref().is_some_and(|old| old.value == value);
    if !is_same {
        *slot = Some(Stamped {
            value: value.to_owned(),
            at_ms: now_ms,
        });
        *slot_version = Some(version);
    }
}

/// Takes the desired values of the cloud's Device object. KubeEdge has no such path: there a
/// device that speaks only MQTT never learns of a desired value.
fn desired(
    device: &Device,
    object_uid: String,
    version: i64,
    values: &BTreeMap<String, Wanted>,
    now_ms: i64,
) -> Decision {
    let mut next = device.clone();
    let mut report = BTreeMap::new();
    let mut refused = Vec::new();
    let is_same_object = next.object_uid == object_uid;
    let is_stale = |property: &Property| {
        let seen = property.desired_version.map_or(i64::MIN, |v| v.cloud);
        is_same_object && version < seen
    };
    for (name, wanted) in values {
        match want(&mut next, name, wanted, version, &is_stale, now_ms) {
            Ok(Some(parts)) => {
                report.insert(name.clone(), parts);
            }
            Ok(None) => {}
            Err(rejected) => refused.push(Effect::DesiredRefused {
                name: name.clone(),
                reason: rejected.reason,
            }),
        }
    }
    for (name, property) in &mut next.properties {
        if !values.contains_key(name) && !is_stale(property) {
            withdraw(property, version);
        }
    }
    next.object_uid = object_uid;
    let entries = document(device, &next, next.properties.keys());
    if entries.is_empty() {
        let effects = refused;
        return Decision { next, effects };
    }
    let mut effects = vec![Effect::Document {
        event_id: String::new(),
        entries,
    }];
    effects.extend(delta(&next).map(Effect::Delta));
    if !report.is_empty() {
        effects.push(Effect::Report { properties: report });
    }
    effects.extend(refused);
    Decision { next, effects }
}

/// Sets one desired value unless it is old news; returns what was written.
fn want(
    next: &mut Device,
    name: &str,
    wanted: &Wanted,
    version: i64,
    is_stale: &impl Fn(&Property) -> bool,
    now_ms: i64,
) -> Result<Option<Property>, Rejected> {
    check_name(name)?;
    make_room(next, name)?;
    let given = Kind::parse_lenient(wanted.kind.as_deref());
    let mut property = match next.properties.get(name) {
        Some(stored) if is_stale(stored) => return Ok(None),
        Some(stored) => stored.clone(),
        None => Property::new(given),
    };
    let is_known = property.from_cloud.as_ref().map(|c| &c.value) == Some(&wanted.value);
    if is_known {
        return Ok(None);
    }
    if property.is_deleted() {
        // Removed locally; a new wish of the cloud brings it back.
        property.kind = given;
        property.optional = true;
    }
    property.kind.check(&wanted.value)?;
    property.desired = Some(Stamped {
        value: wanted.value.clone(),
        at_ms: now_ms,
    });
    let before = property.desired_version.unwrap_or_default();
    property.desired_version = Some(before.after_cloud_write(version));
    property.from_cloud = Some(FromCloud {
        value: wanted.value.clone(),
        version,
    });
    let parts = property.parts(true, false);
    next.properties.insert(name.to_owned(), property);
    Ok(Some(parts))
}

/// Forgets a wish the cloud no longer has; a value set locally since stays.
fn withdraw(property: &mut Property, version: i64) {
    let Some(gone) = property.from_cloud.take() else {
        return;
    };
    let is_its = |desired: &Stamped| desired.value == gone.value;
    if property.desired.as_ref().is_some_and(is_its) {
        property.desired = None;
        let before = property.desired_version.unwrap_or_default();
        property.desired_version = Some(before.after_cloud_write(version));
    }
}

fn state_told(device: &Device, state: String, now_ms: i64) -> Result<Decision, Rejected> {
    let lower = state.to_ascii_lowercase();
    if !STATES.contains(&lower.as_str()) {
        return Err(Rejected::unknown_state());
    }
    let mut next = device.clone();
    if lower == "online" || lower == "ok" {
        next.last_online_ms = Some(now_ms);
    }
    next.state.clone_from(&state);
    let effects = vec![Effect::State {
        state,
        last_online_ms: next.last_online_ms,
    }];
    Ok(Decision { next, effects })
}

fn described(
    device: &Device,
    description: Option<String>,
    attributes: BTreeMap<String, Option<Attribute>>,
) -> Decision {
    let mut next = device.clone();
    if let Some(description) = description {
        next.description = description;
    }
    let mut changed = BTreeMap::new();
    for (name, attribute) in attributes {
        let is_changed = match &attribute {
            Some(new) => next.attributes.insert(name.clone(), new.clone()).as_ref() != Some(new),
            None => next.attributes.remove(&name).is_some(),
        };
        if is_changed {
            changed.insert(name, attribute);
        }
    }
    let mut effects = Vec::new();
    if !changed.is_empty() {
        effects.push(Effect::Attributes { changed });
    }
    Decision { next, effects }
}

/// The one place that derives a document: properties that `names` lists and that differ.
fn document<'a>(
    old: &Device,
    new: &Device,
    names: impl Iterator<Item = &'a String>,
) -> BTreeMap<String, DocumentEntry> {
    let live = |device: &Device, name: &String| {
        let property = device.properties.get(name).filter(|p| !p.is_deleted());
        property.cloned()
    };
    names
        .filter(|name| is_rewritten(old.properties.get(*name), new.properties.get(*name)))
        .map(|name| {
            let entry = DocumentEntry {
                last: live(old, name),
                current: live(new, name),
            };
            (name.clone(), entry)
        })
        .collect()
}

/// Whether the property was written; what the cloud's object last said is bookkeeping of ours.
fn is_rewritten(old: Option<&Property>, new: Option<&Property>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => {
            old.kind != new.kind
                || old.optional != new.optional
                || old.desired != new.desired
                || old.reported != new.reported
                // An equal value written again within one millisecond.
                || old.desired_version != new.desired_version
                || old.reported_version != new.reported_version
        }
        (None, None) => false,
        (Some(_), None) | (None, Some(_)) => true,
    }
}
