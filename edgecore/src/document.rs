//! Kubernetes objects from their JSON.

use serde::de::DeserializeOwned;

/// Where a document is not what its kind asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Unreadable {
    /// Path of the member, `.` for the whole.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads one object. Every part of the node that wants a typed object reads it here: what reads a pod
/// is a large piece of the program, and should be in it once.
///
/// # Errors
/// Text that is no JSON, and a member of a wrong type, by its path.
pub fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, Unreadable> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let object = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| unreadable(error.path().to_string(), error.inner()))?;
    match reader.end() {
        Ok(()) => Ok(object),
        Err(error) => Err(unreadable(".".to_owned(), &error)),
    }
}

/// The place in a text that nobody sees helps nobody.
fn unreadable(field: String, error: &serde_json::Error) -> Unreadable {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let reason = error.to_string();
    let reason = reason.strip_suffix(&place).unwrap_or(&reason).to_owned();
    let field = if field == "?" { ".".to_owned() } else { field };
    Unreadable { field, reason }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        for (json, expected) in [
            (
                r#"{"spec":{"containers":[{"name":"c","image":7}]}}"#,
                "spec.containers[0].image: invalid type: integer `7`, expected a string",
            ),
            ("{", ".: EOF while parsing an object"),
            ("{} x", ".: trailing characters"),
        ] {
            let error = read::<Pod>(json.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), expected, "{json}");
        }
        let pod: Pod = read(br#"{"metadata":{"name":"p"}}"#).unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("p"));
    }
}
