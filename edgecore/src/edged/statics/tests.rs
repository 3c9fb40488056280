use std::path::Path;

use serde_json::json;

use super::*;
use crate::edged::scripted::Store;

const NODE: &str = "edge-1";

/// A store, and a sink and a hub that note what they are told.
#[derive(Default)]
struct Around {
    store: Arc<Store>,
    told: tokio_watch::Sender<Vec<String>>,
    connected: tokio_watch::Sender<bool>,
}

impl Around {
    fn say(&self, line: String) {
        self.told.send_modify(|told| told.push(line));
    }

    async fn until(&self, line: &str) {
        let mut told = self.told.subscribe();
        let waited = told.wait_for(|told| told.iter().any(|said| said == line));
        let so = tokio::time::timeout(Duration::from_secs(10), waited)
            .await
            .is_ok();
        assert!(so, "never told: {line}; {:#?}", self.told.borrow());
    }
}

impl StatusSink for Around {
    fn pod_status(&self, _: &str, name: &str, uid: &str, status: Value) {
        self.say(format!("status {name} {uid} {}", status["phase"]));
    }
    fn pod_gone(&self, _: &str, name: &str, uid: &str) {
        self.say(format!("gone {name} {uid}"));
    }
    fn volume_gone(&self, _: &str, _: &str) {}
    fn node_status(&self, _: Value) {}
    fn hub_link(&self) -> Option<tokio_watch::Receiver<bool>> {
        None
    }
    fn event(&self, event: Value) {
        self.say(format!("event {}", event["message"].as_str().unwrap()));
    }
}

#[async_trait]
impl MirrorHub for Around {
    async fn create_mirror(&self, _: &str, name: &str, pod: Value) -> Result<(), String> {
        let hash = &pod["metadata"]["annotations"][CONFIG_MIRROR];
        self.say(format!("create {name} {}", hash.as_str().unwrap()));
        Ok(())
    }
    fn connected(&self) -> tokio_watch::Receiver<bool> {
        self.connected.subscribe()
    }
}

fn around(directory: &Path) -> (Arc<Around>, StaticPods) {
    let around = Arc::new(Around::default());
    let statics = StaticPods::new(StaticDeps {
        node: NODE.to_owned(),
        directory: directory.to_owned(),
        desired: around.store.clone(),
        sink: around.clone(),
        hub: around.clone(),
    });
    (around, statics)
}

fn manifest(name: &str, image: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": image}]},
    })
    .to_string()
}

/// Written beside and moved in place, as a careful tool does.
fn put(directory: &Path, file: &str, text: &str) {
    let partial = directory.join(format!(".{file}.new"));
    std::fs::write(&partial, text).unwrap();
    std::fs::rename(partial, directory.join(file)).unwrap();
}

fn mirror(name: &str, uid: &str, hash: &str, deleting: bool) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": uid,
            "annotations": {"kubernetes.io/config.mirror": hash, "kubernetes.io/config.source": "file"}},
    });
    if deleting {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    serde_json::from_value(pod).unwrap()
}

/// Name and uid of what Edged is given.
async fn given(statics: &StaticPods) -> Vec<(String, String)> {
    let pods = statics.pods().await.unwrap();
    let pair = |pod: Pod| (pod.metadata.name.unwrap(), pod.metadata.uid.unwrap());
    pods.into_iter().map(pair).collect()
}

async fn uid_of(statics: &StaticPods, name: &str) -> String {
    let given = given(statics).await;
    let found = given.into_iter().find(|(is, _)| is == name);
    found.unwrap_or_default().1
}

struct Running(CancellationToken, tokio::task::JoinHandle<()>);

impl Running {
    fn start(statics: &StaticPods) -> Self {
        let stop = CancellationToken::new();
        let (statics, token) = (statics.clone(), stop.clone());
        let task = tokio::spawn(async move { statics.run(token).await.unwrap() });
        Self(stop, task)
    }

    async fn stop(self) {
        self.0.cancel();
        self.1.await.unwrap();
    }
}

/// Waits until Edged would be given this.
async fn until_given(statics: &StaticPods, is_so: impl Fn(&[(String, String)]) -> bool) {
    let mut generation = DesiredState::generation(statics);
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !is_so(&given(statics).await) {
            generation.changed().await.unwrap();
        }
    });
    assert!(waited.await.is_ok(), "given: {:?}", given(statics).await);
}

