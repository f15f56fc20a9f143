//! A criu at the other end of a socket: sends, receives, and collects the facts about its end.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::Signal,
        socket::{
            AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, socketpair,
            sockopt::{self, PeerCredentials, SendTimeout},
        },
        time::{TimeVal, TimeValLike},
    },
    time::{ClockId, clock_gettime},
};

use super::{
    Cancel,
    packet::{self, Packet},
    swrk::{Apart, Command},
};
use crate::{
    Error, Pid, Result,
    preflight::Inside,
    procfs::{self, children, lineage},
    sys::{self, Child, Init, Namespaces, Started},
};

/// The connection to a criu, for one conversation.
///
/// Dropping it closes the socket, which ends criu, and reaps it.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    criu: Option<Child>,
    output: Output,
    began: Duration,
    /// The program, if we started it.
    program: Option<PathBuf>,
    /// The init of the namespaces that criu restores into, if they are not ours.
    init: Option<Arc<Init>>,
    /// The root of the tree that criu dumps, if criu is in other namespaces than we are.
    root: Option<Root>,
}

/// The pids of a root that criu and we see with different numbers.
#[derive(Debug, Clone, Copy)]
struct Root {
    here: i32,
    inside: i32,
}

/// The destination of criu's standard output and standard error. A file takes a megabyte without a
/// reader, and can be read after criu ended.
#[derive(Debug)]
enum Output {
    /// The output of a service, which is not ours to read.
    Elsewhere,
    Memory(File),
    /// A named file, because a process that is dumped itself must not have it open.
    Named(PathBuf),
}

/// The result of a wait for a message.
#[derive(Debug)]
pub(super) enum Heard {
    Message(Vec<u8>, Vec<OwnedFd>),
    /// criu has ended, or closed its end of the socket.
    HungUp,
    /// A packet of this many bytes, which is too large for an answer.
    TooLarge(usize),
    /// No packet arrived before the deadline.
    Silence,
    /// The caller cancelled.
    Cancelled,
}

/// The reason why a wait ended.
enum Wake {
    Socket,
    /// criu has ended.
    Ended,
    Late,
    Cancelled,
}

/// The facts that remain after criu's end.
#[derive(Debug, Default)]
pub(super) struct CriuExit {
    pub(super) status: Option<ExitStatus>,
    /// True if we killed it.
    pub(super) by_us: bool,
    /// Its pid, or the pid of the process that made the service's socket.
    pub(super) criu: Option<i32>,
    pub(super) output: String,
    /// The time at which the conversation began, since 1970, by the clock of file times.
    pub(super) since: Option<Duration>,
    /// The program, if we started it.
    pub(super) program: Option<PathBuf>,
}

