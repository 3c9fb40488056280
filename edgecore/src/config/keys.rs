//! Keys of the merged layers, read by path, and the checks that several sections share. Every
//! error names the key.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use quantity::{Quantity, binary};
use serde::de::DeserializeOwned;

use super::ConfigError;
use crate::edged::eviction::threshold;

const DAY_SECS: u32 = 86_400;
/// Beyond any disk of today.
pub(super) const BYTES_MAX: u64 = 1 << 50;

/// All layers as one. A key that the schema knows is there, since the defaults are the lowest.
pub(super) struct Keys(config::Config);

impl Keys {
    pub(super) fn new(merged: config::Config) -> Self {
        Self(merged)
    }

    /// The value as it is written.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ConfigError> {
        self.0
            .get(path)
            .map_err(|error| ConfigError::Type(error.to_string()))
    }

    pub(super) fn text(&self, path: &str) -> Result<String, ConfigError> {
        self.get(path)
    }

    /// `None` where the key is empty.
    pub(super) fn optional(&self, path: &str) -> Result<Option<String>, ConfigError> {
        Ok(Some(self.text(path)?).filter(|text| !text.is_empty()))
    }

    /// Seconds, one to a day.
    pub(super) fn seconds(&self, path: &'static str) -> Result<Duration, ConfigError> {
        let seconds: u32 = self.get(path)?;
        if !(1..=DAY_SECS).contains(&seconds) {
            let reason = format!("must be between 1 and {DAY_SECS} seconds, is {seconds}");
            return Err(wrong(path, reason));
        }
        Ok(Duration::from_secs(u64::from(seconds)))
    }

    /// A duration as Go writes it.
    pub(super) fn duration(&self, path: &'static str) -> Result<Duration, ConfigError> {
        let text = self.text(path)?;
        threshold::duration(&text)
            .ok_or_else(|| wrong(path, format!("`{text}` is no duration, such as 2m0s")))
    }

    pub(super) fn absolute(&self, path: &'static str) -> Result<PathBuf, ConfigError> {
        absolute(path, &self.text(path)?)
    }

    /// `None` where the key is empty.
    pub(super) fn optional_file(&self, path: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        let text = self.optional(path)?;
        text.map(|text| absolute(path, &text)).transpose()
    }

    pub(super) fn host_port(&self, path: &'static str) -> Result<String, ConfigError> {
        host_port(path, &self.text(path)?)
    }

    /// `None` where the key is empty.
    pub(super) fn optional_host_port(
        &self,
        path: &'static str,
    ) -> Result<Option<String>, ConfigError> {
        let text = self.optional(path)?;
        text.map(|text| host_port(path, &text)).transpose()
    }

    /// A size as Kubernetes writes it (`10Mi`, `1.5G`, `1048576`), in bytes.
    pub(super) fn bytes(
        &self,
        path: &'static str,
        allowed: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let text = self.text(path)?;
        let bytes = Quantity::parse(&text).ok();
        let bytes = bytes.and_then(|quantity| u64::try_from(quantity.units()).ok());
        bytes
            .filter(|bytes| allowed.contains(bytes))
            .ok_or_else(|| {
                let (least, most) = (binary(*allowed.start()), binary(*allowed.end()));
                let reason = format!("must be a size from {least} to {most}, is `{text}`");
                wrong(path, reason)
            })
    }
}

pub(super) fn wrong(path: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        path: path.into(),
        reason: reason.into(),
    }
}

pub(super) fn absolute(path: &'static str, text: &str) -> Result<PathBuf, ConfigError> {
    let found = PathBuf::from(text);
    if found.is_absolute() {
        Ok(found)
    } else {
        Err(wrong(
            path,
            format!("must be an absolute path, is `{text}`"),
        ))
    }
}

pub(super) fn address(path: &'static str, text: &str) -> Result<IpAddr, ConfigError> {
    text.parse()
        .map_err(|_| wrong(path, format!("`{text}` is not an IP address")))
}

fn host_port(path: &'static str, text: &str) -> Result<String, ConfigError> {
    let stripped = text
        .strip_prefix("wss://")
        .or_else(|| text.strip_prefix("https://"))
        .or_else(|| text.strip_prefix("tcp://"))
        .unwrap_or(text)
        .trim_end_matches('/');
    let port = stripped.rsplit_once(':').filter(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
    });
    if port.is_none() {
        return Err(wrong(path, format!("must be host:port, is `{text}`")));
    }
    Ok(stripped.to_owned())
}
