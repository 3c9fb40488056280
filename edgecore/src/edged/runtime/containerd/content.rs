//! The content store: reading blobs, and writing them so that a broken transfer goes on where it
//! stopped.

use std::collections::HashMap;
use std::io;

use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::{
    Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use containerd_client::tonic::{Code, Status, Streaming};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::channel::{CALL, Daemon, PULL, tolerate_missing};
use super::image::{Descriptor, ImageError};

/// One WRITE carries at most this much; containerd accepts up to its 16 MiB message limit.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Manifests and configs are read into memory; anything larger is refused (registries use 4 MiB).
pub(super) const DOCUMENT_BYTES_MAX: i64 = 4 << 20;

/// Bytes of one blob from some offset on.
pub(super) type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// `sha256:<hex>` of `bytes`.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Reads a whole small blob and checks its digest.
pub(super) async fn read_document(daemon: &Daemon, digest: &str) -> Result<Vec<u8>, ImageError> {
    let info = daemon
        .call(
            "content info",
            CALL,
            daemon.content().info(InfoRequest {
                digest: digest.to_owned(),
            }),
        )
        .await?;
    let size = info.info.map_or(0, |info| info.size);
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

impl Transfer<'_> {
    fn request(blob: &Descriptor, action: WriteAction) -> WriteContentRequest {
        WriteContentRequest {
            action: action.into(),
            r#ref: format!("edgecore-{}", blob.digest),
            total: blob.size,
            expected: blob.digest.clone(),
            ..WriteContentRequest::default()
        }
    }

    async fn answer(&mut self) -> Result<Answer, ImageError> {
        let message = tokio::time::timeout(PULL, self.responses.message())
            .await
            .map_err(|_| ImageError::invalid("the content store stalled".to_owned()))?;
        answer_of(message)
    }

    async fn say(&mut self, request: WriteContentRequest) -> Result<Answer, ImageError> {
        self.requests
            .send(request)
            .await
            .map_err(|_| ImageError::invalid("the content store closed the write".to_owned()))?;
        self.answer().await
    }
}

fn answer_of(message: Result<Option<WriteContentResponse>, Status>) -> Result<Answer, ImageError> {
    match message {
        Ok(Some(response)) => Ok(Answer::Offset(response.offset)),
        Ok(None) => Err(ImageError::invalid(
            "the content store ended the write early".to_owned(),
        )),
        Err(status) if status.code() == Code::AlreadyExists => Ok(Answer::Exists),
        Err(status) => Err(ImageError::transfer(status)),
    }
}

/// Writes `blob` with `labels` unless it is there. `open(offset)` yields its bytes from `offset`
/// on; it is not called when the daemon already holds the bytes (ours, or shared by another
/// namespace: then COMMIT alone, a WRITE would fail the size check).
pub(super) async fn ingest<F, Fut>(
    daemon: &Daemon,
    blob: &Descriptor,
    labels: HashMap<String, String>,
    open: F,
) -> Result<(), ImageError>
where
    F: FnOnce(u64) -> Fut,
    Fut: Future<Output = Result<ByteStream, ImageError>>,
{
    let (requests, queue) = mpsc::channel(2);
    let stat = Transfer::request(blob, WriteAction::Stat);
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
        Err(error) if error.is_already_exists() => return relabel(daemon, blob, labels).await,
        other => other?,
    };
    let mut transfer = Transfer {
        daemon,
        blob,
        requests,
        responses,
    };
    let offset = match transfer.answer().await? {
        Answer::Exists => return relabel(daemon, blob, labels).await,
        Answer::Offset(offset) => offset,
    };
    if offset < blob.size && !write_from(&mut transfer, offset, open).await? {
        return relabel(daemon, blob, labels).await;
    }
    let mut commit = Transfer::request(transfer.blob, WriteAction::Commit);
    commit.offset = transfer.blob.size;
    commit.labels.clone_from(&labels);
    match transfer.say(commit).await? {
        Answer::Offset(_) => Ok(()),
        Answer::Exists => relabel(transfer.daemon, transfer.blob, labels).await,
    }
}

/// Sends what is missing; false if the blob turned out to be there already.
async fn write_from<F, Fut>(
    transfer: &mut Transfer<'_>,
    mut offset: i64,
    open: F,
) -> Result<bool, ImageError>
where
    F: FnOnce(u64) -> Fut,
    Fut: Future<Output = Result<ByteStream, ImageError>>,
{
    let mut source = open(u64::try_from(offset).unwrap_or(0)).await?;
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES_MAX);
    loop {
        let part = tokio::time::timeout(PULL, source.next())
            .await
            .map_err(|_| {
                ImageError::invalid(format!("transfer of {} stalled", transfer.blob.digest))
            })?
            .transpose()
            .map_err(ImageError::transfer)?;
        let ended = part.is_none();
        if let Some(part) = part {
            buffer.extend_from_slice(&part);
        }
        while buffer.len() >= CHUNK_BYTES_MAX || (ended && !buffer.is_empty()) {
            let data = buffer.split_to(buffer.len().min(CHUNK_BYTES_MAX)).to_vec();
            let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
            if offset + length > transfer.blob.size {
                return Err(ImageError::invalid(format!(
                    "blob {} is longer than its {} bytes",
                    transfer.blob.digest, transfer.blob.size
                )));
            }
            let mut write = Transfer::request(transfer.blob, WriteAction::Write);
            write.offset = offset;
            write.data = data;
            match transfer.say(write).await? {
                Answer::Exists => return Ok(false),
                Answer::Offset(_) => offset += length,
            }
        }
        if ended {
            return Ok(true);
        }
    }
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
