//! Reaching criu: finding the binary, starting `criu swrk` with one end of a socket pair, and hearing it out.

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::Signal,
        socket::{AddressFamily, SockFlag, SockType, socketpair},
    },
    unistd::{AccessFlags, access},
};

use super::packet::{self, Packet};
use crate::{
    Error, Result,
    proto::rpc::CriuReq,
    sys::{self, Child, Spawn},
};

/// A criu at the other end of a socket, for one conversation.
///
/// Dropped early, the socket closes, criu notices, ends, and is reaped.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    criu: Option<Child>,
    output: Output,
}

/// Where criu's standard output and standard error go. A file, because it takes a megabyte without anybody
/// reading, and can be read after criu ended.
#[derive(Debug)]
enum Output {
    /// A criu that somebody else started.
    Elsewhere,
    Memory(File),
    /// By name: a process that is dumped itself must not have it open.
    Named(PathBuf),
}

/// What was heard.
#[derive(Debug)]
pub(super) enum Heard {
    Message(Vec<u8>, Vec<OwnedFd>),
    /// criu is gone, or its end of the socket is.
    HungUp,
    /// A packet of this many bytes, which is too large for an answer.
    TooLarge(usize),
    /// Nothing, until the deadline.
    Silence,
}

/// What criu left behind.
#[derive(Debug, Default)]
pub(super) struct Remains {
    pub(super) exit: Option<ExitStatus>,
    pub(super) output: String,
}

/// The number of the socket in criu: the first after the standard streams.
const SOCKET: i32 = 3;
/// The number of the first lent file in criu.
pub(super) const FIRST_LENT: i32 = SOCKET + 1;

impl Connection {
    /// Starts `criu swrk`.
    pub(super) fn start(
        program: &Path,
        arguments: &[OsString],
        variables: &[(OsString, OsString)],
        terminal: Option<BorrowedFd<'_>>,
        lent: &[BorrowedFd<'_>],
    ) -> Result<Connection> {
        let output = above_streams(
            memfd_create(c"criu output", MFdFlags::MFD_CLOEXEC)
                .map_err(failed("make a file for criu's output"))?,
        )?;
        let (socket, theirs) = pair()?;
        let command = Command { program, arguments, variables };
        let criu = command.spawn(terminal, output.as_fd(), theirs.as_fd(), lent, false)?;
        Ok(Connection { socket, criu, output: Output::Memory(output.into()) })
    }

    /// Starts a `criu swrk` that is not a descendant of this process, so that it can dump this process. The
    /// output goes to a new file of that name; nothing but the socket stays open here.
    pub(super) fn start_detached(
        program: &Path,
        arguments: &[OsString],
        variables: &[(OsString, OsString)],
        lent: &[BorrowedFd<'_>],
        output: PathBuf,
    ) -> Result<Connection> {
        let file = File::options().read(true).append(true).create(true).open(&output);
        let file = file.map_err(Error::io(format!("create {}", output.display())))?;
        let (socket, theirs) = pair()?;
        let command = Command { program, arguments, variables };
        let criu = command.spawn(None, file.as_fd(), theirs.as_fd(), lent, true)?;
        Ok(Connection { socket, criu, output: Output::Named(output) })
    }

    /// Talks to the criu at the other end of a connected socket.
    pub(super) fn over(socket: OwnedFd) -> Connection {
        Connection { socket, criu: None, output: Output::Elsewhere }
    }

    pub(super) fn send(&self, message: &CriuReq) -> io::Result<()> {
        packet::send(self.socket.as_fd(), message)
    }

    /// Waits for the next packet: on the socket, and on criu's end, because a child of a criu that was killed can
    /// hold the socket open for ever.
    pub(super) fn hear(&self, deadline: Option<Instant>) -> io::Result<Heard> {
        loop {
            let timeout = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(Heard::Silence);
                    }
                    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
                }
            };
            let descriptors = [Some(self.socket.as_fd()), self.criu.as_ref().map(Child::pidfd)];
            let mut polled: Vec<_> =
                descriptors.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut polled, timeout) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            if !polled[0].any().unwrap_or(true) {
                // criu has ended; what it said before is in the socket by now, or was never said.
                let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                if poll(&mut socket, PollTimeout::ZERO)? == 0 {
                    return Ok(Heard::HungUp);
                }
            }
            return Ok(match packet::receive(self.socket.as_fd())? {
                Packet::Message(bytes, descriptors) => Heard::Message(bytes, descriptors),
                Packet::HungUp => Heard::HungUp,
                Packet::TooLarge(size) => Heard::TooLarge(size),
            });
        }
    }

    /// Whether it is a criu that we started, and can act upon.
    pub(super) fn is_ours(&self) -> bool {
        self.criu.is_some()
    }

    /// Makes the next write of criu's into a file fail, which ends a dump in a way that leaves the tree whole.
    pub(super) fn forbid_file_writes(&self) {
        if let Some(criu) = &self.criu {
            let _ = sys::forbid_file_writes(criu.pid()); // it has ended already, then
        }
    }

    /// Kills criu: only for requests that touch no process.
    pub(super) fn kill(&self) {
        if let Some(criu) = &self.criu {
            let _ = sys::pidfd_signal(criu.pidfd(), Signal::SIGKILL); // it has ended already, then
        }
    }

    /// Hangs up, waits for criu's end, and gathers what it left.
    pub(super) fn finish(self) -> Remains {
        let Connection { socket, criu, output } = self;
        drop(socket);
        let deadline = Instant::now() + PATIENCE;
        let exit = criu.and_then(|criu| criu.wait(Some(deadline)).ok().flatten().flatten());
        let text = match output {
            Output::Elsewhere => Ok(String::new()),
            Output::Memory(file) => tail(file),
            Output::Named(path) => File::open(&path).and_then(tail).inspect(|_| {
                let _ = fs::remove_file(&path);
            }),
        };
        Remains { exit, output: text.unwrap_or_default() }
    }
}

