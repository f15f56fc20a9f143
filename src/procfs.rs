//! Reads and parses the files of a process in `/proc`; parsing is apart from reading.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use nix::unistd::{self, SysconfVar, sysconf};

/// The fields of `/proc/<pid>/stat` that this crate uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stat {
    /// `R` running, `S` sleeping, `T` stopped, `t` traced, `Z` zombie, …
    pub(crate) state: char,
    pub(crate) parent: i32,
    /// The process group.
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// The device number of its controlling terminal, as the kernel has it; 0 if there is no
    /// terminal.
    terminal: u32,
    /// The process group in the foreground of that terminal.
    pub(crate) foreground: i32,
    /// The kernel's flags of the task.
    flags: u32,
    /// The start time, in ticks since the machine started.
    pub(crate) start: u64,
    /// The signal that its parent gets when it ends; 0 if the parent gets no signal.
    pub(crate) exit_signal: i32,
    /// The exit status of a zombie, in the form of `wait`; 0 if we may not see it.
    pub(crate) exit_code: i32,
}

/// Reads a text. Names of processes need not be UTF-8: the kernel truncates them anywhere.
fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns true if no process has the number.
pub(crate) fn is_free(pid: i32) -> bool {
    matches!(Stat::of(pid), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

impl Stat {
    /// Reads the file for `pid`; [`io::ErrorKind::NotFound`] if there is no such process.
    pub(crate) fn of(pid: i32) -> io::Result<Stat> {
        Stat::read(&format!("/proc/{pid}/stat"))
    }

    /// Reads the file for one thread of a process.
    pub(crate) fn of_thread(pid: i32, thread: i32) -> io::Result<Stat> {
        Stat::read(&format!("/proc/{pid}/task/{thread}/stat"))
    }

    fn read(path: &str) -> io::Result<Stat> {
        let text = read_text(path).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => io::ErrorKind::NotFound.into(), // the process ended meanwhile
            _ => error,
        })?;
        Stat::parse(&text).ok_or_else(|| io::Error::other(format!("{path} makes no sense")))
    }

    /// Returns true if it has a controlling terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal != 0
    }

    fn parse(text: &str) -> Option<Stat> {
        // The name comes second, in parentheses, and may contain parentheses and spaces.
        let (_, rest) = text.rsplit_once(") ")?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Stat {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
            session: fields.next()?.parse().ok()?,
            terminal: fields.next()?.parse().ok()?,
            foreground: fields.next()?.parse().ok()?,
            flags: fields.next()?.parse().ok()?,
            start: fields.nth(12)?.parse().ok()?,
            exit_signal: fields.nth(15).and_then(|signal| signal.parse().ok()).unwrap_or(libc::SIGCHLD),
            exit_code: fields.nth(13).and_then(|code| code.parse().ok()).unwrap_or(0),
        })
    }

    /// Returns the major and minor number of its controlling terminal.
    pub(crate) fn terminal(&self) -> Option<(u32, u32)> {
        let number = self.terminal;
        let device = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00));
        (number != 0).then_some(device)
    }

    pub(crate) fn is_kernel_thread(&self) -> bool {
        const PF_KTHREAD: u32 = 0x0020_0000;
        self.flags & PF_KTHREAD != 0
    }

    /// Returns true for a zombie, and for a process that is about to become one.
    pub(crate) fn has_ended(&self) -> bool {
        const PF_EXITING: u32 = 4;
        self.is_zombie() || self.flags & PF_EXITING != 0
    }

    /// Returns true if the process has ended. A process whose main thread alone has ended looks the
    /// same.
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Returns the time in ticks since the machine started, as in [`Stat::start`].
pub(crate) fn ticks() -> u64 {
    let uptime = read_text("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split_ascii_whitespace().next().and_then(|text| text.parse::<f64>().ok());
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let ticks = (seconds.unwrap_or(0.0) * per_second as f64) as u64;
    ticks
}

/// Reads a number of `/proc/<pid>/status`, such as `Tgid`.
pub(crate) fn status_number(pid: i32, name: &str) -> Option<i32> {
    let text = read_text(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Returns true if the process is in our pid namespace, so that pids mean the same to both; `None`
/// if unknown, as for a process that has ended.
pub(crate) fn is_in_our_pid_namespace(pid: i32) -> Option<bool> {
    let text = read_text(format!("/proc/{pid}/status")).ok()?;
    // The pids in all namespaces, from ours down to the process's own.
    let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(numbers.split_ascii_whitespace().count() == 1)
}

/// Returns the pids of all processes in `/proc`.
pub(crate) fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Returns the session and the process group of a process. Two system calls are faster than a file
/// of `/proc`, and there may be many processes.
pub(crate) fn belongs_to(pid: i32) -> [Option<i32>; 2] {
    let process = Some(unistd::Pid::from_raw(pid));
    [unistd::getsid(process), unistd::getpgid(process)].map(|number| number.ok().map(unistd::Pid::as_raw))
}

/// Returns the children of a process, of all its threads; none if it has ended.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = read_text(thread.path().join("children")).unwrap_or_default();
        children.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    children
}

/// Returns the descendants of a process, parents before their children; none if it has ended. The
/// time is proportional to their number.
pub(crate) fn descendants(root: i32) -> Vec<i32> {
    tree(root).split_off(1)
}

/// Returns the process and its descendants, parents before their children.
pub(crate) fn tree(root: i32) -> Vec<i32> {
    walk(root, children)
}

/// Returns true if a process has a thread with this number.
pub(crate) fn has_thread(pid: i32, thread: i32) -> bool {
    Path::new(&format!("/proc/{pid}/task/{thread}")).exists()
}

fn walk(root: i32, children: impl Fn(i32) -> Vec<i32>) -> Vec<i32> {
    let mut tree = vec![root];
    let mut known = HashSet::from([root]);
    let mut next = 0;
    while let Some(pid) = tree.get(next).copied() {
        next += 1;
        // A pid can be reused, or a child be adopted, during the walk.
        tree.extend(children(pid).into_iter().filter(|child| known.insert(*child)));
    }
    tree
}

/// Returns the process and all its ancestors, nearest first.
pub(crate) fn lineage(pid: i32) -> Vec<i32> {
    let mut line = vec![pid];
    let mut known = HashSet::from([pid]);
    let mut next = pid;
    while let Ok(stat) = Stat::of(next) {
        if stat.parent <= 0 || !known.insert(stat.parent) {
            break;
        }
        next = stat.parent;
        line.push(next);
    }
    line
}

/// The fields of `/proc/<pid>/status` that this crate uses. Fields that the kernel omits are zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// The tracer; 0 if the process is not traced.
    tracer: i32,
    /// Real, effective and saved.
    pub(crate) uids: [u32; 3],
    /// Real, effective and saved.
    pub(crate) gids: [u32; 3],
    /// The mode: 0 none, 1 strict, 2 by a filter.
    pub(crate) seccomp: i32,
    pub(crate) threads: i32,
    /// Its pid in its own pid namespace.
    pub(crate) inner_pid: i32,
    /// Its session there; 0 if the session's leader is outside.
    pub(crate) inner_session: i32,
    pub(crate) effective: u64,
    pub(crate) bounding: u64,
    /// Signals that are pending for the thread or its process: bit 0 is signal 1.
    pub(crate) pending: u64,
    /// Signals that the thread blocks.
    blocked: u64,
    /// Signals that have a handler.
    caught: u64,
}

impl Status {
    /// Reads a status; `None` if there is no such process or thread.
    pub(crate) fn read(path: impl AsRef<Path>) -> Option<Status> {
        read_start(path).map(|text| Status::parse(&text))
    }

    /// Returns the pid of the tracer.
    pub(crate) fn tracer(&self) -> Option<i32> {
        Some(self.tracer).filter(|tracer| *tracer != 0)
    }

    /// Returns true if a signal handler is about to run in the thread, or in another thread of its
    /// process.
    pub(crate) fn takes_a_signal(&self) -> bool {
        self.pending & self.caught & !self.blocked != 0
    }

    pub(crate) fn parse(text: &str) -> Status {
        let mut status = Status::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let number = || value.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
            let last = || value.split_ascii_whitespace().last().and_then(|word| word.parse().ok());
            let mask = || u64::from_str_radix(value.trim(), 16).unwrap_or(0);
            match name {
                "TracerPid" => status.tracer = number().unwrap_or(0),
                "Uid" => status.uids = three(value),
                "Gid" => status.gids = three(value),
                "Seccomp" => status.seccomp = number().unwrap_or(0),
                "Threads" => status.threads = number().unwrap_or(0),
                "NSpid" => status.inner_pid = last().unwrap_or(0),
                "NSsid" => status.inner_session = last().unwrap_or(0),
                "CapEff" => status.effective = mask(),
                "CapBnd" => status.bounding = mask(),
                "SigPnd" | "ShdPnd" => status.pending |= mask(),
                "SigBlk" => status.blocked = mask(),
                "SigCgt" => status.caught = mask(),
                _ => {}
            }
        }
        status
    }
}

