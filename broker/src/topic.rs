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

/// Whether `allowed` matches every topic that `filter` may match (no `$share`).
pub fn covers(allowed: &str, filter: &str) -> bool {
    if filter.starts_with('$') && allowed.starts_with(['+', '#']) {
        return false;
    }
    let mut wanted = filter.split('/');
    for level in allowed.split('/') {
        match (level, wanted.next()) {
            ("#", _) => return true,
            (_, None | Some("#")) => return false,
            ("+", Some(_)) => {}
            (level, Some(other)) if level == other => {}
            _ => return false,
        }
    }
    wanted.next().is_none()
}

fn is_bounded(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= TOPIC_BYTES_MAX
        && text.bytes().filter(|b| *b == b'/').count() < TOPIC_LEVELS_MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_filter_covers_what_is_narrower() {
        for (allowed, filter, expected) in [
            ("#", "a/+/#", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("a/#", "a", true),
            ("a/#", "a/#", true),
            ("a/+", "a/#", false),
            ("a/+", "a/+", true),
            ("a/b", "a/+", false),
            ("a/+/c", "a/b/c", true),
            ("a", "a/#", false),
        ] {
            assert_eq!(covers(allowed, filter), expected, "{allowed} {filter}");
        }
    }

    fn levels(of: &'static str) -> impl Strategy<Value = String> {
        prop::collection::vec(
            prop::sample::select(of.split(' ').collect::<Vec<_>>()),
            1..5,
        )
        .prop_map(|levels| levels.join("/"))
    }

    proptest! {
        #[test]
        fn whoever_may_read_a_filter_may_read_its_topics(
            allowed in levels("a b + # $x"),
            filter in levels("a b + # $x"),
            topic in levels("a b $x"),
        ) {
            prop_assume!(is_valid_filter(&allowed) && is_valid_filter(&filter));
            if covers(&allowed, &filter) && matches(&filter, &topic) {
                prop_assert!(matches(&allowed, &topic));
            }
        }
    }

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
