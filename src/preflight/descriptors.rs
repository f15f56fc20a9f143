//! Open files: the kind of each, and whether criu can dump it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::Path,
};

use super::{Obstacle, Place, Severity, View, descriptor::Descriptor, mounts::Mounts, sockets::Sockets};
use crate::{
    Pid,
    procfs::{self, fdinfo_number, watched_devices},
    sys::Statx,
};

pub(super) fn look(view: &mut View<'_>) {
    let mut sockets = Sockets::default();
    let (mut terminals, mut pipes) = (Terminals::default(), Pipes::default());
    let mut namespaces = HashMap::new();
    for process in view.living() {
        let namespace = process.spaces.inode("mnt");
        namespaces.entry(namespace).or_insert_with(|| Mounts::of(process, view));
    }
    Mounts::join(&mut namespaces);
    for process in view.living() {
        let Some(mounts) = namespaces.get(&process.spaces.inode("mnt")) else { continue };
        for descriptor in Descriptor::all(process.pid) {
            if let Some(inode) = descriptor.inode_of("socket") {
                sockets.add(inode, descriptor);
            } else if let Some(inode) = descriptor.inode_of("pipe") {
                pipes.add(inode, descriptor);
            } else if let Some(terminal) = Terminal::of(&descriptor) {
                terminals.add(terminal, descriptor);
            } else if let Some((obstacle, severity)) = obstacle(view, &descriptor, mounts) {
                view.found(process.pid, descriptor.place(), obstacle, severity);
            }
        }
        if let Some(mount) = mounts.unseen_program(process.pid) {
            let path = fs::read_link(format!("/proc/{}/exe", process.pid)).unwrap_or_default();
            view.found(
                process.pid,
                Place::Program { path },
                Obstacle::UnseenMount { mount },
                Severity::Blocks,
            );
        }
    }
    terminals.look(view);
    pipes.look(view);
    sockets.look(view);
}

/// Returns the obstacle of a file that is neither socket nor terminal.
fn obstacle(view: &View<'_>, descriptor: &Descriptor, mounts: &Mounts) -> Option<(Obstacle, Severity)> {
    let blocks = |obstacle| Some((obstacle, Severity::Blocks));
    let name = descriptor.name();
    if let Some(kind) = name.strip_prefix("anon_inode:") {
        return anonymous(view, descriptor, kind, mounts);
    }
    if name.starts_with("pidfd:") {
        return pidfd(view, descriptor);
    }
    if !descriptor.target.is_absolute() {
        return None; // namespaces
    }
    if is_message_queue(descriptor) {
        return blocks(Obstacle::MessageQueue);
    }
    if let Some(found) = of_proc(view, &descriptor.target) {
        return Some(found);
    }
    let file = Statx::of(descriptor.path()).ok()?;
    if file.is_block_device() || (file.is_char_device() && !is_known_device(&file)) {
        return blocks(Obstacle::UnsupportedFile);
    }
    if file.is_char_device() && is_tun(&file) && view.root().spaces.share(view.own_spaces(), "net") {
        return blocks(Obstacle::Tun);
    }
    if is_secret_memory(descriptor) {
        return blocks(Obstacle::UnsupportedFile);
    }
    let info = descriptor.info();
    if view.options.file_locks != Some(true) && info.lines().any(|line| line.starts_with("lock:")) {
        return blocks(Obstacle::FileLock);
    }
    if let Some(obstacle) = deleted(view, &descriptor.target, &file) {
        return blocks(obstacle);
    }
    let mount = fdinfo_number(&info, "mnt_id")?;
    if mounts.lacks(mount) && !name.starts_with("/memfd:") && !is_external_file(view, mount, &file) {
        return blocks(Obstacle::UnseenMount { mount });
    }
    if mounts.cover(descriptor, mount, &file) {
        return blocks(Obstacle::Overmounted);
    }
    None
}

