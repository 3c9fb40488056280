//! Which devices belong to the node.

use std::collections::BTreeSet;

use crate::device::DeviceId;

/// What the cloud says about the node's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipEvent {
    /// Some joined, some left. One that does both stays: it is removed, then added.
    Update {
        /// Joined.
        added: BTreeSet<DeviceId>,
        /// Left.
        removed: BTreeSet<DeviceId>,
    },
    /// The whole list.
    Detail {
        /// Every device of the node.
        devices: BTreeSet<DeviceId>,
    },
}

/// What to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipPlan {
    /// Devices to forget.
    pub remove: BTreeSet<DeviceId>,
    /// Devices to create.
    pub add: BTreeSet<DeviceId>,
    /// Devices known already, to be described anew.
    pub update: BTreeSet<DeviceId>,
}

/// Plans the way from the devices `known` to what the cloud says. Planning again after carrying
/// it out adds and removes nothing.
pub fn plan(known: &BTreeSet<DeviceId>, event: &MembershipEvent) -> MembershipPlan {
    let (named, gone): (&BTreeSet<_>, BTreeSet<_>) = match event {
        MembershipEvent::Update { added, removed } => {
            (added, removed.difference(added).cloned().collect())
        }
        MembershipEvent::Detail { devices } => {
            (devices, known.difference(devices).cloned().collect())
        }
    };
    MembershipPlan {
        remove: gone.intersection(known).cloned().collect(),
        add: named.difference(known).cloned().collect(),
        update: named.intersection(known).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> BTreeSet<DeviceId> {
        names
            .iter()
            .map(|name| DeviceId::new("default", name).unwrap())
            .collect()
    }

    #[test]
    fn a_plan_leads_to_what_the_cloud_says() {
        let update = |added: &[&str], removed: &[&str]| MembershipEvent::Update {
            added: ids(added),
            removed: ids(removed),
        };
        let detail = |names: &[&str]| MembershipEvent::Detail {
            devices: ids(names),
        };
        for (name, event, add, same, remove) in [
            ("join", update(&["c"], &[]), vec!["c"], vec![], vec![]),
            ("join again", update(&["a"], &[]), vec![], vec!["a"], vec![]),
            ("leave", update(&[], &["a"]), vec![], vec![], vec!["a"]),
            ("leave unknown", update(&[], &["z"]), vec![], vec![], vec![]),
            ("both", update(&["a"], &["a"]), vec![], vec!["a"], vec![]),
            (
                "full list",
                detail(&["b", "c"]),
                vec!["c"],
                vec!["b"],
                vec!["a"],
            ),
            ("empty list", detail(&[]), vec![], vec![], vec!["a", "b"]),
        ] {
            let known = ids(&["a", "b"]);
            let plan = plan(&known, &event);
            assert_eq!(plan.add, ids(&add), "{name}");
            assert_eq!(plan.update, ids(&same), "{name}");
            assert_eq!(plan.remove, ids(&remove), "{name}");
            let after: BTreeSet<_> = known.difference(&plan.remove).cloned().collect();
            let after: BTreeSet<_> = after.union(&plan.add).cloned().collect();
            let again = super::plan(&after, &event);
            assert!(again.add.is_empty() && again.remove.is_empty(), "{name}");
        }
    }
}
