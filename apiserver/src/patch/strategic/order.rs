//! The order of merged lists: the patch's items in the patch's order, the server's own in theirs.

use serde_json::Value;

use super::{
    DIRECTIVE, ORDER, Object, Shape, drop_directives, go_format, inner, list, without_directives,
};
use crate::patch::PatchError;

/// Takes every `$setElementOrder/…` and the list it governs out of the patch and applies both.
pub(super) fn apply(
    original: &mut Object,
    patch: &mut Object,
    shape: Shape,
    depth: usize,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|k| k.starts_with(ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let name = directive.strip_prefix(ORDER).unwrap_or_default().to_owned();
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(PatchError::bad_request(
                "invalid patch format of setElementOrder list",
            ));
        };
        let field = shape.field(&name);
        let merge_key = field.and_then(|f| f.merge_key).unwrap_or_default();
        let live = take_list(original, &name)?;
        let changes = take_list(patch, &name)?;
        if let Some(changes) = &changes {
            check(changes, &order, merge_key)?;
        }
        let before = live.clone().unwrap_or_default();
        let merged = match (live, changes) {
            (None, None) => continue,
            (Some(live), None) => live,
            (None, Some(changes)) => without_directives(changes),
            (Some(live), Some(changes)) => match field.and_then(|f| f.merge_key) {
                Some(key) => list::merge(live, changes, key, inner(field), depth + 1)?,
                None => changes.into_iter().map(drop_directives).collect(),
            },
        };
        original.insert(
            name,
            Value::Array(enforce(merged, &order, &before, merge_key)),
        );
    }
    Ok(())
}

/// Removes a list from a map. Null counts as absent; anything else is a bad patch.
fn take_list(map: &mut Object, name: &str) -> Result<Option<Vec<Value>>, PatchError> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(_)) => match map.remove(name) {
            Some(Value::Array(list)) => Ok(Some(list)),
            _ => Ok(None),
        },
        Some(_) => Err(PatchError::generic()),
    }
}

/// The items of the patch must appear in the order list, in its order.
fn check(changes: &[Value], order: &[Value], merge_key: &str) -> Result<(), PatchError> {
    let mut rest = order.iter();
    let kept = changes.iter().filter(|item| item.get(DIRECTIVE).is_none());
    for item in kept {
        if !rest.any(|o| same(o, item, merge_key)) {
            return Err(PatchError::internal(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                go_format(&Value::Array(changes.to_vec())),
                go_format(&Value::Array(order.to_vec())),
            )));
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, merge_key: &str) -> bool {
    if merge_key.is_empty() {
        a == b
    } else {
        a.get(merge_key).is_some() && a.get(merge_key) == b.get(merge_key)
    }
}

/// Whether an item carries the merge key.
pub(super) fn by_key(item: &Value, merge_key: &str) -> bool {
    item.get(merge_key).is_some()
}

fn position(list: &[Value], item: &Value, merge_key: &str) -> Option<usize> {
    list.iter().position(|o| same(o, item, merge_key))
}

/// Orders merged items: those named by `order` as it says, the others as in `server`, the two interleaved so that
/// the server's order between any two it knew holds where possible; what the server did not know goes first.
pub(super) fn enforce(
    merged: Vec<Value>,
    order: &[Value],
    server: &[Value],
    merge_key: &str,
) -> Vec<Value> {
    let (mut named, mut others): (Vec<_>, Vec<_>) = merged
        .into_iter()
        .partition(|item| position(order, item, merge_key).is_some());
    named.sort_by_key(|item| position(order, item, merge_key));
    others.sort_by_key(|item| position(server, item, merge_key));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(name)) => {
                let (l, r) = (
                    position(server, other, merge_key),
                    position(server, name, merge_key),
                );
                matches!((l, r), (Some(l), Some(r)) if l < r)
            }
        };
        out.extend(if other_first {
            others.next()
        } else {
            named.next()
        });
    }
}
