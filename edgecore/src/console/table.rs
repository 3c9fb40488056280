//! Columns and figures as kubectl shows them.

/// Space between columns, as kubectl has it.
const GAP: usize = 3;

/// Rows under their heads, each column as wide as its widest cell.
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
    let all = || std::iter::once(&heads).chain(rows);
    let width = |column: usize| {
        all()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(|column| width(column) + GAP).collect();
    let mut out = String::new();
    for row in all() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}"));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A span of time in two figures at most (`k8s.io/apimachinery/pkg/util/duration: HumanDuration`).
pub(super) fn span(secs: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 3600;
    const DAY: i64 = 86_400;
    const YEAR: i64 = 365 * DAY;
    let two = |first: i64, a: &str, second: i64, b: &str| {
        if second == 0 {
            format!("{first}{a}")
        } else {
            format!("{first}{a}{second}{b}")
        }
    };
    match secs {
        ..0 => "0s".to_owned(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

/// Mebibytes, rounded up so that nothing seems to use nothing.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{}Mi", bytes.div_ceil(1 << 20))
}

/// Bytes in the largest unit that leaves a whole figure.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes}"),
        10_240..10_485_760 => format!("{}Ki", bytes >> 10),
        10_485_760..10_737_418_240 => format!("{}Mi", bytes >> 20),
        _ => format!("{}Gi", bytes >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let rows = vec![
            vec!["web".to_owned(), "1/1".to_owned(), String::new()],
            vec!["a-long-name".to_owned(), "0/1".to_owned(), "x".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", "READY", "WHY"], &rows),
            "NAME          READY   WHY\nweb           1/1\na-long-name   0/1     x\n"
        );
    }

    #[test]
    fn spans_as_kubectl_says_them() {
        for (secs, expected) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600 + 60, "3h1m"),
            (47 * 3600, "47h"),
            (49 * 3600, "2d1h"),
            (9 * 86_400, "9d"),
            (3 * 365 * 86_400, "3y"),
        ] {
            assert_eq!(span(secs), expected, "{secs}");
        }
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(mebibytes(1), "1Mi");
        assert_eq!(mebibytes(0), "0Mi");
        assert_eq!(
            [9_999, 20_480, 30 << 20, 40 << 30].map(bytes),
            ["9999", "20Ki", "30Mi", "40Gi"]
        );
    }
}
