//! Lists and watches.

use super::*;

#[tokio::test]
async fn lists_are_paged_on_one_state() {
    let place = place().await;
    for n in 0..5 {
        place.ok("POST", MAPS, map(&format!("m{n}"))).await;
    }
    let first = place
        .ok("GET", &format!("{MAPS}?limit=2"), Value::Null)
        .await;
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    assert!(first["items"][0]["kind"].is_null(), "items have no type");
    place.ok("DELETE", &format!("{MAPS}/m4"), Value::Null).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = format!("{MAPS}?limit=9&continue={token}");
    let rest = place.ok("GET", &rest, Value::Null).await;
    let names: Vec<&str> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|i| i["metadata"]["name"].as_str())
        .collect();
    assert_eq!(
        names,
        ["m1", "m2", "m3", "m4"],
        "as it was at the first page"
    );
    let now = format!("{MAPS}?labelSelector=none&limit=1");
    let now = place.ok("GET", &now, Value::Null).await;
    assert_eq!(now["items"], json!([]));
    let future = format!("{MAPS}?resourceVersion=99999");
    assert_eq!(place.ask("GET", &future, Value::Null).await.0, 504);
}

async fn next_line(body: &mut apiserver::http::Body) -> Value {
    let frame = soon(body.frame()).await.unwrap().unwrap();
    serde_json::from_slice(frame.data_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn watches_show_selectors_being_entered_and_left() {
    let place = place().await;
    let list = place.ok("GET", MAPS, Value::Null).await;
    let path = format!(
        "{MAPS}?watch=1&labelSelector=a%3Db&resourceVersion={}",
        rv(&list)
    );
    let mut body = place.raw("GET", &path, &[], "").await.into_body();
    place.ok("POST", MAPS, map("m")).await;
    let labelled = json!({"metadata": {"labels": {"a": "b"}}});
    let path = format!("{MAPS}/m");
    let labelled = place.ok("PATCH", &path, labelled).await;
    let event = next_line(&mut body).await;
    assert_eq!(
        (&event["type"], rv(&event["object"])),
        (&json!("ADDED"), rv(&labelled))
    );
    let left = json!({"metadata": {"labels": null}});
    let left = place.ok("PATCH", &path, left).await;
    let event = next_line(&mut body).await;
    assert_eq!(
        (&event["type"], rv(&event["object"])),
        (&json!("DELETED"), rv(&left))
    );
    assert_eq!(
        event["object"]["metadata"]["labels"]["a"], "b",
        "as it was before"
    );
}

#[tokio::test(start_paused = true)]
async fn watches_end_with_a_bookmark() {
    let place = place().await;
    let path =
        format!("{MAPS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=70&resourceVersion=1");
    let started = tokio::time::Instant::now();
    let body = place.raw("GET", &path, &[], "").await.into_body();
    let bytes = body.collect().await.unwrap().to_bytes();
    let lines: Vec<Value> = String::from_utf8(bytes.to_vec())
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let bookmarks: Vec<&Value> = lines.iter().filter(|l| l["type"] == "BOOKMARK").collect();
    assert_eq!(
        bookmarks.len(),
        2,
        "after a minute and before the end: {lines:?}"
    );
    assert_eq!(
        bookmarks[0]["object"],
        json!({"kind": "ConfigMap", "apiVersion": "v1",
               "metadata": {"resourceVersion": place.api.store().revision().await.unwrap().to_string()}})
    );
    assert_eq!(started.elapsed().as_secs(), 70);
}

#[tokio::test]
async fn initial_events_end_with_a_mark() {
    let place = place().await;
    let path = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&\
         allowWatchBookmarks=true"
    );
    let mut body = place.raw("GET", &path, &[], "").await.into_body();
    let frame = soon(body.frame()).await.unwrap().unwrap();
    let text = String::from_utf8(frame.data_ref().unwrap().to_vec()).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines[0]["type"], "ADDED");
    let mark = &lines.last().unwrap()["object"]["metadata"]["annotations"];
    assert_eq!(mark["k8s.io/initial-events-end"], "true");
}
