//! Topic names and filters (MQTT 5 §4.7): validation and plain matching.

use crate::limits::{TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX};

/// Whether `topic` may be published to.
pub fn is_valid_name(topic: &str) -> bool {
    is_bounded(topic) && !topic.contains(['+', '#', '\0'])
}

/// Whether `filter` may be subscribed to; `$share/<group>/<filter>` included.
pub fn is_valid_filter(filter: &str) -> bool {
    let Some((_, filter)) = split_share(filter) else {
        return false;
    };
    if !is_bounded(filter) || filter.contains('\0') {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let is_last = levels.peek().is_none();
        let ok = match level {
            "#" => is_last,
            "+" => true,
            other => !other.contains(['+', '#']),
        };
        if !ok {
            return false;
        }
    }
    true
}

/// Splits a shared filter into its group and its filter; `None` when it is malformed.
pub fn split_share(filter: &str) -> Option<(Option<&str>, &str)> {
    let Some(rest) = filter.strip_prefix("$share/") else {
        return Some((None, filter));
    };
    let (group, filter) = rest.split_once('/')?;
    if group.is_empty() || group.contains(['+', '#']) || filter.is_empty() {
        return None;
    }
    Some((Some(group), filter))
}

/// Whether a topic name is matched by a filter (no `$share`).
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut names = topic.split('/');
    for level in filter.split('/') {
        match level {
            "#" => return true,
            "+" => {
                if names.next().is_none() {
                    return false;
                }
            }
            level => {
                if names.next() != Some(level) {
                    return false;
                }
            }
        }
    }
    names.next().is_none()
}

fn is_bounded(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= TOPIC_BYTES_MAX
        && text.bytes().filter(|b| *b == b'/').count() < TOPIC_LEVELS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            (
                "sport/tennis/player1/#",
                "sport/tennis/player1/score/w",
                true,
            ),
            ("sport/#", "sport", true),
            ("#", "a/b", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("a/+/c", "a/b/d", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn bad_names_and_filters_are_refused() {
        for name in ["", "a/+", "a#", "a\0b"] {
            assert!(!is_valid_name(name), "{name:?}");
        }
        for filter in [
            "",
            "a/#/b",
            "a+",
            "#a",
            "$share/g",
            "$share//a",
            "$share/+/a",
        ] {
            assert!(!is_valid_filter(filter), "{filter:?}");
        }
        assert!(is_valid_filter("$share/g/a/+/#"));
        assert!(!is_valid_name(&"a/".repeat(TOPIC_LEVELS_MAX)));
    }
}
