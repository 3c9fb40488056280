//! The subscription tree: one node a topic level.

use std::collections::HashMap;

use crate::message::Qos;
use crate::topic::split_share;

/// A session within one run of the broker.
pub(crate) type SessionKey = u64;

/// Options of one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SubOptions {
    pub(crate) qos: Qos,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    /// MQTT 5 subscription identifier; 0 is none.
    pub(crate) id: u32,
}

/// A subscription that matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) key: SessionKey,
    pub(crate) options: SubOptions,
}

#[derive(Debug, Default)]
struct Group {
    name: Box<str>,
    members: Vec<Hit>,
    next: usize,
}

#[derive(Debug, Default)]
struct Level {
    children: HashMap<Box<str>, Level>,
    /// Subscriptions that end here.
    here: Vec<Hit>,
    /// Subscriptions that end with `#` below here.
    below: Vec<Hit>,
    shared_here: Vec<Group>,
    shared_below: Vec<Group>,
}

impl Level {
    fn is_empty(&self) -> bool {
        self.children.is_empty()
            && self.here.is_empty()
            && self.below.is_empty()
            && self.shared_here.is_empty()
            && self.shared_below.is_empty()
    }
}

/// Subscriptions of all sessions.
#[derive(Debug, Default)]
pub(crate) struct Trie {
    root: Level,
    /// Rises with each change, so that a plan made earlier can be checked.
    version: u64,
}

impl Trie {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether any filter begins with this level, spelled out.
    pub(crate) fn has_root(&self, level: &str) -> bool {
        self.root.children.contains_key(level)
    }

    /// Adds or replaces a subscription. The filter is valid. Returns whether it is new.
    pub(crate) fn insert(&mut self, filter: &str, key: SessionKey, options: SubOptions) -> bool {
        self.version += 1;
        let Some((share, filter)) = split_share(filter) else {
            return false;
        };
        let mut level = &mut self.root;
        let mut is_below = false;
        for part in filter.split('/') {
            if part == "#" {
                is_below = true;
                break;
            }
            level = level.children.entry(part.into()).or_default();
        }
        let hit = Hit { key, options };
        let members = match (share, is_below) {
            (None, false) => &mut level.here,
            (None, true) => &mut level.below,
            (Some(name), false) => group(&mut level.shared_here, name),
            (Some(name), true) => group(&mut level.shared_below, name),
        };
        let old = members.iter_mut().find(|m| m.key == key);
        let is_new = old.is_none();
        match old {
            Some(old) => *old = hit,
            None => members.push(hit),
        }
        is_new
    }

    /// Removes a subscription; whether there was one.
    pub(crate) fn remove(&mut self, filter: &str, key: SessionKey) -> bool {
        self.version += 1;
        let Some((share, filter)) = split_share(filter) else {
            return false;
        };
        let parts: Vec<&str> = filter.split('/').collect();
        remove_in(&mut self.root, &parts, share, key)
    }

    /// Every subscription that matches `topic`; of a shared group one member, taken in turn among
    /// those for which `is_online` holds, else among all.
    pub(crate) fn matches(
        &mut self,
        topic: &str,
        is_online: &dyn Fn(SessionKey) -> bool,
        hits: &mut Vec<Hit>,
    ) {
        let is_system = topic.starts_with('$');
        visit(&mut self.root, Some(topic), is_system, is_online, hits);
    }
}

fn group<'a>(groups: &'a mut Vec<Group>, name: &str) -> &'a mut Vec<Hit> {
    let known = groups.iter().position(|g| &*g.name == name);
    let index = known.unwrap_or_else(|| {
        groups.push(Group {
            name: name.into(),
            ..Group::default()
        });
        groups.len() - 1
    });
    &mut groups[index].members
}

fn remove_in(level: &mut Level, parts: &[&str], share: Option<&str>, key: SessionKey) -> bool {
    match parts {
        [] => drop_hit(&mut level.here, &mut level.shared_here, share, key),
        ["#"] => drop_hit(&mut level.below, &mut level.shared_below, share, key),
        [first, rest @ ..] => {
            let Some(child) = level.children.get_mut(*first) else {
                return false;
            };
            let was = remove_in(child, rest, share, key);
            if child.is_empty() {
                level.children.remove(*first);
            }
            was
        }
    }
}

fn drop_hit(
    plain: &mut Vec<Hit>,
    shared: &mut Vec<Group>,
    share: Option<&str>,
    key: SessionKey,
) -> bool {
    let members = match share {
        None => plain,
        Some(name) => match shared.iter_mut().find(|g| &*g.name == name) {
            Some(group) => &mut group.members,
            None => return false,
        },
    };
    let before = members.len();
    members.retain(|m| m.key != key);
    let was = members.len() < before;
    shared.retain(|g| !g.members.is_empty());
    was
}

/// `rest` is what of the topic lies below this level; `is_dollar` holds at the root of a
/// `$`-topic, where wildcards do not match. Depth is bounded by `TOPIC_LEVELS_MAX`.
fn visit(
    level: &mut Level,
    rest: Option<&str>,
    is_dollar: bool,
    is_online: &dyn Fn(SessionKey) -> bool,
    hits: &mut Vec<Hit>,
) {
    if !is_dollar {
        hits.extend_from_slice(&level.below);
        pick(&mut level.shared_below, is_online, hits);
    }
    let Some(rest) = rest else {
        hits.extend_from_slice(&level.here);
        pick(&mut level.shared_here, is_online, hits);
        return;
    };
    let (name, below) = match rest.split_once('/') {
        Some((name, below)) => (name, Some(below)),
        None => (rest, None),
    };
    if let Some(child) = level.children.get_mut(name) {
        visit(child, below, false, is_online, hits);
    }
    if !is_dollar && let Some(child) = level.children.get_mut("+") {
        visit(child, below, false, is_online, hits);
    }
}

fn pick(groups: &mut [Group], is_online: &dyn Fn(SessionKey) -> bool, hits: &mut Vec<Hit>) {
    for group in groups {
        let len = group.members.len();
        let start = group.next;
        let chosen = (0..len)
            .map(|n| (start + n) % len)
            .find(|i| is_online(group.members[*i].key))
            .or((len > 0).then(|| start % len.max(1)));
        if let Some(index) = chosen {
            group.next = (index + 1) % len;
            hits.push(group.members[index]);
        }
    }
}

#[cfg(test)]
mod tests;
