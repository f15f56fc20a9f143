//! [`Init`]: the first process of the namespaces of a copy.
//!
//! It is a program of a few pages, executed from memory. A fork of this process would copy its page
//! tables and keep its memory, however large it is.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::Signal,
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair},
        statfs::{TMPFS_MAGIC, statfs},
    },
};

use super::{
    Child, OF_A_TERMINAL, Place, Spawn,
    mount::{mount_again, mount_tmpfs},
    pidfd_open, pidfd_signal, receive, spawn, wait_readable,
};
use crate::lock::Mutex;

/// The program; empty where it could not be built.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// The descriptor of the first lent file, in an init and in its criu. Those below are the standard
/// streams (0 to 2), the control socket (3; in criu, its own socket) and the owner's pidfd (4).
pub(crate) const FIRST_LENT: i32 = 5;
const OWNER: i32 = 4;

/// The namespaces and the steps of an init, as `sys/init/program.rs` describes them.
#[derive(Debug, Clone)]
pub(crate) struct Namespaces {
    flags: libc::c_int,
    steps: Vec<CString>,
    /// The name of each step, for errors.
    names: Vec<&'static str>,
}

impl Namespaces {
    /// Makes a pid namespace and a mount namespace. The root has the pid `root`, and criu gets the
    /// pid after `highest`.
    pub(crate) fn new(root: u32, highest: u32) -> Namespaces {
        let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
        Namespaces { flags, steps: Vec::new(), names: Vec::new() }
            .step("mount /proc", &["p"])
            .step("choose criu's pid", &["n", &highest.to_string()])
            .step("note the root's pid", &["R", &root.to_string()])
    }

    /// Adds a network namespace, with nothing but a loopback interface.
    pub(crate) fn network(mut self) -> Namespaces {
        self.flags |= libc::CLONE_NEWNET;
        self.step("bring the loopback interface up", &["l"])
    }

    /// Adds a `/dev/pts` of their own.
    pub(crate) fn terminals(self) -> Namespaces {
        self.step("mount /dev/pts", &["t"])
    }

    /// Opens a folder inside, as the lent file of this number.
    pub(crate) fn folder(self, number: i32, path: CString) -> Namespaces {
        let mut all = self.step("open the work folder", &["o", &number.to_string()]);
        all.steps.push(path);
        all
    }

    fn step(mut self, name: &'static str, words: &[&str]) -> Namespaces {
        self.names.push(name);
        // Numbers and letters have no zero byte.
        self.steps.extend(words.iter().map(|word| CString::new(*word).unwrap_or_default()));
        self
    }
}

/// The program that an init starts, and its files from [`FIRST_LENT`] on.
pub(crate) struct InitCommand<'a> {
    pub(crate) program: CString,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    /// The standard streams.
    pub(crate) streams: [BorrowedFd<'a>; 3],
    pub(crate) lent: &'a [BorrowedFd<'a>],
}

/// A running init. Dropping it ends all processes of the namespace, unless it was
/// [kept](Init::keep). They end with this process in any case.
#[derive(Debug)]
pub(crate) struct Init {
    process: Child,
    control: Mutex<Control>,
    kept: AtomicBool,
    /// The name of each step, for errors.
    names: Vec<&'static str>,
    /// The pid of the root in our namespace, and a pidfd, from when it could not end yet.
    root: OnceLock<(i32, OwnedFd)>,
    /// The number of lent files.
    lent: i32,
    /// The file system that is its `/run` until the tree is made.
    run: Option<Arc<OwnedFd>>,
}

#[derive(Debug)]
struct Control {
    socket: OwnedFd,
    root_status: Option<ExitStatus>,
    criu_status: Option<ExitStatus>,
}

/// A criu that an init started.
pub(crate) struct Started {
    pub(crate) init: Init,
    /// Our end of criu's socket.
    pub(crate) socket: OwnedFd,
    pub(crate) criu: Child,
}

// The kinds of packets.
const READY: i32 = 1;
const CRIU_ENDED: i32 = 2;
const ROOT_ENDED: i32 = 3;
const ROOT_OPENED: i32 = 4;
const UNMOUNT_RUN: i32 = 7;
const FAILED: i32 = 9;
const OPEN_ROOT: i32 = 1;
const CLOSE: i32 = 3;
const END: i32 = 8;
const DETACH: i32 = 10;

/// In the place of the pid of a criu that ended at once.
const ENDED: i32 = -1;

/// The time limit for each step of an init.
const PATIENCE: Duration = Duration::from_secs(10);

impl Init {
    /// The target of `/proc/<pid>/exe` of an init.
    pub(crate) const EXECUTABLE: &str = "/memfd:criu-rpc init (deleted)";

    /// Returns false where the program could not be built.
    pub(crate) fn is_built() -> bool {
        !PROGRAM.is_empty()
    }

