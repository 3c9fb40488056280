//! Quantities of API objects as plain numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, or nothing if the text is no quantity. Saturates.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    read(quantity).map(quantity::Quantity::milli)
}

/// The value in whole units, or nothing if the text is no quantity. Saturates.
pub fn value(quantity: &Quantity) -> Option<i64> {
    read(quantity).map(quantity::Quantity::units)
}

fn read(quantity: &Quantity) -> Option<quantity::Quantity> {
    quantity::Quantity::parse(quantity.0.trim()).ok()
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
            ("1e99", Some(i64::MAX), Some(i64::MAX)),
            ("--1", None, None),
        ] {
            let quantity = Quantity(text.to_owned());
            assert_eq!(milli(&quantity), milli_want, "{text} in thousandths");
            assert_eq!(value(&quantity), value_want, "{text} in units");
        }
    }
}
