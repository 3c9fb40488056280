//! The Kubernetes protobuf envelope and the typed messages inside, decoded to JSON (`kube-api.md` §3.2).
//!
//! Only requests come this way (kubectl 1.32 and every typed Go client), so there is no encoder.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON has six types, and will not get a seventh"
)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::types::{self, Card, Field, Message, Special, Ty};

/// The four bytes every envelope starts with.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// The body limit of the API, 3 MiB.
const MAX_BYTES: usize = 3 * 1024 * 1024;
/// Deeper than any real object; CRD schemas take three levels per level of theirs.
const MAX_DEPTH: usize = 100;
/// Values built from one body: keeps a body of empty elements from growing a hundredfold.
const MAX_VALUES: usize = 300_000;

/// Why a protobuf body could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProtoError {
    /// The magic is missing.
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    NoMagic,
    /// The bytes end inside a value, or a value makes no sense.
    #[error("unexpected EOF")]
    Malformed,
    /// Too large, too deep or too many values.
    #[error("the message is too large")]
    TooLarge,
    /// Encoded content (`contentEncoding`) is not spoken.
    #[error("unsupported content encoding {0:?}")]
    Encoding(String),
    /// No built-in message has this name.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind {
        /// Its apiVersion.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// Strings must be UTF-8, embedded JSON must be JSON.
    #[error("the message holds text that is not valid")]
    BadText,
}

/// Decodes an envelope: `(apiVersion, kind, object)`. The object carries `apiVersion` and `kind` too.
pub fn decode(body: &[u8]) -> Result<(String, String, Value), ProtoError> {
    if body.len() > MAX_BYTES {
        return Err(ProtoError::TooLarge);
    }
    let mut envelope = Reader {
        rest: body
            .strip_prefix(MAGIC.as_slice())
            .ok_or(ProtoError::NoMagic)?,
    };
    let (mut api_version, mut kind, mut raw, mut encoding) =
        (String::new(), String::new(), &[][..], String::new());
    while let Some((number, value)) = envelope.next()? {
        match (number, value) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader { rest: meta };
                while let Some((number, value)) = meta.next()? {
                    match (number, value) {
                        (1, Wire::Bytes(b)) => api_version = text(b)?,
                        (2, Wire::Bytes(b)) => kind = text(b)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => raw = b,
            (3, Wire::Bytes(b)) => encoding = text(b)?,
            _ => {}
        }
    }
    if !encoding.is_empty() {
        return Err(ProtoError::Encoding(encoding));
    }
    let Some(message) = types::lookup(&api_version, &kind) else {
        return Err(ProtoError::UnknownKind { api_version, kind });
    };
    let mut decoder = Decoder { values: 0 };
    let mut object = decoder.object(message, raw, 0)?;
    object.insert("apiVersion".into(), api_version.clone().into());
    object.insert("kind".into(), kind.clone().into());
    Ok((api_version, kind, Value::Object(object)))
}

#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtoError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtoError::Malformed)?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| ProtoError::Malformed)?;
                Wire::Bytes(self.take(len)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(ProtoError::Malformed),
        };
        Ok(Some((number, value)))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ProtoError> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(ProtoError::Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        self.take(N)?.try_into().map_err(|_| ProtoError::Malformed)
    }

    fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtoError::Malformed)
    }
}

struct Decoder {
    values: usize,
}

