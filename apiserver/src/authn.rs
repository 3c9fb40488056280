//! Who asks, and whether they may. Identities are established by the program that owns the
//! listener (certificates, tokens) and arrive as a request extension.

use async_trait::async_trait;
use serde_json::Value;

use crate::status::ApiError;

/// Whom a token belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Reviewed {
    /// Who it is.
    pub user: User,
    /// For whom, of those that were asked about.
    pub audiences: Vec<String>,
    /// `extra` of the user's info.
    pub extra: Value,
}

/// Issues and recognises tokens of service accounts; the embedding program has the keys.
#[async_trait]
pub trait Tokens: Send + Sync + 'static {
    /// Answers a TokenRequest.
    async fn issue(
        &self,
        namespace: &str,
        account: &str,
        request: &Value,
    ) -> Result<Value, ApiError>;

    /// Whom the token belongs to; `None` if it is nobody's, is over, or is for others than
    /// `audiences` (none: the API itself).
    async fn review(&self, token: &str, audiences: &[String])
    -> Result<Option<Reviewed>, ApiError>;
}

/// The group whose members may do everything.
pub const MASTERS: &str = "system:masters";

/// The group of everybody without credentials.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";

/// An identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// For example `system:node:edge-1`.
    pub name: String,
    /// For example `system:nodes`.
    pub groups: Vec<String>,
    /// May be empty.
    pub uid: String,
}

impl User {
    /// Somebody who showed no credentials.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec![UNAUTHENTICATED.into()],
            uid: String::new(),
        }
    }

    /// Whether they are in the group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy)]
pub enum Attributes<'a> {
    /// Something with API objects.
    Resource {
        /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
        verb: &'a str,
        /// Empty for core.
        group: &'a str,
        /// Plural, followed by `/` and the subresource if there is one.
        resource: &'a str,
        /// Empty for all and for kinds without.
        namespace: &'a str,
        /// Empty for collections.
        name: &'a str,
        /// `fieldSelector` of a list or watch, as written.
        fields: &'a str,
    },
    /// Something with a path that is no object.
    Path {
        /// Method in lower case.
        verb: &'a str,
        /// The path.
        path: &'a str,
    },
}

/// Decides who may do what.
pub trait Authorizer: Send + Sync + 'static {
    /// `Err` is the refusal that the client sees; [`refuse`] makes the usual one.
    fn check(&self, user: &User, what: &Attributes<'_>) -> Result<(), ApiError>;
}

/// Paths that everybody may read.
const PUBLIC: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];
/// Paths that everybody with credentials may read.
const DISCOVERY: &[&str] = &["/api", "/apis", "/openapi"];

/// `system:masters` may do everything; everybody else may look at health, version and, with
/// credentials, discovery.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowMasters;

impl Authorizer for AllowMasters {
    fn check(&self, user: &User, what: &Attributes<'_>) -> Result<(), ApiError> {
        let under = |roots: &[&str], path: &str| {
            roots.iter().any(|root| {
                path.strip_prefix(root)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let allowed = user.is_in(MASTERS)
            || match what {
                Attributes::Path { verb: "get", path } => {
                    under(PUBLIC, path) || (!user.is_in(UNAUTHENTICATED) && under(DISCOVERY, path))
                }
                Attributes::Path { .. } | Attributes::Resource { .. } => false,
            };
        if allowed {
            Ok(())
        } else {
            Err(refuse(user, what))
        }
    }
}

/// The refusal in kube-apiserver's words (kube-api.md §4.9).
pub fn refuse(user: &User, what: &Attributes<'_>) -> ApiError {
    match *what {
        Attributes::Path { verb, path } => ApiError::forbidden_path(&user.name, verb, path),
        Attributes::Resource {
            verb,
            group,
            resource,
            namespace,
            name,
            ..
        } => {
            let place = if namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace \"{namespace}\"")
            };
            let why = format!(
                "User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}",
                user.name
            );
            let plural = resource.split('/').next().unwrap_or(resource);
            ApiError::forbidden(group, plural, name, &why)
        }
    }
}
