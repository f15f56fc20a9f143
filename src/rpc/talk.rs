//! A request from its first packet to criu's end: the protocol of [`session`](super::session) over the socket of
//! [`transport`](super::transport), with everything that is to be known if it fails.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::{
        stat::Mode,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
};

use super::{
    Criu, Lend,
    hooks::{self, Event, Hooks},
    session::{Session, Step},
    transport::{self, Connection, FIRST_LENT, Heard, Remains},
};
use crate::{
    BoxError, Cause, Error, Failure, Request, Result, Target, Version, diagnose, image, procfs,
    proto::rpc::{CriuFeatures, CriuOpts, CriuReq, CriuResp},
    sys,
};

/// A request, and what belongs to it.
pub(super) struct Ask<'a> {
    pub(super) request: Request,
    pub(super) opts: Option<CriuOpts>,
    pub(super) features: Option<CriuFeatures>,
    pub(super) files: Files<'a>,
    pub(super) hooks: Option<&'a mut dyn Hooks>,
}

/// The files of a request.
pub(super) enum Files<'a> {
    None,
    Lent(Lend<'a>),
    /// A folder of images that this process must not have open, because it is dumped itself.
    InFolder(&'a Path),
}

impl Ask<'_> {
    pub(super) fn new(request: Request) -> Self {
        Ask { request, opts: None, features: None, files: Files::None, hooks: None }
    }
}

/// The log's name where it does not go to criu's standard error.
const LOG: &str = "criu.log";
/// The first release that logs to its standard error if told so.
const LOGS_TO_STDERR: Version = Version::new(3, 19, 0);
/// How long a dump that was made to fail may take to put the tree right.
const GRACE: Duration = Duration::from_secs(20);

impl Criu {
    /// Asks, answers events, and hears criu out. The answer is a successful one.
    pub(super) fn talk(&self, mut ask: Ask<'_>) -> Result<(CriuResp, Option<Version>)> {
        let deadline = match ask.request {
            Request::Restore => None, // a restore that is cut short leaves half a tree behind
            _ => self.deadline.and_then(|deadline| Instant::now().checked_add(deadline)),
        };
        let sibling = SiblingRoot::expected(&ask);
        let connection = self.connect(&mut ask)?;
        let mut talk =
            Talk { connection, session: Session::new(ask.request), version: None, deadline, refusal: None };
        let result = talk.run(&mut ask, self.over.is_none());
        let ended = talk.end(&ask, result);
        if let Err(error) = &ended {
            sibling.reap(error);
        }
        ended
    }

    fn connect(&self, ask: &mut Ask<'_>) -> Result<Connection> {
        if let Some(socket) = &self.over {
            let socket = socket.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            let socket = socket.ok_or_else(|| only_swrk("the connection carries one request, and has"))?;
            if let (Files::Lent(lend), Some(opts)) = (&ask.files, &mut ask.opts) {
                if lend.needs_inheritance() {
                    return Err(only_swrk("files to inherit can be lent to a criu that we start only"));
                }
                lend.describe(opts, FIRST_LENT);
            }
            return Ok(Connection::over(socket));
        }
        let program = self.program()?;
        match (&ask.files, &mut ask.opts) {
            (Files::InFolder(path), Some(opts)) => {
                let folder =
                    File::open(path).map_err(Error::io(format!("open the folder {}", path.display())))?;
                opts.images_dir = Some(format!("/proc/self/fd/{FIRST_LENT}"));
                let lent = [folder.as_fd()];
                Connection::start_detached(&program, &self.arguments, &self.variables, &lent, path.join(LOG))
            }
            (Files::Lent(lend), Some(opts)) => {
                let lent = lend.describe(opts, FIRST_LENT);
                Connection::start(&program, &self.arguments, &self.variables, lend.terminal, &lent)
            }
            _ => Connection::start(&program, &self.arguments, &self.variables, None, &[]),
        }
    }
}

fn only_swrk(problem: &str) -> Error {
    Error::Options { option: "Criu::over", problem: problem.to_owned() }
}

struct Talk {
    connection: Connection,
    session: Session,
    version: Option<Version>,
    deadline: Option<Instant>,
    /// The event at which a hook refused, and what it said.
    refusal: Option<(String, BoxError)>,
}

/// How a conversation ended.
enum End {
    Answer(Box<CriuResp>),
    Gone,
    TimedOut,
}

