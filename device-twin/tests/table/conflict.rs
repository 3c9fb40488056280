//! Who wins when cloud and edge both desire something, and how far a desired value has come.

use super::*;
use device_twin::Conflict;

fn wish(version: i64, value: &str, rule: Conflict, at_ms: Option<i64>) -> Event {
    let wanted = Wanted {
        value: value.to_owned(),
        at_ms,
        rule,
        kind: None,
    };
    Event::Desired {
        object_uid: "u".to_owned(),
        version,
        values: BTreeMap::from([("t".to_owned(), wanted)]),
    }
}

fn here(value: &str) -> Event {
    update("e", "t", Some(change(Some(value), None, None)))
}

fn run(events: impl IntoIterator<Item = (i64, Event)>) -> Device {
    let device = Device::new(DeviceId::parse("default/t1").unwrap());
    events.into_iter().fold(device, |device, (now_ms, event)| {
        apply(&device, event, now_ms).unwrap().next
    })
}

/// The desired value and its state, with the reason of a refusal.
fn shown(device: &Device) -> String {
    let property = &device.properties["t"];
    let desired = property.desired.as_ref().map_or("-", |d| &d.value);
    let state = property.sync();
    let reason = property.refused.as_ref().map(|r| r.reason.as_str());
    format!(
        "{desired} {} {}",
        state.map_or("none", |s| s.as_str()),
        reason.unwrap_or("")
    )
    .trim_end()
    .to_owned()
}

#[test]
fn each_rule_has_its_winner() {
    use Conflict::{CloudWins, EdgeWins, Newest};
    const STANDS: &str = "20 refused the value set at the edge stands";
    for (name, rule, written_at, expected) in [
        ("cloud wins, whenever", CloudWins, Some(1), "30 pending"),
        ("edge wins, whenever", EdgeWins, Some(900), STANDS),
        ("the edge's is newer", Newest, Some(499), STANDS),
        ("the cloud's is newer", Newest, Some(501), "30 pending"),
        ("no time: just now", Newest, None, "30 pending"),
    ] {
        let device = run([
            (100, wish(1, "10", rule, Some(50))),
            (500, here("20")),
            (1000, wish(2, "30", rule, written_at)),
        ]);
        assert_eq!(shown(&device), expected, "{name}");
    }
}

#[test]
fn a_slow_clock_at_the_edge_does_not_lose_its_later_write() {
    // The node's clock stands at 5; it has heard of 1000 from the cloud.
    let device = run([
        (5, wish(1, "10", Conflict::Newest, Some(1000))),
        (6, here("20")),
        (7, wish(2, "30", Conflict::Newest, Some(900))),
    ]);
    assert!(shown(&device).starts_with("20 refused"));
    let device = run([(6, here("20"))]);
    assert_eq!(device.clock_ms, 6);
}

#[test]
fn an_empty_value_gives_the_edges_up() {
    let rule = Conflict::EdgeWins;
    let device = run([
        (1, here("20")),
        (2, wish(1, "30", rule, None)),
        (3, here("")),
        (4, wish(1, "30", rule, None)),
    ]);
    assert_eq!(shown(&device), "30 pending");
}

#[test]
fn the_state_of_a_desired_value_follows_the_device() {
    let answer = |observed: Option<&str>, refused: Option<&str>| {
        let change = Change {
            observed: observed.map(str::to_owned),
            refused: refused.map(str::to_owned),
            ..Change::default()
        };
        update("e", "t", Some(change))
    };
    let rule = Conflict::CloudWins;
    let mut device = run([(1, wish(1, "10", rule, None))]);
    for (name, event, expected) in [
        ("another value", report("e", "t", "9", None), "10 pending"),
        (
            "it echoes an old one",
            answer(Some("7"), None),
            "10 pending",
        ),
        (
            "it has taken it",
            answer(Some("10"), None),
            "10 acknowledged",
        ),
        (
            "it gave up",
            answer(None, Some("stuck")),
            "10 refused stuck",
        ),
        (
            "it is there",
            report("e", "t", "10", None),
            "10 acknowledged",
        ),
        ("a new wish", wish(2, "11", rule, None), "11 pending"),
        ("refused again", answer(None, Some("hot")), "11 refused hot"),
        ("withdrawn", here(""), " none"),
    ] {
        let decision = apply(&device, event, 2).unwrap();
        device = decision.next;
        assert_eq!(shown(&device), expected, "{name}");
    }
    // A stranger's answer to nothing changes nothing.
    let decision = apply(&device, answer(Some("1"), None), 3).unwrap();
    assert!(decision.next.properties["t"].refused.is_none());
}
