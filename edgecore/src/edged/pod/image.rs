//! Registry credentials of a pod: `imagePullSecrets`, in both of Docker's file forms.

use base64::Engine as _;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use crate::edged::runtime::RegistryAuth;

/// The credentials in these secrets for the registry of this image; the first that fits.
pub(super) fn auth_for<'a>(
    image: &str,
    secrets: impl Iterator<Item = &'a Secret>,
) -> Option<RegistryAuth> {
    let host = registry(image);
    secrets.filter_map(auths).find_map(|auths| {
        let fits = auths.iter().find(|(key, _)| canonical(key) == host)?;
        credentials(fits.1)
    })
}

fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => canonical(first),
        _ => "docker.io",
    }
}

fn canonical(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    match key.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

fn auths(secret: &Secret) -> Option<serde_json::Map<String, Value>> {
    let data = secret.data.as_ref()?;
    if let Some(file) = data.get(".dockerconfigjson") {
        let mut file: Value = serde_json::from_slice(&file.0).ok()?;
        return file.get_mut("auths")?.as_object_mut().map(std::mem::take);
    }
    serde_json::from_slice(&data.get(".dockercfg")?.0).ok()
}

fn credentials(entry: &Value) -> Option<RegistryAuth> {
    let text = |key: &str| {
        entry
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (username, password) = (text("username"), text("password"));
    if !username.is_empty() {
        return Some(RegistryAuth {
            username,
            password,
            ..RegistryAuth::default()
        });
    }
    let engine = base64::engine::general_purpose::STANDARD;
    let decoded = engine.decode(text("auth")).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some(RegistryAuth {
        username: username.to_owned(),
        password: password.trim_end_matches('\0').to_owned(),
        ..RegistryAuth::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn credentials_are_found_by_registry() {
        let file = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},
            "reg.local:5000":{"username":"a","password":"b"}}}"#;
        let secret = Secret {
            data: Some([(".dockerconfigjson".to_owned(), ByteString(file.to_vec()))].into()),
            ..Secret::default()
        };
        let find =
            |image| auth_for(image, [&secret].into_iter()).map(|a| a.username + "/" + &a.password);
        for (image, want) in [
            ("busybox", Some("u/p")),
            ("library/busybox:1", Some("u/p")),
            ("reg.local:5000/x/y@sha256:00", Some("a/b")),
            ("other.io/x", None),
        ] {
            assert_eq!(find(image).as_deref(), want, "{image}");
        }
    }
}
