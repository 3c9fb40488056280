//! Values of free-form configuration: `google.protobuf.Any` around one of the wrapper types.

use prost::{Message, Name};
use prost_types::Any;

/// A value as it travels.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    Text(String),
    Bool(bool),
    /// KubeEdge sends every JSON number as one of these.
    Float(f32),
    Integer(i64),
    /// The stock mapper framework does not read it.
    Double(f64),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Bool(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Double(value) => value.fmt(f),
        }
    }
}

/// Wraps a value.
pub fn pack(scalar: &Scalar) -> Any {
    fn any<M: Message + Name>(value: &M) -> Any {
        Any {
            type_url: M::type_url(),
            value: value.encode_to_vec(),
        }
    }
    match scalar {
        Scalar::Text(text) => any(text),
        Scalar::Bool(value) => any(value),
        Scalar::Float(value) => any(value),
        Scalar::Integer(value) => any(value),
        Scalar::Double(value) => any(value),
    }
}

/// Reads a value; `None` for a type that is not one of the wrappers, or for broken bytes.
pub fn unpack(any: &Any) -> Option<Scalar> {
    let bytes = any.value.as_slice();
    let name = any.type_url.rsplit('/').next()?;
    match name.strip_prefix("google.protobuf.")? {
        "StringValue" => String::decode(bytes).ok().map(Scalar::Text),
        "BoolValue" => bool::decode(bytes).ok().map(Scalar::Bool),
        "FloatValue" => f32::decode(bytes).ok().map(Scalar::Float),
        "DoubleValue" => f64::decode(bytes).ok().map(Scalar::Double),
        "Int64Value" => i64::decode(bytes).ok().map(Scalar::Integer),
        "Int32Value" => i32::decode(bytes)
            .ok()
            .map(|value| Scalar::Integer(value.into())),
        "UInt32Value" => u32::decode(bytes)
            .ok()
            .map(|value| Scalar::Integer(value.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back_under_the_published_type() {
        for (scalar, url) in [
            (Scalar::Text("a".into()), "StringValue"),
            (Scalar::Text(String::new()), "StringValue"),
            (Scalar::Bool(true), "BoolValue"),
            (Scalar::Float(502.0), "FloatValue"),
            (Scalar::Integer(-16_777_217), "Int64Value"),
            (Scalar::Double(0.5), "DoubleValue"),
        ] {
            let any = pack(&scalar);
            assert_eq!(
                any.type_url,
                format!("type.googleapis.com/google.protobuf.{url}")
            );
            assert_eq!(unpack(&any), Some(scalar));
        }
    }

    #[test]
    fn strange_values_are_none() {
        for (type_url, value) in [
            ("", vec![]),
            ("type.googleapis.com/google.protobuf.Struct", vec![]),
            ("x/google.protobuf.StringValue", vec![0x0a, 0x02, 0xff]),
        ] {
            let any = Any {
                type_url: type_url.into(),
                value,
            };
            assert_eq!(unpack(&any), None, "{any:?}");
        }
    }
}
