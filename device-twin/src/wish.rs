//! Desired values that travel inside the cloud's Device object.

use std::collections::BTreeMap;

use crate::apply::{Decision, document, make_room};
use crate::delta::delta;
use crate::device::Device;
use crate::effect::Effect;
use crate::error::Rejected;
use crate::event::{Conflict, Wanted};
use crate::twin::{FromCloud, Property, Refusal, Stamped};
use crate::value::{Kind, check_name};

/// Takes the desired values of the cloud's Device object. KubeEdge has no such path: there a
/// device that speaks only MQTT never learns of a desired value.
pub(crate) fn desired(
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
            Err(rejected) => {
                let reason = rejected.reason;
                if let Some(parts) = refuse(&mut next, name, wanted, &reason, now_ms) {
                    report.insert(name.clone(), parts);
                }
                let name = name.clone();
                refused.push(Effect::DesiredRefused { name, reason });
            }
        }
    }
    for (name, property) in &mut next.properties {
        if !values.contains_key(name) && !is_stale(property) {
            let was_refused = property.refused.is_some();
            withdraw(property, version);
            if was_refused && property.refused.is_none() {
                report.insert(name.clone(), property.parts(true, false));
            }
        }
    }
    let told = values.values().filter_map(|wanted| wanted.at_ms).max();
    next.clock_ms = next.clock_ms.max(told.unwrap_or(i64::MIN));
    next.object_uid = object_uid;
    let entries = document(device, &next, next.properties.keys());
    let mut effects = Vec::new();
    if !entries.is_empty() {
        effects.push(Effect::Document {
            event_id: String::new(),
            entries,
        });
        effects.extend(delta(&next).map(Effect::Delta));
    }
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
    if edge_stands(&property, wanted) {
        return Err(Rejected::bad("the value set at the edge stands"));
    }
    property.set_here_at = None;
    property.observed = None;
    property.refused = None;
    property.desired = Some(Stamped {
        value: wanted.value.clone(),
        at_ms: now_ms,
        device_at_ms: None,
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

/// Whether the rule is for a value that was set at the edge. An empty one is how a person there
/// gives it up.
fn edge_stands(property: &Property, wanted: &Wanted) -> bool {
    let (Some(set_at), Some(desired)) = (property.set_here_at, &property.desired) else {
        return false;
    };
    if desired.value.is_empty() || desired.value == wanted.value {
        return false;
    }
    match wanted.rule {
        Conflict::CloudWins => false,
        Conflict::EdgeWins => true,
        Conflict::Newest => wanted.at_ms.is_some_and(|at_ms| at_ms < set_at),
    }
}

/// Keeps why a wish was not taken, so that both sides can see it; what to report, `None` if it is
/// known already or the property cannot exist.
fn refuse(
    next: &mut Device,
    name: &str,
    wanted: &Wanted,
    reason: &str,
    now_ms: i64,
) -> Option<Property> {
    check_name(name).ok()?;
    make_room(next, name).ok()?;
    let given = Kind::parse_lenient(wanted.kind.as_deref());
    let property = next
        .properties
        .entry(name.to_owned())
        .or_insert_with(|| Property::new(given));
    let is_known = property
        .refused
        .as_ref()
        .is_some_and(|r| r.value == wanted.value && r.reason == reason);
    if is_known {
        return None;
    }
    property.refused = Some(Refusal {
        value: wanted.value.clone(),
        reason: reason.to_owned(),
        at_ms: now_ms,
        is_undelivered: false,
    });
    Some(property.parts(true, false))
}

/// Forgets a wish the cloud no longer has; a value set locally since stays.
fn withdraw(property: &mut Property, version: i64) {
    let is_own = |refused: &Refusal| {
        property.set_here_at.is_some()
            && property.desired.as_ref().map(|d| &d.value) == Some(&refused.value)
    };
    // What the device said of a value that was set here stays.
    if !property.refused.as_ref().is_some_and(is_own) {
        property.refused = None;
    }
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
