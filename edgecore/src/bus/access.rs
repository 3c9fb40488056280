//! What network clients of the broker inside may do.
//!
//! Nobody but the runtime writes results, documents, deltas, membership news, cloud syncs and
//! `$SYS` (design D10). A user writes for its own devices; an administrator for all of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use broker::topic::{covers, matches};
use broker::{Access, ConnectRequest, Grant, Refused, Rights};
use wire::topic::DeviceRef;

use super::passwords::Passwords;
use crate::config::{Anonymous, MqttConfig, MqttUser};

/// Decides who a client is: by certificate, else by password, else by where it comes from.
#[derive(Debug)]
pub(super) struct BusAccess {
    anonymous: Anonymous,
    passwords: Option<Passwords>,
    users: BTreeMap<String, Arc<User>>,
}

impl BusAccess {
    pub(super) fn new(config: &MqttConfig) -> Self {
        let users = config.users.iter();
        Self {
            anonymous: config.anonymous,
            passwords: config.passwords.clone().map(Passwords::new),
            users: users
                .map(|user| (user.name.clone(), Arc::new(User::of(user))))
                .collect(),
        }
    }

    fn named(&self, name: &str) -> Grant {
        let known = self.users.get(name).map(Arc::clone);
        Grant {
            user: Some(name.into()),
            rights: known.unwrap_or_else(|| Arc::new(User::of_device(name))),
        }
    }
}

impl Access for BusAccess {
    fn connect(&self, request: &ConnectRequest<'_>) -> Result<Grant, Refused> {
        if let Some(name) = request.certificate {
            return Ok(self.named(name));
        }
        if let (Some(passwords), Some(name)) = (&self.passwords, request.username) {
            let password = request.password.unwrap_or_default();
            return if passwords.is_right(name, password) {
                Ok(self.named(name))
            } else {
                Err(Refused::Credentials)
            };
        }
        let is_welcome = match self.anonymous {
            Anonymous::No => false,
            Anonymous::Loopback => is_loopback(request.peer.ip()),
            Anonymous::Yes => true,
        };
        if is_welcome {
            Ok(Grant::anonymous(Arc::new(Admin)))
        } else {
            Err(Refused::NotAuthorized)
        }
    }
}

/// Loopback, also as an IPv6 socket shows IPv4.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Whatever a client may do at all.
#[derive(Clone, Copy, Debug)]
struct Admin;

impl Rights for Admin {
    fn may_publish(&self, topic: &str) -> bool {
        !wire::topic::is_runtime_only(topic)
    }

    fn may_subscribe(&self, _filter: &str) -> bool {
        true
    }
}

#[derive(Debug)]
struct User {
    is_admin: bool,
    /// Prefixes `$hw/events/device/<ns>/<name>/` and the same of uploads.
    own: Vec<String>,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl User {
    fn of(user: &MqttUser) -> Self {
        let is_all = user.devices.iter().any(|device| device == "*");
        let mut made = Self {
            is_admin: user.admin || is_all,
            publish: user.publish.clone(),
            subscribe: user.subscribe.clone(),
            ..Self::of_device(&user.name)
        };
        if !user.devices.is_empty() {
            let devices = user.devices.iter();
            made.own = devices
                .filter_map(|id| DeviceRef::parse(id))
                .flat_map(|device| prefixes(&device))
                .collect();
        }
        made
    }

    /// A user that is named after its device: `<namespace>/<name>` or `<namespace>.<name>` (a
    /// namespace has no dots).
    fn of_device(name: &str) -> Self {
        let device = DeviceRef::parse(name).or_else(|| {
            let (namespace, name) = name.split_once('.')?;
            DeviceRef::new(namespace, name)
        });
        Self {
            is_admin: false,
            own: device.iter().flat_map(prefixes).collect(),
            publish: Vec::new(),
            subscribe: Vec::new(),
        }
    }

    fn owns(&self, topic: &str) -> bool {
        self.own.iter().any(|prefix| topic.starts_with(prefix))
    }
}

fn prefixes(device: &DeviceRef) -> [String; 2] {
    [
        format!("$hw/events/device/{device}/"),
        format!("$hw/events/upload/{device}/"),
    ]
}

impl Rights for User {
    fn may_publish(&self, topic: &str) -> bool {
        let is_open = !wire::topic::is_runtime_only(topic);
        let mut filters = self.publish.iter();
        is_open
            && (self.is_admin || self.owns(topic) || filters.any(|filter| matches(filter, topic)))
    }