fn three(text: &str) -> [u32; 3] {
    let mut words = text.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0));
    std::array::from_fn(|_| words.next().unwrap_or(0))
}

/// A line of `/proc/<pid>/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping<'a> {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Other mappings of the file see what is written to it.
    pub(crate) is_shared: bool,
    /// The mapped file, as the kernel calls it; empty for anonymous memory.
    pub(crate) name: &'a str,
}

impl Mapping<'_> {
    pub(crate) fn parse(line: &str) -> Option<Mapping<'_>> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let (permissions, mut rest) = rest.trim_start().split_once(' ')?;
        for _ in 0..2 {
            rest = rest.trim_start().split_once(' ')?.1; // offset, device
        }
        let name = rest.trim_start().split_once(' ').map_or("", |(_inode, name)| name.trim_start());
        let number = |text| u64::from_str_radix(text, 16).ok();
        let is_shared = permissions.ends_with('s');
        Some(Mapping { start: number(start)?, end: number(end)?, is_shared, name })
    }
}

/// A socket of `/proc/<pid>/net/tcp` or `tcp6`, or of a table in the same form, such as `udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TcpLine {
    /// The state, as the kernel numbers it: 1 established, 10 listening, …
    pub(crate) state: u8,
    /// Bytes that were not sent yet.
    pub(crate) unsent: u32,
    /// The number of unread bytes; for a listener, of connections not accepted yet.
    pub(crate) waiting: u32,
    /// The inode; 0 if no process has the socket open.
    pub(crate) inode: u64,
    pub(crate) local: Endpoint,
    pub(crate) remote: Endpoint,
}

