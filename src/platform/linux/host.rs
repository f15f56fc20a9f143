//! Properties of this machine that matter to a restore.

use std::{collections::BTreeSet, env::consts::ARCH, fs};

use crate::{Error, Result, image::ImageDir, manifest::Host, pages::PageSize, sys};

/// This machine. Which criu it has, the caller knows.
pub(crate) fn host() -> Host {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Host {
        criu: String::new(),
        kernel: kernel.trim().to_owned(),
        arch: ARCH.to_owned(),
        cpu: instruction_sets(&cpu).into_iter().collect(),
    }
}

/// Returns the page size of these images. It is in their notes, or in the maps of memory in a store
/// (`stored`); otherwise it is the smallest one.
///
/// Refuses images of a kernel with another page size than this one: criu counts in pages, so memory
/// would come back at other addresses.
pub(super) fn checked_page_size(images: &ImageDir, stored: Option<PageSize>) -> Result<PageSize> {
    let noted = images.notes()?.and_then(|notes| notes.page_size);
    page_size_of(noted, stored, sys::page_size())
}

fn page_size_of(noted: Option<u32>, stored: Option<PageSize>, here: PageSize) -> Result<PageSize> {
    for there in noted.map(u64::from).into_iter().chain(stored.map(PageSize::bytes)) {
        if there != here.bytes() {
            let problem = format!(
                "it was made on a kernel with pages of {there} bytes, and this kernel has pages of {}",
                here.bytes()
            );
            return Err(Error::Host { problem });
        }
    }
    Ok(if noted.is_some() || stored.is_some() { here } else { PageSize::SMALLEST })
}

/// Returns the instruction sets in `/proc/cpuinfo`: a program may have chosen its code by them.
/// Other flags describe the kernel or the virtual machine, and may differ at the restore.
fn instruction_sets(cpuinfo: &str) -> BTreeSet<String> {
    let lists = cpuinfo.lines().filter_map(|line| {
        let (key, list) = line.split_once(':')?;
        ["flags", "Features"].contains(&key.trim()).then_some(list)
    });
    let words = lists.flat_map(str::split_ascii_whitespace);
    words.filter(|word| is_instruction_set(word)).map(str::to_owned).collect()
}

#[cfg(target_arch = "x86_64")]
fn is_instruction_set(flag: &str) -> bool {
    const STARTS: [&str; 6] = ["sse", "ssse", "avx", "amx_", "bmi", "xsave"];
    const NAMES: [&str; 24] = [
        "pni",
        "mmx",
        "fxsr",
        "cx16",
        "lahf_lm",
        "popcnt",
        "abm",
        "movbe",
        "fma",
        "fma4",
        "f16c",
        "aes",
        "vaes",
        "pclmulqdq",
        "vpclmulqdq",
        "sha_ni",
        "gfni",
        "adx",
        "rdrand",
        "rdseed",
        "fsgsbase",
        "erms",
        "rdpid",
        "xgetbv1",
    ];
    STARTS.iter().any(|start| flag.starts_with(start)) || NAMES.contains(&flag)
}

/// Elsewhere the list has little else; a restore ignores the rest.
#[cfg(not(target_arch = "x86_64"))]
fn is_instruction_set(_flag: &str) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_kernel_with_other_pages_are_refused() {
        let sizes = [4096, 16384, 65536].map(|bytes| PageSize::new(bytes).unwrap());
        for here in sizes {
            let noted = u32::try_from(here.bytes()).ok();
            for (noted, stored) in [(noted, None), (None, Some(here)), (noted, Some(here))] {
                assert_eq!(page_size_of(noted, stored, here).unwrap(), here);
            }
            assert_eq!(page_size_of(None, None, here).unwrap(), PageSize::SMALLEST);
            let other = sizes.into_iter().filter(|size| *size != here).map(PageSize::bytes);
            for there in other.chain([0, 5000]) {
                let noted_there = u32::try_from(there).ok();
                let mut wrong = vec![(noted_there, None), (noted_there, Some(here))];
                wrong.extend(PageSize::new(there).map(|size| (noted, Some(size))));
                for (noted, stored) in wrong {
                    let error = page_size_of(noted, stored, here).unwrap_err();
                    assert!(matches!(error, Error::Host { .. }), "{error}");
                    for bytes in [there, here.bytes()] {
                        assert!(error.to_string().contains(&format!(" {bytes}")), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn this_machine_is_known() {
        let host = host();
        assert!(!host.kernel.is_empty() && host.arch == ARCH, "{host:?}");
        assert!(!host.cpu.is_empty() && host.cpu.is_sorted(), "{host:?}");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_says_how_the_kernel_works_is_left_out() {
        let found =
            instruction_sets("processor\t: 0\nflags\t\t: fpu sse2 constant_tsc avx512f pti sha_ni\n\n");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["avx512f", "sha_ni", "sse2"]);
    }
}
