//! Properties that a device may leave out.

use super::*;

fn with_optional(event_id: &str, optional: bool, kind: Option<&str>) -> Event {
    let change = Change {
        optional: Some(optional),
        kind: kind.map(str::to_owned),
        ..Change::default()
    };
    update(event_id, "t", Some(change))
}

#[test]
fn a_required_property_stays() {
    check(vec![
        row(
            "new, without a value",
            with_optional("e1", true, Some("int")),
            &[
                "result e1 [t: int want - is -]",
                "document e1 [t: null -> int want - is -]",
                "report [t: int want - is -]",
            ],
        ),
        row(
            "optional again says nothing",
            with_optional("e2", true, None),
            &["result e2 []"],
        ),
        row(
            "another type is told, the stored one stays",
            with_optional("e3", true, Some("string")),
            &[
                "result e3 [t: int want - is -]",
                "report [t: int want - is -]",
            ],
        ),
        row(
            "becomes required",
            with_optional("e4", false, None),
            &[
                "result e4 [t: int want - is -]",
                "document e4 [t: int want - is - -> int want - is -]",
                "report [t: int want - is -]",
            ],
        ),
        row(
            "never becomes optional again",
            with_optional("e5", true, None),
            &["result e5 []"],
        ),
        row(
            "and cannot be removed",
            update("e6", "t", None),
            &["result e6 []"],
        ),
        row(
            "an empty desired value is no wish",
            update("e7", "s", Some(change(Some(""), None, None))),
            &[
                "result e7 [s: string want @0.1 is -]",
                "document e7 [s: null -> string want @0.1 is -]",
                "report [s: string want @0.1 is -]",
            ],
        ),
    ]);
}
