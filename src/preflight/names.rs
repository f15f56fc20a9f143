//! Names with line breaks: criu writes them into its log unescaped.

use std::{fs, os::unix::ffi::OsStrExt, path::Path};

use crate::{Pid, procfs};

/// Calls `show` for every name with a line break: of the tree's open and mapped files, its folders,
/// and the processes themselves.
pub(crate) fn broken_names(root: Pid, show: &mut dyn FnMut(&str)) {
    let mut show = |name: &[u8]| {
        if name.contains(&b'\n') {
            show(&String::from_utf8_lossy(name));
        }
    };
    let mut link = |path: &Path| {
        if let Ok(target) = fs::read_link(path) {
            show(target.as_os_str().as_bytes());
        }
    };
    let processes = procfs::tree(root.as_raw());
    for pid in &processes {
        for name in ["exe", "cwd", "root"] {
            link(Path::new(&format!("/proc/{pid}/{name}")));
        }
        for folder in ["fd", "map_files"] {
            let entries = fs::read_dir(format!("/proc/{pid}/{folder}")).into_iter().flatten().flatten();
            entries.for_each(|entry| link(&entry.path()));
        }
    }
    for pid in processes {
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let name = fs::read(thread.path().join("comm")).unwrap_or_default();
            show(name.strip_suffix(b"\n").unwrap_or(&name));
        }
        procfs::each_line(format!("/proc/{pid}/mountinfo"), |line| {
            for word in line.split(' ').filter(|word| word.contains("\\012")) {
                show(word.replace("\\012", "\n").replace("\\040", " ").as_bytes());
            }
        });
        sockets(pid, &mut show);
    }
}

/// Shows the names of unix sockets. The kernel does not escape them, so a line that does not parse
/// continues the name before.
fn sockets(pid: i32, show: &mut dyn FnMut(&[u8])) {
    let mut name = String::new();
    procfs::each_line(format!("/proc/{pid}/net/unix"), |line| {
        let begins = line.split_once(": ").is_some_and(|(number, _)| {
            number.len() >= 8 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        if begins {
            show(name.as_bytes());
            name.clear();
            name.push_str(line);
        } else {
            name.push('\n');
            name.push_str(line);
        }
    });
    show(name.as_bytes());
}
