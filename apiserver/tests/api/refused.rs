//! What is refused, and how it is said.

use super::*;

#[tokio::test]
async fn refusals_have_the_codes_and_words_that_clients_match() {
    let place = place().await;
    place.ok("POST", MAPS, map("a")).await;
    let mut stale = map("a");
    stale["metadata"]["resourceVersion"] = "1".into();
    let mut versioned = map("b");
    versioned["metadata"]["resourceVersion"] = "5".into();
    let a = format!("{MAPS}/a");
    let b = format!("{MAPS}/b");
    let typo = json!({"metadata": {"name": "t"}, "dota": {}});
    let strict = format!("{MAPS}?fieldValidation=Strict");
    for (method, path, body, code, reason, message) in [
        (
            "POST",
            MAPS,
            map("a"),
            409,
            "AlreadyExists",
            "configmaps \"a\" already exists",
        ),
        (
            "GET",
            &*b,
            Value::Null,
            404,
            "NotFound",
            "configmaps \"b\" not found",
        ),
        (
            "PUT",
            &*b,
            map("b"),
            404,
            "NotFound",
            "configmaps \"b\" not found",
        ),
        (
            "PUT",
            &*a,
            map("b"),
            400,
            "BadRequest",
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            "PUT",
            &*a,
            stale,
            409,
            "Conflict",
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please \
          apply your changes to the latest version and try again",
        ),
        (
            "POST",
            &*a,
            map("a"),
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        ),
        (
            "GET",
            "/api/v1/namespaces/default/nopes",
            Value::Null,
            404,
            "NotFound",
            "the server could not find the requested resource",
        ),
        (
            "POST",
            "/api/v1/namespaces/nons/configmaps",
            map("a"),
            404,
            "NotFound",
            "namespaces \"nons\" not found",
        ),
        (
            "POST",
            &*strict,
            typo,
            400,
            "BadRequest",
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: \
          unknown field \"dota\"",
        ),
        (
            "DELETE",
            "/api/v1/namespaces/default",
            Value::Null,
            403,
            "Forbidden",
            "namespaces \"default\" is forbidden: this namespace may not be deleted",
        ),
        (
            "POST",
            MAPS,
            json!({"metadata": {}}),
            422,
            "Invalid",
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
    ] {
        let (got, status) = place.ask(method, path, body).await;
        assert_eq!(
            (got, status["reason"].as_str(), status["message"].as_str()),
            (code, Some(reason), Some(message)),
            "{method} {path}"
        );
    }
    let (code, status) = place.ask("POST", MAPS, versioned).await;
    assert_eq!(code, 500, "{status}");
}

#[tokio::test]
async fn bodies_are_bounded_and_strangers_are_refused() {
    let place = place().await;
    let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(3_145_728));
    let response = place.raw("POST", MAPS, &[], &huge).await;
    assert_eq!(response.status(), 413);
    let apply = [("content-type", "application/apply-patch+yaml")];
    let response = place
        .raw("PATCH", &format!("{MAPS}/a?force=true"), &apply, "a: b")
        .await;
    assert_eq!(response.status(), 415);
    let yaml = [("content-type", "application/yaml")];
    let response = place
        .raw("POST", MAPS, &yaml, "metadata: {name: yam}\ndata: {a: b}")
        .await;
    assert_eq!(response.status(), 201);

    let stranger = |path: &str| {
        http::Request::builder()
            .uri(path)
            .body(Full::<Bytes>::default())
    };
    for (path, code) in [
        ("/healthz", 200),
        ("/version", 200),
        ("/api", 403),
        (MAPS, 403),
    ] {
        let response = place.service.handle(stranger(path).unwrap()).await;
        assert_eq!(response.status(), code, "{path}");
    }
}

#[tokio::test]
async fn discovery_is_not_sent_twice() {
    let place = place().await;
    let accept = (
        "accept",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
    );
    let first = place.raw("GET", "/apis", &[accept], "").await;
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    assert!(
        first.headers()["content-type"]
            .to_str()
            .unwrap()
            .contains("as=APIGroupDiscoveryList")
    );
    let second = place
        .raw("GET", "/apis", &[accept, ("if-none-match", &tag)], "")
        .await;
    assert_eq!(second.status(), 304);
}