/// One end of a TCP connection: the address, and the port. An IPv4 address is the same in both
/// tables.
pub(crate) type Endpoint = (u128, u16);

impl TcpLine {
    pub(crate) const TIME_WAIT: u8 = 6;
    pub(crate) const CLOSED: u8 = 7;
    pub(crate) const CLOSE_WAIT: u8 = 8;
    pub(crate) const LISTENING: u8 = 10;

    pub(crate) fn parse(line: &str) -> Option<TcpLine> {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote) = (endpoint(words.next()?)?, endpoint(words.next()?)?);
        let state = u8::from_str_radix(words.next()?, 16).ok()?;
        let (unsent, waiting) = words.next()?.split_once(':')?;
        let number = |text| u32::from_str_radix(text, 16).ok();
        let (unsent, waiting) = (number(unsent)?, number(waiting)?);
        Some(TcpLine { state, unsent, waiting, inode: words.nth(4)?.parse().ok()?, local, remote })
    }

    /// Returns true if it is a connection in any state, but not a listener or a socket that was
    /// never connected.
    pub(crate) fn is_connection(&self) -> bool {
        !matches!(self.state, TcpLine::CLOSED | TcpLine::LISTENING)
    }

    /// Returns true if the other end is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        self.local.0 == self.remote.0
    }
}

/// Parses `0100007F:928D`. The kernel prints an address as words in native byte order.
fn endpoint(text: &str) -> Option<Endpoint> {
    const OF_IPV4: u128 = 0xffff_0000_0000_0000; // as the table of IPv6 prints ::ffff:0:0
    let (address, port) = text.split_once(':')?;
    let number = u128::from_str_radix(address, 16).ok()?;
    let number = if address.len() == 8 { number | OF_IPV4 } else { number };
    Some((number, u16::from_str_radix(port, 16).ok()?))
}

/// A line of `/proc/<pid>/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount<'a> {
    pub(crate) id: i32,
    /// The mount point, as the kernel writes it: a space is `\040`.
    pub(crate) point: &'a str,
    pub(crate) device: (u32, u32),
    /// The kind of file system, such as `ext4`.
    pub(crate) kind: &'a str,
}

impl Mount<'_> {
    pub(crate) fn parse(line: &str) -> Option<Mount<'_>> {
        let (mount, source) = line.split_once(" - ")?;
        let mut words = mount.split_ascii_whitespace();
        let id = words.next()?.parse().ok()?;
        let (major, minor) = words.nth(1)?.split_once(':')?;
        let point = words.nth(1)?;
        let kind = source.split_ascii_whitespace().next()?;
        Some(Mount { id, point, device: (major.parse().ok()?, minor.parse().ok()?), kind })
    }
}

