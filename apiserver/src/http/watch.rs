//! Watches as streams of JSON lines (kube-api.md §3.4).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::{Body, View, partial};
use super::negotiate::Shape;
use crate::Api;
use crate::pipeline::{ObjectWatch, WatchEvent, meta};
use crate::status::ApiError;
use crate::table::{Companions, IncludeObject};

/// How often a client that asked for bookmarks is told where it stands.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A last bookmark is sent so long before the stream ends.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// Events of one frame at most, so that a full ring is not copied at once.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// What the client asked for.
pub(super) struct Wishes {
    pub(super) shape: Shape,
    pub(super) include: IncludeObject,
    pub(super) bookmarks: bool,
    pub(super) timeout: Duration,
    /// Whether rows show companions.
    pub(super) paired: bool,
    /// Whose changes are changes of a row too.
    pub(super) companions: Option<ObjectWatch>,
}

struct Stream {
    api: Api,
    watch: ObjectWatch,
    wishes: Wishes,
    ends: Instant,
    bookmark: Instant,
    last_bookmark_sent: bool,
    columns_sent: bool,
    done: bool,
}

/// The body of the response.
pub(super) fn body(api: Api, watch: ObjectWatch, wishes: Wishes) -> Body {
    let now = Instant::now();
    let stream = Stream {
        api,
        watch,
        ends: now + wishes.timeout,
        bookmark: now + BOOKMARK_EVERY,
        last_bookmark_sent: false,
        columns_sent: false,
        done: false,
        wishes,
    };
    let frames = stream::unfold(stream, |mut stream| async move {
        let bytes = stream.next_frame().await?;
        Some((Ok(Frame::data(bytes)), stream))
    });
    StreamBody::new(frames).boxed_unsync()
}

impl Stream {
    async fn next_frame(&mut self) -> Option<Bytes> {
        loop {
            if self.done {
                return None;
            }
            let before_end = self.ends.checked_sub(BOOKMARK_BEFORE_END);
            let due = match (self.wishes.bookmarks, self.last_bookmark_sent, before_end) {
                (false, _, _) | (true, true, None) => self.ends,
                (true, false, Some(before_end)) => self.bookmark.min(before_end),
                (true, true, Some(_)) | (true, false, None) => self.ends,
            };
            // `next` is cancel-safe.
            let event = tokio::select! {
                biased;
                event = self.watch.next() => event,
                event = next_of(&mut self.wishes.companions) => {
                    if let Some(row) = self.row_of(event).await {
                        return Some(row);
                    }
                    continue;
                }
                () = tokio::time::sleep_until(due) => {
                    if due >= self.ends {
                        self.done = true;
                        return None;
                    }
                    let now = Instant::now();
                    self.last_bookmark_sent = before_end.is_some_and(|t| now >= t);
                    self.bookmark = now + BOOKMARK_EVERY;
                    if let Some(line) = self.bookmark_line() {
                        return Some(line);
                    }
                    continue;
                }
            };
            match event {
                Ok(event) => {
                    let mut out = Vec::new();
                    self.write(event, &mut out).await;
                    while out.len() < FRAME_BYTES_MAX
                        && let Some(event) = self.watch.ready()
                    {
                        self.write(event, &mut out).await;
                    }
                    if !out.is_empty() {
                        return Some(out.into());
                    }
                }
                Err(error) => {
                    self.done = true;
                    let mut line = error.to_watch_event().to_string();
                    line.push('\n');
                    return Some(line.into());
                }
            }
        }
    }

    /// What is shown in the row of the object.
    async fn companions(&mut self, object: &Value) -> Companions {
        if !self.wishes.paired {
            return Companions::new();
        }
        let def = Arc::clone(self.watch.def());
        let objects = std::slice::from_ref(object);
        self.api.companions(&def, objects).await
    }

    /// The row of an object whose companion has changed.
    async fn row_of(&mut self, event: Result<WatchEvent, ApiError>) -> Option<Bytes> {
        let companion = match event {
            Ok(WatchEvent::Added(companion) | WatchEvent::Modified(companion)) => companion,
            Ok(WatchEvent::Deleted(_) | WatchEvent::Synced(_)) => return None,
            // Rows change with their objects from now on.
            Err(_) => {
                self.wishes.companions = None;
                return None;
            }
        };
        let (namespace, name) = (meta::namespace(&companion), meta::name(&companion));
        let gvr = &self.watch.def().gvr;
        let object = self.api.get(gvr, namespace, name).await.ok()?;
        if !self.watch.selects(&object) {
            return None;
        }
        let mut out = Vec::new();
        let event = WatchEvent::Modified(Arc::new(object));
        self.write(event, &mut out).await;
        (!out.is_empty()).then(|| out.into())
    }

    fn bookmark_line(&self) -> Option<Bytes> {
        let revision = self.watch.position()?;
        let def = self.watch.def();
        let mut object = json!({"kind": def.kind, "apiVersion": def.api_version(),
            "metadata": {"resourceVersion": revision.to_string()}});
        if self.wishes.shape == Shape::Partial {
            object = partial(&object);
        }
        Some(line("BOOKMARK", &object).into())
    }

    async fn write(&mut self, event: WatchEvent, out: &mut Vec<u8>) {
        let (kind, object) = match event {
            WatchEvent::Added(object) => ("ADDED", object),
            WatchEvent::Modified(object) => ("MODIFIED", object),
            WatchEvent::Deleted(object) => ("DELETED", object),
            WatchEvent::Synced(revision) => {
                if self.wishes.bookmarks {
                    let def = self.watch.def();
                    let object = json!({"kind": def.kind, "apiVersion": def.api_version(),
                        "metadata": {"resourceVersion": revision.to_string(),
                                     "annotations": {"k8s.io/initial-events-end": "true"}}});
                    out.extend(line("BOOKMARK", &object));
                }
                return;
            }
        };
        if self.wishes.shape == Shape::Plain {
            out.extend(line(kind, &object));
            return;
        }
        let view = View {
            companions: self.companions(&object).await,
            def: self.watch.def(),
            shape: if self.wishes.shape == Shape::PartialList {
                Shape::Partial
            } else {
                self.wishes.shape
            },
            include: self.wishes.include,
            now: self.api.now(),
        };
        let Ok(mut shown) = view.one(Value::clone(&object)) else {
            return;
        };
        if let Shape::Table(_) = self.wishes.shape {
            if self.columns_sent {
                shown["columnDefinitions"] = Value::Null;
            }
            self.columns_sent = true;
        }
        out.extend(line(kind, &shown));
    }
}

/// Never, if nothing is watched. Cancel-safe.
async fn next_of(watch: &mut Option<ObjectWatch>) -> Result<WatchEvent, ApiError> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// `{"type":…,"object":…}` and a newline.
fn line(kind: &str, object: &Value) -> Vec<u8> {
    let mut out = format!("{{\"type\":\"{kind}\",\"object\":").into_bytes();
    // Writing a JSON value to memory does not fail.
    if serde_json::to_writer(&mut out, object).is_err() {
        return Vec::new();
    }
    out.extend_from_slice(b"}\n");
    out
}
