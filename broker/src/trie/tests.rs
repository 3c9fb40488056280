use proptest::prelude::*;

use super::*;
use crate::topic::{is_valid_filter, matches};

const PLAIN: SubOptions = SubOptions {
    qos: Qos::AtMostOnce,
    no_local: false,
    retain_as_published: false,
    id: 0,
};

fn keys(trie: &mut Trie, topic: &str) -> Vec<SessionKey> {
    let mut hits = Vec::new();
    trie.matches(topic, &|_| true, &mut hits);
    let mut keys: Vec<_> = hits.iter().map(|h| h.key).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_shared_group_takes_turns_and_prefers_who_is_online() {
    let mut trie = Trie::default();
    for key in 1..=3 {
        trie.insert("$share/g/a/#", key, PLAIN);
    }
    let turns: Vec<_> = (0..4).flat_map(|_| keys(&mut trie, "a/b")).collect();
    assert_eq!(turns, [1, 2, 3, 1]);
    let mut hits = Vec::new();
    trie.matches("a", &|key| key == 3, &mut hits);
    assert_eq!(hits[0].key, 3);
    trie.remove("$share/g/a/#", 1);
    trie.remove("$share/g/a/#", 2);
    trie.remove("$share/g/a/#", 3);
    assert!(trie.root.is_empty());
}

fn level() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab]?".prop_map(String::from),
        Just("+".into()),
        Just("$s".into())
    ]
}

fn filter() -> impl Strategy<Value = String> {
    (prop::collection::vec(level(), 1..4), any::<bool>()).prop_map(|(mut levels, hash)| {
        if hash {
            levels.push("#".into());
        }
        levels.join("/")
    })
}

fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop_oneof!["[ab]?".prop_map(String::from), Just("$s".into())],
        1..5,
    )
    .prop_map(|levels| levels.join("/"))
    .prop_filter("not empty", |n| !n.is_empty())
}

proptest! {
    #[test]
    fn the_tree_agrees_with_the_plain_matcher(
        filters in prop::collection::vec((filter(), any::<bool>()), 0..24),
        topics in prop::collection::vec(name(), 1..8),
    ) {
        let mut trie = Trie::default();
        let mut kept = Vec::new();
        for (key, (filter, keep)) in (1_u64..).zip(filters) {
            if !is_valid_filter(&filter) {
                continue;
            }
            trie.insert(&filter, key, PLAIN);
            kept.push((key, filter, keep));
        }
        for (key, filter, _) in kept.iter().filter(|k| !k.2) {
            prop_assert!(trie.remove(filter, *key));
        }
        kept.retain(|k| k.2);
        for topic in topics {
            let expected: Vec<_> = kept.iter().filter(|k| matches(&k.1, &topic)).map(|k| k.0).collect();
            prop_assert_eq!(keys(&mut trie, &topic), expected, "{}", topic);
        }
        for (key, filter, _) in &kept {
            trie.remove(filter, *key);
        }
        prop_assert!(trie.root.is_empty());
    }
}
