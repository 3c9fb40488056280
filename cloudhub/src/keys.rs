//! Keys of API objects in the store, read and written in one place.

/// Prefix of all API objects.
pub const REGISTRY: &str = "/registry/";
/// Group of devices, models and statuses.
pub const DEVICES_GROUP: &str = "devices.kubeedge.io";

/// A parsed key of an API object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectKey<'k> {
    /// Group; `core` for the unnamed one.
    pub group: &'k str,
    /// Plural.
    pub plural: &'k str,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: &'k str,
    /// Name.
    pub name: &'k str,
}

impl<'k> ObjectKey<'k> {
    /// Parses `/registry/<group>/<plural>[/<namespace>]/<name>`.
    pub fn parse(key: &'k str) -> Option<Self> {
        let mut parts = key.strip_prefix(REGISTRY)?.splitn(4, '/');
        let (group, plural, third) = (parts.next()?, parts.next()?, parts.next()?);
        Some(match parts.next() {
            Some(name) => Self {
                group,
                plural,
                namespace: third,
                name,
            },
            None => Self {
                group,
                plural,
                namespace: "",
                name: third,
            },
        })
    }

    /// `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Key of a namespaced object.
pub fn object(group: &str, plural: &str, namespace: &str, name: &str) -> String {
    format!("{REGISTRY}{group}/{plural}/{namespace}/{name}")
}

/// Key of a pod.
pub fn pod(namespace: &str, name: &str) -> String {
    object("core", "pods", namespace, name)
}

/// Key of a node.
pub fn node(name: &str) -> String {
    format!("{REGISTRY}core/nodes/{name}")
}

/// Key of a Device.
pub fn device(namespace: &str, name: &str) -> String {
    object(DEVICES_GROUP, "devices", namespace, name)
}

/// Key of a DeviceStatus.
pub fn device_status(namespace: &str, name: &str) -> String {
    object(DEVICES_GROUP, "devicestatuses", namespace, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let key = pod("default", "p1");
        let parsed = ObjectKey::parse(&key).unwrap();
        assert_eq!(
            (parsed.group, parsed.plural, parsed.id()),
            ("core", "pods", "default/p1".into())
        );
        let key = node("e1");
        let parsed = ObjectKey::parse(&key).unwrap();
        assert_eq!((parsed.namespace, parsed.name), ("", "e1"));
        assert_eq!(ObjectKey::parse("/outpost/ledger/e1"), None);
    }
}
