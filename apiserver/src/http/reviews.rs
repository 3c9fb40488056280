//! Questions about oneself, `kubectl auth can-i` and `auth whoami`, and about a token's owner.
//! Nothing is stored.

use http::{Method, Response};
use serde_json::{Value, json};

use super::route::ResourcePath;
use super::{Asked, Body, Service, answer, body};
use crate::authn::{Attributes, User};
use crate::pipeline::meta;
use crate::status::ApiError;

/// The reviews that are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Review {
    Access,
    User,
    Token,
}

pub(super) fn kind(path: &ResourcePath) -> Option<Review> {
    match (
        path.group.as_str(),
        path.version.as_str(),
        path.plural.as_str(),
    ) {
        ("authorization.k8s.io", "v1", "selfsubjectaccessreviews") => Some(Review::Access),
        ("authentication.k8s.io", "v1", "selfsubjectreviews") => Some(Review::User),
        ("authentication.k8s.io", "v1", "tokenreviews") => Some(Review::Token),
        _ => None,
    }
}

impl Service {
    pub(super) async fn review(
        &self,
        asked: &Asked,
        review: Review,
    ) -> Result<Response<Body>, ApiError> {
        if asked.method != Method::POST {
            return Err(ApiError::method_not_allowed());
        }
        let content_type = asked.content_type();
        let user = &asked.user;
        let question = body::options(&content_type, &asked.body)?;
        let now = meta::rfc3339(self.api.now());
        let metadata = json!({"creationTimestamp": now});
        Ok(match review {
            Review::Token => self.review_token(user, question, &metadata).await?,
            Review::User => answer::json(
                201,
                &json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1",
                    "metadata": metadata,
                    "status": {"userInfo": {"username": user.name, "uid": user.uid,
                                            "groups": user.groups}}}),
            ),
            Review::Access => {
                let spec = question.get("spec").cloned().unwrap_or(Value::Null);
                let outcome = self.authorizer.check(user, &attributes(&spec)?);
                let mut status = json!({"allowed": outcome.is_ok()});
                if let Err(refusal) = outcome {
                    status["reason"] = refusal.message.into();
                }
                answer::json(
                    201,
                    &json!({"kind": "SelfSubjectAccessReview",
                        "apiVersion": "authorization.k8s.io/v1", "metadata": metadata,
                        "spec": spec, "status": status}),
                )
            }
        })
    }
}

impl Service {
    async fn review_token(
        &self,
        user: &User,
        question: Value,
        metadata: &Value,
    ) -> Result<Response<Body>, ApiError> {
        self.authorizer.check(
            user,
            &Attributes::Resource {
                verb: "create",
                group: "authentication.k8s.io",
                resource: "tokenreviews",
                namespace: "",
                name: "",
                fields: "",
            },
        )?;
        let spec = question.get("spec").cloned().unwrap_or(Value::Null);
        let wanted = spec["audiences"].as_array().into_iter().flatten();
        let wanted: Vec<String> = wanted
            .filter_map(|audience| audience.as_str().map(str::to_owned))
            .collect();
        let token = meta::text(&spec, "/token");
        let status = match self.tokens()?.review(token, &wanted).await? {
            Some(known) => json!({
                "authenticated": true,
                "user": {"username": known.user.name, "uid": known.user.uid,
                         "groups": known.user.groups, "extra": known.extra},
                "audiences": known.audiences,
            }),
            None => json!({"user": {}, "error": "invalid bearer token"}),
        };
        let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
            "metadata": metadata, "spec": spec, "status": status});
        Ok(answer::json(201, &review))
    }
}

fn attributes(spec: &Value) -> Result<Attributes<'_>, ApiError> {
    if spec["nonResourceAttributes"].is_object() {
        return Ok(Attributes::Path {
            verb: meta::text(spec, "/nonResourceAttributes/verb"),
            path: meta::text(spec, "/nonResourceAttributes/path"),
        });
    }
    if !spec["resourceAttributes"].is_object() {
        return Err(ApiError::bad_request(
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    Ok(Attributes::Resource {
        verb: meta::text(spec, "/resourceAttributes/verb"),
        group: meta::text(spec, "/resourceAttributes/group"),
        resource: meta::text(spec, "/resourceAttributes/resource"),
        namespace: meta::text(spec, "/resourceAttributes/namespace"),
        name: meta::text(spec, "/resourceAttributes/name"),
        fields: "",
    })
}