    fn may_subscribe(&self, filter: &str) -> bool {
        let mut filters = self.subscribe.iter();
        self.is_admin || self.owns(filter) || filters.any(|allowed| covers(allowed, filter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.0.0.1:1";
    const THERE: &str = "192.0.2.1:1";

    fn user(name: &str, devices: &[&str], publish: &[&str], subscribe: &[&str]) -> User {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        User::of(&MqttUser {
            name: name.into(),
            admin: false,
            devices: owned(devices),
            publish: owned(publish),
            subscribe: owned(subscribe),
        })
    }

    const UPDATE: &str = "$hw/events/device/default/t1/twin/update";
    const OTHER: &str = "$hw/events/device/default/t10/twin/update";
    const RESULT: &str = "$hw/events/device/default/t1/twin/update/result";
    const CLOUD: &str = "$hw/events/device/default/t1/twin/cloud_updated";

    #[test]
    fn a_device_writes_its_own_topics_and_nobody_the_runtimes() {
        let all = ["#", "$hw/#"];
        for (name, devices, publish, topic, expected) in [
            ("default/t1", &[][..], &[][..], UPDATE, true),
            ("default.t1", &[], &[], UPDATE, true),
            ("default/t1", &[], &[], OTHER, false),
            ("default/t1", &[], &[], "plant/user/x", false),
            (
                "default/t1",
                &[],
                &[],
                "$hw/events/upload/default/t1/log",
                true,
            ),
            (
                "default/t1",
                &[],
                &[],
                "$hw/events/upload/default/t2/log",
                false,
            ),
            ("gateway", &[], &[], UPDATE, false),
            ("gateway", &["default/t1", "default/t10"], &[], OTHER, true),
            ("default/t1", &["default/t10"], &[], UPDATE, false),
            ("gateway", &["*"], &[], OTHER, true),
            ("gateway", &[], &["plant/user/#"], "plant/user/x", true),
            ("gateway", &["*"], &all, RESULT, false),
            ("gateway", &["*"], &all, CLOUD, false),
            ("gateway", &["*"], &all, "$SYS/broker/uptime", false),
        ] {
            let user = user(name, devices, publish, &[]);
            assert_eq!(
                user.may_publish(topic),
                expected,
                "{name} {devices:?} {topic}"
            );
        }
        for topic in [RESULT, CLOUD, "$SYS/broker/uptime"] {
            assert!(!Admin.may_publish(topic), "{topic}");
        }
        assert!(Admin.may_publish(OTHER));
    }

    #[test]
    fn a_device_reads_its_own_topics_and_what_it_was_given() {
        for (subscribe, filter, expected) in [
            (&[][..], "$hw/events/device/default/t1/#", true),
            (&[], "$hw/events/device/default/t1/twin/+/result", true),
            (&[], "$hw/events/device/default/+/twin/update/delta", false),
            (&[], "$hw/events/device/default/#", false),
            (&[], "#", false),
            (&["plant/#"], "plant/+/x", true),
            (&["plant/+/x"], "plant/#", false),
        ] {
            let user = user("default/t1", &[], &[], subscribe);
            assert_eq!(user.may_subscribe(filter), expected, "{filter}");
        }
    }

    #[test]
    fn certificates_come_before_passwords_and_nobody_comes_without_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwords");
        super::super::passwords::change(&path, "ann", Some(b"pw")).unwrap();
        let mut config = MqttConfig {
            anonymous: Anonymous::No,
            passwords: Some(path),
            ..MqttConfig::default()
        };
        let outcome =
            |config: &MqttConfig, certificate, login: Option<(_, &'static str)>, peer: &str| {
                let request = ConnectRequest {
                    client: "c",
                    username: login.map(|(name, _)| name),
                    password: login.map(|(_, password)| password.as_bytes()),
                    certificate,
                    peer: peer.parse().unwrap(),
                };
                let granted = BusAccess::new(config).connect(&request);
                granted.map(|grant| grant.user.map(|user| user.to_string()))
            };
        let ann = Ok(Some("ann".to_owned()));
        assert_eq!(outcome(&config, None, Some(("ann", "pw")), THERE), ann);
        assert_eq!(
            outcome(&config, None, Some(("ann", "no")), HERE),
            Err(Refused::Credentials)
        );
        assert_eq!(
            outcome(&config, Some("default/t1"), Some(("ann", "pw")), THERE),
            Ok(Some("default/t1".into()))
        );
        assert_eq!(
            outcome(&config, None, None, HERE),
            Err(Refused::NotAuthorized)
        );
        config.anonymous = Anonymous::Loopback;
        assert_eq!(outcome(&config, None, None, HERE), Ok(None));
        assert_eq!(
            outcome(&config, None, None, "[::ffff:127.0.0.1]:1"),
            Ok(None)
        );
        assert_eq!(
            outcome(&config, None, None, THERE),
            Err(Refused::NotAuthorized)
        );
        config.anonymous = Anonymous::Yes;
        assert_eq!(outcome(&config, None, None, THERE), Ok(None));
        // A name that cannot be checked is no name.
        config.passwords = None;
        assert_eq!(outcome(&config, None, Some(("ann", "pw")), THERE), Ok(None));
    }
}
