//! Compares the machine of a capture with this one.

use crate::{Error, Result, Warning, manifest::Host};

/// Refuses a capture whose programs may use features that this machine lacks.
pub(super) fn check(there: &Host, here: &Host) -> Result<()> {
    if there.arch != here.arch {
        let problem = format!("it was made on {}, and this is {}", there.arch, here.arch);
        return Err(Error::Host { problem });
    }
    if here.cpu.is_empty() && !there.cpu.is_empty() {
        // Every user can read the list, so it exists. A failed read has another reason, such as too
        // many open files.
        return Err(Error::Host {
            problem: "the features of its processor could not be found out".to_owned(),
        });
    }
    let needed =
        there.cpu.iter().filter(|set| there.arch != "aarch64" || !IDLE_ON_ARM.contains(&set.as_str()));
    let missing: Vec<_> = needed.filter(|set| !here.cpu.contains(set)).map(String::as_str).collect();
    if !missing.is_empty() {
        let problem = format!("the processor lacks {}, which its programs may use", missing.join(", "));
        return Err(Error::Host { problem });
    }
    Ok(())
}

/// Features in `/proc/cpuinfo` of aarch64 that a running program does not depend on: services of
/// the kernel, hints that other processors ignore, and features that kernels switch on and off.
///
/// `paca` is not among them. With it, return addresses on the stack are signed, and only a
/// processor with that feature can use them.
const IDLE_ON_ARM: [&str; 14] = [
    "bti",
    "cpuid",
    "dcpodp",
    "dcpop",
    "dgh",
    "evtstrm",
    "mte",
    "mte3",
    "mtefar",
    "mtestoreonly",
    "pacg",
    "rprfm",
    "sb",
    "ssbs",
];

/// Warns of versions that are older here than where the capture was made.
pub(super) fn warnings(there: &Host, here: &Host) -> Vec<Warning> {
    let is_older = |there: &str, here: &str| !here.is_empty() && numbers(here) < numbers(there);
    let mut warnings = Vec::new();
    if is_older(&there.kernel, &here.kernel) {
        warnings.push(Warning::OlderKernel { there: there.kernel.clone(), here: here.kernel.clone() });
    }
    if is_older(&there.criu, &here.criu) {
        warnings.push(Warning::OlderCriu { there: there.criu.clone(), here: here.criu.clone() });
    }
    warnings
}

/// Returns the first two numbers of a release, which decide compatibility.
fn numbers(release: &str) -> Vec<u32> {
    let words = release.split(|letter: char| !letter.is_ascii_digit());
    words.filter_map(|word| word.parse().ok()).take(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kernel: &str, arch: &str, cpu: &[&str]) -> Host {
        let cpu = cpu.iter().map(ToString::to_string).collect();
        Host { criu: "4.2.1".into(), kernel: kernel.into(), arch: arch.into(), cpu }
    }

    #[test]
    fn what_is_lacking_is_named() {
        let there = host("6.18.5-1", "x86_64", &["avx2", "sse"]);
        assert!(check(&there, &host("6.18.5", "x86_64", &["avx2", "avx512f", "sse"])).is_ok());
        let unknown = check(&there, &host("6.18.5", "x86_64", &[])).unwrap_err();
        assert!(unknown.to_string().contains("could not be found out"), "{unknown}");
        let error = check(&there, &host("6.18.5", "x86_64", &["sse"])).unwrap_err();
        assert!(error.to_string().contains("avx2") && error.advice().is_some(), "{error}");
        assert!(check(&there, &host("6.18.5", "aarch64", &["avx2", "sse"])).is_err());
    }

    #[test]
    fn what_a_kernel_switches_off_is_not_missed_on_aarch64() {
        let there =
            host("6.12.0", "aarch64", &["asimd", "atomics", "bti", "cpuid", "evtstrm", "mte", "paca", "sve"]);
        assert!(check(&there, &host("6.12.0", "aarch64", &["asimd", "atomics", "paca", "sve"])).is_ok());
        for (here, missing) in [
            (["asimd", "atomics", "sve"], "paca"),
            (["asimd", "atomics", "paca"], "sve"),
            (["asimd", "paca", "sve"], "atomics"),
        ] {
            let error = check(&there, &host("6.12.0", "aarch64", &here)).unwrap_err();
            assert!(error.to_string().contains(&format!("lacks {missing},")), "{error}");
        }
        // Words of one architecture mean nothing on another.
        assert!(check(&host("6.12", "riscv64", &["sb"]), &host("6.12", "riscv64", &["zba"])).is_err());
    }

    #[test]
    fn what_is_older_is_a_warning() {
        let there = host("6.18.5-1", "x86_64", &[]);
        assert_eq!(warnings(&there, &host("6.18.0", "x86_64", &[])), []);
        assert_eq!(warnings(&there, &host("7.0", "x86_64", &[])), []);
        let older = warnings(&there, &host("6.1.0-44-amd64", "x86_64", &[]));
        assert!(matches!(older.as_slice(), [Warning::OlderKernel { .. }]), "{older:?}");
        let mut here = there.clone();
        here.criu = "3.17.1".to_owned();
        assert!(matches!(warnings(&there, &here).as_slice(), [Warning::OlderCriu { .. }]));
    }
}
