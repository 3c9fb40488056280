//! The cloud's sync with versions (KubeEdge's legacy `cloud_updated`): the edge wins where it has
//! moved on.

use std::collections::BTreeMap;

use crate::apply::{Decision, document, make_room};
use crate::delta::delta;
use crate::device::Device;
use crate::effect::Effect;
use crate::event::{Change, SyncChange};
use crate::twin::{Property, Stamped};
use crate::value::{Kind, check_name};
use crate::version::Version;

/// Spec: device plane 2.5. Never refused as a whole: the edge wins property by property, and the
/// cloud is told what the edge has.
pub(crate) fn sync(
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
        draft.set_here_at = None;
        draft.observed = None;
        draft.refused = None;
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
            device_at_ms: None,
        });
        *slot_version = Some(version);
    }
}
