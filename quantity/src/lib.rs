//! Kubernetes' `resource.Quantity`: `100m`, `1.5Gi`, `2e3`. Values are kept exactly, in units of
//! 10^-9 (smaller parts round up, as the reference does), and printed in their canonical form.
//!
//! The one parser of sizes and amounts, in API objects and in configuration files.

use std::fmt::{self, Display};

/// Not a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text has another form.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// The suffix is none of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

/// An amount of a resource.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    form: Form,
}

const NANO: i128 = 1_000_000_000;
/// 2^63-1, the cap of the reference.
const MAX: i128 = 9_223_372_036_854_775_807 * NANO;

/// Bytes in their canonical form: the largest binary suffix that leaves no remainder.
pub fn binary(bytes: impl Into<i128>) -> String {
    let nanos = bytes.into().saturating_mul(NANO);
    let form = Form::Binary;
    Quantity { nanos, form }.to_string()
}

impl Quantity {
    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        let end = text
            .find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-'))
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (negative, digits) = match number.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let plain = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && part.is_empty()) || !plain(whole) || !plain(part) {
            return Err(QuantityError::Format);
        }
        let allowed = |c: char| "eEinumkKMGTP+-0123456789".contains(c);
        if !suffix.chars().all(allowed) {
            return Err(QuantityError::Format);
        }
        let (scale, form) = scale(suffix)?;
        let mut nanos = amount(whole, part, scale).unwrap_or(MAX).min(MAX);
        if negative {
            nanos = -nanos;
        }
        Ok(Quantity { nanos, form })
    }

    /// Zero or more.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// A whole number.
    pub fn is_integer(self) -> bool {
        self.nanos % NANO == 0
    }

    /// Whole units, rounded away from zero as the reference's `Value()` does. Saturates.
    pub fn units(self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded away from zero as the reference's `MilliValue()` does. Saturates.
    pub fn milli(self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(self, divisor: i128) -> i64 {
        let amount = self.nanos.abs();
        let rounded = amount / divisor + i128::from(amount % divisor != 0);
        let rounded = i64::try_from(rounded).unwrap_or(i64::MAX);
        if self.is_negative() {
            -rounded
        } else {
            rounded
        }
    }

    /// For comparing: the value in units of 10^-9.
    pub fn nanos(self) -> i128 {
        self.nanos
    }
}

#[derive(Clone, Copy)]
enum Scale {
    /// 10^n
    Ten(i32),
    /// 2^n
    Two(u32),
}

fn scale(suffix: &str) -> Result<(Scale, Form), QuantityError> {
    let ten = |n| Ok((Scale::Ten(n), Form::Decimal));
    let two = |n| Ok((Scale::Two(n), Form::Binary));
    match suffix {
        "n" => ten(-9),
        "u" => ten(-6),
        "m" => ten(-3),
        "" => ten(0),
        "k" => ten(3),
        "M" => ten(6),
        "G" => ten(9),
        "T" => ten(12),
        "P" => ten(15),
        "E" => ten(18),
        "Ki" => two(10),
        "Mi" => two(20),
        "Gi" => two(30),
        "Ti" => two(40),
        "Pi" => two(50),
        "Ei" => two(60),
        _ => {
            let exponent = suffix
                .strip_prefix(['e', 'E'])
                .ok_or(QuantityError::Suffix)?;
            let exponent: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
            Ok((Scale::Ten(exponent), Form::Exponent))
        }
    }
}

/// `whole.part * scale` in nanos, rounded up; `None` when it does not fit.
fn amount(whole: &str, part: &str, scale: Scale) -> Option<i128> {
    let digits: String = [whole, part].concat();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    let places = i32::try_from(part.len()).ok()?;
    // What is far below one nano rounds up to one; what is far above the cap is the cap.
    let (power, two) = match scale {
        Scale::Ten(n) => (n, 1),
        Scale::Two(n) => (0, 1_i128.checked_shl(n)?),
    };
    let shift = power.checked_sub(places)?.checked_add(9)?;
    if i64::from(shift) + i64::try_from(digits.len()).ok()? > 38 + 19 {
        return None;
    }
    // Digits beyond 30 below the point cannot matter but for rounding up.
    let (kept, dropped) = digits.split_at_checked(36).unwrap_or((digits, ""));
    let shift = shift.checked_add(i32::try_from(dropped.len()).ok()?)?;
    let mut value: i128 = kept.parse().ok()?;
    let mut up = dropped.bytes().any(|b| b != b'0');
    if shift >= 0 {
        value = value.checked_mul(two)?;
        value = value.checked_mul(10_i128.checked_pow(shift.unsigned_abs())?)?;
    } else {
        let divisor = 10_i128.checked_pow(shift.unsigned_abs());
        let Some(divisor) = divisor else {
            return Some(1);
        };
        value = value.checked_mul(two)?;
        up |= value % divisor != 0;
        value /= divisor;
    }
    value.checked_add(i128::from(up))
}

/// The canonical form: no fraction, the largest suffix that needs none.
impl Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.form == Form::Binary && self.is_integer() {
            let mut value = self.nanos / NANO;
            let mut suffix = "";
            for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = next;
            }
            return write!(f, "{value}{suffix}");
        }
        let mut value = self.nanos;
        let mut power = -9;
        while value % 1000 == 0 && power < 18 {
            value /= 1000;
            power += 3;
        }
        let suffix = match (self.form, power) {
            (Form::Exponent | Form::Decimal | Form::Binary, 0) => String::new(),
            (Form::Exponent, power) => format!("e{power}"),
            (_, -9) => "n".into(),
            (_, -6) => "u".into(),
            (_, -3) => "m".into(),
            (_, 3) => "k".into(),
            (_, 6) => "M".into(),
            (_, 9) => "G".into(),
            (_, 12) => "T".into(),
            (_, 15) => "P".into(),
            _ => "E".into(),
        };
        write!(f, "{value}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical() {
        for (text, canonical) in [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("100m", "100m"),
            ("2", "2"),
            ("2000", "2k"),
            ("1500Ki", "1500Ki"),
            ("0", "0"),
            ("-1", "-1"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("0.1Ki", "102400m"),
            (".5", "500m"),
            ("1n", "1n"),
            ("0.1n", "1n"),
        ] {
            assert_eq!(
                Quantity::parse(text).map(|q| q.to_string()),
                Ok(canonical.to_owned()),
                "{text}"
            );
        }
        for text in ["", "abc", "1.2.3", "1Q", "1 ", "--1", "Mi"] {
            assert_eq!(
                Quantity::parse(text).map(|q| q.to_string()),
                Err(QuantityError::Format),
                "{text}"
            );
        }
        assert_eq!(
            Quantity::parse("1mi").map(Quantity::nanos),
            Err(QuantityError::Suffix)
        );
    }

    #[test]
    fn whole_units_and_thousandths() {
        for (text, milli, units) in [
            ("1", 1000, 1),
            ("100m", 100, 1),
            ("0.5", 500, 1),
            ("1n", 1, 1),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("-1.5", -1500, -2),
            ("9999999E", i64::MAX, i64::MAX),
            ("1e99", i64::MAX, i64::MAX),
        ] {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!(
                (quantity.milli(), quantity.units()),
                (milli, units),
                "{text}"
            );
        }
    }

    #[test]
    fn bytes_are_written_with_the_largest_unit_that_fits() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (10 << 20, "10Mi"),
            ((1 << 30) + (1 << 20), "1025Mi"),
            (-(2 << 10), "-2Ki"),
        ] {
            assert_eq!(binary(bytes), text);
        }
    }

    #[test]
    fn order() {
        let nanos = |t| Quantity::parse(t).unwrap().nanos();
        assert!(nanos("2") > nanos("1999m"));
        assert!(nanos("1Gi") > nanos("1G"));
    }

    proptest! {
        #[test]
        fn canonical_form_is_stable(text in "[+-]?[0-9]{0,40}(\\.[0-9]{0,20})?(|m|Ki|Gi|E|e[0-9]|e-3|u)") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let again = Quantity::parse(&quantity.to_string()).unwrap();
                prop_assert_eq!(again.nanos(), quantity.nanos());
                prop_assert_eq!(again.to_string(), quantity.to_string());
            }
        }
    }
}