fn anonymous(
    view: &View<'_>,
    descriptor: &Descriptor,
    kind: &str,
    mounts: &Mounts,
) -> Option<(Obstacle, Severity)> {
    match kind.trim_matches(['[', ']']) {
        "timerfd" => wakes_up(&descriptor.info()).then_some((Obstacle::AlarmTimer, Severity::Blocks)),
        "eventfd" | "signalfd" => None,
        "eventpoll" => epoll(descriptor),
        "inotify" | "fanotify" => watch(view, &descriptor.info(), mounts),
        "pidfd" => pidfd(view, descriptor),
        "io_uring" => Some((Obstacle::IoUring, Severity::Blocks)),
        // A criu that was built with libbpf can dump it.
        "bpf-map" => Some((Obstacle::UnsupportedFile, Severity::Risk)),
        _ => Some((Obstacle::UnsupportedFile, Severity::Blocks)),
    }
}

/// criu resolves the files of an epoll in the first process that has the epoll open.
fn epoll(descriptor: &Descriptor) -> Option<(Obstacle, Severity)> {
    let info = descriptor.info();
    let targets = info.lines().filter_map(|line| line.strip_prefix("tfd:"));
    let mut targets = targets.filter_map(|rest| rest.split_ascii_whitespace().next()?.parse::<i32>().ok());
    let target = targets.find(|target| {
        let there = fs::symlink_metadata(format!("/proc/{}/fd/{target}", descriptor.pid));
        there.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    })?;
    Some((Obstacle::EpollElsewhere { target }, Severity::Blocks))
}

/// A file of `/proc` belongs to a process or thread. A restore makes the tree's processes before
/// their files, but its threads after them.
fn of_proc(view: &View<'_>, target: &Path) -> Option<(Obstacle, Severity)> {
    let rest = target.strip_prefix("/proc").ok()?;
    let mut words = rest.iter().map(|word| word.to_string_lossy());
    let pid: i32 = words.next()?.trim_end_matches(" (deleted)").parse().ok()?;
    let task = words.next().filter(|word| word == "task").and_then(|_| words.next()?.parse::<i32>().ok());
    let of_thread = task.is_some_and(|task| task != pid);
    if of_thread {
        return Some((Obstacle::ProcFile, Severity::Blocks));
    }
    let here = match &view.inside {
        Some(inside) => inside.process(pid),
        None => Some(pid).filter(|pid| !procfs::is_free(*pid)),
    };
    match here {
        Some(pid) if view.has(pid) => None,
        Some(pid) => Some((Obstacle::ProcOutside { of: Pid::from(pid) }, Severity::Risk)),
        None => Some((Obstacle::ProcGone { of: Pid::from(pid) }, Severity::Blocks)),
    }
}

/// Returns true for a timer of CLOCK_REALTIME_ALARM or CLOCK_BOOTTIME_ALARM.
fn wakes_up(info: &str) -> bool {
    matches!(fdinfo_number(info, "clockid"), Some(8 | 9))
}

/// criu opens a watched file by its handle, which the kernel's own file systems do not allow.
fn watch(view: &View<'_>, info: &str, mounts: &Mounts) -> Option<(Obstacle, Severity)> {
    let worst = watched_devices(info).filter_map(|device| {
        let kind = device.and_then(|device| mounts.kind_on(device)).unwrap_or("an unknown file system");
        match kind {
            "ext2" | "ext3" | "ext4" | "xfs" | "tmpfs" | "devtmpfs" => None,
            "proc" | "sysfs" => Some((Severity::Blocks, kind)),
            _ if view.options.force_irmap == Some(true) => None,
            _ => Some((Severity::Risk, kind)),
        }
    });
    let (severity, kind) = worst.max_by_key(|(severity, _)| *severity)?;
    Some((Obstacle::Watch { on: kind.to_owned() }, severity))
}

/// Requires the process of a pidfd to be in the tree. The pidfd of an ended process is no obstacle.
fn pidfd(view: &View<'_>, descriptor: &Descriptor) -> Option<(Obstacle, Severity)> {
    let of = fdinfo_number(&descriptor.info(), "Pid").filter(|pid| *pid > 0 && !view.has(*pid))?;
    Some((Obstacle::PidfdOutside { of: of.into() }, Severity::Blocks))
}

