//! Property types and what text each accepts.

use serde::{Deserialize, Serialize};

use crate::error::Rejected;

const NAME_BYTES_MAX: usize = 128;

/// What text the value of a property may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueRule {
    /// Longest value in bytes.
    pub bytes_max: usize,
    /// Any characters but control characters; else KubeEdge's class, `[a-zA-Z0-9-_.,:/@#]`.
    pub is_text: bool,
}

impl Default for ValueRule {
    /// KubeEdge's (`edge/pkg/devicetwin/dtcommon/util.go`): its class, 512 bytes.
    fn default() -> Self {
        Self {
            bytes_max: 512,
            is_text: false,
        }
    }
}

impl ValueRule {
    /// Whether a device may report this value; it may be empty.
    pub fn allows(&self, value: &str) -> bool {
        let is_good = if self.is_text {
            !value.contains(char::is_control)
        } else {
            value.bytes().all(is_allowed)
        };
        is_good && value.len() <= self.bytes_max
    }
}

/// The type of a property. Serialized under the names devices use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nobody has said yet: the cloud desires a value and the device has not reported. Treated
    /// as `string`; the first report that names a type decides.
    Unknown,
    /// Any text.
    #[default]
    String,
    /// A 64-bit decimal.
    Int,
    /// The same under its other name.
    Integer,
    /// A 64-bit float in Go's syntax, `NaN` and `Inf` included.
    Float,
    /// The same; KubeEdge refuses this name though its device models use it.
    Double,
    /// `true` or `false`.
    Boolean,
    /// Any text; KubeEdge refuses this name though its device models use it.
    Bytes,
    /// A property that was removed: its versions are kept so that they never go back.
    Deleted,
}

impl Kind {
    /// The type named in a request; `None` in the result means "keep the stored one, else
    /// string". `Updated` in any case is what old KubeEdge samples send.
    pub(crate) fn parse(text: Option<&str>) -> Result<Option<Self>, Rejected> {
        Ok(Some(match text {
            None | Some("") => return Ok(None),
            Some("string") => Self::String,
            Some("int") => Self::Int,
            Some("integer") => Self::Integer,
            Some("float") => Self::Float,
            Some("double") => Self::Double,
            Some("boolean") => Self::Boolean,
            Some("bytes") => Self::Bytes,
            Some(other) if other.eq_ignore_ascii_case("updated") => return Ok(None),
            Some(_) => return Err(Rejected::bad("the value type is not allowed")),
        }))
    }

    /// Whether `text` names a type that a device may give a property.
    pub fn is_known(text: &str) -> bool {
        matches!(Self::parse(Some(text)), Ok(Some(_)))
    }

    /// Reads a type leniently, for a desired value of the cloud's Device object, where nothing
    /// validates the field: model types are written in capitals there.
    pub(crate) fn parse_lenient(text: Option<&str>) -> Self {
        let lower = text.map(str::to_ascii_lowercase);
        match Self::parse(lower.as_deref()) {
            Ok(Some(kind)) => kind,
            Ok(None) | Err(_) => Self::Unknown,
        }
    }

    /// The name devices see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown | Self::String => "string",
            Self::Int => "int",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Double => "double",
            Self::Boolean => "boolean",
            Self::Bytes => "bytes",
            Self::Deleted => "deleted",
        }
    }

    /// Checks that `value` is of this type (KubeEdge `dtcommon/util.go`, `ValidateValue`).
    pub(crate) fn check(self, value: &str) -> Result<(), Rejected> {
        match self {
            Self::Unknown | Self::String | Self::Bytes | Self::Deleted => Ok(()),
            Self::Int | Self::Integer => match value.parse::<i64>() {
                Ok(_) => Ok(()),
                Err(_) => Err(Rejected::bad("the value is not int or integer")),
            },
            Self::Float | Self::Double if is_go_float(value) => Ok(()),
            Self::Float | Self::Double => Err(Rejected::bad("the value is not float")),
            Self::Boolean => match value {
                "true" | "false" => Ok(()),
                _ => Err(Rejected::bad("the bool value must be true or false")),
            },
        }
    }
}

