//! Requests about objects and collections.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response};
use rand::Rng;
use serde_json::{Value, json};

use super::answer::{self, Body, View};
use super::negotiate::{self, Shape};
use super::route::{Query, ResourcePath};
use super::watch::{self, Wishes};
use super::{Asked, Service, body};
use crate::authn::Attributes;
use crate::pipeline::{
    At, DeleteOptions, FieldValidation, ListOptions, WatchOptions, WriteOptions, Written,
};
use crate::registry::ResourceDef;
use crate::status::ApiError;
use crate::table::{self, Companions, IncludeObject};

/// Watches without `timeoutSeconds` end after 30 to 60 minutes, at random so that clients do not
/// return all at once (apiserver `MinRequestTimeout`).
const WATCH_SECS_MIN: u64 = 1800;
/// Longest name of a field manager (meta/v1 `FieldManagerMaxLength`).
const FIELD_MANAGER_BYTES_MAX: usize = 128;
/// Longest `timeoutSeconds`.
const WATCH_SECS_MAX: u64 = 86_400;

impl Service {
    pub(super) async fn resource(
        &self,
        asked: Asked,
        path: ResourcePath,
    ) -> Result<Response<Body>, ApiError> {
        let watching = path.name.is_empty() && asked.query.flag("watch")?;
        let verb = verb(&asked.method, &path, watching)?;
        self.authorize(&asked, &path, verb)?;
        let served = self.api.registry().served();
        let Some(def) = served.get(&path.group, &path.version, &path.plural) else {
            if !served.groups().contains(&path.group) {
                return Ok(answer::text(404, "404 page not found\n"));
            }
            return Err(ApiError::no_such_resource());
        };
        if path.deeper || def.namespaced == path.namespace.is_empty() && !path.name.is_empty() {
            return Err(ApiError::no_such_resource());
        }
        if !def.namespaced && !path.namespace.is_empty() {
            return Err(ApiError::no_such_resource());
        }
        let allowed = if path.subresource.is_empty() {
            def.allows(verb)
        } else {
            let sub = def
                .subresource(&path.subresource)
                .ok_or_else(ApiError::no_such_resource)?;
            sub.verbs.contains(&verb)
        };
        if !allowed || (verb == "create" && def.namespaced && path.namespace.is_empty()) {
            return Err(ApiError::method_not_allowed());
        }
        let shape = negotiate::choose(&asked.accept())?;
        match verb {
            "get" | "list" | "watch" => {
                let paired = matches!(shape, Shape::Table(_)) && self.shows_pairs(&asked, &path);
                let query = &asked.query;
                self.read(query, def, &path, (shape, paired), verb).await
            }
            _ => self.write(asked, def, &path, shape, verb).await,
        }
    }

    fn authorize(&self, asked: &Asked, path: &ResourcePath, verb: &str) -> Result<(), ApiError> {
        let resource = if path.subresource.is_empty() {
            path.plural.clone()
        } else {
            format!("{}/{}", path.plural, path.subresource)
        };
        self.authorizer.check(
            &asked.user,
            &Attributes::Resource {
                verb,
                group: &path.group,
                resource: &resource,
                namespace: &path.namespace,
                name: &path.name,
                fields: asked.query.get("fieldSelector"),
            },
        )
    }

    /// Whether rows show companions: there are some, and the asker may see them.
    fn shows_pairs(&self, asked: &Asked, path: &ResourcePath) -> bool {
        table::companion(&path.group, &path.plural).is_some_and(|plural| {
            let mut other = path.clone();
            plural.clone_into(&mut other.plural);
            let verb = if path.name.is_empty() { "list" } else { "get" };
            self.authorize(asked, &other, verb).is_ok()
        })
    }

    async fn read(
        &self,
        query: &Query,
        def: &Arc<ResourceDef>,
        path: &ResourcePath,
        (shape, paired): (Shape, bool),
        verb: &str,
    ) -> Result<Response<Body>, ApiError> {
        let mut view = View {
            companions: Companions::new(),
            def,
            shape,
            include: include(query)?,
            now: self.api.now(),
        };
        match verb {
            "get" => {
                let object = self.api.pipeline.get(at(def, path)).await?;
                if paired {
                    view.companions = self
                        .api
                        .companions(def, std::slice::from_ref(&object))
                        .await;
                }
                Ok(answer::json(200, &view.one(object)?))
            }
            "list" => {
                let options = list_options(query)?;
                let list = self.api.pipeline.list(def, &path.namespace, &options);
                let list = list.await?;
                if paired {
                    view.companions = self.api.companions(def, &list.items).await;
                }
                Ok(answer::json(200, &view.many(list)?))
            }
            _ => {
                let options = watch_options(query)?;
                let wishes = Wishes {
                    shape,
                    include: view.include,
                    bookmarks: query.flag("allowWatchBookmarks")?,
                    timeout: watch_timeout(query)?,
                    paired,
                    companions: if paired {
                        let namespace = &path.namespace;
                        self.api.watch_companions(def, namespace, &options).await
                    } else {
                        None
                    },
                };
                let watch = self.api.pipeline.watch(def, &path.namespace, &options);
                let body = match watch.await {
                    Ok(watch) => watch::body(self.api.clone(), watch, wishes),
                    // A revision that is gone is told inside the stream (§3.4).
                    Err(error) if error.reason == crate::Reason::Expired => {
                        answer::full(format!("{}\n", error.to_watch_event()))
                    }
                    Err(error) => return Err(error),
                };
                Ok(answer::respond(200, answer::JSON, body))
            }
        }
    }

