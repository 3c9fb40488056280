//! The content store: reading blobs, and writing them so that a broken transfer goes on where it
//! stopped.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, InfoResponse, ReadContentRequest, UpdateRequest, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use containerd_client::tonic::{Code, Streaming};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::channel::{CALL, CallError, Daemon, PULL, tolerate_missing};
use super::image::{Descriptor, ImageError};

/// One WRITE carries at most this much. containerd takes up to 16 MiB; this bounds what one layer
/// of a pull holds in memory.
const CHUNK_BYTES_MAX: usize = 256 << 10;
/// Manifests and configs are read into memory; anything larger is refused (registries use 4 MiB).
pub(super) const DOCUMENT_BYTES_MAX: i64 = 4 << 20;

/// Bytes of one blob from some offset on.
pub(super) type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// `sha256:<hex>` of `bytes`.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

async fn info(daemon: &Daemon, digest: &str) -> Result<InfoResponse, CallError> {
    let request = InfoRequest {
        digest: digest.to_owned(),
    };
    let mut content = daemon.content();
    daemon
        .call("content info", CALL, content.info(request))
        .await
}

/// Whether a blob is complete in our namespace.
pub(super) async fn exists(daemon: &Daemon, digest: &str) -> Result<bool, CallError> {
    match info(daemon, digest).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a whole small blob and checks its digest.
pub(super) async fn read_document(daemon: &Daemon, digest: &str) -> Result<Vec<u8>, ImageError> {
    let size = info(daemon, digest).await?.info.map_or(0, |info| info.size);
    if size > DOCUMENT_BYTES_MAX {
        return Err(ImageError::invalid(format!(
            "document {digest} has {size} bytes"
        )));
    }
    let mut stream = read_blob(daemon, digest, 0).await?;
    let mut bytes = BytesMut::new();
    while let Some(chunk) = tokio::time::timeout(CALL, stream.next())
        .await
        .map_err(|_| ImageError::invalid(format!("reading {digest} stalled")))?
    {
        bytes.extend_from_slice(&chunk.map_err(ImageError::transfer)?);
    }
    if digest_of(&bytes) != digest {
        return Err(ImageError::invalid(format!(
            "content of {digest} does not match its digest"
        )));
    }
    Ok(bytes.to_vec())
}

/// Streams a blob from `offset` on.
pub(super) async fn read_blob(
    daemon: &Daemon,
    digest: &str,
    offset: u64,
) -> Result<ByteStream, ImageError> {
    let stream = daemon
        .call(
            "content read",
            CALL,
            daemon.content().read(ReadContentRequest {
                digest: digest.to_owned(),
                offset: i64::try_from(offset).unwrap_or(i64::MAX),
                size: 0,
            }),
        )
        .await?;
    Ok(stream
        .map(|part| {
            part.map(|part| Bytes::from(part.data))
                .map_err(io::Error::other)
        })
        .boxed())
}

/// How a blob's transfer is carried on when it breaks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// A transfer that brings nothing for this long has broken.
    pub(super) stall: Duration,
    /// Attempts in a row that bring nothing before it is given up.
    pub(super) attempts: u32,
    /// Before the second attempt; doubled from one to the next.
    pub(super) first_delay: Duration,
}

/// Longest delay between two attempts.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// One open write transaction of the content store.
struct Transfer<'a> {
    daemon: &'a Daemon,
    blob: &'a Descriptor,
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
}

/// What the store said to a write message.
enum Answer {
    Offset(i64),
    /// The blob is already complete in our namespace.
    Exists,
}

fn reference(blob: &Descriptor) -> String {
    format!("edgecore-{}", blob.digest)
}

impl<'a> Transfer<'a> {
    fn request(blob: &Descriptor, action: WriteAction) -> WriteContentRequest {
        WriteContentRequest {
            action: action.into(),
            r#ref: reference(blob),
            total: blob.size,
            expected: blob.digest.clone(),
            ..WriteContentRequest::default()
        }
    }

