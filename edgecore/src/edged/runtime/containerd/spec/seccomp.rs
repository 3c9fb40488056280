//! Seccomp profiles: read, resolved for one container, told to runc, which compiles the filter.
//!
//! Two notations are read: OCI's (`linux.seccomp` of the runtime spec, what kubelet's
//! `Localhost` profiles are) and docker's, which adds conditions on capabilities, machine and
//! kernel.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{SpecError, null_is_default};

/// A profile larger than this is a mistake.
const PROFILE_BYTES_MAX: u64 = 1 << 20;

/// A whole profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "null_is_default")]
    architectures: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    arch_map: Vec<ArchMap>,
    #[serde(default, deserialize_with = "null_is_default")]
    flags: Vec<String>,
    #[serde(default)]
    listener_path: String,
    #[serde(default, deserialize_with = "null_is_default")]
    syscalls: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default, deserialize_with = "null_is_default")]
    sub_architectures: Vec<String>,
}

/// What happens to some calls under some conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rule {
    /// docker's older notation has one name.
    #[serde(default)]
    name: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    names: Vec<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "null_is_default")]
    args: Vec<Args>,
    #[serde(default, deserialize_with = "null_is_default")]
    includes: Condition,
    #[serde(default, deserialize_with = "null_is_default")]
    excludes: Condition,
}

/// A comparison of one argument of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Args {
    index: u32,
    value: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_two: Option<u64>,
    op: String,
}

impl Args {
    pub(super) fn equal(index: u32, value: u64) -> Self {
        Self::new(index, value, "SCMP_CMP_EQ")
    }

    pub(super) fn less(index: u32, value: u64) -> Self {
        Self::new(index, value, "SCMP_CMP_LT")
    }

    /// None of the bits of `mask` is set.
    pub(super) fn none_of(index: u32, mask: u64) -> Self {
        Self {
            value_two: Some(0),
            ..Self::new(index, mask, "SCMP_CMP_MASKED_EQ")
        }
    }

    fn new(index: u32, value: u64, op: &str) -> Self {
        Self {
            index,
            value,
            value_two: None,
            op: op.to_owned(),
        }
    }
}

/// When a rule holds. What is empty says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Condition {
    #[serde(deserialize_with = "null_is_default")]
    caps: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

impl Condition {
    pub(super) fn capability(name: &str) -> Self {
        Self {
            caps: vec![name.to_owned()],
            ..Self::default()
        }
    }

    /// At least `major.minor`.
    pub(super) fn kernel(version: &str) -> Self {
        Self {
            min_kernel: Some(version.to_owned()),
            ..Self::default()
        }
    }

    pub(super) fn arches(names: &[&str]) -> Self {
        Self {
            arches: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Self::default()
        }
    }
}

/// What rules are resolved against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances<'a> {
    pub(super) capabilities: &'a [&'a str],
    /// As Rust names it (`std::env::consts::ARCH`).
    pub(super) arch: &'a str,
    pub(super) kernel: (u32, u32),
}

impl Rule {
    pub(super) fn allow<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self {
            names: names.map(str::to_owned).collect(),
            action: "SCMP_ACT_ALLOW".to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn refuse(name: &str, errno: u32) -> Self {
        Self {
            names: vec![name.to_owned()],
            action: "SCMP_ACT_ERRNO".to_owned(),
            errno_ret: Some(errno),
            ..Self::default()
        }
    }

    pub(super) fn on(mut self, args: Args) -> Self {
        self.args.push(args);
        self
    }

    pub(super) fn when(mut self, condition: Condition) -> Self {
        self.includes = condition;
        self
    }

    pub(super) fn unless(mut self, condition: Condition) -> Self {
        self.excludes = condition;
        self
    }

    /// As moby's `setupSeccomp`: any exclusion that fits drops the rule, every inclusion must fit.
    fn holds(&self, at: &Circumstances<'_>) -> bool {
        let arch = go_arch(at.arch);
        let has = |name: &String| at.capabilities.contains(&name.as_str());
        let (out, only) = (&self.excludes, &self.includes);
        let excluded = out.arches.iter().any(|name| name == arch)
            || out.caps.iter().any(has)
            || out.min_kernel.as_deref().is_some_and(|v| reached(v, at));
        !excluded
            && (only.arches.is_empty() || only.arches.iter().any(|name| name == arch))
            && only.caps.iter().all(has)
            && only.min_kernel.as_deref().is_none_or(|v| reached(v, at))
    }
}

/// Whether this kernel is at least `major.minor`; what cannot be read is not reached.
fn reached(version: &str, at: &Circumstances<'_>) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => at.kernel >= (major, minor),
        _ => false,
    }
}