impl Connection {
    /// Starts `criu swrk`, in the namespaces of the process `inside` if there is one.
    pub(super) fn start(
        command: &Command<'_>,
        terminal: Option<BorrowedFd<'_>>,
        lent: &[BorrowedFd<'_>],
        apart: Apart,
        inside: Option<BorrowedFd<'_>>,
    ) -> Result<Connection> {
        let output = output_file()?;
        let (socket, theirs) = pair()?;
        let began = file_time();
        let criu = command.spawn(terminal, output.as_fd(), theirs.as_fd(), lent, apart, inside)?;
        let program = Some(command.program.into());
        let output = Output::Memory(output.into());
        Ok(Connection { criu, program, ..Connection::new(socket, output, began) })
    }

    /// Starts `criu swrk` in the namespaces of a copy, to dump the tree with the root `here`.
    pub(super) fn start_inside(
        command: &Command<'_>,
        terminal: Option<BorrowedFd<'_>>,
        lent: &[BorrowedFd<'_>],
        apart: Apart,
        here: i32,
        inside: &Inside,
    ) -> Result<Connection> {
        let root = Some(Root { here, inside: inside.root });
        let namespaces = Some(inside.init.as_fd());
        Ok(Connection { root, ..Connection::start(command, terminal, lent, apart, namespaces)? })
    }

    fn new(socket: OwnedFd, output: Output, began: Duration) -> Connection {
        Connection { socket, criu: None, output, began, program: None, init: None, root: None }
    }

    /// Starts `criu swrk` in namespaces of its own.
    pub(super) fn start_within(
        command: &Command<'_>,
        terminal: Option<BorrowedFd<'_>>,
        lent: &[BorrowedFd<'_>],
        namespaces: Namespaces,
    ) -> Result<Connection> {
        let output = output_file()?;
        let began = file_time();
        let Started { init, socket, criu } =
            command.start_within(terminal, output.as_fd(), lent, namespaces)?;
        let program = Some(command.program.into());
        let output = Output::Memory(output.into());
        let (criu, init) = (Some(criu), Some(Arc::new(init)));
        Ok(Connection { criu, program, init, ..Connection::new(socket, output, began) })
    }

    /// Returns the init of the namespaces that criu restores into, if they are not ours.
    pub(super) fn init(&self) -> Option<&Arc<Init>> {
        self.init.as_ref()
    }

    /// Prepares the namespaces for the tree. Called right before criu makes it.
    pub(super) fn before_restore(&self) -> io::Result<()> {
        self.init.as_ref().map_or(Ok(()), |init| init.unmount_run())
    }

    /// Returns the root's pid in our namespace. criu knows the root as `pid`.
    pub(super) fn root_here(&self, pid: Pid) -> io::Result<Pid> {
        match (&self.init, self.root) {
            (Some(init), _) => init.root().map(|(pid, _)| Pid::from(pid)),
            (None, Some(root)) if pid == root.inside => Ok(Pid::from(root.here)),
            (None, _) => Ok(pid),
        }
    }

    /// Returns the pid of a root in criu's namespace. We know it as `pid`.
    pub(super) fn root_inside(&self, pid: i32) -> i32 {
        self.root.filter(|root| root.here == pid).map_or(pid, |root| root.inside)
    }

    /// Starts a `criu swrk` that is not a descendant of this process, so that it can dump this
    /// process. The output goes to a new file of that name. Only the socket stays open here.
    pub(super) fn start_detached(
        command: &Command<'_>,
        lent: &[BorrowedFd<'_>],
        output: PathBuf,
    ) -> Result<Connection> {
        let file = File::options().read(true).append(true).create(true).open(&output);
        let file = file.map_err(Error::io(format!("create {}", output.display())))?;
        let (socket, theirs) = pair()?;
        let began = file_time();
        let criu = command.spawn(None, file.as_fd(), theirs.as_fd(), lent, Apart::DETACHED, None)?;
        let program = Some(command.program.into());
        Ok(Connection { criu, program, ..Connection::new(socket, Output::Named(output), began) })
    }

    /// Connects to a `criu service`; `None` after the deadline or a cancel.
    pub(super) fn to_service(
        path: &Path,
        deadline: Option<Instant>,
        cancel: Option<&Cancel>,
    ) -> Result<Option<Connection>> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
            .map_err(failed("make a socket"))?;
        // A service with a full backlog makes us wait, for this long at a time.
        setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(50)).map_err(failed("set a socket up"))?;
        let began = file_time();
        let attempt = || connect(socket.as_raw_fd(), &UnixAddr::new(path)?);
        while let Err(errno) = attempt() {
            if !matches!(errno, Errno::EAGAIN | Errno::EINTR) {
                return Err(Error::NoService { socket: path.to_path_buf(), source: errno.into() });
            }
            if cancel.is_some_and(Cancel::is_cancelled) || deadline.is_some_and(|end| end <= Instant::now()) {
                return Ok(None);
            }
        }
        Ok(Some(Connection::new(move_above_stdio(socket)?, Output::Elsewhere, began)))
    }

    /// Takes over a connected socket with a criu at its other end.
    pub(super) fn over(socket: OwnedFd) -> Result<Connection> {
        if getsockopt(&socket, sockopt::SockType) != Ok(SockType::SeqPacket) {
            let problem = "a connection to criu is a SOCK_SEQPACKET socket, and this is none".to_owned();
            return Err(Error::Options { option: "Criu::over", problem });
        }
        Ok(Connection::new(socket, Output::Elsewhere, file_time()))
    }

    /// Sends one packet, and waits while criu's buffer is full. Returns what happened instead if it
    /// could not.
    pub(super) fn say(
        &self,
        packet: &[u8],
        deadline: Option<Instant>,
        cancel: Option<&Cancel>,
    ) -> io::Result<Option<Heard>> {
        loop {
            match packet::send(self.socket.as_fd(), packet) {
                Ok(()) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Some(Heard::HungUp)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            match self.wait(PollFlags::POLLOUT, deadline, cancel)? {
                Wake::Socket => {}
                Wake::Ended => return Ok(Some(Heard::HungUp)),
                Wake::Late => return Ok(Some(Heard::Silence)),
                Wake::Cancelled => return Ok(Some(Heard::Cancelled)),
            }
        }
    }

    /// Waits for the next packet.
    pub(super) fn hear(&self, deadline: Option<Instant>, cancel: Option<&Cancel>) -> io::Result<Heard> {
        match self.wait(PollFlags::POLLIN, deadline, cancel)? {
            Wake::Socket => {}
            Wake::Ended => return Ok(Heard::HungUp),
            Wake::Late => return Ok(Heard::Silence),
            Wake::Cancelled => return Ok(Heard::Cancelled),
        }
        Ok(match packet::receive(self.socket.as_fd())? {
            Packet::Message(bytes, descriptors) => Heard::Message(bytes, descriptors),
            Packet::HungUp => Heard::HungUp,
            Packet::TooLarge(size) => Heard::TooLarge(size),
        })
    }

    /// Waits until the socket is ready or criu has ended. A child of a killed criu can hold the
    /// socket open for ever.
    fn wait(&self, ready: PollFlags, deadline: Option<Instant>, cancel: Option<&Cancel>) -> io::Result<Wake> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Wake::Late);
            }
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            let criu = self.criu.as_ref().map(Child::pidfd);
            let others = [cancel.map(AsFd::as_fd), criu].into_iter().flatten();
            let mut polled = vec![PollFd::new(self.socket.as_fd(), ready)];
            polled.extend(others.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut polled, timeout) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            if cancel.is_some_and(Cancel::is_cancelled) {
                return Ok(Wake::Cancelled);
            }
            if !polled[0].any().unwrap_or(true) {
                // criu has ended, so its last messages are in the socket by now.
                let mut socket = [PollFd::new(self.socket.as_fd(), ready)];
                match poll(&mut socket, PollTimeout::ZERO) {
                    Ok(0) => return Ok(Wake::Ended),
                    Ok(_) => {}
                    Err(Errno::EINTR) => continue,
                    Err(errno) => return Err(errno.into()),
                }
            }
            return Ok(Wake::Socket);
        }
    }

    /// Makes criu and its children fail at the next write into a file, which ends a dump without
    /// harm to the tree. Returns true if it worked.
    pub(super) fn forbid_file_writes(&self) -> bool {
        let Some(criu) = &self.criu else { return false };
        for pid in procfs::descendants(criu.pid()) {
            let _ = sys::forbid_file_writes(pid); // fails if it has ended already
        }
        sys::forbid_file_writes(criu.pid()).is_ok()
    }

    /// Returns criu's pid, if we started it.
    pub(super) fn pid(&self) -> Option<i32> {
        self.criu.as_ref().map(Child::pid)
    }

    /// Returns true if criu is an ancestor of the process. In another pid namespace its pids mean
    /// other processes.
    pub(super) fn is_ancestor_of(&self, pid: i32) -> bool {
        self.pid_there().is_some_and(|criu| lineage(pid).contains(&criu))
    }

    /// Its pid, or the pid of the process that made the service's socket; 0 for a process outside
    /// of our pid namespace.
    fn pid_there(&self) -> Option<i32> {
        self.pid().or_else(|| getsockopt(&self.socket, PeerCredentials).ok().map(|criu| criu.pid()))
    }

    /// Returns true if criu's pids mean the same as ours, as far as the socket tells.
    pub(super) fn shares_pids(&self) -> bool {
        let there = self.pid_there();
        there.is_none_or(|criu| criu > 0 && procfs::is_in_our_pid_namespace(criu) != Some(false))
    }

    /// Continues criu, in case it was stopped.
    pub(super) fn go_on(&self) {
        if let Some(criu) = &self.criu {
            let _ = sys::pidfd_signal(criu.pidfd(), Signal::SIGCONT); // fails if it has ended
        }
    }

    /// Kills criu and its children. Use it for requests that touch no process, and for a restore,
    /// whose tree consists of these children.
    pub(super) fn kill(&self) {
        if let Some(init) = &self.init {
            init.end(); // dropped later, it tries again
            return;
        }
        let Some(criu) = &self.criu else { return };
        let tell = |process: BorrowedFd<'_>, signal| {
            let _ = sys::pidfd_signal(process, signal); // fails if it has ended already
        };
        // A stopped criu makes no more children while they are collected.
        tell(criu.pidfd(), Signal::SIGSTOP);
        let mut family: Vec<(i32, OwnedFd)> = Vec::new();
        let mut known = HashSet::from([criu.pid()]);
        let mut parent = criu.pid();
        for next in 0.. {
            for pid in children(parent) {
                if known.insert(pid) {
                    family.extend(sys::pidfd_open(pid).ok().map(|pidfd| (pid, pidfd)));
                }
            }
            let Some((pid, pidfd)) = family.get(next) else { break };
            tell(pidfd.as_fd(), Signal::SIGSTOP);
            parent = *pid;
        }
        for process in family.iter().map(|(_, pidfd)| pidfd.as_fd()).chain([criu.pidfd()]) {
            tell(process, Signal::SIGKILL);
        }
    }

    /// Returns true if criu has ended, or ends in a moment: its end of the socket closes a little
    /// earlier.
    pub(super) fn has_ended(&self) -> bool {
        let soon = Instant::now() + Duration::from_millis(100);
        self.criu.as_ref().is_some_and(|criu| sys::wait_readable(criu.pidfd(), Some(soon)).unwrap_or(true))
    }

    /// Closes the socket, waits for criu's end, and collects its facts.
    pub(super) fn finish(self) -> CriuExit {
        let there = self.pid_there();
        let Connection { socket, criu, output, began, program, init, .. } = self;
        drop(socket);
        let deadline = Instant::now() + PATIENCE;
        let status = criu.and_then(|criu| criu.wait(Some(deadline)).ok().flatten().flatten());
        let status = status.or_else(|| init?.criu_status(Instant::now() + STATUS_PATIENCE));
        let text = match output {
            Output::Elsewhere => Ok(String::new()),
            Output::Memory(file) => tail(file),
            Output::Named(path) => File::open(&path).and_then(tail).inspect(|_| {
                let _ = fs::remove_file(&path);
            }),
        };
        let output = text.unwrap_or_default();
        CriuExit { status, by_us: false, criu: there, output, since: Some(began), program }
    }
}