/// Checks a property name: `^[a-zA-Z0-9-_.,:/@#]{1,128}$`.
pub(crate) fn check_name(name: &str) -> Result<(), Rejected> {
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_allowed) {
        Ok(())
    } else {
        Err(Rejected::bad_name())
    }
}

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.,:/@#".contains(&byte)
}

/// What Go's `strconv.ParseFloat(text, 64)` accepts: decimal, hexadecimal with exponent, and the
/// words for infinity and NaN. A finite text too large for a float is refused, as there.
fn is_go_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if let Some(hex) = unsigned
        .strip_prefix("0x")
        .or_else(|| unsigned.strip_prefix("0X"))
    {
        return is_hex_float(hex);
    }
    let is_word = ["inf", "infinity"]
        .iter()
        .any(|word| unsigned.eq_ignore_ascii_case(word));
    // `ParseFloat` takes no sign before `nan`.
    let is_signed_nan = unsigned.len() < text.len() && unsigned.eq_ignore_ascii_case("nan");
    match text.parse::<f64>() {
        Ok(number) => !is_signed_nan && (is_word || !number.is_infinite()),
        Err(_) => false,
    }
}

/// Hexadecimal digits with at most one point, then `p` and a decimal exponent.
fn is_hex_float(text: &str) -> bool {
    let Some((mantissa, exponent)) = text.split_once(['p', 'P']) else {
        return false;
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_hex = |digits: &str| digits.bytes().all(|b| b.is_ascii_hexdigit());
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    // Sixteen digits and an exponent below 900 stay finite; longer ones are refused.
    whole.len() + fraction.len() > 0
        && whole.len() <= 16
        && is_hex(whole)
        && is_hex(fraction)
        && !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && exponent.parse::<i32>().is_ok_and(|e| e < 900)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_check_their_text() {
        for (kind, value, is_good) in [
            (Kind::Int, "23", true),
            (Kind::Int, "-9223372036854775808", true),
            (Kind::Int, "9223372036854775808", false),
            (Kind::Int, "2.0", false),
            (Kind::Int, "", false),
            (Kind::Float, "2.5", true),
            (Kind::Float, "1e3", true),
            (Kind::Float, ".5", true),
            (Kind::Float, "1e999", false),
            (Kind::Float, "NaN", true),
            (Kind::Float, "-nan", false),
            (Kind::Float, "-Inf", true),
            (Kind::Float, "0x1p-2", true),
            (Kind::Float, "0x1", false),
            (Kind::Float, "0xp1", false),
            (Kind::Float, "1 ", false),
            (Kind::Double, "x", false),
            (Kind::Boolean, "true", true),
            (Kind::Boolean, "True", false),
            (Kind::String, "", true),
            (Kind::Bytes, "aGk", true),
        ] {
            assert_eq!(kind.check(value).is_ok(), is_good, "{kind:?} {value:?}");
        }
    }

    #[test]
    fn names_and_values_have_a_class() {
        assert!(check_name("a-Z_0.,:/@#").is_ok());
        for bad in ["", "two words", "1e+3", "25°C", &"x".repeat(129)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        let theirs = ValueRule::default();
        let text = ValueRule {
            bytes_max: 600,
            is_text: true,
        };
        let long = |len| "x".repeat(len);
        for (value, by_theirs, by_text) in [
            (String::new(), true, true),
            (long(512), true, true),
            (long(513), false, true),
            (long(600), false, true),
            (long(601), false, false),
            ("25 °C <ok> \"+3\"".to_owned(), false, true),
            ("a\nb".to_owned(), false, false),
            ("\0".to_owned(), false, false),
        ] {
            assert_eq!(theirs.allows(&value), by_theirs, "{value}");
            assert_eq!(text.allows(&value), by_text, "{value}");
        }
    }

    #[test]
    fn updated_keeps_the_type() {
        assert_eq!(Kind::parse(Some("UPDATED")), Ok(None));
        assert_eq!(Kind::parse(Some("double")), Ok(Some(Kind::Double)));
        assert!(Kind::parse(Some("deleted")).is_err());
        assert_eq!(Kind::parse_lenient(Some("INT")), Kind::Int);
        assert_eq!(Kind::parse_lenient(Some("STREAM")), Kind::Unknown);
    }
}