    async fn write(
        &self,
        asked: Asked,
        def: &Arc<ResourceDef>,
        path: &ResourcePath,
        shape: Shape,
        verb: &str,
    ) -> Result<Response<Body>, ApiError> {
        let view = View {
            companions: Companions::new(),
            def,
            shape,
            include: include(&asked.query)?,
            now: self.api.now(),
        };
        let content_type = asked.content_type();
        let query = asked.query;
        let bytes = asked.body;
        let pipeline = &self.api.pipeline;
        if matches!(verb, "delete" | "deletecollection") {
            let options = delete_options(&query, &body::options(&content_type, &bytes)?)?;
            if verb == "deletecollection" {
                return self.delete_many(def, path, &query, options, &view).await;
            }
            let deleted = pipeline.delete(at(def, path), options).await?;
            return Ok(answer::json(200, &view.one(deleted.answer)?));
        }
        let mut options = write_options(&query, verb)?;
        let subresource = (!path.subresource.is_empty()).then_some(path.subresource.as_str());
        let written = match (verb, subresource) {
            ("create", Some("binding")) => {
                let binding = body::options(&content_type, &bytes)?;
                let status = pipeline.bind(at(def, path), &binding, options).await?;
                return Ok(answer::json(201, &status));
            }
            ("create", Some("token")) => {
                let request = body::options(&content_type, &bytes)?;
                let issued = self.tokens()?.issue(&path.namespace, &path.name, &request);
                return Ok(answer::json(201, &issued.await?));
            }
            ("create", Some("eviction")) => {
                let eviction = body::options(&content_type, &bytes)?;
                let status = pipeline.evict(at(def, path), &eviction).await?;
                return Ok(answer::json(201, &status));
            }
            ("patch", _) => {
                let patch = body::patch(def, &content_type, &bytes)?;
                refuse_force(&query)?;
                let at = at(def, path);
                pipeline.patch(at, subresource, &patch, options).await?
            }
            (_, _) => {
                let (object, problems) = body::object(def, &content_type, &bytes)?;
                options.problems = problems;
                if verb == "create" {
                    let create = pipeline.create(def, &path.namespace, object, options);
                    create.await?
                } else {
                    let at = at(def, path);
                    pipeline.update(at, subresource, object, options).await?
                }
            }
        };
        let Written {
            object,
            created,
            warnings,
        } = written;
        let code = if created { 201 } else { 200 };
        let mut response = answer::json(code, &view.one(object)?);
        answer::warn(&mut response, &warnings);
        Ok(response)
    }

    async fn delete_many(
        &self,
        def: &Arc<ResourceDef>,
        path: &ResourcePath,
        query: &Query,
        options: DeleteOptions,
        view: &View<'_>,
    ) -> Result<Response<Body>, ApiError> {
        let pipeline = &self.api.pipeline;
        let mut list = pipeline
            .list(def, &path.namespace, &list_options(query)?)
            .await?;
        for item in &mut list.items {
            let object = item.clone();
            let at = At {
                def,
                namespace: crate::pipeline::meta::namespace(&object),
                name: crate::pipeline::meta::name(&object),
            };
            match pipeline.delete(at, options.clone()).await {
                Ok(deleted) => *item = deleted.object,
                Err(error) if error.reason == crate::Reason::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answer::json(200, &view.many(list)?))
    }
}

fn at<'a>(def: &'a Arc<ResourceDef>, path: &'a ResourcePath) -> At<'a> {
    At {
        def,
        namespace: &path.namespace,
        name: &path.name,
    }
}

fn verb(method: &Method, path: &ResourcePath, watching: bool) -> Result<&'static str, ApiError> {
    let one = !path.name.is_empty();
    Ok(match (method.as_str(), one) {
        ("GET" | "HEAD", true) => "get",
        ("GET" | "HEAD", false) if watching => "watch",
        ("GET" | "HEAD", false) => "list",
        ("POST", false) => "create",
        ("POST", true) if !path.subresource.is_empty() => "create",
        ("PUT", true) => "update",
        ("PATCH", true) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => return Err(ApiError::method_not_allowed()),
    })
}

fn include(query: &Query) -> Result<IncludeObject, ApiError> {
    IncludeObject::parse(query.get("includeObject")).map_err(ApiError::bad_request)
}

fn list_invalid(kind: &str, field: &str, message: &str) -> ApiError {
    ApiError::invalid_field(
        "meta.k8s.io",
        kind,
        "",
        "FieldValueForbidden",
        field,
        message,
    )
}

