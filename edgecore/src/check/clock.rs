//! A clock that stands in the past makes every certificate look not yet valid.

use super::Finding;

const CHECK: &str = "clock";
/// 2025-01-01: before this program existed.
const PLAUSIBLE_MS: i64 = 1_735_689_600_000;

pub(super) fn check(now_ms: i64) -> Finding {
    let shown = jiff::Timestamp::from_millisecond(now_ms)
        .map_or_else(|_| now_ms.to_string(), |t| t.to_string());
    if now_ms < PLAUSIBLE_MS {
        return Finding::fail(
            CHECK,
            format!("the clock says {shown}"),
            "set it (`timedatectl set-ntp true`, or `date -s`); pods and devices work meanwhile, \
             and the last known good time is used for certificates",
        );
    }
    Finding::pass(CHECK, shown)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_node_that_boots_in_1970_is_told() {
        assert_eq!(check(5_000).verdict, Verdict::Fail);
        assert_eq!(check(PLAUSIBLE_MS + 1).verdict, Verdict::Pass);
    }
}
