use std::collections::BTreeSet;

use super::super::capabilities::DEFAULT_CAPABILITIES;
use super::super::seccomp_default;
use super::*;

fn at<'a>(capabilities: &'a [&'a str], arch: &'a str, kernel: (u32, u32)) -> Circumstances<'a> {
    Circumstances {
        capabilities,
        arch,
        kernel,
    }
}

/// Names that some rule without conditions on arguments allows.
fn allowed(resolved: &Value) -> BTreeSet<String> {
    let rules = resolved["syscalls"].as_array().unwrap().iter();
    rules
        .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW" && rule.get("args").is_none())
        .flat_map(|rule| rule["names"].as_array().unwrap())
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_default_follows_capabilities_machine_and_kernel() {
    let profile = seccomp_default::profile();
    let names =
        |caps: &[&str], arch: &str, kernel| allowed(&profile.resolve(&at(caps, arch, kernel)));
    let usual = names(&DEFAULT_CAPABILITIES, "x86_64", (6, 1));
    for (name, expected) in [
        ("read", true),
        ("chroot", true),
        ("arch_prctl", true),
        ("ptrace", true),
        ("unshare", false),
        ("mount", false),
        ("clone", false),
        ("socket", false),
        ("io_uring_setup", false),
        ("keyctl", false),
        ("bpf", false),
        ("cacheflush", false),
        ("reboot", false),
    ] {
        assert_eq!(usual.contains(name), expected, "{name}");
    }
    let with = |caps: &[&str]| names(caps, "x86_64", (6, 1));
    for (capability, name) in [
        ("CAP_SYS_ADMIN", "mount"),
        ("CAP_SYS_ADMIN", "clone3"),
        ("CAP_SYS_PTRACE", "kcmp"),
        ("CAP_BPF", "bpf"),
        ("CAP_SYS_TIME", "clock_settime"),
        ("CAP_SYS_CHROOT", "chroot"),
    ] {
        assert!(with(&[capability]).contains(name), "{capability} {name}");
        assert!(!with(&[]).contains(name), "{name} without {capability}");
    }
    assert!(!names(&[], "x86_64", (4, 7)).contains("ptrace"));
    assert!(names(&[], "aarch64", (4, 19)).contains("cacheflush"));
    assert!(!names(&[], "aarch64", (4, 19)).contains("modify_ldt"));
}

#[test]
fn making_namespaces_is_refused_by_flags_and_by_errno() {
    let resolved = seccomp_default::profile().resolve(&at(&[], "x86_64", (6, 1)));
    let rules = resolved["syscalls"].as_array().unwrap();
    let of = |name: &str| -> Vec<&Value> {
        let named = |rule: &&Value| rule["names"].as_array().unwrap().iter().any(|n| n == name);
        rules.iter().filter(named).collect()
    };
    assert_eq!(of("clone").len(), 1);
    assert_eq!(
        of("clone")[0]["args"],
        serde_json::json!([{
            "index": 0, "value": 0x7e02_0000_u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"
        }])
    );
    assert_eq!(of("clone3")[0]["errnoRet"], 38);
    let privileged = seccomp_default::profile().resolve(&at(&["CAP_SYS_ADMIN"], "x86_64", (6, 1)));
    let refusals = |v: &Value| {
        let rules = v["syscalls"].as_array().unwrap().iter();
        rules.filter(|r| r["action"] != "SCMP_ACT_ALLOW").count()
    };
    assert_eq!((refusals(&resolved), refusals(&privileged)), (1, 0));
    // Every address family that is let through, and no other.
    let passes = |family: u64| {
        of("socket").iter().any(|rule| {
            let arg = &rule["args"][0];
            let value = arg["value"].as_u64().unwrap();
            match arg["op"].as_str().unwrap() {
                "SCMP_CMP_LT" => family < value,
                _ => family == value,
            }
        })
    };
    for (family, expected) in [
        (1, true),
        (2, true),
        (10, true),
        (16, true),
        (17, true),
        (44, true),
        (38, false),
        (40, false),
        (12, false),
    ] {
        assert_eq!(passes(family), expected, "{family}");
    }
}

#[test]
fn both_notations_are_read() {
    let oci = br#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#;
    let found = Profile::parse(oci)
        .unwrap()
        .resolve(&at(&[], "x86_64", (6, 1)));
    assert_eq!(
        found,
        serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
        })
    );
    let docker = br#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
        "archMap":[{"architecture":"SCMP_ARCH_AARCH64","subArchitectures":null},
                   {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
        "syscalls":[
          {"name":"read","action":"SCMP_ACT_ALLOW","args":null,"includes":{},"excludes":null},
          {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
          {"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.2"}},
          {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"arches":["amd64"]}}]}"#;
    let docker = Profile::parse(docker).unwrap();
    let found = docker.resolve(&at(&[], "x86_64", (6, 1)));
    assert_eq!(
        found["architectures"],
        serde_json::json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
    );
    assert_eq!(allowed(&found), BTreeSet::from(["read".to_owned()]));
    let elsewhere = docker.resolve(&at(&["CAP_SYS_ADMIN"], "aarch64", (6, 2)));
    assert_eq!(
        elsewhere["architectures"],
        serde_json::json!(["SCMP_ARCH_AARCH64"])
    );
    assert_eq!(allowed(&elsewhere).len(), 4);
}

#[test]
fn a_profile_stays_below_its_directory_and_is_valid() {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
    std::fs::create_dir(root.path().join("profiles")).unwrap();
    write(
        "profiles/strict.json",
        r#"{"defaultAction":"SCMP_ACT_ERRNO"}"#,
    );
    write("broken.json", "{");
    assert!(Profile::read(root.path(), "profiles/strict.json").is_ok());
    for (name, says) in [
        ("../profiles/strict.json", "must be a path below"),
        ("profiles/../../etc/passwd", "must be a path below"),
        ("/etc/passwd", "must be a path below"),
        ("", "must be a path below"),
        ("absent.json", "No such file"),
        ("broken.json", "EOF"),
        ("profiles", "directory"),
    ] {
        let error = Profile::read(root.path(), name).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
}
