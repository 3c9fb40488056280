//! Kinds that come and go, and namespaces.

use super::*;

#[tokio::test]
async fn namespaces_are_born_with_contents_and_take_theirs_along() {
    let place = place().await;
    let made = place
        .ok(
            "POST",
            "/api/v1/namespaces",
            json!({"metadata": {"name": "x"}}),
        )
        .await;
    assert_eq!(made["status"]["phase"], "Active");
    let maps = "/api/v1/namespaces/x/configmaps";
    place
        .ok("GET", &format!("{maps}/kube-root-ca.crt"), Value::Null)
        .await;
    place
        .ok(
            "GET",
            "/api/v1/namespaces/x/serviceaccounts/default",
            Value::Null,
        )
        .await;
    place.ok("POST", maps, map("a")).await;
    place
        .ok("POST", "/api/v1/namespaces/x/pods", pod("p", "n1"))
        .await;
    let follower = place.api.clone();
    let follower = tokio::spawn(async move { follower.run().await });
    let ending = place
        .ok("DELETE", "/api/v1/namespaces/x", Value::Null)
        .await;
    assert_eq!(ending["status"]["phase"], "Terminating");
    let (code, refused) = place.ask("POST", maps, map("late")).await;
    assert_eq!(code, 403, "{refused}");
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    let namespaces = Gvr::core("namespaces");
    let mut watch = place
        .api
        .watch(&namespaces, "", &WatchOptions::default())
        .await
        .unwrap();
    // The node reports that the pod has stopped; the namespace goes with it.
    let now = json!({"gracePeriodSeconds": 0});
    place.ok("DELETE", "/api/v1/namespaces/x/pods/p", now).await;
    loop {
        if let WatchEvent::Deleted(object) = soon(watch.next()).await.unwrap() {
            assert_eq!(object["metadata"]["name"], "x");
            break;
        }
    }
    assert_eq!(
        place.ask("GET", &format!("{maps}/a"), Value::Null).await.0,
        404
    );
    follower.abort();
}

#[tokio::test]
async fn definitions_serve_their_kind_at_once() {
    let place = place().await;
    let definition = json!({"metadata": {"name": "things.ex.io"},
        "spec": {"group": "ex.io", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [
                {"name": "v2", "served": true, "storage": true, "subresources": {"status": {}},
                 "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "size": {"type": "integer", "minimum": 1, "default": 3}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}},
                {"name": "v1", "served": true, "storage": false,
                 "schema": {"openAPIV3Schema": {"type": "object",
                    "x-kubernetes-preserve-unknown-fields": true}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let made = place.ok("POST", definitions, definition).await;
    assert_eq!(made["status"]["conditions"][1]["type"], "Established");
    let things = "/apis/ex.io/v2/namespaces/default/things";
    let thing = json!({"metadata": {"name": "t"}, "spec": {"odd": 1}, "status": {"x": 1}});
    let thing = place.ok("POST", things, thing).await;
    assert_eq!(thing["spec"], json!({"size": 3}));
    assert!(thing["status"].is_null());
    let path = format!("{things}/t");
    let (code, status) = place
        .ask("PATCH", &path, json!({"spec": {"size": 0}}))
        .await;
    assert_eq!(code, 422, "{status}");
    let older = "/apis/ex.io/v1/namespaces/default/things/t";
    let older = place.ok("GET", older, Value::Null).await;
    assert_eq!(older["apiVersion"], "ex.io/v1");
    let groups = place.ok("GET", "/apis/ex.io", Value::Null).await;
    assert_eq!(groups["preferredVersion"]["version"], "v2");
    let (code, _) = place
        .ask("PUT", &path, json!({"metadata": {"name": "t"}}))
        .await;
    assert_eq!(code, 422, "custom kinds need a resourceVersion");
    place
        .ok(
            "DELETE",
            &format!("{definitions}/things.ex.io"),
            Value::Null,
        )
        .await;
    assert_eq!(place.ask("GET", &path, Value::Null).await.0, 404);
    let left = place.api.store().list(apiserver::store::ListQuery {
        prefix: "/registry/ex.io/".into(),
        ..Default::default()
    });
    assert!(left.await.unwrap().entries.is_empty());
}
