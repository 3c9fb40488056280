//! The decision: what an event does to a device.

use std::collections::BTreeMap;

use crate::delta::delta;
use crate::device::{Attribute, Device, PROPERTIES_MAX};
use crate::effect::{DocumentEntry, Effect};
use crate::error::Rejected;
use crate::event::{Change, Delivery, Event};
use crate::twin::{Property, Refusal, Stamped};
use crate::value::{Kind, ValueRule, check_name};
use crate::version::Version;
use crate::{sync, wish};

/// States a device may report (KubeEdge `dtmanager/device.go`).
const STATES: [&str; 5] = ["online", "offline", "ok", "unknown", "unhealthy"];

/// A reason for a refusal is cut off here.
const REASON_BYTES_MAX: usize = 256;

/// As much of a reason for a refusal as is kept: 256 bytes at most.
pub fn cut_reason(reason: &str) -> &str {
    let end = reason.floor_char_boundary(REASON_BYTES_MAX);
    reason.get(..end).unwrap_or_default()
}

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
    apply_by(device, event, now_ms, &ValueRule::default())
}

/// [`apply`] with another rule for the values that devices report and local programs desire.
///
/// # Errors
/// As there.
pub fn apply_by(
    device: &Device,
    event: Event,
    now_ms: i64,
    rule: &ValueRule,
) -> Result<Decision, Rejected> {
    match event {
        Event::Update { event_id, changes } => update(device, event_id, changes, now_ms, rule),
        Event::Sync { event_id, changes } => Ok(sync::sync(device, event_id, &changes, now_ms)),
        Event::Desired {
            object_uid,
            version,
            values,
        } => Ok(wish::desired(device, object_uid, version, &values, now_ms)),
        Event::State { state } => state_told(device, state, now_ms),
        Event::Described {
            description,
            attributes,
        } => Ok(described(device, description, attributes)),
    }
}

/// Checks what can be checked of an event without its device: names and values of an update.
///
/// # Errors
/// [`Rejected`], as [`apply_by`] would say for any device.
pub fn check(event: &Event, rule: &ValueRule) -> Result<(), Rejected> {
    match event {
        Event::Update { changes, .. } => check_changes(changes, rule),
        Event::Sync { .. }
        | Event::Desired { .. }
        | Event::State { .. }
        | Event::Described { .. } => Ok(()),
    }
}

/// What a mapper saw as desired is not checked: the cloud may desire any text.
fn check_changes(
    changes: &BTreeMap<String, Option<Change>>,
    rule: &ValueRule,
) -> Result<(), Rejected> {
    for (name, change) in changes {
        check_name(name)?;
        let values = change.iter().flat_map(|c| [&c.desired, &c.reported]);
        for value in values.flatten() {
            if !rule.allows(value) {
                return Err(Rejected::bad_value(rule));
            }
        }
    }
    Ok(())
}

/// Spec: device plane 2.4. The first wrong property refuses the whole request.
fn update(
    device: &Device,
    event_id: String,
    changes: BTreeMap<String, Option<Change>>,
    now_ms: i64,
    rule: &ValueRule,
) -> Result<Decision, Rejected> {
    check_changes(&changes, rule)?;
    let mut next = device.clone();
    let mut written: BTreeMap<String, Option<Property>> = BTreeMap::new();
    let mut properties = BTreeMap::new();
    for (name, change) in changes {
        let Some(mut change) = change else {
            if let Some(deleted) = remove_property(&mut next, &name)? {
                written.insert(name.clone(), None);
                properties.insert(name, deleted);
            }
            continue;
        };
        // Kept where it is what the cloud desires, in whatever characters, or could be reported.
        let desired = next.properties.get(&name).and_then(|p| p.desired.as_ref());
        change.observed.take_if(|observed| {
            !rule.allows(observed) && desired.is_none_or(|desired| desired.value != *observed)
        });
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
    let set_at = change.desired.is_some().then(|| next.tick(now_ms));
    let stored = next.properties.get(name);
    let is_new = stored.is_none_or(Property::is_deleted);
    let kind = match stored {
        Some(known) if !is_new && known.kind != Kind::Unknown => known.kind,
        // No property yet, a removed one, or one that only the cloud has spoken of.
        Some(_) | None => {
            let has_value = change.desired.is_some() || change.reported.is_some();
            let rest = if has_value || is_new {
                Kind::String
            } else {
                // Nothing was said that has a type.
                Kind::Unknown
            };
            Kind::parse(change.kind.as_deref())?.unwrap_or(rest)
        }
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
    let stamp = |value, device_at_ms| Stamped {
        value,
        at_ms: now_ms,
        device_at_ms,
    };
    if let Some(value) = change.desired {
        property.desired = Some(stamp(value, None));
        property.desired_version = Some(edge_written(property.desired_version));
        property.set_here_at = set_at;
        property.observed = None;
        property.refused = None;
    }
    if let Some(value) = change.reported {
        property.reported = Some(stamp(value, change.reported_at_ms));
        property.reported_version = Some(edge_written(property.reported_version));
    }
    let refused = change.refused.map(|reason| (reason, false));
    let (refused, is_taken) = match change.delivery {
        None => (refused, false),
        Some(Delivery::Taken) => (refused, true),
        Some(Delivery::Refused(reason)) => (refused.or(Some((reason, true))), false),
    };
    let is_answered = answered(property, change.observed, refused, is_taken, now_ms);
    let is_changed =
        is_new || has_desired || has_reported || loses_optional || kind_differs || is_answered;
    Ok(is_changed.then(|| property.parts(has_desired || is_answered, has_reported)))
}

/// What the device, or whoever should bring it there, says of its desired value; whether that is
/// news. With a refusal comes whether it did not get as far as the device.
fn answered(
    property: &mut Property,
    observed: Option<String>,
    refused: Option<(String, bool)>,
    is_taken: bool,
    now_ms: i64,
) -> bool {
    let before = (property.observed.clone(), property.refused.clone());
    let Some(desired) = &property.desired else {
        return false;
    };
    if property
        .reported
        .as_ref()
        .is_some_and(|r| r.value == desired.value)
        || observed.as_ref() == Some(&desired.value)
    {
        // It is there after all. A wish of the cloud that gave way to this value stays refused.
        property.refused.take_if(|r| r.value == desired.value);
    }
    if is_taken {
        property.refused.take_if(|r| r.is_undelivered);
    }
    if let Some((reason, is_undelivered)) = refused {
        property.observed = None;
        property.refused = Some(Refusal {
            value: desired.value.clone(),
            reason: cut_reason(&reason).to_owned(),
            at_ms: now_ms,
            is_undelivered,
        });
    } else if let Some(observed) = observed {
        property.observed = Some(observed);
    }
    // The same refusal at another time is no news.
    let told = |refusal: &Option<Refusal>| refusal.clone().map(|r| (r.value, r.reason));
    before.0 != property.observed || told(&before.1) != told(&property.refused)
}

fn edge_written(version: Option<Version>) -> Version {
    version.unwrap_or_default().after_edge_write()
}

/// Refuses one property too many.
pub(crate) fn make_room(device: &Device, name: &str) -> Result<(), Rejected> {
    if device.properties.len() < PROPERTIES_MAX || device.properties.contains_key(name) {
        Ok(())
    } else {
        Err(Rejected::bad("the device has too many properties"))
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
pub(crate) fn document<'a>(
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