/// Returns the devices that an inotify or fanotify watches, as `(major, minor)`, from the text of
/// `/proc/<pid>/fdinfo/<n>`. A device that the kernel omits is `None`.
pub(crate) fn watched_devices(fdinfo: &str) -> impl Iterator<Item = Option<(u32, u32)>> + '_ {
    let watches = fdinfo.lines().filter(|line| {
        line.starts_with("inotify wd:")
            || line.starts_with("fanotify ino:")
            || line.starts_with("fanotify mnt_id:")
    });
    watches.map(|line| {
        let device = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("sdev:"))?;
        let number = u32::from_str_radix(device, 16).ok()?;
        Some((number >> 20, number & 0xf_ffff)) // the kernel's own form of a device number
    })
}

/// Returns the access mode of an open descriptor: `O_RDONLY`, `O_WRONLY` or `O_RDWR`; `None` if it
/// is closed.
pub(crate) fn access_mode(pid: i32, fd: i32) -> Option<i32> {
    open_flags(pid, fd).map(|flags| flags & libc::O_ACCMODE)
}

/// Returns the flags of an open descriptor, such as `O_APPEND`; `None` if it is closed.
pub(crate) fn open_flags(pid: i32, fd: i32) -> Option<i32> {
    let fdinfo = read_start(format!("/proc/{pid}/fdinfo/{fd}"))?;
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(flags.trim(), 8).ok()
}

/// Returns a number of `/proc/<pid>/fdinfo/<n>` by its name.
pub(crate) fn fdinfo_number(fdinfo: &str, name: &str) -> Option<i32> {
    fdinfo_value(fdinfo, name)
}

