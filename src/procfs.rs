//! What `/proc` tells of a process: parsing is apart from reading.

use std::{fs, io};

/// What we want to know of `/proc/<pid>/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    /// `R` running, `S` sleeping, `T` stopped, `t` traced, `Z` zombie, …
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) session: i32,
    /// The flags that the kernel keeps of a task.
    flags: u32,
}

impl Stat {
    /// What `/proc` tells of `pid`; [`io::ErrorKind::NotFound`] if there is no such process.
    pub(crate) fn of(pid: i32) -> io::Result<Stat> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"));
        let text = text.map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => io::ErrorKind::NotFound.into(), // it ended while we were reading
            _ => error,
        })?;
        Stat::parse(&text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat makes no sense")))
    }

    fn parse(text: &str) -> Option<Stat> {
        // The name comes second, in parentheses, and may contain any of them.
        let (_, rest) = text.rsplit_once(") ")?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Stat {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            session: fields.nth(1)?.parse().ok()?,
            flags: fields.nth(2)?.parse().ok()?,
        })
    }

    pub(crate) fn is_kernel_thread(&self) -> bool {
        const PF_KTHREAD: u32 = 0x0020_0000;
        self.flags & PF_KTHREAD != 0
    }

    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// One number of `/proc/<pid>/status`, such as `Tgid`.
pub(crate) fn status_number(pid: i32, name: &str) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The children of a process, of all its threads; none if it has ended.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    children
}

/// The process and all its ancestors, nearest first.
pub(crate) fn lineage(pid: i32) -> Vec<i32> {
    let mut line = vec![pid];
    let mut next = pid;
    while let Ok(stat) = Stat::of(next) {
        if stat.parent <= 0 || line.contains(&stat.parent) {
            break;
        }
        next = stat.parent;
        line.push(next);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_confuses_nobody() {
        let text = "4242 (a) R 1 (b)) S 17 4240 4241 0 -1 4194560 117 0 0 0\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.session), ('S', 17, 4241));
        assert!(!stat.is_kernel_thread());
    }

    #[test]
    fn nonsense_is_no_stat() {
        for text in ["", "1", "1 (x", "1 (x) ", "1 (x) S", "1 (x) S y 2 3 4 5 6"] {
            assert_eq!(Stat::parse(text), None, "{text}");
        }
    }

    #[test]
    fn this_process_is_its_parents_child() {
        let own = i32::try_from(std::process::id()).unwrap();
        let stat = Stat::of(own).unwrap();
        assert!(lineage(own).contains(&stat.parent) || stat.parent == 0);
        assert_eq!(status_number(own, "Tgid"), Some(own));
    }
}