/// The time limit for criu to end after its answer, or after the socket closed. It takes a
/// millisecond.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time limit for an init to report criu's status.
const STATUS_PATIENCE: Duration = Duration::from_millis(200);

/// Returns the time by the clock of file times, which advances in ticks and lags behind finer
/// clocks.
fn file_time() -> Duration {
    clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map_or(Duration::ZERO, Duration::from)
}

fn output_file() -> Result<OwnedFd> {
    let file = memfd_create(c"criu output", MFdFlags::MFD_CLOEXEC);
    move_above_stdio(file.map_err(failed("make a file for criu's output"))?)
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
    let (ours, theirs) = pair.map_err(failed("make a socket pair"))?;
    Ok((move_above_stdio(ours)?, move_above_stdio(theirs)?))
}

/// Moves the descriptor above the standard streams. In a program that closed those, a new
/// descriptor would take their place and receive the program's output.
fn move_above_stdio(descriptor: OwnedFd) -> Result<OwnedFd> {
    if descriptor.as_raw_fd() > 2 {
        return Ok(descriptor);
    }
    sys::duplicate_above(descriptor.as_fd(), 3)
        .map_err(Error::io("move a descriptor above the standard streams"))
}

/// Reads the last mebibyte of a file, as text.
fn tail(mut file: File) -> io::Result<String> {
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

const TAIL: u64 = 1 << 20;

fn failed(doing: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Io { doing: doing.to_owned(), source: errno.into() }
}
