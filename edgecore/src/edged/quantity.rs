//! Kubernetes quantities as plain numbers, rounded up as `Quantity.Value()` and `MilliValue()` do.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, or nothing if the text is no quantity. Saturates.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 3)
}

/// The value in whole units, or nothing if the text is no quantity. Saturates.
pub fn value(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 0)
}

fn scaled(text: &str, extra_tens: i32) -> Option<i64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (binary, tens) = match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            (
                0,
                digits
                    .parse::<i32>()
                    .ok()
                    .filter(|e| (-30..=30).contains(e))?,
            )
        }
    };
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if !whole
        .bytes()
        .chain(fraction.bytes())
        .all(|b| b.is_ascii_digit())
        || (whole.is_empty() && fraction.is_empty())
    {
        return None;
    }
    // Nine decimal places are all a quantity has; more would not change the rounding upwards
    // by anything that matters here.
    let fraction = fraction.get(..9).unwrap_or(fraction);
    let digits: String = [whole, fraction].concat();
    let mantissa: i128 = digits.parse().ok()?;
    let places = i32::try_from(fraction.len()).ok()?;
    let tens = tens + extra_tens - places;
    let mut amount = mantissa
        .checked_shl(binary)
        .filter(|a| a >> binary == mantissa);
    if tens >= 0 {
        let factor = 10_i128.checked_pow(tens.unsigned_abs());
        amount = amount.zip(factor).and_then(|(a, f)| a.checked_mul(f));
    } else {
        let divisor = 10_i128.checked_pow(tens.unsigned_abs())?;
        amount = amount.map(|a| a / divisor + i128::from(a % divisor != 0));
    }
    let amount = amount.map_or(i64::MAX, |a| i64::try_from(a).unwrap_or(i64::MAX));
    Some(if negative { -amount } else { amount })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        for (text, milli_want, value_want) in [
            ("1", Some(1000), Some(1)),
            ("100m", Some(100), Some(1)),
            ("0.5", Some(500), Some(1)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("64Mi", Some(67_108_864_000), Some(67_108_864)),
            ("128M", Some(128_000_000_000), Some(128_000_000)),
            ("1e3", Some(1_000_000), Some(1000)),
            ("1n", Some(1), Some(1)),
            ("-1", Some(-1000), Some(-1)),
            ("9999999E", Some(i64::MAX), Some(i64::MAX)),
            ("", None, None),
            ("Mi", None, None),
            ("1 Mi", None, None),
            ("1e99", None, None),
            ("--1", None, None),
        ] {
            let quantity = Quantity(text.to_owned());
            assert_eq!(milli(&quantity), milli_want, "{text} in thousandths");
            assert_eq!(value(&quantity), value_want, "{text} in units");
        }
    }
}