    /// Starts an init in new namespaces, which starts the program.
    pub(crate) fn start(namespaces: Namespaces, command: InitCommand<'_>) -> io::Result<Started> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let ours = super::duplicate_above(ours.as_fd(), 3)?;
        let owner = pidfd_open(crate::Pid::own().as_raw())?;
        let executable = program()?;
        let lent = command.lent;
        let mut words = vec![c"criu-rpc init".into()];
        let mut names = vec!["separate its mounts", "note its owner"];
        words.extend([c"O".into(), CString::new(OWNER.to_string())?]);
        names.extend(namespaces.names);
        words.extend(namespaces.steps);
        // After the other steps: their folders may be in `/run`.
        let is_hidden = command.program.as_bytes().starts_with(b"/run/");
        let run = if profits_from_tmpfs() && !is_hidden { shared_run().ok() } else { None };
        let mount = run.as_ref().and_then(|run| mount_again(run.as_fd()).ok());
        let run = run.filter(|_| mount.is_some());
        let lent_count = i32::try_from(lent.len()).map_err(io::Error::other)?;
        if mount.is_some() {
            let number = FIRST_LENT + lent_count;
            words.extend([c"u".into(), CString::new(number.to_string())?]);
            names.push("mount /run");
        }
        names.push("start criu");
        let InitCommand { program, arguments, environment, streams, .. } = command;
        words.extend([c"r".into(), program]);
        words.extend(arguments.into_iter().skip(1));
        let mut files = streams.to_vec();
        files.extend([theirs.as_fd(), owner.as_fd()]);
        files.extend(lent);
        files.extend(mount.as_ref().map(AsFd::as_fd));
        let process = spawn(Spawn {
            program: c"init".into(),
            executable: Some(executable.as_fd()),
            namespaces: namespaces.flags,
            inside: None,
            arguments: words,
            environment,
            files,
            place: Place::OwnSession,
            ignores: OF_A_TERMINAL,
            lasting: false,
        })?;
        drop(theirs);
        let process = process.ok_or_else(|| io::Error::other("an init is not a detached process"))?;
        let control = Control { socket: ours, root_status: None, criu_status: None };
        let init = Init {
            process,
            control: Mutex::new(control),
            kept: AtomicBool::new(false),
            names,
            root: OnceLock::new(),
            lent: lent_count,
            run,
        };
        let (_, descriptors) = init.hear(READY, Instant::now() + PATIENCE)?;
        let [socket, pidfd] = <[OwnedFd; 2]>::try_from(descriptors)
            .map_err(|_| io::Error::other("expected two descriptors from the copy's init"))?;
        let criu = Child::new(number_of(&pidfd).unwrap_or(ENDED), pidfd);
        let socket = super::duplicate_above(socket.as_fd(), 3)?;
        Ok(Started { init, socket, criu })
    }