#[tokio::test]
async fn files_are_pods_before_anything_else_is_known() {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), "web.json", &manifest("web", "a"));
    std::fs::write(directory.path().join(".hidden"), manifest("hidden", "a")).unwrap();
    std::fs::write(directory.path().join("web.json~"), manifest("old", "a")).unwrap();
    std::fs::write(
        directory.path().join("bad.yaml"),
        "kind: Pod\napiVersion: v1",
    )
    .unwrap();
    let (around, statics) = around(directory.path());
    let given = given(&statics).await;
    assert_eq!(given.len(), 1, "{given:?}");
    assert_eq!(given[0].0, "web-edge-1");
    assert!(statics.is_complete());
    let told = around.told.borrow().clone();
    assert!(
        told[0].ends_with("bad.yaml: metadata.name: `` is not a DNS name"),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_changed_file_replaces_its_pod_when_that_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let (around, statics) = around(directory.path());
    let running = Running::start(&statics);
    put(directory.path(), "web.json", &manifest("web", "a"));
    until_given(&statics, |given| given.len() == 1).await;
    let first = uid_of(&statics, "web-edge-1").await;
    statics.pod_status("default", "web-edge-1", &first, json!({"phase": "Running"}));

    // What is no pod leaves everything as it is.
    put(directory.path(), "web.json", "{");
    around
        .until(&format!(
            "event {}: .: EOF while parsing an object at line 1 column 1",
            directory.path().join("web.json").display()
        ))
        .await;
    assert_eq!(uid_of(&statics, "web-edge-1").await, first);

    put(directory.path(), "web.json", &manifest("web", "b"));
    until_given(&statics, <[_]>::is_empty).await;
    statics.pod_gone("default", "web-edge-1", &first);
    until_given(&statics, |given| given.len() == 1).await;
    assert_ne!(uid_of(&statics, "web-edge-1").await, first);

    std::fs::remove_file(directory.path().join("web.json")).unwrap();
    until_given(&statics, <[_]>::is_empty).await;
    running.stop().await;
}

#[tokio::test]
async fn a_directory_that_comes_later_is_followed() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("etc/manifests");
    let (_around, statics) = around(&directory);
    assert!(statics.is_complete(), "no directory is no pods");
    let running = Running::start(&statics);
    std::fs::create_dir_all(&directory).unwrap();
    put(&directory, "web.json", &manifest("web", "a"));
    until_given(&statics, |given| given.len() == 1).await;
    // One that goes as a whole cannot be read: nothing ends.
    std::fs::rename(&directory, parent.path().join("away")).unwrap();
    std::fs::rename(parent.path().join("away"), &directory).unwrap();
    put(&directory, "db.json", &manifest("db", "a"));
    until_given(&statics, |given| given.len() == 2).await;
    running.stop().await;
}

#[tokio::test]
async fn mirrors_follow_the_files_and_carry_the_status() {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), "web.json", &manifest("web", "a"));
    let (around, statics) = around(directory.path());
    let uid = uid_of(&statics, "web-edge-1").await;
    let running = Running::start(&statics);
    statics.pod_status("default", "web-edge-1", &uid, json!({"phase": "Running"}));
    assert!(around.told.borrow().is_empty(), "no hub, no mirror");

    around.connected.send_replace(true);
    around.until(&format!("create web-edge-1 {uid}")).await;
    // It comes down as any pod of the node does. It is nothing to run.
    around
        .store
        .set(vec![mirror("web-edge-1", "m1", &uid, false)]);
    assert_eq!(
        given(&statics).await,
        [("web-edge-1".to_owned(), uid.clone())]
    );
    around.until("status web-edge-1 m1 \"Running\"").await;

    // Deleted by somebody: let go, and made again when it is away.
    around
        .store
        .set(vec![mirror("web-edge-1", "m1", &uid, true)]);
    given(&statics).await;
    around.until("gone web-edge-1 m1").await;
    around.told.send_replace(Vec::new());
    around.store.set(Vec::new());
    assert_eq!(given(&statics).await.len(), 1, "the pod itself runs on");
    around.until(&format!("create web-edge-1 {uid}")).await;

    // The file goes: the mirror stays until the pod has ended.
    around
        .store
        .set(vec![mirror("web-edge-1", "m2", &uid, false)]);
    given(&statics).await;
    std::fs::remove_file(directory.path().join("web.json")).unwrap();
    until_given(&statics, <[_]>::is_empty).await;
    statics.pod_status("default", "web-edge-1", &uid, json!({"phase": "Succeeded"}));
    around.until("status web-edge-1 m2 \"Succeeded\"").await;
    assert!(
        !around
            .told
            .borrow()
            .contains(&"gone web-edge-1 m2".to_owned())
    );
    statics.pod_gone("default", "web-edge-1", &uid);
    around.until("gone web-edge-1 m2").await;
    running.stop().await;
}

#[tokio::test]
async fn a_mirror_of_another_content_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), "web.json", &manifest("web", "a"));
    let (around, statics) = around(directory.path());
    around.connected.send_replace(true);
    around.store.set(vec![
        mirror("web-edge-1", "m1", "older", false),
        mirror("left-edge-1", "m2", "x", false),
    ]);
    let running = Running::start(&statics);
    given(&statics).await;
    around.until("gone web-edge-1 m1").await;
    around.until("gone left-edge-1 m2").await;
    running.stop().await;
}

#[tokio::test]
async fn pods_of_the_api_pass_through() {
    let directory = tempfile::tempdir().unwrap();
    let (around, statics) = around(directory.path());
    let pod = json!({"metadata": {"name": "web", "namespace": "default", "uid": "u1"}});
    around.store.set(vec![serde_json::from_value(pod).unwrap()]);
    assert_eq!(given(&statics).await, [("web".to_owned(), "u1".to_owned())]);
    statics.pod_status("default", "web", "u1", json!({"phase": "Running"}));
    statics.pod_gone("default", "web", "u1");
    assert_eq!(
        *around.told.borrow(),
        ["status web u1 \"Running\"", "gone web u1"]
    );
}
