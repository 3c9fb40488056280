//! A JSON reader that notices duplicate fields. The last one wins, as in Go.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{DecodeError, MAX_PROBLEMS};

/// The value and its duplicate fields. Nesting is bounded by the parser (128).
pub(super) fn parse(body: &[u8]) -> Result<(Value, Vec<String>), DecodeError> {
    let mut seen = Seen {
        path: String::new(),
        problems: Vec::new(),
    };
    let mut parser = serde_json::Deserializer::from_slice(body);
    let value = Node(&mut seen)
        .deserialize(&mut parser)
        .map_err(|e| DecodeError::Syntax(go_syntax(&e)))?;
    parser
        .end()
        .map_err(|e| DecodeError::Syntax(go_syntax(&e)))?;
    Ok((value, seen.problems))
}

fn go_syntax(error: &serde_json::Error) -> String {
    if error.is_eof() {
        "unexpected end of JSON input".into()
    } else {
        error.to_string()
    }
}

struct Seen {
    path: String,
    problems: Vec<String>,
}

struct Node<'a>(&'a mut Seen);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E: Error>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        let here = self.0.path.len();
        loop {
            self.0.path.push_str(&format!("[{}]", list.len()));
            let next = seq.next_element_seed(Node(self.0));
            self.0.path.truncate(here);
            match next? {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        let here = self.0.path.len();
        while let Some(key) = access.next_key::<String>()? {
            if here > 0 {
                self.0.path.push('.');
            }
            self.0.path.push_str(&key);
            if map.contains_key(&key) && self.0.problems.len() < MAX_PROBLEMS {
                self.0
                    .problems
                    .push(format!("duplicate field {:?}", self.0.path));
            }
            let value = access.next_value_seed(Node(self.0))?;
            self.0.path.truncate(here);
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