    /// Opens a transaction; `None` if the blob is complete.
    async fn open(
        daemon: &'a Daemon,
        blob: &'a Descriptor,
    ) -> Result<Option<(Self, i64)>, ImageError> {
        let (requests, queue) = mpsc::channel(2);
        let stat = Self::request(blob, WriteAction::Stat);
        requests
            .send(stat)
            .await
            .map_err(|_| ImageError::invalid("write queue closed".to_owned()))?;
        let opened = daemon
            .call(
                "content write",
                CALL,
                daemon.content().write(ReceiverStream::new(queue)),
            )
            .await;
        let responses = match opened {
            Err(error) if error.is_already_exists() => return Ok(None),
            other => other?,
        };
        let mut transfer = Self {
            daemon,
            blob,
            requests,
            responses,
        };
        Ok(match transfer.answer().await? {
            Answer::Exists => None,
            Answer::Offset(offset) => Some((transfer, offset)),
        })
    }

    async fn answer(&mut self) -> Result<Answer, ImageError> {
        let message = tokio::time::timeout(PULL, self.responses.message())
            .await
            .map_err(|_| ImageError::invalid("the content store stalled".to_owned()))?;
        match message {
            Ok(Some(response)) => Ok(Answer::Offset(response.offset)),
            Ok(None) => Err(ImageError::invalid(
                "the content store ended the write early".to_owned(),
            )),
            Err(status) if status.code() == Code::AlreadyExists => Ok(Answer::Exists),
            Err(status) => Err(self.daemon.failed("content write", status).into()),
        }
    }

    async fn say(&mut self, request: WriteContentRequest) -> Result<Answer, ImageError> {
        if self.requests.send(request).await.is_err() {
            // The store closed the transaction; why is in the answer.
            return self.answer().await;
        }
        self.answer().await
    }

    async fn write(&mut self, offset: i64, data: Vec<u8>) -> Result<Answer, ImageError> {
        let mut write = Self::request(self.blob, WriteAction::Write);
        write.offset = offset;
        write.data = data;
        self.say(write).await
    }
}