/// Go's name of a machine, which docker's profiles use.
fn go_arch(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The machine and those whose programs it runs too, as libseccomp names them. Empty: the native
/// one alone.
fn own_architectures(rust: &str) -> &'static [&'static str] {
    match rust {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        _ => &[],
    }
}

impl Profile {
    pub(super) fn deny_all_but(syscalls: Vec<Rule>) -> Self {
        const EPERM: u32 = 1;
        Self {
            default_action: "SCMP_ACT_ERRNO".to_owned(),
            default_errno_ret: Some(EPERM),
            syscalls,
            ..Self::default()
        }
    }

    /// `linux.seccomp` of a container.
    pub(super) fn resolve(&self, at: &Circumstances<'_>) -> Value {
        let own = own_architectures(at.arch);
        let mapped = self
            .arch_map
            .iter()
            .find(|map| own.first() == Some(&map.architecture.as_str()));
        let architectures: Vec<&str> = match mapped {
            Some(map) => std::iter::once(map.architecture.as_str())
                .chain(map.sub_architectures.iter().map(String::as_str))
                .collect(),
            None if self.architectures.is_empty() => own.to_vec(),
            None => self.architectures.iter().map(String::as_str).collect(),
        };
        let rules: Vec<Value> = self
            .syscalls
            .iter()
            .filter(|rule| rule.holds(at))
            .map(|rule| {
                let names: Vec<&String> = rule.names.iter().chain(&rule.name).collect();
                let mut out = serde_json::json!({ "names": names, "action": rule.action });
                if let Some(errno) = rule.errno_ret {
                    out["errnoRet"] = errno.into();
                }
                if !rule.args.is_empty() {
                    out["args"] = serde_json::json!(rule.args);
                }
                out
            })
            .collect();
        let mut out = serde_json::json!({
            "defaultAction": self.default_action,
            "architectures": architectures,
            "syscalls": rules,
        });
        if let Some(errno) = self.default_errno_ret {
            out["defaultErrnoRet"] = errno.into();
        }
        if !self.flags.is_empty() {
            out["flags"] = serde_json::json!(self.flags);
        }
        if !self.listener_path.is_empty() {
            out["listenerPath"] = serde_json::json!(self.listener_path);
        }
        out
    }

    /// Reads the profile a pod names relative to the node's directory of profiles.
    pub(super) fn read(root: &Path, name: &str) -> Result<Self, SpecError> {
        let failed = |reason: String| SpecError::Seccomp {
            profile: name.to_owned(),
            reason,
        };
        let relative = Path::new(name);
        let stays = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !stays {
            return Err(failed(
                "must be a path below the node's directory of profiles".to_owned(),
            ));
        }
        let path = root.join(relative);
        let size = std::fs::metadata(&path)
            .map_err(|error| failed(format!("{}: {error}", path.display())))?
            .len();
        if size > PROFILE_BYTES_MAX {
            return Err(failed(format!("{size} bytes are too many")));
        }
        let bytes =
            std::fs::read(&path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
        Self::parse(&bytes).map_err(|error| failed(error.to_string()))
    }

    fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
