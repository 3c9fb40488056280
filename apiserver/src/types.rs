//! What the built-in kinds look like: every message of the Kubernetes API with its protobuf numbers, JSON
//! names, Go pointer-ness and merge rules (`kube-api.md` §3.2, §5.2).
//!
//! The table is a text of about 70 kB, embedded compressed and read once. One line per message
//! (`@<apiVersion>.<Kind> [A]`, `A` = map-type atomic) followed by one line per field:
//! `<number> <jsonName> <type> <flags> [rules]`. Types: `s` string, `i` int32, `l` int64, `b` bool, `y` bytes,
//! `d` double, else a message. Flags: `o` one, `r` repeated, `m` map, then `p` pointer, `q` always written,
//! `n` flattened into its parent. Rules: `m=<key>` strategic merge, `k` retainKeys, `S` set, `M=<keys>` list map,
//! `A` atomic map.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::LazyLock;

static PACKED: &[u8] = include_bytes!("data/types.txt.gz");
static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = String::new();
    match flate2::read::GzDecoder::new(PACKED).read_to_string(&mut text) {
        Ok(_) => text,
        Err(_) => String::new(), // impossible for the bytes we ship; `table_is_whole` holds it
    }
});
static TYPES: LazyLock<Types> = LazyLock::new(|| Types::parse(TEXT.as_str()));

/// The type of one field (of one element when it repeats).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ty {
    /// A string.
    Str,
    /// A 32-bit integer.
    I32,
    /// A 64-bit integer.
    I64,
    /// A boolean.
    Bool,
    /// Bytes; base64 in JSON.
    Bytes,
    /// A double.
    F64,
    /// Another message, by its place in the table.
    Msg(usize),
}

/// How often a field occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Card {
    /// At most once.
    One,
    /// A list.
    Repeated,
    /// A map from strings.
    Map,
}

/// The list kind of server-side apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    /// Replaced whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// A map, keyed by these fields (comma separated).
    Map(&'static str),
}

/// One field of a message.
#[derive(Debug)]
pub struct Field {
    /// The protobuf number.
    pub number: u32,
    /// The JSON name.
    pub name: &'static str,
    /// The type of the field or its elements.
    pub ty: Ty,
    /// One, list or map.
    pub card: Card,
    /// A Go pointer: an explicit zero is significant.
    pub pointer: bool,
    /// Written even when empty (no `omitempty`).
    pub required: bool,
    /// Flattened into the parent.
    pub inline: bool,
    /// Strategic merge of a list: `Some(key)`, with an empty key for primitives.
    pub merge_key: Option<&'static str>,
    /// Strategic merge honours `$retainKeys` here.
    pub retain_keys: bool,
    /// How server-side apply sees the list.
    pub list: ListKind,
    /// A map that server-side apply replaces whole.
    pub atomic_map: bool,
}

/// Messages whose JSON form is not an object with their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Nothing special.
    No,
    /// `resource.Quantity`.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `meta/v1.Time`: RFC 3339, seconds.
    Time,
    /// `meta/v1.MicroTime`: RFC 3339, microseconds.
    MicroTime,
    /// `meta/v1.Duration`: a Go duration.
    Duration,
    /// Raw JSON.
    Raw,
    /// A message wrapping one repeated string.
    Wrapper,
    /// A schema, or a list of them.
    SchemaOrArray,
    /// A schema, or a boolean.
    SchemaOrBool,
    /// A schema, or a list of strings.
    SchemaOrStrings,
}

/// One message.
#[derive(Debug)]
pub struct Message {
    /// `<apiVersion>.<Kind>`.
    pub name: &'static str,
    /// Server-side apply treats the whole struct as one value.
    pub atomic: bool,
    /// Its JSON form.
    pub special: Special,
    /// Its fields, in the order of the table.
    pub fields: Vec<Field>,
}

impl Message {
    /// The Go type name.
    pub fn go_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// The field with this JSON name, looking into flattened messages.
    pub fn field(&'static self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find_map(|f| match (f.inline, f.ty) {
            (true, Ty::Msg(at)) => types().message(at)?.field(name),
            _ => (f.name == name).then_some(f),
        })
    }

    /// The field with this protobuf number.
    pub fn numbered(&self, number: u32) -> Option<&Field> {
        self.fields.iter().find(|f| f.number == number)
    }
}

/// The table of all messages.
#[derive(Debug, Default)]
pub struct Types {
    messages: Vec<Message>,
    by_name: HashMap<&'static str, usize>,
}

/// The table, read on first use.
pub fn types() -> &'static Types {
    &TYPES
}

/// The message of a kind, or `None` when it is not built in. The options and review kinds of `meta/v1` are known
/// under every group-version.
pub fn lookup(api_version: &str, kind: &str) -> Option<&'static Message> {
    let types = types();
    let own = types.by_name.get(format!("{api_version}.{kind}").as_str());
    let meta = || {
        matches!(
            kind,
            "DeleteOptions"
                | "CreateOptions"
                | "PatchOptions"
                | "UpdateOptions"
                | "Status"
                | "WatchEvent"
        )
        .then(|| types.by_name.get(format!("meta/v1.{kind}").as_str()))
        .flatten()
    };
    types.message(*own.or_else(meta)?)
}

