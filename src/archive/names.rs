//! Rules for the names of files in an archive.

/// Returns true if criu, or a plugin of criu, could have given this name to an image.
///
/// Names are fixed by pattern rather than by list, so that an image of a later criu is not lost.
/// The upper-case letters are for plugins (`amdgpu-renderD-128.img`).
pub(crate) fn is_image(name: &str) -> bool {
    if ["stats-dump", "irmap-cache"].contains(&name) {
        return true;
    }
    let Some(stem) = name.strip_suffix(".img") else { return false };
    let stem = stem.strip_suffix(".tar.gz").unwrap_or(stem);
    name.len() <= LONGEST
        && stem.starts_with(|first: char| first.is_ascii_alphabetic())
        && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && !is_device(stem)
}

/// Returns true for a file that is not an image but may be in an image folder. A restore needs no
/// such file.
pub(super) fn is_byproduct(name: &str) -> bool {
    name == "stats-restore" || name.ends_with(".log") && !name.contains(['/', '\\'])
}

/// Returns true if Windows would open a device under this name, whatever its extension.
fn is_device(stem: &str) -> bool {
    let stem = stem.to_ascii_lowercase();
    match stem.strip_prefix("com").or(stem.strip_prefix("lpt")) {
        Some(number) => number.len() == 1 && number.bytes().all(|byte| byte.is_ascii_digit()),
        None => ["con", "prn", "aux", "nul"].contains(&stem.as_str()),
    }
}

/// Parses the pid in `tree-<pid>`; only its canonical form is accepted.
pub(super) fn tree_pid(folder: &str) -> Option<i32> {
    let digits = folder.strip_prefix("tree-")?;
    let pid = digits.parse::<i32>().ok().filter(|pid| *pid > 0)?;
    (pid.to_string() == digits).then_some(pid)
}

/// Returns the folder of a tree in an archive of several trees.
pub(crate) fn tree_folder(pid: i32) -> String {
    format!("tree-{pid}")
}

/// The file that every folder of images must have.
pub(super) const INVENTORY: &str = "inventory.img";

/// The maximum length of a path in a header, in bytes.
pub(super) const LONGEST: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_criu_gives_is_an_image() {
        for name in [
            "inventory.img",
            "core-4242.img",
            "pagemap-shmem-18446744073709551615.img",
            "ghost-file-1f.img",
            "route6-9.img",
            "ip6tables-9.img",
            "tmpfs-dev-12.tar.gz.img",
            "signal-s-1.img",
            "amdgpu-renderD-128.img",
            "stats-dump",
            "irmap-cache",
        ] {
            assert!(is_image(name), "{name}");
        }
    }

    #[test]
    fn a_name_that_could_lead_elsewhere_is_none() {
        let long = format!("{}.img", "a".repeat(97));
        for name in [
            "",
            ".",
            "..",
            ".img",
            "-a.img",
            "1.img",
            "a",
            "a.img ",
            "a.img\n",
            "a/b.img",
            "a\\b.img",
            "../a.img",
            "a..img",
            "a.b.img",
            ".a.img",
            "c:a.img",
            "ä.img",
            "a\0.img",
            "a.IMG",
            ".tar.gz.img",
            "parent",
            "dump.log",
            "stats-restore",
            "nul.img",
            "CON.img",
            "com1.img",
            "aux.tar.gz.img",
            &long,
        ] {
            assert!(!is_image(name), "{name:?}");
        }
        assert!(is_image(&long[1..]));
        assert!(is_image("com12.img") && is_image("auxiliary.img"));
    }

    #[test]
    fn a_tree_has_one_name() {
        assert_eq!(tree_pid(&tree_folder(i32::MAX)), Some(i32::MAX));
        for folder in
            ["tree-", "tree-0", "tree-01", "tree-+1", "tree--1", "tree-2147483648", "tree-1 ", "Tree-1"]
        {
            assert_eq!(tree_pid(folder), None, "{folder}");
        }
    }
}