/// Returns true if a process of the tree has a POSIX message queue open.
pub(crate) fn has_message_queue(root: i32) -> bool {
    let mut descriptors = procfs::tree(root).into_iter().flat_map(Descriptor::all);
    descriptors.any(|descriptor| is_message_queue(&descriptor))
}

/// Returns true for a queue: its name is like `/name`, without a folder.
fn is_message_queue(descriptor: &Descriptor) -> bool {
    const MQUEUE: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x1980_0202);
    let is_name = descriptor.target.parent() == Some(Path::new("/"));
    is_name
        && nix::sys::statfs::statfs(&*descriptor.path())
            .is_ok_and(|system| system.filesystem_type() == MQUEUE)
}

/// Returns true for memory that even the kernel does not see (`memfd_secret`).
fn is_secret_memory(descriptor: &Descriptor) -> bool {
    const SECRETMEM: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x5345_434d);
    descriptor.name().starts_with("/secretmem")
        && nix::sys::statfs::statfs(&*descriptor.path())
            .is_ok_and(|system| system.filesystem_type() == SECRETMEM)
}

/// Returns the obstacle of a deleted file, which may be mapped or open.
pub(super) fn deleted(view: &View<'_>, target: &Path, file: &Statx) -> Option<Obstacle> {
    const GHOST_LIMIT: u64 = 1 << 20; // criu's own
    let name = target.to_string_lossy();
    let made_by_kernel = ["/memfd:", "/dev/zero", "/SYSV", "/anon_hugepage", "/[aio]"]
        .iter()
        .any(|start| name.starts_with(start));
    if !name.ends_with(" (deleted)") || made_by_kernel {
        return None;
    }
    if file.nlink() == 0 {
        let limit = view.options.ghost_limit.map_or(GHOST_LIMIT, u64::from);
        let size = file.blocks() * 512;
        return (file.is_file() && size > limit).then_some(Obstacle::GhostTooLarge { size, limit });
    }
    // A folder has no second name, and a name can end in ` (deleted)` by itself.
    let same = Statx::of(target).is_ok_and(|other| (other.dev(), other.ino()) == (file.dev(), file.ino()));
    let linked = view.options.link_remap == Some(true) || file.is_dir() || same;
    (!linked).then_some(Obstacle::DeletedName)
}

fn is_external_file(view: &View<'_>, mount: i32, file: &Statx) -> bool {
    view.is_external(&format!("file[{mount:x}:{:x}]", file.ino()))
}

/// Returns true for the device files that criu dumps by their path.
fn is_known_device(file: &Statx) -> bool {
    const MEMORY: u32 = 1; // null, zero, random, …
    const MISC_AUTOFS: (u32, u32) = (10, 235);
    let device = file.device();
    device.0 == MEMORY || device == MISC_AUTOFS || is_tun(file) || is_terminal(file)
}

fn is_tun(file: &Statx) -> bool {
    file.device() == (10, 200)
}

/// Returns true for virtual terminals, serial lines, the process's terminal, consoles, and both
/// sides of pseudo-terminals.
fn is_terminal(file: &Statx) -> bool {
    matches!(file.device().0, 4 | 5 | 128..=143 | 188 | 204)
}

/// A side of a pseudo-terminal.
enum Terminal {
    /// A master, by the index that its slave has as well.
    Master(u64),
    Slave {
        index: u64,
        rdev: u64,
        dev: u64,
    },
    /// A slave whose master was closed.
    Hung,
}

impl Terminal {
    fn of(descriptor: &Descriptor) -> Option<Terminal> {
        if !descriptor.target.is_absolute() {
            return None;
        }
        let file = Statx::of(descriptor.path()).ok()?;
        if file.is_master() {
            let index = fdinfo_number(&descriptor.info(), "tty-index")?;
            return Some(Terminal::Master(u64::try_from(index).ok()?));
        }
        let index = file.slave()?;
        if descriptor.name().ends_with(" (deleted)") {
            return Some(Terminal::Hung);
        }
        Some(Terminal::Slave { index, rdev: file.rdev(), dev: file.dev() })
    }
}

