//! `edgecore check`: what on this machine would keep the node from working, and what to do about
//! it. One file a diagnosis; each works without a hub and without the daemon.

mod certificate;
mod clock;
mod cni;
mod containerd;
mod disk;
mod ports;

use serde::Serialize;

use crate::config::Config;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    /// Works, but not all of it, or not for long.
    Warn,
    Fail,
}

/// One check's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    pub detail: String,
    /// What to do; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl Finding {
    fn pass(check: &'static str, detail: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Pass,
            detail: detail.into(),
            advice: String::new(),
        }
    }

    fn fail(check: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Fail,
            detail: detail.into(),
            advice: advice.into(),
        }
    }

    fn warn(check: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            ..Self::fail(check, detail, advice)
        }
    }
}

/// Runs every check that concerns this configuration.
pub async fn run(config: &Config) -> Vec<Finding> {
    let now_ms = crate::clock::unix_millis();
    let mut found = vec![clock::check(now_ms)];
    found.extend(disk::check(config));
    if let Some(runtime) = &config.runtime {
        found.push(containerd::check(runtime).await);
        found.push(cni::check(runtime));
    }
    if let Some(hub) = &config.hub {
        found.extend(certificate::check(hub, &config.node_name, now_ms));
    }
    found.extend(ports::check(config).await);
    found
}

/// Whether nothing failed.
pub fn is_healthy(findings: &[Finding]) -> bool {
    findings.iter().all(|f| f.verdict != Verdict::Fail)
}

/// The table for people.
pub fn render(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Pass => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        out.push_str(&format!(
            "{mark}  {:<12} {}\n",
            finding.check, finding.detail
        ));
        if !finding.advice.is_empty() {
            out.push_str(&format!("      {:<12} -> {}\n", "", finding.advice));
        }
    }
    out
}
