//! Merging of lists: primitives as sets, maps by their merge key.

use serde_json::Value;

use super::order::{by_key, enforce};
use super::{
    DIRECTIVE, Object, Shape, drop_directives, go_format, merge as merge_maps, unknown_directive,
};
use crate::patch::PatchError;

pub(super) fn merge(
    original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
    shape: Shape,
    depth: usize,
) -> Result<Vec<Value>, PatchError> {
    if patch.is_empty() {
        return Ok(original);
    }
    let mut merged = original.clone();
    if merge_key.is_empty() {
        for item in &patch {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        merged = enforce(merged, &patch, &original, merge_key);
        return Ok(merged);
    }
    let (mut items, mut replace) = (Vec::new(), false);
    for item in patch {
        let Value::Object(map) = item else {
            return Err(PatchError::generic()); // lists of lists, or of mixed types
        };
        match map.get(DIRECTIVE) {
            None => items.push(map),
            Some(Value::String(d)) if d == "delete" => {
                let key = map
                    .get(merge_key)
                    .ok_or_else(|| no_merge_key(&map, merge_key))?;
                merged.retain(|item| item.get(merge_key) != Some(key));
            }
            Some(Value::String(d)) if d == "replace" => replace = true,
            Some(Value::String(d)) if d == "merge" => {
                return Err(PatchError::internal(
                    "merging lists cannot yet be specified in the patch".into(),
                ));
            }
            Some(other) => return Err(unknown_directive(other, map.clone())),
        }
    }
    if replace {
        return Ok(items
            .into_iter()
            .map(|m| drop_directives(Value::Object(m)))
            .collect());
    }
    let mut order = Vec::with_capacity(items.len());
    for item in items {
        let key = item
            .get(merge_key)
            .ok_or_else(|| no_merge_key(&item, merge_key))?
            .clone();
        order.push(Value::Object(Object::from_iter([(
            merge_key.to_owned(),
            key.clone(),
        )])));
        let place = merged.iter_mut().find(|m| m.get(merge_key) == Some(&key));
        match place {
            Some(place) => {
                let Value::Object(old) = place.take() else {
                    return Err(PatchError::generic());
                };
                *place = Value::Object(merge_maps(old, item, shape, depth + 1)?);
            }
            None => merged.push(drop_directives(Value::Object(item))),
        }
    }
    if let Some(odd) = merged.iter().find(|m| !by_key(m, merge_key)) {
        let odd = odd.as_object().cloned().unwrap_or_default();
        return Err(no_merge_key(&odd, merge_key));
    }
    Ok(enforce(merged, &order, &original, merge_key))
}

fn no_merge_key(map: &Object, merge_key: &str) -> PatchError {
    let map = go_format(&Value::Object(map.clone()));
    PatchError::internal(format!(
        "map: {map} does not contain declared merge key: {merge_key}"
    ))
}
