//! Fetches the objects that a pod names, within a bounded time.

use std::time::Duration;

use futures_util::future::try_join_all;

use super::env::{References, Sources, Wanted};
use crate::edged::deps::{DesiredError, DesiredState};
use crate::edged::volumes::Claim;

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
    let claims = refs.claims.iter().map(|name| async move {
        let found = tokio::time::timeout(FETCH_MAX, claim(desired, namespace, name)).await;
        let found = found.unwrap_or_else(|_| Err(late("PersistentVolumeClaim", name)))?;
        Ok::<_, DesiredError>((name.clone(), found))
    });
    let tokens = refs.tokens.iter().map(|wish| async move {
        let found = tokio::time::timeout(FETCH_MAX, desired.token(namespace, wish)).await;
        let found = found.unwrap_or_else(|_| Err(late("token of ServiceAccount", &wish.account)));
        // Only the volume that holds it waits.
        let found = found.map_err(|error| error.to_string());
        Ok::<_, DesiredError>((wish.clone(), found))
    });
    let (configmaps, secrets, claims, tokens) = tokio::try_join!(
        try_join_all(configmaps),
        try_join_all(secrets),
        try_join_all(claims),
        try_join_all(tokens)
    )?;
    Ok(Sources {
        configmaps: configmaps.into_iter().collect(),
        secrets: secrets.into_iter().collect(),
        claims: claims.into_iter().collect(),
        tokens: tokens.into_iter().collect(),
    })
}

/// The claim, and the volume that it is bound to.
async fn claim(
    desired: &dyn DesiredState,
    namespace: &str,
    name: &str,
) -> Result<Claim, DesiredError> {
    let claim = desired.claim(namespace, name).await?;
    let bound_to = claim
        .as_ref()
        .and_then(|claim| claim.spec.as_ref()?.volume_name.clone())
        .filter(|name| !name.is_empty());
    let volume = match bound_to {
        Some(volume) => desired.volume(&volume).await?,
        None => None,
    };
    Ok(Claim { claim, volume })
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