fn list_options(query: &Query) -> Result<ListOptions, ApiError> {
    if query.has("sendInitialEvents") {
        return Err(list_invalid(
            "ListOptions",
            "sendInitialEvents",
            "Forbidden: sendInitialEvents is forbidden for list",
        ));
    }
    let revision = query.get("resourceVersion");
    let exact = match query.get("resourceVersionMatch") {
        "" | "NotOlderThan" => false,
        "Exact" if revision.is_empty() => {
            return Err(list_invalid(
                "ListOptions",
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        "Exact" if revision == "0" => {
            return Err(list_invalid(
                "ListOptions",
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
        "Exact" => true,
        other => {
            return Err(list_invalid(
                "ListOptions",
                "resourceVersionMatch",
                &format!(
                    "Unsupported value: \"{other}\": supported values: \"Exact\", \"NotOlderThan\", \"\""
                ),
            ));
        }
    };
    let limit = query.number("limit")?.unwrap_or(0);
    Ok(ListOptions {
        labels: query.get("labelSelector").into(),
        fields: query.get("fieldSelector").into(),
        limit: usize::try_from(limit).unwrap_or(0),
        continue_token: query.get("continue").into(),
        resource_version: revision.into(),
        exact,
    })
}

fn watch_options(query: &Query) -> Result<WatchOptions, ApiError> {
    let initial_events = query.flag("sendInitialEvents")?;
    let matching = query.get("resourceVersionMatch");
    if initial_events && matching != "NotOlderThan" {
        return Err(list_invalid(
            "ListOptions",
            "resourceVersionMatch",
            "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if !query.has("sendInitialEvents") && !matching.is_empty() {
        return Err(list_invalid(
            "ListOptions",
            "resourceVersionMatch",
            "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is \
             provided",
        ));
    }
    Ok(WatchOptions {
        labels: query.get("labelSelector").into(),
        fields: query.get("fieldSelector").into(),
        resource_version: query.get("resourceVersion").into(),
        initial_events,
    })
}

fn watch_timeout(query: &Query) -> Result<Duration, ApiError> {
    let asked = query.number("timeoutSeconds")?.unwrap_or(0);
    let secs = match u64::try_from(asked) {
        Ok(0) | Err(_) => rand::rng().random_range(WATCH_SECS_MIN..2 * WATCH_SECS_MIN),
        Ok(secs) => secs.min(WATCH_SECS_MAX),
    };
    Ok(Duration::from_secs(secs))
}

/// `dryRun=All`, or nothing.
fn dry_run(query: &Query, kind: &str) -> Result<bool, ApiError> {
    match query.all("dryRun") {
        [] => Ok(false),
        [one] if one.is_empty() => Ok(false),
        [one] if one == "All" => Ok(true),
        other => Err(ApiError::invalid_field(
            "meta.k8s.io",
            kind,
            "",
            "FieldValueNotSupported",
            "dryRun",
            format!(
                "Unsupported value: {}: supported values: \"All\"",
                json!(other)
            ),
        )),
    }
}

fn write_options(query: &Query, verb: &str) -> Result<WriteOptions, ApiError> {
    let kind = match verb {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        _ => "PatchOptions",
    };
    let field_validation = match query.get("fieldValidation") {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => {
            return Err(ApiError::invalid_field(
                "meta.k8s.io",
                kind,
                "",
                "FieldValueNotSupported",
                "fieldValidation",
                format!(
                    "Unsupported value: \"{other}\": supported values: \"\", \"Ignore\", \
                     \"Strict\", \"Warn\""
                ),
            ));
        }
    };
    let manager = query.get("fieldManager");
    if manager.len() > FIELD_MANAGER_BYTES_MAX {
        return Err(ApiError::invalid_field(
            "meta.k8s.io",
            kind,
            "",
            "FieldValueTooLong",
            "fieldManager",
            format!("Too long: may not be more than {FIELD_MANAGER_BYTES_MAX} bytes"),
        ));
    }
    Ok(WriteOptions {
        dry_run: dry_run(query, kind)?,
        field_validation,
        ..WriteOptions::default()
    })
}

/// `force` belongs to server-side apply.
fn refuse_force(query: &Query) -> Result<(), ApiError> {
    if !query.has("force") {
        return Ok(());
    }
    Err(ApiError::invalid_field(
        "meta.k8s.io",
        "PatchOptions",
        "",
        "FieldValueForbidden",
        "force",
        "Forbidden: may not be specified for non-apply patch",
    ))
}

/// Body and query say the same things; the body wins.
fn delete_options(query: &Query, body: &Value) -> Result<DeleteOptions, ApiError> {
    let mut options = DeleteOptions::parse(body)?;
    crate::pipeline::check_propagation(query.get("propagationPolicy"))?;
    options.dry_run |= dry_run(query, "DeleteOptions")?;
    if options.grace_secs.is_none() {
        options.grace_secs = query.number("gracePeriodSeconds")?;
    }
    Ok(options)
}