impl Talk {
    fn run(&mut self, ask: &mut Ask<'_>, ask_version: bool) -> Result<End> {
        if ask_version && ask.request != Request::Version {
            match self.ask_version()? {
                End::Answer(answer) => self.version = version(*answer),
                other => return Ok(other),
            }
        }
        if let Some(opts) = &mut ask.opts {
            self.complete(opts, ask.hooks.as_deref(), matches!(ask.files, Files::InFolder(_)))?;
        }
        let message = CriuReq { features: ask.features, ..self.session.open(ask.opts.clone()) };
        self.converse(&message, ask.request, ask.hooks.as_deref_mut())
    }

    /// One more question to the same criu beforehand. It costs some forty microseconds.
    fn ask_version(&mut self) -> Result<End> {
        let mut session = Session::new(Request::Version);
        std::mem::swap(&mut self.session, &mut session);
        let message = CriuReq { keep_open: Some(true), ..self.session.open(None) };
        let end = self.converse(&message, Request::Version, None);
        std::mem::swap(&mut self.session, &mut session);
        end
    }

    /// Adds to the options what is ours to say.
    fn complete(&self, opts: &mut CriuOpts, hooks: Option<&dyn Hooks>, in_folder: bool) -> Result<()> {
        let version = self.version.as_ref();
        if hooks.is_some_and(Hooks::wanted) {
            opts.notify_scripts = Some(true);
        }
        opts.log_level.get_or_insert(2);
        if opts.log_file.is_none() && version.is_some_and(|version| *version >= LOGS_TO_STDERR) {
            opts.log_to_stderr = Some(true);
        }
        if in_folder && version.is_some_and(|version| *version < LOGS_TO_STDERR) {
            return Err(Error::Options {
                option: "dump_self",
                problem: format!(
                    "needs criu {LOGS_TO_STDERR}, this is {}",
                    version.cloned().unwrap_or_default()
                ),
            });
        }
        Ok(())
    }

    fn converse(
        &mut self,
        message: &CriuReq,
        request: Request,
        mut hooks: Option<&mut (dyn Hooks + '_)>,
    ) -> Result<End> {
        if !self.send(message)? {
            return Ok(End::Gone);
        }
        let mut late = false;
        loop {
            match self.connection.hear(self.deadline).map_err(Error::io("hear criu"))? {
                Heard::HungUp if late => return Ok(End::TimedOut),
                Heard::HungUp => return Ok(End::Gone),
                Heard::TooLarge(size) => {
                    return Err(self.session.protocol(format!("a packet of {size} bytes")));
                }
                Heard::Silence if late => return Ok(End::TimedOut),
                Heard::Silence => {
                    late = true;
                    self.deadline = Some(Instant::now() + GRACE);
                    match request {
                        Request::Dump if self.connection.is_ours() => self.connection.forbid_file_writes(),
                        _ => {
                            self.connection.kill();
                            return Ok(End::TimedOut);
                        }
                    }
                }
                Heard::Message(packet, descriptors) => match self.session.hear(&packet)? {
                    Step::Done(answer) if late && !answer.success => return Ok(End::TimedOut),
                    Step::Done(answer) => return Ok(End::Answer(answer)),
                    Step::Notified { name, pid } => {
                        let mut external = Vec::new();
                        let event = Event::named(&name, pid, descriptors.into_iter().next(), &mut external);
                        let verdict = match hooks.as_deref_mut() {
                            _ if late => Err("the deadline has passed".into()),
                            Some(hooks) => hooks::ask(hooks, event),
                            None => Ok(()),
                        };
                        let go_on = verdict.is_ok();
                        match verdict {
                            // The images are accepted, maybe stored: from here on the tree ends as it should.
                            Ok(()) if name == "post-dump" => self.deadline = None,
                            Ok(()) => {}
                            Err(refusal) => {
                                self.refusal.get_or_insert((name, refusal));
                            }
                        }
                        if !self.send(&self.session.acknowledge(go_on, external))? {
                            return Ok(End::Gone);
                        }
                    }
                },
            }
        }
    }

    /// Sends a message; `false` if criu is gone.
    fn send(&self, message: &CriuReq) -> Result<bool> {
        match self.connection.send(message) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Error::io("send criu a message")(error)),
        }
    }

    /// Makes a result of the end, once criu has left.
    fn end(self, ask: &Ask<'_>, result: Result<End>) -> Result<(CriuResp, Option<Version>)> {
        let Talk { connection, session, version, refusal, .. } = self;
        let remains = connection.finish();
        let gather = |answer: Option<&CriuResp>| {
            Box::new(failure(ask, session.last_event.clone(), version.clone(), answer, &remains))
        };
        match (result?, refusal) {
            (End::Answer(answer), _) if answer.success => Ok((*answer, version)),
            (End::TimedOut, _) => Err(Error::TimedOut(gather(None))),
            (_, Some((event, source))) => Err(Error::Refused { event, source }),
            (End::Answer(answer), None) => Err(Error::Criu(gather(Some(&answer)))),
            (End::Gone, None) => Err(Error::Gone(gather(None))),
        }
    }
}