/// How long criu may take to end after its answer, or after the socket closed. It takes a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
    let (ours, theirs) = pair.map_err(failed("make a socket pair"))?;
    Ok((above_streams(ours)?, above_streams(theirs)?))
}

/// The descriptor, at a number above the standard streams. In a program that closed those, a new descriptor takes
/// their place, and whatever the program prints would go into it.
fn above_streams(descriptor: OwnedFd) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    if descriptor.as_raw_fd() > 2 {
        return Ok(descriptor);
    }
    sys::duplicate_above(descriptor.as_fd(), 3)
        .map_err(Error::io("move a descriptor off the standard streams"))
}

/// How criu is called.
struct Command<'a> {
    program: &'a Path,
    arguments: &'a [OsString],
    variables: &'a [(OsString, OsString)],
}

impl Command<'_> {
    fn spawn(
        &self,
        terminal: Option<BorrowedFd<'_>>,
        output: BorrowedFd<'_>,
        socket: BorrowedFd<'_>,
        lent: &[BorrowedFd<'_>],
        detached: bool,
    ) -> Result<Option<Child>> {
        let nothing = File::open("/dev/null").map_err(Error::io("open /dev/null"))?;
        let mut files = vec![terminal.unwrap_or(nothing.as_fd()), output, output, socket];
        files.extend(lent);
        let socket = SOCKET.to_string();
        let mut words = vec![self.program.as_os_str(), OsStr::new("--no-default-config")];
        words.extend(self.arguments.iter().map(OsString::as_os_str));
        words.extend([OsStr::new("swrk"), OsStr::new(&socket)]);
        let spawn = Spawn {
            program: c_string(self.program.as_os_str())?,
            arguments: words.into_iter().map(c_string).collect::<Result<_>>()?,
            environment: self.environment()?,
            files,
            detached,
        };
        sys::spawn(&spawn).map_err(Error::io(format!("start {}", self.program.display())))
    }

    /// Ours, without what changes criu's behaviour, and with a PATH in which criu finds `ip` and `iptables`.
    fn environment(&self) -> Result<Vec<CString>> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from));
        let path = env::join_paths(folders).unwrap_or(path);
        let ours = env::vars_os().filter(|(name, _)| !changes_criu(name));
        ours.chain([("PATH".into(), path)])
            .filter(|(name, _)| !self.variables.iter().any(|(given, _)| given == name))
            .chain(self.variables.iter().cloned())
            .map(|(mut variable, value)| {
                variable.push("=");
                variable.push(value);
                c_string(&variable)
            })
            .collect()
    }
}

fn changes_criu(name: &OsStr) -> bool {
    let prefixes = [&b"CRIU_"[..], b"CR_"];
    name == "PATH"
        || name == "HOME"
        || name == "XDG_RUNTIME_DIR"
        || prefixes.iter().any(|prefix| name.as_bytes().starts_with(prefix))
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| Error::Options { option: "argument", problem: format!("{text:?} contains a zero byte") })
}

/// Where criu and its tools are on systems whose users have no `sbin` in their PATH.
const SYSTEM_FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The criu to start: the one that the caller named, or the first in PATH and the system's folders. A name without
/// a slash is searched for as well.
pub(super) fn find(named: Option<&Path>) -> Result<PathBuf> {
    let name = named.unwrap_or(Path::new("criu"));
    let mut searched = Vec::new();
    if name.components().count() > 1 || name.is_absolute() {
        searched.push(name.to_path_buf());
    } else {
        let path = env::var_os("PATH").unwrap_or_default();
        for folder in env::split_paths(&path).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from)) {
            let candidate = folder.join(name);
            if folder.is_absolute() && !searched.contains(&candidate) {
                searched.push(candidate);
            }
        }
    }
    match searched.iter().find(|path| path.is_file() && access(*path, AccessFlags::X_OK).is_ok()) {
        Some(found) => Ok(found.clone()),
        None => Err(Error::NoCriu { searched }),
    }
}

/// The last mebibyte of a file, as text.
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