impl Types {
    /// The message at a place of the table.
    pub fn message(&'static self, at: usize) -> Option<&'static Message> {
        self.messages.get(at)
    }

    fn parse(text: &'static str) -> Types {
        let mut types = Types::default();
        for line in text.lines() {
            if let Some(head) = line.strip_prefix('@') {
                let name = head.split(' ').next().unwrap_or(head);
                types.by_name.insert(name, types.messages.len());
                let atomic = head.ends_with(" A");
                let special = special(name);
                types.messages.push(Message {
                    name,
                    atomic,
                    special,
                    fields: Vec::new(),
                });
            }
        }
        let mut at = 0;
        for line in text.lines() {
            if line.starts_with('@') {
                at += 1;
            } else if let Some(field) = types.field(line)
                && let Some(message) = types.messages.get_mut(at - 1)
            {
                message.fields.push(field);
            }
        }
        types
    }

    fn field(&self, line: &'static str) -> Option<Field> {
        let mut words = line.split(' ');
        let number = words.next()?.parse().ok()?;
        let name = words.next()?;
        let ty = match words.next()? {
            "s" => Ty::Str,
            "i" => Ty::I32,
            "l" => Ty::I64,
            "b" => Ty::Bool,
            "y" => Ty::Bytes,
            "d" => Ty::F64,
            message => Ty::Msg(*self.by_name.get(message)?),
        };
        let flags = words.next()?;
        let card = match flags.as_bytes().first()? {
            b'r' => Card::Repeated,
            b'm' => Card::Map,
            _ => Card::One,
        };
        let mut field = Field {
            number,
            name,
            ty,
            card,
            pointer: flags.contains('p'),
            required: flags.contains('q'),
            inline: flags.contains('n'),
            merge_key: None,
            retain_keys: false,
            list: ListKind::Atomic,
            atomic_map: false,
        };
        for rule in words {
            if let Some(key) = rule.strip_prefix("m=") {
                field.merge_key = Some(key);
            } else if let Some(keys) = rule.strip_prefix("M=") {
                field.list = ListKind::Map(keys);
            } else {
                match rule {
                    "k" => field.retain_keys = true,
                    "S" => field.list = ListKind::Set,
                    "A" => field.atomic_map = true,
                    _ => {}
                }
            }
        }
        Some(field)
    }
}

fn special(name: &str) -> Special {
    match name {
        "resource.Quantity" => Special::Quantity,
        "intstr.IntOrString" => Special::IntOrString,
        "meta/v1.Time" => Special::Time,
        "meta/v1.MicroTime" => Special::MicroTime,
        "meta/v1.Duration" => Special::Duration,
        "meta/v1.FieldsV1" | "runtime.RawExtension" | "apiextensions.k8s.io/v1.JSON" => {
            Special::Raw
        }
        "apiextensions.k8s.io/v1.JSONSchemaPropsOrArray" => Special::SchemaOrArray,
        "apiextensions.k8s.io/v1.JSONSchemaPropsOrBool" => Special::SchemaOrBool,
        "apiextensions.k8s.io/v1.JSONSchemaPropsOrStringArray" => Special::SchemaOrStrings,
        _ if name.ends_with(".ExtraValue") || name == "meta/v1.Verbs" => Special::Wrapper,
        _ => Special::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_whole() {
        assert_eq!(
            types().messages.len(),
            TEXT.lines().filter(|l| l.starts_with('@')).count()
        );
        let fields: usize = types().messages.iter().map(|m| m.fields.len()).sum();
        assert_eq!(fields, TEXT.lines().filter(|l| !l.starts_with('@')).count());
        assert!(fields > 1800, "{fields}");
        for (api_version, kind) in [
            ("v1", "Pod"),
            ("apps/v1", "Deployment"),
            ("batch/v1", "CronJob"),
            ("rbac.authorization.k8s.io/v1", "Role"),
            ("coordination.k8s.io/v1", "Lease"),
            ("events.k8s.io/v1", "Event"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
            ("policy/v1", "Eviction"),
            ("authentication.k8s.io/v1", "TokenRequest"),
            ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
            ("apps/v1", "DeleteOptions"),
        ] {
            assert!(lookup(api_version, kind).is_some(), "{api_version} {kind}");
        }
        assert!(lookup("devices.kubeedge.io/v1beta1", "Device").is_none());
    }

    #[test]
    fn flattened_fields_are_found() {
        let volume = lookup("v1", "Volume")
            .and_then(|m| m.field("hostPath"))
            .map(|f| f.name);
        assert_eq!(volume, Some("hostPath"));
        let env = lookup("v1", "EphemeralContainer")
            .and_then(|m| m.field("env"))
            .and_then(|f| f.merge_key);
        assert_eq!(env, Some("name"));
    }
}
