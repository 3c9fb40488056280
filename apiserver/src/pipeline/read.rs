//! GET of objects and collections (kube-api.md §3.3).

use std::sync::Arc;

use base64::Engine;
use serde_json::{Value, json};

use super::{At, Pipeline, present};
use crate::engines::Selectors;
use crate::registry::ResourceDef;
use crate::status::ApiError;
use crate::store::{ListQuery, Revision, StoreError};

/// Keys read at a time while a selector leaves out most of what is read.
const SCAN_KEYS: usize = 500;

/// Which part of a collection, and as of when.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// `labelSelector` as written.
    pub labels: String,
    /// `fieldSelector` as written.
    pub fields: String,
    /// At most so many objects; 0 means all.
    pub limit: usize,
    /// Where the previous page ended.
    pub continue_token: String,
    /// `resourceVersion` as written.
    pub resource_version: String,
    /// Whether `resourceVersion` means exactly that one, rather than not older.
    pub exact: bool,
}

/// A page of a collection.
#[derive(Debug)]
pub struct List {
    /// The objects; each carries `kind` and `apiVersion`.
    pub items: Vec<Value>,
    /// Usable to watch from.
    pub revision: Revision,
    /// For the next page; empty on the last.
    pub continue_token: String,
    /// How many follow, where that is known.
    pub remaining: Option<u64>,
}

/// Where the next page begins, and the state it belongs to.
struct Position {
    revision: Revision,
    after: String,
}

impl Position {
    fn write(&self) -> String {
        let text = json!({"v": "outpost/v1", "rv": self.revision, "after": self.after});
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text.to_string())
    }

    fn read(token: &str) -> Option<Self> {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(token)
            .ok()?;
        let value: Value = serde_json::from_slice(&bytes).ok()?;
        Some(Self {
            revision: value["rv"].as_u64()?,
            after: value["after"].as_str()?.to_owned(),
        })
    }
}

/// Reads a `resourceVersion`; empty and 0 mean any.
pub(crate) fn parse_revision(text: &str) -> Result<Option<Revision>, ApiError> {
    if matches!(text, "" | "0") {
        return Ok(None);
    }
    let parsed = text.parse::<u64>().map(Some);
    parsed.map_err(|_| {
        ApiError::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
        ))
    })
}

impl Pipeline {
    pub(crate) async fn get(&self, at: At<'_>) -> Result<Value, ApiError> {
        Ok(self.found(at).await?.0)
    }

    pub(crate) async fn list(
        &self,
        def: &Arc<ResourceDef>,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<List, ApiError> {
        let selectors = Selectors::parse(def, &options.labels, &options.fields)?;
        let prefix = selectors.prefix(def, namespace);
        let asked = parse_revision(&options.resource_version)?;
        // `resourceVersion=0` accepts a cached answer, and then the whole of it.
        let limit = match options.resource_version.as_str() {
            "0" => 0,
            _ => options.limit,
        };
        let (at, mut after) = if options.continue_token.is_empty() {
            if options.exact {
                (asked, None)
            } else {
                self.not_older(asked).await?;
                (None, None)
            }
        } else {
            if !matches!(options.resource_version.as_str(), "" | "0") {
                return Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let position = Position::read(&options.continue_token).ok_or_else(|| {
                ApiError::bad_request("invalid continue token: continue key is not valid")
            })?;
            if !position.after.starts_with(&prefix) {
                return Err(ApiError::bad_request(
                    "invalid continue token: continue key is not valid",
                ));
            }
            (Some(position.revision), Some(position.after))
        };
        let mut list = List {
            items: Vec::new(),
            revision: 0,
            continue_token: String::new(),
            remaining: None,
        };
        let mut at = at;
        loop {
            let step = match (limit, selectors.is_empty()) {
                (0, _) => 0,
                (limit, true) => limit,
                (limit, false) => limit.max(SCAN_KEYS),
            };
            let query = ListQuery {
                prefix: prefix.clone(),
                after: after.take(),
                limit: step,
                at,
            };
            let page = self.store.list(query).await.map_err(|error| {
                if options.continue_token.is_empty() {
                    error.into()
                } else {
                    paging_error(error)
                }
            })?;
            list.revision = page.revision;
            // All pages show one state.
            at = Some(page.revision);
            let count = page.entries.len();
            for (index, entry) in page.entries.iter().enumerate() {
                let object = present(def, entry)?;
                if !selectors.matches(&object) {
                    continue;
                }
                list.items.push(object);
                let more = index + 1 < count || page.remaining > 0;
                if limit != 0 && list.items.len() == limit && more {
                    let position = Position {
                        revision: page.revision,
                        after: entry.key.to_string(),
                    };
                    list.continue_token = position.write();
                    if selectors.is_empty() {
                        let left = count.saturating_sub(index + 1) as u64;
                        list.remaining = Some(left + page.remaining);
                    }
                    return Ok(list);
                }
            }
            match page.entries.last() {
                Some(last) if page.remaining > 0 => after = Some(last.key.to_string()),
                _ => return Ok(list),
            }
        }
    }

    /// The answer will not be older than what was asked for.
    async fn not_older(&self, asked: Option<Revision>) -> Result<(), ApiError> {
        if let Some(asked) = asked {
            let current = self.store.revision().await?;
            if asked > current {
                return Err(ApiError::future_revision(asked, current));
            }
        }
        Ok(())
    }
}

fn paging_error(error: StoreError) -> ApiError {
    if let StoreError::Expired { .. } = error {
        return ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. \
             You can start a new list without the continue parameter.",
        );
    }
    error.into()
}
