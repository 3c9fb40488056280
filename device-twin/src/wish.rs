//! Desired values that travel inside the cloud's Device object.

use std::collections::BTreeMap;

use crate::apply::{Decision, document, make_room};
use crate::delta::delta;
use crate::device::Device;
use crate::effect::Effect;
use crate::error::Rejected;
use crate::event::Wanted;
use crate::twin::{FromCloud, Property, Stamped};
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
