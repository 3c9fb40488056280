//! containerd answers and is one of the versions that were tested.

use std::time::Duration;

use containerd_client::services::v1::version_client::VersionClient;

use super::Finding;
use crate::config::RuntimeConfig;

const CHECK: &str = "containerd";
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn check(runtime: &RuntimeConfig) -> Finding {
    let socket = runtime.containerd.display();
    if !runtime.containerd.exists() {
        return Finding::fail(
            CHECK,
            format!("no socket at {socket}"),
            "install and start it (`apt install containerd`, `systemctl start containerd`), or set \
             modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint",
        );
    }
    let asked = tokio::time::timeout(ANSWER_WITHIN, async {
        let channel = containerd_client::connect(&runtime.containerd)
            .await
            .map_err(|e| e.to_string())?;
        VersionClient::new(channel)
            .version(())
            .await
            .map(|answer| answer.into_inner().version)
            .map_err(|status| status.message().to_owned())
    })
    .await;
    let failed = |reason: &str| {
        Finding::fail(
            CHECK,
            format!("{socket}: {reason}"),
            "see `journalctl -u containerd`; the socket is root's, so run this as root",
        )
    };
    match asked {
        Err(_) => failed("no answer within 5 s"),
        Ok(Err(reason)) => failed(&reason),
        Ok(Ok(version)) if is_supported(&version) => {
            Finding::pass(CHECK, format!("{version} at {socket}"))
        }
        Ok(Ok(version)) => Finding::warn(
            CHECK,
            format!("{version} at {socket}"),
            "only 1.6 and later are tested",
        ),
    }
}

fn is_supported(version: &str) -> bool {
    let mut parts = version
        .trim_start_matches('v')
        .split(['.', '-', '~', '+'])
        .map_while(|part| part.parse::<u32>().ok());
    match (parts.next(), parts.next()) {
        (Some(1), Some(minor)) => minor >= 6,
        (Some(major), _) => major >= 2,
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_supported;

    #[test]
    fn versions() {
        for (version, expected) in [
            ("1.6.20~ds1", true),
            ("v2.1.0", true),
            ("1.5.9", false),
            ("", false),
        ] {
            assert_eq!(is_supported(version), expected, "{version}");
        }
    }
}