    /// Lets the processes go on when this is dropped.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Gives the tree its own `/run`. Called once, before criu makes the tree.
    pub(crate) fn unmount_run(&self) -> io::Result<()> {
        if self.run.is_none() {
            return Ok(());
        }
        self.tell(UNMOUNT_RUN, 0, 0)?;
        match self.hear(UNMOUNT_RUN, Instant::now() + PATIENCE)? {
            (0, _) => Ok(()),
            (errno, _) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Returns the pid of the root in our namespace, and a pidfd. The first call must come while
    /// criu holds the root.
    pub(crate) fn root(&self) -> io::Result<(i32, OwnedFd)> {
        let (pid, pidfd) = match self.root.get() {
            Some(root) => root,
            None => {
                let opened = self.open_root()?;
                self.root.get_or_init(|| opened)
            }
        };
        Ok((*pid, pidfd.try_clone()?))
    }

    fn open_root(&self) -> io::Result<(i32, OwnedFd)> {
        self.tell(OPEN_ROOT, 0, 0)?;
        let (errno, descriptors) = self.hear(ROOT_OPENED, Instant::now() + PATIENCE)?;
        let pidfd = descriptors.into_iter().next().ok_or_else(|| io::Error::from_raw_os_error(errno))?;
        Ok((number_of(&pidfd)?, pidfd))
    }

    /// Closes the files that were lent.
    pub(crate) fn close_lent(&self) {
        // The init has files of its own above them.
        if self.lent > 0 {
            let _ = self.tell(CLOSE, FIRST_LENT, FIRST_LENT + self.lent - 1); // it has ended, then
        }
    }

    /// Lets the processes outlive this one.
    pub(crate) fn detach(&self) -> io::Result<()> {
        self.tell(DETACH, 0, 0)
    }

    /// Returns the status of the root, which has ended; `None` at the deadline. An init that was
    /// killed killed the root.
    pub(crate) fn root_status(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        let mut control = self.control.lock();
        while control.root_status.is_none() {
            match control.read(deadline) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return None,
                Err(_) => return Some(ExitStatus::from_raw(libc::SIGKILL)),
            }
        }
        control.root_status
    }

    /// Returns the status of criu, which has ended.
    pub(crate) fn criu_status(&self, deadline: Instant) -> Option<ExitStatus> {
        let mut control = self.control.lock();
        while control.criu_status.is_none() {
            control.read(Some(deadline)).ok()?;
        }
        control.criu_status
    }

    /// Kills all processes in the namespace, and waits for their end. Returns false if one of them
    /// does not end.
    pub(crate) fn end(&self) -> bool {
        const GRACE: Duration = Duration::from_secs(1);
        // If it does not answer, its own end kills all of them.
        let asked = self.tell(END, 0, 0).is_ok();
        let ended =
            asked && wait_readable(self.process.pidfd(), Some(Instant::now() + GRACE)).unwrap_or(false);
        if !ended {
            let _ = pidfd_signal(self.process.pidfd(), Signal::SIGKILL); // it has ended, then
        }
        self.process.wait(Some(Instant::now() + PATIENCE)).is_ok_and(|ended| ended.is_some())
    }

    fn tell(&self, kind: i32, one: i32, other: i32) -> io::Result<()> {
        let packet = [kind, one, other, 0].map(i32::to_ne_bytes).concat();
        let socket = self.control.lock().socket.as_raw_fd();
        send(socket, &packet, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Waits for a packet of this kind.
    fn hear(&self, wanted: i32, deadline: Instant) -> io::Result<(i32, Vec<OwnedFd>)> {
        let mut control = self.control.lock();
        loop {
            let (kind, one, other, descriptors) = control.read(Some(deadline))?;
            match kind {
                FAILED => {
                    let error = io::Error::from_raw_os_error(other);
                    let step = usize::try_from(one).ok().and_then(|step| self.names.get(step));
                    let doing = step.unwrap_or(&"set up its namespaces");
                    let text = format!("the copy's init could not {doing}: {error}");
                    return Err(io::Error::new(error.kind(), text));
                }
                kind if kind == wanted => return Ok((one, descriptors)),
                _ => {}
            }
        }
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed) {
            self.end();
        }
    }
}

impl Control {
    /// Reads a packet, and keeps the statuses.
    fn read(&mut self, deadline: Option<Instant>) -> io::Result<(i32, i32, i32, Vec<OwnedFd>)> {
        if !wait_readable(self.socket.as_fd(), deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut packet = [0; 16];
        let (size, descriptors) = match receive(self.socket.as_fd(), &mut packet) {
            // Said once, if the init ended with a packet of ours unread. Its own packets are still
            // there.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                receive(self.socket.as_fd(), &mut packet)?
            }
            received => received?,
        };
        if size != packet.len() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the copy's init has ended"));
        }
        let number =
            |at: usize| i32::from_ne_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        let (kind, one, other) = (number(0), number(4), number(8));
        match kind {
            CRIU_ENDED => self.criu_status = Some(ExitStatus::from_raw(one)),
            ROOT_ENDED => self.root_status = Some(ExitStatus::from_raw(one)),
            _ => {}
        }
        Ok((kind, one, other, descriptors))
    }
}

/// Returns the pid of a pidfd's process, in our pid namespace.
fn number_of(pidfd: &OwnedFd) -> io::Result<i32> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number = told.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.filter(|number| *number > 0).ok_or_else(|| Errno::ESRCH.into())
}

/// Returns true if `/run` is not a tmpfs: only there criu caches its findings about the kernel.
/// Without the cache, they take two thirds of the time of a small copy.
fn profits_from_tmpfs() -> bool {
    statfs("/run").is_ok_and(|run| run.filesystem_type() != TMPFS_MAGIC)
}

/// Returns a tmpfs for `/run`, which all copies share until their trees are made. It is gone with
/// the last copy.
fn shared_run() -> io::Result<Arc<OwnedFd>> {
    static RUN: Mutex<Weak<OwnedFd>> = Mutex::new(Weak::new());
    let mut shared = RUN.lock();
    if let Some(run) = shared.upgrade() {
        return Ok(run);
    }
    let run = Arc::new(super::duplicate_above(mount_tmpfs()?.as_fd(), 3)?);
    *shared = Arc::downgrade(&run);
    Ok(run)
}

/// Returns the program as a file in memory.
fn program() -> io::Result<File> {
    if PROGRAM.is_empty() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let executable = MFdFlags::from_bits_retain(MFD_EXEC);
    let name = c"criu-rpc init";
    let file = match memfd_create(name, MFdFlags::MFD_CLOEXEC | executable) {
        Err(Errno::EINVAL) => memfd_create(name, MFdFlags::MFD_CLOEXEC), // before Linux 6.3
        made => made,
    };
    let mut file = File::from(file?);
    file.write_all(PROGRAM)?;
    Ok(file)
}

const MFD_EXEC: libc::c_uint = 0x10;
