//! Names in images that have line breaks: criu writes them into its log as they are.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

/// Returns the lines that are in the images after a line break, as parts of names. Memory and the
/// contents of deleted files are not searched: criu never prints them.
pub(crate) fn lines_in_names<'a>(folder: &Path, lines: &[&'a str]) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut left = CEILING;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let has_names =
            name.ends_with(".img") && !["pages-", "ghost-file-"].iter().any(|kind| name.starts_with(kind));
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !has_names || !is_file || left == 0 {
            continue;
        }
        let mut bytes = Vec::new();
        let read = File::open(entry.path()).and_then(|file| file.take(left).read_to_end(&mut bytes));
        left = left.saturating_sub(read.unwrap_or(0) as u64);
        for start in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1) {
            found.extend(lines.iter().filter(|line| bytes[start..].starts_with(line.as_bytes())));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The most bytes that are searched.
const CEILING: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_name_is_found_and_no_other() {
        let folder = std::env::temp_dir().join(format!("criu-rpc-lines-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("files.img"), b"\x0a\x05a\nError (x.c:1): y\x1a\x02z").unwrap();
        fs::write(folder.join("pages-1.img"), b"\nError (x.c:2): y").unwrap();
        let lines = ["Error (x.c:1): y", "Error (x.c:2): y", "rror (x.c:1): y"];
        assert_eq!(lines_in_names(&folder, &lines), ["Error (x.c:1): y"]);
        assert!(lines_in_names(&folder.join("none"), &lines).is_empty());
        fs::remove_dir_all(&folder).unwrap();
    }
}