/// As [`fdinfo_number`], for numbers of other types.
pub(crate) fn fdinfo_value<T: std::str::FromStr>(fdinfo: &str, name: &str) -> Option<T> {
    fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

/// Reads a file in `/proc`, up to a generous limit; `None` if it cannot be read.
pub(crate) fn read_start(path: impl AsRef<Path>) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(REASON).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

const REASON: u64 = 1 << 20;

/// Calls `look` for each line of a file in `/proc`, however many there are. A read error ends the
/// file.
pub(crate) fn each_line(path: impl AsRef<Path>, mut look: impl FnMut(&str)) {
    let Ok(file) = File::open(path) else { return };
    let mut file = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut file).take(REASON).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => look(String::from_utf8_lossy(&line).trim_end_matches('\n')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_in_the_process_own_numbers() {
        let status = Status::parse(
            "Name:\tx: y\nTgid:\t7\nTracerPid:\t12\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nNSpid:\t900\t1\n\
             NSsid:\t800\t0\nThreads:\t3\nCapEff:\t000001fffeffffff\nCapBnd:\t1\nSeccomp:\t2\nSigPnd:\t10\nShdPnd:\t01\n",
        );
        assert_eq!((status.tracer, status.uids, status.gids), (12, [1, 2, 3], [5, 6, 7]));
        assert_eq!((status.inner_pid, status.inner_session, status.threads, status.seccomp), (1, 0, 3, 2));
        assert_eq!(status.pending, 0x11);
        assert!(!status.takes_a_signal());
        let takes = |text| Status::parse(text).takes_a_signal();
        assert!(takes("SigPnd:\t0\nShdPnd:\t200\nSigBlk:\t100\nSigCgt:\t300\n"));
        assert!(!takes("SigPnd:\t0\nShdPnd:\t200\nSigBlk:\t200\nSigCgt:\t300\n"));
        assert_eq!((status.effective, status.bounding), (0x1ff_feff_ffff, 1));
        assert_eq!(Status::parse("no status\n: \nUid:\nUid:\tx -1"), Status::default());
    }

    #[test]
    fn a_mapping_has_its_name_with_all_its_spaces() {
        let line = "7f00-7f10 r--p 00000000 fe:00 123        /a b/c  d (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.name), (0x7f00, 0x7f10, "/a b/c  d (deleted)"));
        assert_eq!(Mapping::parse("7f00-7f10 rw-p 00000000 00:00 0 ").unwrap().name, "");
        assert_eq!(Mapping::parse("7f00-7f10 rw-p 00000000 00:00 0").unwrap().name, "");
        for text in
            ["", "7f00", "x-y r--p 0 0:0 1 z", "1-2 r--p", "1-2 r--p 0 0:0", "fffffffffffffffff-1 r 0 0 0 x"]
        {
            assert_eq!(Mapping::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_tcp_socket_has_a_state_and_a_queue() {
        let line = "   0: 0100007F:928D 00000000:0000 0A 00000000:00000002 00:00000000 00000000     0        0 515681 2 0 \
                    100 0 0 10 0";
        let local = (0xffff_0000_0100_007f, 0x928d);
        let line = TcpLine::parse(line);
        let remote = (0xffff_0000_0000_0000, 0);
        assert_eq!(line, Some(TcpLine { state: 10, unsent: 0, waiting: 2, inode: 515_681, local, remote }));
        assert!(!line.unwrap().is_connection());
        let heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        for text in [heading, "", "0: 1 2 0A", "0: 1 2 0A 3", "0: 1 2 ZZ 3:4 5 6 7 8 9"] {
            assert_eq!(TcpLine::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_of_ipv4_is_the_same_in_both_tables() {
        let (four, six) = ("0100007F:1F90", "0000000000000000FFFF00000100007F:1F90");
        assert_eq!(endpoint(four), Some((0xffff_0000_0100_007f, 8080)));
        assert_eq!(endpoint(four), endpoint(six));
        assert_ne!(endpoint(four), endpoint("0000000000000000000000000100007F:1F90"));
        for text in ["", ":", "0100007F", "x:1", "0100007F:12345", "123456789012345678901234567890123:1"] {
            assert_eq!(endpoint(text), None, "{text}");
        }
    }

    #[test]
    fn a_mount_has_a_device_and_a_kind() {
        let line = "36 35 98:3 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(Mount::parse(line), Some(Mount { id: 36, point: "/mnt2", device: (98, 3), kind: "ext3" }));
        for text in ["", "1 2 3", "x 35 98:3 / / rw - ext3", "36 35 98 / / rw - ext3", "36 35 9:9 - "] {
            assert_eq!(Mount::parse(text), None, "{text}");
        }
    }

    #[test]
    fn watches_tell_their_device() {
        let text = "pos:\t0\nmnt_id:\t17\ninotify wd:2 ino:1 sdev:1b mask:100 ignored_mask:0 fhandle-bytes:c\n\
                    inotify wd:1 ino:3c4a7 sdev:fe00000 mask:100\nfanotify flags:0 event-flags:0\ninotify wd:3";
        let devices: Vec<_> = watched_devices(text).collect();
        assert_eq!(devices, [Some((0, 0x1b)), Some((254, 0)), None]);
        assert_eq!(fdinfo_number(text, "mnt_id"), Some(17));
        assert_eq!(fdinfo_number(text, "tty-index"), None);
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_confuses_nobody() {
        let text = "4242 (a) R 1 (b)) S 17 4240 4241 0 -1 4194560 117 0 0 0 0 0 0 0 20 0 1 0 777 0\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.session), ('S', 17, 4241));
        assert_eq!(stat.terminal(), None);
        let text = "1 (x) S 1 1 1 4229124 1 0 0 0 0 0 0 0 0 0 20 0 1 0 777";
        assert_eq!(Stat::parse(text).unwrap().terminal(), Some((136, 1028)));
        assert!(!stat.is_kernel_thread());
    }

    #[test]
    fn nonsense_is_no_stat() {
        for text in ["", "1", "1 (x", "1 (x) ", "1 (x) S", "1 (x) S y 2 3 4 5 6"] {
            assert_eq!(Stat::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_tree_is_walked_in_linear_time_whatever_its_shape() {
        // Searching the list for each process would take minutes.
        const PROCESSES: i32 = 400_000;
        let wide = walk(1, |pid| if pid == 1 { (2..=PROCESSES).collect() } else { Vec::new() });
        let deep = walk(1, |pid| (pid + 1..=PROCESSES).take(1).collect());
        assert!(wide.iter().copied().eq(1..=PROCESSES) && wide == deep);
        let circle = walk(1, |pid| vec![pid % 3 + 1, pid]);
        assert_eq!(circle, [1, 2, 3]);
    }

    #[test]
    fn descendants_leave_out_the_root() {
        let mut shell = std::process::Command::new("sh");
        let mut shell = shell.args(["-c", "cat; true"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while descendants(pid).len() != 1 {
            assert!(std::time::Instant::now() < deadline, "{:?}", descendants(pid));
            std::thread::yield_now();
        }
        assert_eq!(tree(pid), [pid, descendants(pid)[0]]);
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(descendants(pid).is_empty());
    }

    #[test]
    fn this_process_is_its_parents_child() {
        let own = i32::try_from(std::process::id()).unwrap();
        let stat = Stat::of(own).unwrap();
        assert!(lineage(own).contains(&stat.parent) || stat.parent == 0);
        assert_eq!(is_in_our_pid_namespace(own), Some(true));
        assert_eq!(status_number(own, "Tgid"), Some(own));
    }
}
