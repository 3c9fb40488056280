//! What a device has yet to do.

use std::collections::BTreeMap;

use crate::device::Device;
use crate::twin::Property;

/// Desired values that are not reported yet. It covers the whole device, so it repeats with every
/// update until the device has converged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Every property with a non-empty desired value.
    pub properties: BTreeMap<String, Property>,
    /// The desired values that differ from the reported ones.
    pub missing: BTreeMap<String, String>,
}

/// The delta of a device; `None` once it has converged.
pub fn delta(device: &Device) -> Option<Delta> {
    let wanted = || {
        device.live_properties().filter_map(|(name, property)| {
            let desired = property.desired.as_ref().filter(|d| !d.value.is_empty())?;
            Some((name, property, desired))
        })
    };
    let missing: BTreeMap<_, _> = wanted()
        .filter(|(_, property, desired)| {
            property.reported.as_ref().map(|r| &r.value) != Some(&desired.value)
        })
        .map(|(name, _, desired)| (name.clone(), desired.value.clone()))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let properties = wanted()
        .map(|(name, property, _)| (name.clone(), property.clone()))
        .collect();
    Some(Delta {
        properties,
        missing,
    })
}
