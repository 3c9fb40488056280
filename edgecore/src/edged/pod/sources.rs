//! Fetches the ConfigMaps and Secrets a pod names, within a bounded time.

use std::time::Duration;

use futures_util::future::try_join_all;

use super::env::{References, Sources, Wanted};
use crate::edged::deps::{DesiredError, DesiredState};

/// The hub may have to be asked; a pod does not wait longer than this for one object.
const FETCH_MAX: Duration = Duration::from_secs(10);

/// Reads all of them.
///
/// # Errors
/// The first that could not be read; an absent one is no error. An optional one that is not on
/// the node while the hub is away counts as absent: a pod does not wait for the link for what it
/// can do without.
pub(super) async fn fetch(
    desired: &dyn DesiredState,
    namespace: &str,
    refs: &References,
) -> Result<Sources, DesiredError> {
    let late = |kind: &'static str, name: &str| DesiredError::Unreachable {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        reason: format!("no answer within {} s", FETCH_MAX.as_secs()),
    };
    // All at once: what is not on the node is asked of the hub, and none waits for another.
    let configmaps = refs.configmaps.iter().map(|name| async move {
        let found = tokio::time::timeout(FETCH_MAX, desired.configmap(namespace, name)).await;
        let found = found.unwrap_or_else(|_| Err(late("configmap", name)));
        let found = or_absent(found, refs, Wanted::ConfigMap, name)?;
        Ok::<_, DesiredError>((name.clone(), found))
    });
    let secrets = refs.secrets.iter().map(|name| async move {
        let found = tokio::time::timeout(FETCH_MAX, desired.secret(namespace, name)).await;
        let found = found.unwrap_or_else(|_| Err(late("secret", name)));
        let found = or_absent(found, refs, Wanted::Secret, name)?;
        Ok::<_, DesiredError>((name.clone(), found))
    });
    let (configmaps, secrets) = tokio::try_join!(try_join_all(configmaps), try_join_all(secrets))?;
    Ok(Sources {
        configmaps: configmaps.into_iter().collect(),
        secrets: secrets.into_iter().collect(),
    })
}

fn or_absent<T>(
    found: Result<Option<T>, DesiredError>,
    refs: &References,
    wanted: Wanted,
    name: &str,
) -> Result<Option<T>, DesiredError> {
    match found {
        Err(DesiredError::Unreachable { .. })
            if !refs.required.contains(&(wanted, name.to_owned())) =>
        {
            Ok(None)
        }
        found => found,
    }
}
