//! Image references, read by hand.
//!
//! The grammar is the distribution project's (`reference/regexp.go`), and the short forms are
//! completed as Docker does.

use super::super::RuntimeError;

/// Longest `domain/path`, in bytes (distribution, `NameTotalLengthMax`).
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// An image's name, completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// `docker.io`, `host:port`.
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) tag: Option<String>,
    pub(super) digest: Option<String>,
}

impl Reference {
    /// As containerd names the image's record.
    pub(super) fn whole(&self) -> String {
        let mut whole = format!("{}/{}", self.registry, self.repository);
        if let Some(tag) = &self.tag {
            whole.push(':');
            whole.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            whole.push('@');
            whole.push_str(digest);
        }
        whole
    }
}

/// Registry and repository of an image as a pod names it; `None` if that is no name.
pub(crate) fn split(written: &str) -> Option<(String, String)> {
    let parsed = parse(written).ok()?;
    Some((parsed.registry, parsed.repository))
}

/// The name under which an image is known once it is here.
pub(crate) fn full(written: &str) -> Result<String, RuntimeError> {
    normalize(written).map(|parsed| parsed.whole())
}

/// `busybox:1` -> `docker.io/library/busybox:1`.
pub(super) fn normalize(written: &str) -> Result<Reference, RuntimeError> {
    parse(written).map_err(|reason| RuntimeError::InvalidImageName {
        reference: written.to_owned(),
        reason: reason.to_owned(),
    })
}

fn parse(written: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match written.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (written, None),
    };
    // A colon after the last slash starts a tag; one before it belongs to the registry's port.
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest.get(last..).and_then(|part| part.split_once(':')) {
        Some((leaf, tag)) => (rest.get(..last + leaf.len()).unwrap_or(rest), Some(tag)),
        None => (rest, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (first.to_owned(), path.to_owned()),
        Some(_) => ("docker.io".to_owned(), name.to_owned()),
        None => ("docker.io".to_owned(), format!("library/{name}")),
    };
    let registry = match registry.as_str() {
        "index.docker.io" => "docker.io".to_owned(),
        _ => registry,
    };
    if !is_host(&registry) {
        return Err("the registry is not a host with an optional port");
    }
    if path.is_empty() || !path.split('/').all(is_component) {
        return Err("the repository must be lower-case words separated by `/`");
    }
    if registry.len() + 1 + path.len() > NAME_BYTES_MAX {
        return Err("the name is longer than 255 characters");
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag must be 1 to 128 of letters, digits, `_`, `.`, `-`");
    }
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("the digest must look like `sha256:` and 64 hexadecimal digits");
    }
    let tag = match (tag, digest) {
        (None, None) => Some("latest"),
        (tag, _) => tag,
    };
    Ok(Reference {
        registry,
        repository: path,
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

/// Docker's rule for what stands before the first slash.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase)
}

fn is_host(registry: &str) -> bool {
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let Some((host, after)) = rest.split_once(']') else {
            return false;
        };
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        (
            "v6",
            after.strip_prefix(':').or(after.is_empty().then_some("0")),
        )
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, Some("0")),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_some_and(|port| port.parse::<u16>().is_ok())
}

/// Lower-case letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    if !ends.iter().all(|end| end.is_some_and(|b| alphanumeric(*b))) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=TAG_BYTES_MAX).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_digest(digest: &str) -> bool {
    let hex = |text: &str, len: usize| {
        text.len() == len
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    match digest.split_once(':') {
        Some(("sha256", value)) => hex(value, 64),
        Some(("sha384", value)) => hex(value, 96),
        Some(("sha512", value)) => hex(value, 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_are_completed_as_docker_does() {
        let pinned = format!("busybox@sha256:{HEX}");
        let both = format!("quay.io/a/b:1@sha256:{HEX}");
        for (written, whole) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1", "docker.io/library/busybox:1".to_owned()),
            ("a/b", "docker.io/a/b:latest".to_owned()),
            ("index.docker.io/a/b:1", "docker.io/a/b:1".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c".to_owned()),
            (
                "127.0.0.1:5000/a__b/c-d.e:V_1.2-3",
                "127.0.0.1:5000/a__b/c-d.e:V_1.2-3".to_owned(),
            ),
            ("[::1]:5000/a:1", "[::1]:5000/a:1".to_owned()),
            (
                pinned.as_str(),
                format!("docker.io/library/busybox@sha256:{HEX}"),
            ),
            (both.as_str(), format!("quay.io/a/b:1@sha256:{HEX}")),
        ] {
            assert_eq!(normalize(written).unwrap().whole(), whole, "{written}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = format!("quay.io/{}", "a".repeat(250));
        for written in [
            "",
            "UPPER case",
            "a b",
            "Upper",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a@b",
            "-a.io/b",
            "host:99999/b",
            "host:/b",
            "[::g]:1/a",
            "a..b",
            "a___b",
            "ümlaut",
            "a:t:u",
            &long,
        ] {
            assert!(normalize(written).is_err(), "`{written}` was accepted");
        }
    }
}
