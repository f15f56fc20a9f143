//! Guard pages that the kernel supports, but does not show to criu.

use std::fs;

use crate::procfs::{Mapping, each_line};

/// Returns true if the process's threads have guard pages beneath their stacks that criu takes for
/// memory.
pub(super) fn is_unseen(pid: i32) -> bool {
    let Some(kernel) = kernel() else { return false };
    // The library is read only on the few affected kernels.
    is_affected(kernel, Some(FIRST_GLIBC)) && is_affected(kernel, glibc(pid))
}

type Release = (u32, u32);

/// The first glibc that makes a guard page for each thread.
const FIRST_GLIBC: Release = (2, 42);

fn is_affected(kernel: Release, glibc: Option<Release>) -> bool {
    // Linux 6.13 has guard pages, and 6.16 shows them in /proc/<pid>/pagemap.
    ((6, 13)..(6, 16)).contains(&kernel) && glibc.is_some_and(|glibc| glibc >= FIRST_GLIBC)
}

fn kernel() -> Option<Release> {
    release(nix::sys::utsname::uname().ok()?.release().to_str()?)
}

/// Returns the release of the C library that the process has mapped.
fn glibc(pid: i32) -> Option<Release> {
    let mut library = None;
    each_line(format!("/proc/{pid}/maps"), |line| {
        let mapping = Mapping::parse(line).filter(|mapping| mapping.name.ends_with("/libc.so.6"));
        library = library.take().or_else(|| mapping.map(|mapping| (mapping.start, mapping.end)));
    });
    let (start, end) = library?;
    told(&fs::read(format!("/proc/{pid}/map_files/{start:x}-{end:x}")).ok()?)
}

/// Finds the release in the data of a C library.
fn told(library: &[u8]) -> Option<Release> {
    const BEFORE: &[u8] = b"GNU C Library";
    let at = library.windows(BEFORE.len()).position(|window| window == BEFORE)?;
    let words = library.get(at..)?.split(|byte| matches!(byte, 0 | b'\n')).next()?;
    release(String::from_utf8_lossy(words).rsplit_once("version ")?.1)
}

/// Parses the first two numbers of `6.13.4-name` or `2.42.`
fn release(text: &str) -> Option<Release> {
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_kernels_hide_the_guard_pages_of_newer_libraries() {
        for (kernel, glibc, expected) in [
            ((6, 12), (2, 42), false),
            ((6, 13), (2, 41), false),
            ((6, 13), (2, 42), true),
            ((6, 15), (3, 0), true),
            ((6, 16), (2, 42), false),
            ((7, 0), (2, 43), false),
        ] {
            assert_eq!(is_affected(kernel, Some(glibc)), expected, "{kernel:?} {glibc:?}");
        }
        assert!(!is_affected((6, 14), None));
    }

    #[test]
    fn releases_are_read_from_words() {
        let library =
            b"\x7fELF\0GNU C Library (Ubuntu GLIBC 2.42-0ubuntu3) stable release version 2.42.\nCopyright";
        assert_eq!(told(library), Some((2, 42)));
        assert_eq!(
            (release("6.13.4-arch"), release("6.15-rc2"), release("6")),
            (Some((6, 13)), Some((6, 15)), None)
        );
        assert_eq!((told(b"musl libc"), told(b"GNU C Library"), release("")), (None, None, None));
    }

    #[test]
    fn the_library_of_this_process_tells_its_release() {
        let own = i32::try_from(std::process::id()).unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        if maps.contains("/libc.so.6") {
            assert!(glibc(own).is_some_and(|(major, minor)| major == 2 && minor > 10), "{:?}", glibc(own));
        }
    }
}