/// The version in an answer.
pub(super) fn version(answer: CriuResp) -> Option<Version> {
    let version = answer.version?;
    let number = |number: i32| u32::try_from(number).unwrap_or(0);
    Some(Version {
        git_id: version.gitid,
        name: version.name,
        ..Version::new(
            number(version.major_number),
            number(version.minor_number),
            number(version.sublevel.unwrap_or(0)),
        )
    })
}

fn failure(
    ask: &Ask<'_>,
    last_event: Option<String>,
    version: Option<Version>,
    answer: Option<&CriuResp>,
    remains: &Remains,
) -> Failure {
    let mut output = diagnose::Output::parse(&remains.output);
    if let Some(log) = log_file(ask) {
        output.errors.extend(diagnose::Output::parse(&log).errors);
    }
    let errno = answer.and_then(|answer| answer.cr_errno);
    let message = answer.and_then(|answer| answer.cr_errmsg.as_deref()).map(diagnose::message);
    let lines = output.errors.iter().map(String::as_str).chain(output.other.lines()).chain(message);
    let cause: Cause = diagnose::cause(ask.request, errno, lines);
    let target = match (ask.request, ask.opts.as_ref().and_then(|opts| opts.pid)) {
        (Request::Dump, Some(pid)) => target(pid),
        _ => Target::None,
    };
    Failure {
        request: ask.request,
        cause,
        target,
        last_event,
        errno,
        message: message.map(str::to_owned),
        log: output.errors,
        stderr: output.other,
        exit: remains.exit,
        version,
    }
}

/// The log, where it went to a file.
fn log_file(ask: &Ask<'_>) -> Option<String> {
    let opts = ask.opts.as_ref()?;
    let (Files::Lent(lend), None) = (&ask.files, opts.log_to_stderr) else { return None };
    let name = opts.log_file.as_deref().unwrap_or(LOG);
    let mut text = Vec::new();
    open_in(lend.work.unwrap_or(lend.images), name).ok()?.take(1 << 20).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn open_in(folder: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let file: OwnedFd = openat(folder, name, flags, Mode::empty())?;
    Ok(file.into())
}

/// The state of the tree's root.
fn target(pid: i32) -> Target {
    match procfs::Stat::of(pid) {
        Ok(stat) if stat.is_zombie() => Target::Gone,
        Ok(stat) if stat.state == 't' => Target::Traced,
        Ok(stat) if stat.state == 'T' => Target::Stopped,
        Ok(_) => Target::Running,
        Err(_) => Target::Gone,
    }
}

/// The root of a tree that is to be restored as our child. If the restore fails, it is our zombie.
struct SiblingRoot(Option<i32>);

impl SiblingRoot {
    /// What the images say, unless a process has that pid already: that one is not ours to reap.
    fn expected(ask: &Ask<'_>) -> SiblingRoot {
        let (Request::Restore, Files::Lent(lend)) = (ask.request, &ask.files) else {
            return SiblingRoot(None);
        };
        if ask.opts.as_ref().and_then(|opts| opts.rst_sibling) != Some(true) {
            return SiblingRoot(None);
        }
        let root = open_in(lend.images, "pstree.img").ok().and_then(|file| image::root_pid(file).ok());
        SiblingRoot(root.filter(|pid| procfs::Stat::of(*pid).is_err()))
    }

    fn reap(self, error: &Error) {
        let Some(pid) = self.0 else { return };
        // Somebody else got the number meanwhile, such as another restore of the same images: not ours to reap.
        let taken = format!("Can't fork for {pid}: File exists");
        let mut lines =
            error.failure().into_iter().flat_map(|failure| failure.log.iter().chain(&failure.message));
        if lines.any(|line| line.contains(&taken)) {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        while let Ok(WaitStatus::StillAlive) =
            waitpid(nix::unistd::Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG))
        {
            if Instant::now() >= deadline {
                // criu says that it failed, but the task lives on; whatever it is, it leaves no zombie.
                if let Ok(pidfd) = sys::pidfd_open(pid) {
                    sys::reap_later(pidfd);
                }
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Where the binary is; here so that `mod.rs` needs nothing of the transport.
pub(super) fn find(named: Option<&Path>) -> Result<std::path::PathBuf> {
    transport::find(named)
}
