//! Registry credentials of a pod: `imagePullSecrets`, in both of Docker's file forms.

use k8s_openapi::api::core::v1::Secret;

use crate::edged::runtime::{Keyring, RegistryAuth, split_reference};

/// Every entry of these secrets that fits the image's registry, in the order in which kubelet
/// would try them.
pub(super) fn auths_for<'a>(
    image: &str,
    secrets: impl Iterator<Item = &'a Secret>,
) -> Vec<RegistryAuth> {
    let mut ring = Keyring::default();
    for secret in secrets {
        let data = secret.data.as_ref();
        let field = |name: &str| data.and_then(|data| data.get(name)).map(|bytes| &bytes.0);
        let read = match (field(".dockerconfigjson"), field(".dockercfg")) {
            (Some(bytes), _) => ring.add_config(bytes),
            (None, Some(bytes)) => ring.add_legacy(bytes),
            (None, None) => false,
        };
        if !read {
            let name = secret.metadata.name.as_deref().unwrap_or_default();
            tracing::warn!(
                secret = name,
                "imagePullSecret holds no registry credentials"
            );
        }
    }
    // A reference that is none is refused where it is pulled.
    split_reference(image).map_or_else(Vec::new, |(registry, repository)| {
        ring.lookup(&registry, &repository)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(key: &str, file: &[u8]) -> Secret {
        Secret {
            data: Some([(key.to_owned(), ByteString(file.to_vec()))].into()),
            ..Secret::default()
        }
    }

    #[test]
    fn credentials_are_found_by_registry() {
        let secrets = [
            secret(".dockerconfigjson", b"not json"),
            secret(
                ".dockerconfigjson",
                br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},
                "reg.local:5000":{"username":"a","password":"b"}}}"#,
            ),
            secret(
                ".dockercfg",
                br#"{"reg.local:5000":{"username":"c","password":"d"}}"#,
            ),
        ];
        for (image, want) in [
            ("busybox", vec!["u/p"]),
            ("library/busybox:1", vec!["u/p"]),
            ("reg.local:5000/x/y", vec!["a/b", "c/d"]),
            ("other.io/x", vec![]),
            ("!!", vec![]),
        ] {
            let found: Vec<String> = auths_for(image, secrets.iter())
                .into_iter()
                .map(|auth| auth.username + "/" + &auth.password)
                .collect();
            assert_eq!(found, want, "{image}");
        }
    }
}