#[derive(Default)]
struct Terminals {
    masters: HashSet<u64>,
    slaves: Vec<(u64, Obstacle, Descriptor)>,
    hung: Vec<Descriptor>,
}

impl Terminals {
    fn add(&mut self, terminal: Terminal, descriptor: Descriptor) {
        match terminal {
            Terminal::Master(index) => drop(self.masters.insert(index)),
            Terminal::Hung => self.hung.push(descriptor),
            Terminal::Slave { index, rdev, dev } => {
                self.slaves.push((index, Obstacle::Terminal { rdev, dev }, descriptor));
            }
        }
    }

    fn look(mut self, view: &mut View<'_>) {
        for descriptor in self.hung {
            view.found(descriptor.pid, descriptor.place(), Obstacle::HungTerminal, Severity::Risk);
        }
        self.slaves.retain(|(index, obstacle, _)| {
            let external =
                obstacle.external().is_some_and(|external| view.is_external(&external.to_string()));
            !self.masters.contains(index) && !external
        });
        let different: BTreeSet<u64> = self.slaves.iter().map(|(index, ..)| *index).collect();
        // A shell's job may have the shell's terminal, but no other.
        let allowed = view.options.shell_job == Some(true) && different.len() == 1;
        if allowed || view.options.orphan_pts_master == Some(true) {
            return;
        }
        for (_, obstacle, descriptor) in self.slaves {
            view.found(descriptor.pid, descriptor.place(), obstacle, Severity::Blocks);
        }
    }
}

/// The tree's pipes, by inode.
#[derive(Default)]
struct Pipes {
    known: BTreeMap<u64, Pipe>,
}

#[derive(Default)]
struct Pipe {
    reads: bool,
    writes: bool,
    /// True if it is a standard stream, which a restore replaces.
    is_stream: bool,
    descriptors: Vec<Descriptor>,
}

impl Pipes {
    fn add(&mut self, inode: u64, descriptor: Descriptor) {
        const WRITES: u32 = 1;
        const READS_AND_WRITES: u32 = 2;
        let pipe = self.known.entry(inode).or_default();
        match access_mode(&descriptor.info()) {
            Some(READS_AND_WRITES) => (pipe.reads, pipe.writes) = (true, true),
            Some(WRITES) => pipe.writes = true,
            Some(_) => pipe.reads = true,
            None => {} // it was closed
        }
        pipe.is_stream |= descriptor.fd <= 2;
        pipe.descriptors.push(descriptor);
    }

    /// Reports pipes with one end in the tree: criu dumps them, but the restored end has no peer.
    fn look(mut self, view: &mut View<'_>) {
        self.known.retain(|_, pipe| {
            let with_packets = pipe.descriptors.iter().filter(|descriptor| has_packets(descriptor));
            let with_packets: Vec<_> = with_packets.collect();
            for descriptor in &with_packets {
                view.found(descriptor.pid, descriptor.place(), Obstacle::PacketPipe, Severity::Blocks);
            }
            with_packets.is_empty()
        });
        let alone = |pipe: &Pipe| pipe.reads != pipe.writes && !pipe.is_stream;
        for (inode, pipe) in self.known.into_iter().filter(|(_, pipe)| alone(pipe)) {
            for descriptor in pipe.descriptors {
                let place = descriptor.place();
                view.found(descriptor.pid, place, Obstacle::PipeOutside { inode }, Severity::Risk);
            }
        }
    }
}

/// Returns the access mode with which a file was opened, as a flag of `open`.
fn access_mode(fdinfo: &str) -> Option<u32> {
    open_flags(fdinfo).map(|flags| flags & 3)
}

fn open_flags(fdinfo: &str) -> Option<u32> {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"))?;
    u32::from_str_radix(flags.trim(), 8).ok()
}

/// Returns true for an end of a pipe that keeps packets apart.
fn has_packets(descriptor: &Descriptor) -> bool {
    let direct = nix::fcntl::OFlag::O_DIRECT.bits().unsigned_abs();
    open_flags(&descriptor.info()).is_some_and(|flags| flags & direct != 0)
}
