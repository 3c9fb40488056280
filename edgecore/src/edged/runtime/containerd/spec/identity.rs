//! As whom a container's first process runs.

use super::{ImageDefaults, SpecError, UserDatabase};
use crate::edged::runtime::{ContainerSpec, GroupsPolicy};

/// Resolved process identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The primary group too: without it a file that denies the group would be open (CVE-2022-36109).
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

fn id(number: i64) -> Result<u32, SpecError> {
    u32::try_from(number).map_err(|_| SpecError::BadId(number))
}

/// The pod's word over the image's; names and primary groups from the image's own tables
/// (containerd `oci.WithUser` has the same rules).
pub(super) fn identity(
    container: &ContainerSpec,
    image: &ImageDefaults,
    users: &UserDatabase,
) -> Result<Identity, SpecError> {
    let asked = match container.run_as_user {
        Some(uid) => Some(id(uid)?.to_string()),
        None => None,
    };
    let (user, group) = match (&asked, image.user.split_once(':')) {
        (Some(uid), _) => (uid.as_str(), None),
        (None, Some((user, group))) => (user, Some(group)),
        (None, None) => (image.user.as_str(), None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let rows = || {
        users
            .passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(|row| row.len() >= 6)
    };
    let row = match user.parse::<u32>() {
        Ok(uid) => rows().find(|row| row[2].parse() == Ok(uid)),
        Err(_) => Some(
            rows()
                .find(|row| row[0] == user)
                .ok_or_else(|| SpecError::NoUser(user.to_owned()))?,
        ),
    };
    let uid = match user.parse::<i64>() {
        Ok(number) => id(number)?,
        Err(_) => row
            .as_ref()
            .and_then(|row| row[2].parse().ok())
            .ok_or_else(|| SpecError::NoUser(user.to_owned()))?,
    };
    let name = row.as_ref().map_or("", |row| row[0]).to_owned();
    let primary = row.as_ref().and_then(|row| row[3].parse().ok());
    let home = match row.as_ref().map_or("", |row| row[5]) {
        "" if uid == 0 => "/root",
        "" => "/",
        home => home,
    };
    let gid = match (container.run_as_group, group) {
        (Some(gid), _) => id(gid)?,
        (None, Some(group)) => group_id(group, users)?,
        (None, None) => primary.unwrap_or(0),
    };
    let mut groups = vec![gid];
    if container.groups_policy == GroupsPolicy::Merge {
        groups.extend(memberships(&name, users));
    }
    for extra in &container.supplemental_groups {
        groups.push(id(*extra)?);
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Identity {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

/// Groups that list the user as a member.
fn memberships(name: &str, users: &UserDatabase) -> Vec<u32> {
    let rows = users
        .group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    rows.filter(|row| {
        row.len() >= 4 && !name.is_empty() && row[3].split(',').any(|member| member == name)
    })
    .filter_map(|row| row[2].parse().ok())
    .collect()
}

fn group_id(group: &str, users: &UserDatabase) -> Result<u32, SpecError> {
    if let Ok(number) = group.parse::<i64>() {
        return id(number);
    }
    users
        .group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|row| row.len() >= 3 && row[0] == group)
        .and_then(|row| row[2].parse().ok())
        .ok_or_else(|| SpecError::NoGroup(group.to_owned()))
}
