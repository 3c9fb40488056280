//! Which images run on this machine.

use std::sync::LazyLock;

/// Architecture and variant as OCI writes them.
type Platform = (&'static str, &'static str);

static OWN: LazyLock<Vec<Platform>> = LazyLock::new(|| {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    fitting(std::env::consts::ARCH, &cpuinfo)
});

/// What runs here, the best fit first (containerd `platforms`, `platformVector`).
pub(super) fn own() -> &'static [Platform] {
    &OWN
}

/// `linux/arm/v7`
pub(super) fn name() -> String {
    match own().first() {
        Some((architecture, "")) => format!("linux/{architecture}"),
        Some((architecture, variant)) => format!("linux/{architecture}/{variant}"),
        None => format!("linux/{}", std::env::consts::ARCH),
    }
}

fn fitting(architecture: &str, cpuinfo: &str) -> Vec<Platform> {
    match architecture {
        "x86_64" => vec![("amd64", ""), ("amd64", "v1"), ("386", "")],
        "x86" => vec![("386", "")],
        "aarch64" => [("arm64", "v8"), ("arm64", "")]
            .into_iter()
            .chain(arm(8))
            .collect(),
        "arm" => arm(arm_version(cpuinfo)).collect(),
        "riscv64" => vec![("riscv64", "")],
        "powerpc64" => vec![("ppc64le", "")],
        "s390x" => vec![("s390x", "")],
        "loongarch64" => vec![("loong64", "")],
        _ => Vec::new(),
    }
}

/// Older variants run on newer cores. One that is not named is v7, as Docker takes it.
fn arm(newest: u8) -> impl Iterator<Item = Platform> {
    [(8, "v8"), (7, "v7"), (7, ""), (6, "v6"), (5, "v5")]
        .into_iter()
        .filter(move |(version, _)| *version <= newest)
        .map(|(_, variant)| ("arm", variant))
}

/// The core's version by `/proc/cpuinfo`. An ARMv6 kernel tells 7 as the architecture; its model
/// name tells better (containerd `platforms/cpuinfo_linux.go`).
fn arm_version(cpuinfo: &str) -> u8 {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    if field("model name").is_some_and(|model| model.starts_with("ARMv6-compatible")) {
        return 6;
    }
    let digits: String = field("CPU architecture")
        .unwrap_or("7")
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_takes_what_its_core_runs() {
        let pi_zero = "model name\t: ARMv6-compatible processor rev 7 (v6l)\nCPU architecture: 7\n";
        for (architecture, cpuinfo, want) in [
            ("arm", pi_zero, vec!["v6", "v5"]),
            ("arm", "CPU architecture: 7\n", vec!["v7", "", "v6", "v5"]),
            (
                "arm",
                "CPU architecture: 8\n",
                vec!["v8", "v7", "", "v6", "v5"],
            ),
            ("arm", "CPU architecture: 5TEJ\n", vec!["v5"]),
            ("arm", "", vec!["v7", "", "v6", "v5"]),
        ] {
            let found = fitting(architecture, cpuinfo);
            let variants: Vec<&str> = found.iter().map(|(_, variant)| *variant).collect();
            assert_eq!(variants, want, "{cpuinfo}");
            assert!(found.iter().all(|(name, _)| *name == "arm"));
        }
        let big = fitting("aarch64", "");
        assert_eq!(big[..3], [("arm64", "v8"), ("arm64", ""), ("arm", "v8")]);
        assert_eq!(fitting("x86_64", "")[0], ("amd64", ""));
        assert_eq!(fitting("pdp11", ""), vec![]);
    }
}