impl Decoder {
    fn count(&mut self) -> Result<(), ProtoError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            Err(ProtoError::TooLarge)
        } else {
            Ok(())
        }
    }

    fn object(
        &mut self,
        message: &Message,
        raw: &[u8],
        depth: usize,
    ) -> Result<Map<String, Value>, ProtoError> {
        let mut object = Map::new();
        self.fill(message, raw, depth, &mut object)?;
        Ok(object)
    }

    fn fill(
        &mut self,
        message: &Message,
        raw: &[u8],
        depth: usize,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtoError> {
        if depth > MAX_DEPTH {
            return Err(ProtoError::TooLarge);
        }
        let mut reader = Reader { rest: raw };
        while let Some((number, wire)) = reader.next()? {
            let Some(field) = message.numbered(number) else {
                continue;
            };
            if field.inline {
                if let (Ty::Msg(at), Wire::Bytes(raw)) = (field.ty, wire)
                    && let Some(inner) = types::types().message(at)
                {
                    self.fill(inner, raw, depth + 1, object)?;
                }
                continue;
            }
            match field.card {
                Card::One => {
                    let value = self.value(field.ty, wire, depth)?;
                    if keep(field, &value) {
                        object.insert(field.name.into(), value);
                    } else {
                        object.remove(field.name);
                    }
                }
                Card::Repeated => self.repeated(field, wire, depth, object)?,
                Card::Map => self.entry(field, wire, depth, object)?,
            }
        }
        Ok(())
    }

    fn repeated(
        &mut self,
        field: &Field,
        wire: Wire<'_>,
        depth: usize,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtoError> {
        let slot = object
            .entry(field.name)
            .or_insert_with(|| Value::Array(Vec::new()));
        let Value::Array(list) = slot else {
            return Ok(());
        };
        if let (Ty::I32 | Ty::I64 | Ty::Bool, Wire::Bytes(packed)) = (field.ty, &wire) {
            let mut packed = Reader { rest: packed };
            while !packed.rest.is_empty() {
                let number = packed.varint()?;
                list.push(self.value(field.ty, Wire::Varint(number), depth)?);
            }
        } else {
            list.push(self.value(field.ty, wire, depth)?);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        field: &Field,
        wire: Wire<'_>,
        depth: usize,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtoError> {
        let Wire::Bytes(raw) = wire else {
            return Err(ProtoError::Malformed);
        };
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader { rest: raw };
        while let Some((number, wire)) = reader.next()? {
            match (number, wire) {
                (1, Wire::Bytes(b)) => key = text(b)?,
                (2, wire) => value = Some(self.value(field.ty, wire, depth)?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            None => self
                .value(field.ty, Wire::Bytes(&[]), depth)
                .unwrap_or_default(),
        };
        let slot = object
            .entry(field.name)
            .or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(map) = slot {
            map.insert(key, value);
        }
        Ok(())
    }

    fn value(&mut self, ty: Ty, wire: Wire<'_>, depth: usize) -> Result<Value, ProtoError> {
        self.count()?;
        Ok(match (ty, wire) {
            (Ty::Str, Wire::Bytes(b)) => text(b)?.into(),
            (Ty::Bytes, Wire::Bytes(b)) => STANDARD.encode(b).into(),
            (Ty::Bool, Wire::Varint(n)) => (n != 0).into(),
            (Ty::I32, Wire::Varint(n)) => low32(n).into(),
            (Ty::I64, Wire::Varint(n)) => n.cast_signed().into(),
            (Ty::I32, Wire::Fixed32(n)) => n.cast_signed().into(),
            (Ty::F64, Wire::Fixed64(n)) => Value::from(f64::from_bits(n)),
            (Ty::Msg(at), Wire::Bytes(raw)) => {
                let Some(message) = types::types().message(at) else {
                    return Err(ProtoError::Malformed);
                };
                self.message(message, raw, depth + 1)?
            }
            _ => return Err(ProtoError::Malformed),
        })
    }

    fn message(
        &mut self,
        message: &Message,
        raw: &[u8],
        depth: usize,
    ) -> Result<Value, ProtoError> {
        let mut object = self.object(message, raw, depth)?;
        let mut take = |name: &str| object.remove(name).unwrap_or_default();
        let first = |names: [&str; 2], object: &mut Map<String, Value>| {
            names
                .iter()
                .find_map(|n| object.remove(*n))
                .unwrap_or_default()
        };
        Ok(match message.special {
            Special::No => Value::Object(object),
            Special::Quantity => match take("string") {
                Value::Null => "0".into(),
                text => text,
            },
            Special::IntOrString => {
                if take("type").as_i64() == Some(1) {
                    Value::String(take("strVal").as_str().unwrap_or_default().to_owned())
                } else {
                    take("intVal").as_i64().unwrap_or_default().into()
                }
            }
            Special::Time => time(&take("seconds"), &take("nanos"), false),
            Special::MicroTime => time(&take("seconds"), &take("nanos"), true),
            Special::Duration => go_duration(take("duration").as_i64().unwrap_or_default()).into(),
            Special::Raw => raw_json(raw)?,
            Special::Wrapper => object
                .into_values()
                .next()
                .unwrap_or_else(|| Value::Array(Vec::new())),
            Special::SchemaOrArray => first(["jSONSchemas", "schema"], &mut object),
            Special::SchemaOrBool => match first(["schema", "allows"], &mut object) {
                Value::Null => false.into(),
                value => value,
            },
            Special::SchemaOrStrings => first(["property", "schema"], &mut object),
        })
    }
}

/// Go writes value-typed scalars always: a zero is "absent" unless the field is a pointer or never omitted.
fn keep(field: &Field, value: &Value) -> bool {
    if field.pointer || field.required {
        return true;
    }
    match value {
        Value::Null => field.name != "creationTimestamp",
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

fn low32(n: u64) -> i32 {
    let bytes = n.to_le_bytes();
    i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn text(bytes: &[u8]) -> Result<String, ProtoError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| ProtoError::BadText)
}

fn raw_json(raw: &[u8]) -> Result<Value, ProtoError> {
    let mut reader = Reader { rest: raw };
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(json)) = (number, wire)
            && !json.is_empty()
        {
            return serde_json::from_slice(json).map_err(|_| ProtoError::BadText);
        }
    }
    Ok(Value::Null)
}

/// An empty message is the zero time, which JSON writes as null.
fn time(seconds: &Value, nanos: &Value, micro: bool) -> Value {
    let seconds = seconds.as_i64().unwrap_or_default();
    let nanos = nanos
        .as_i64()
        .and_then(|n| i32::try_from(n).ok())
        .unwrap_or_default();
    if seconds == 0 && nanos == 0 {
        return Value::Null;
    }
    match Timestamp::new(seconds, nanos) {
        Ok(t) if micro => t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string().into(),
        Ok(t) => t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into(),
        Err(_) => Value::Null,
    }
}

/// Go's `time.Duration.String`.
fn go_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let fraction = |n: u64, unit: u64| {
        let (whole, part) = (n / unit, n % unit);
        if part == 0 {
            return whole.to_string();
        }
        let digits = unit.to_string().len() - 1;
        format!(
            "{whole}.{}",
            format!("{part:0digits$}").trim_end_matches('0')
        )
    };
    match n {
        0 => "0s".into(),
        1..1_000 => format!("{sign}{n}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", fraction(n, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(n, 1_000_000)),
        _ => {
            let minutes = n / 60_000_000_000;
            let seconds = fraction(n % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, m) => format!("{sign}{m}m{seconds}s"),
                (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
#[path = "proto_tests.rs"]
mod tests;