/// Writes `blob` with `labels` unless it is there. `source(offset)` yields its bytes from `offset`
/// on; it is not asked when the daemon already holds the bytes (ours, or shared by another
/// namespace: then COMMIT alone, a WRITE would fail the size check). `reached` hears the offset.
///
/// A transfer that breaks is carried on where it stopped, as long as `patience` says; what came
/// so far stays in the store for the next pull.
pub(super) async fn ingest<F, Fut>(
    daemon: &Daemon,
    blob: &Descriptor,
    labels: &HashMap<String, String>,
    patience: Option<Patience>,
    reached: &mut (dyn FnMut(u64) + Send),
    source: F,
) -> Result<(), ImageError>
where
    F: Fn(u64) -> Fut + Send + Sync,
    Fut: Future<Output = Result<ByteStream, ImageError>> + Send,
{
    let mut barren = 0;
    let mut is_fresh = false;
    let mut furthest = 0;
    loop {
        let mut at = 0;
        let done = attempt(daemon, blob, labels, patience, &mut at, reached, &source).await;
        let error = match done {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if error.is_failed_precondition() && !is_fresh {
            // What was there is not what it should be (a disk that lost its last writes, or the
            // registry sent something else): once more from the beginning.
            tracing::warn!(%error, blob = blob.digest, "broken transfer thrown away");
            abort(daemon, blob).await?;
            is_fresh = true;
            continue;
        }
        if error.is_failed_precondition() {
            abort(daemon, blob).await?;
            let digest = &blob.digest;
            return Err(ImageError::invalid(format!(
                "content of {digest} does not match its digest ({error})"
            )));
        }
        let Some(patience) = patience.filter(|_| error.is_passing()) else {
            return Err(error);
        };
        barren = if at > furthest { 0 } else { barren + 1 };
        furthest = furthest.max(at);
        if barren >= patience.attempts {
            return Err(error);
        }
        let delay = delay(patience.first_delay, barren);
        tracing::info!(%error, blob = blob.digest, at, ?delay, "transfer broke; it goes on");
        tokio::time::sleep(delay).await;
    }
}

/// Doubled from one barren attempt to the next, with up to a quarter more so that nodes which lost
/// the same registry do not come back as one.
fn delay(first: Duration, barren: u32) -> Duration {
    let plain = first.saturating_mul(1 << barren.saturating_sub(1).min(16));
    plain
        .min(DELAY_MAX)
        .mul_f64(1.0 + rand::random::<f64>() / 4.0)
}

async fn attempt<F, Fut>(
    daemon: &Daemon,
    blob: &Descriptor,
    labels: &HashMap<String, String>,
    patience: Option<Patience>,
    at: &mut i64,
    reached: &mut (dyn FnMut(u64) + Send),
    source: &F,
) -> Result<(), ImageError>
where
    F: Fn(u64) -> Fut + Send + Sync,
    Fut: Future<Output = Result<ByteStream, ImageError>> + Send,
{
    let size = u64::try_from(blob.size).unwrap_or(0);
    let Some((mut transfer, offset)) = Transfer::open(daemon, blob).await? else {
        reached(size);
        return relabel(daemon, blob, labels.clone()).await;
    };
    *at = offset;
    reached(u64::try_from(offset).unwrap_or(0));
    if offset < blob.size {
        let stall = patience.map_or(PULL, |patience| patience.stall);
        let stream = source(u64::try_from(offset).unwrap_or(0)).await?;
        if !write_from(&mut transfer, at, reached, stall, stream).await? {
            return relabel(daemon, blob, labels.clone()).await;
        }
    }
    let mut commit = Transfer::request(blob, WriteAction::Commit);
    commit.offset = blob.size;
    commit.labels.clone_from(labels);
    match transfer.say(commit).await? {
        Answer::Offset(_) => Ok(()),
        Answer::Exists => relabel(daemon, blob, labels.clone()).await,
    }
}

/// Sends what is missing; false if the blob turned out to be there already. Whatever arrived is
/// written before a break is told: not a byte comes twice.
async fn write_from(
    transfer: &mut Transfer<'_>,
    at: &mut i64,
    reached: &mut (dyn FnMut(u64) + Send),
    stall: Duration,
    mut stream: ByteStream,
) -> Result<bool, ImageError> {
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES_MAX);
    loop {
        let part = match tokio::time::timeout(stall, stream.next()).await {
            Ok(part) => part.transpose().map_err(ImageError::transfer),
            Err(_) => Err(ImageError::transfer(format!("nothing came for {stall:?}"))),
        };
        let (ended, broken) = match part {
            Ok(Some(part)) => {
                buffer.extend_from_slice(&part);
                (false, None)
            }
            Ok(None) => (true, None),
            Err(error) => (true, Some(error)),
        };
        while buffer.len() >= CHUNK_BYTES_MAX || (ended && !buffer.is_empty()) {
            let data = buffer.split_to(buffer.len().min(CHUNK_BYTES_MAX)).to_vec();
            let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
            if at.saturating_add(length) > transfer.blob.size {
                return Err(ImageError::invalid(format!(
                    "blob {} is longer than its {} bytes",
                    transfer.blob.digest, transfer.blob.size
                )));
            }
            match transfer.write(*at, data).await? {
                Answer::Exists => return Ok(false),
                Answer::Offset(_) => *at += length,
            }
            reached(u64::try_from(*at).unwrap_or(0));
        }
        if let Some(error) = broken {
            return Err(error);
        }
        if ended && *at < transfer.blob.size {
            let size = transfer.blob.size;
            let text = format!("the connection ended at {at} of {size} bytes");
            return Err(ImageError::transfer(text));
        }
        if ended {
            return Ok(true);
        }
    }
}

/// Throws away what came of a blob.
async fn abort(daemon: &Daemon, blob: &Descriptor) -> Result<(), ImageError> {
    let aborted = daemon
        .call(
            "content abort",
            CALL,
            daemon.content().abort(AbortRequest {
                r#ref: reference(blob),
            }),
        )
        .await;
    Ok(tolerate_missing(aborted)?)
}

/// Labels are applied at COMMIT; a blob that was there keeps its old ones, so ours (they hold the
/// references that garbage collection follows) are added.
async fn relabel(
    daemon: &Daemon,
    blob: &Descriptor,
    labels: HashMap<String, String>,
) -> Result<(), ImageError> {
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let updated = daemon
        .call(
            "content labels",
            CALL,
            daemon.content().update(UpdateRequest {
                info: Some(Info {
                    digest: blob.digest.clone(),
                    labels,
                    ..Info::default()
                }),
                update_mask: Some(prost_types::FieldMask { paths }),
            }),
        )
        .await;
    Ok(tolerate_missing(updated)?)
}
