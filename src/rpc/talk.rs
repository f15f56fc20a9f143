//! A conversation with one criu, from its start to its end: the protocol of
//! [`session`](super::session) over the socket of [`transport`](super::transport).

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::socket::{Shutdown, shutdown};

use super::{
    Cancel, Criu, Lend, Reach,
    abandon::UnfinishedRestore,
    call::{Call, Files, LOG},
    condition::Tree,
    failure::{FailureContext, open_in},
    hooks::{self, Event, Hooks},
    listen, packet,
    reply::version,
    session::{Session, Step},
    swrk::{self, Apart, Command, FIRST_LENT},
    transport::{Connection, CriuExit, Heard},
    within,
};
use crate::{
    BoxError, Cause, Error, Failure, Pid, Request, Result, Version, image,
    options::{field_with_zero_byte, younger_fields},
    preflight::Inside,
    proto::rpc::{CriuFeatures, CriuOpts, CriuReq, CriuResp},
    sys::Init,
};

/// The first release that can log to its standard error, and takes the image folder by path.
const LOGS_TO_STDERR: Version = Version::new(3, 19, 0);
/// The first release that takes any path.
const TAKES_PATHS: Version = Version::new(4, 2, 0);
/// The time limit for criu to undo a request that was made to fail.
const GRACE: Duration = Duration::from_secs(20);
/// The same for a restore. The tree then consists of criu's own processes, which may be killed.
/// With truncated images criu waits for ever.
const GRACE_OF_RESTORE: Duration = Duration::from_secs(5);

impl Criu {
    /// Sends a request, answers events, and returns the successful answer.
    pub(super) fn call(&self, call: Call<'_>) -> Result<(CriuResp, Option<Version>)> {
        self.call_to_the_end(call).map(|(answer, version, _)| (answer, version))
    }

    /// Does the same as [`talk`](Criu::talk), and also returns criu's output, if it came to us.
    pub(super) fn call_to_the_end(&self, mut call: Call<'_>) -> Result<(CriuResp, Option<Version>, String)> {
        let mut conversation = self.open(&mut call)?;
        let answer = conversation.call(call)?;
        let version = conversation.version.clone();
        Ok((answer, version, conversation.close()))
    }

    /// Reaches a criu for a conversation that begins with this request. Asks for its version if it
    /// matters.
    pub(super) fn open(&self, call: &mut Call<'_>) -> Result<Conversation> {
        let deadline = self.deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        let mut conversation = Conversation {
            connection: Some(self.connect(call, deadline)?),
            version: None,
            patience: self.deadline,
            deadline,
            cancel: self.cancel.clone(),
            ours: matches!(self.reach, Reach::Swrk(_)),
        };
        if !matches!(self.reach, Reach::Over(_)) && call.request != Request::Version {
            // Another request to the same criu costs some forty microseconds.
            let question = Call { keep_open: true, ..Call::new(Request::Version) };
            conversation.version = version(conversation.exchange(question, Some(call))?);
            self.last_version.lock().clone_from(&conversation.version);
        }
        Ok(conversation)
    }

    fn connect(&self, call: &mut Call<'_>, deadline: Option<Instant>) -> Result<Connection> {
        if let Files::Lent(lend) = &call.files {
            lend.check()?;
        }
        let address = listen::address(call, matches!(self.reach, Reach::Swrk(_)))?;
        let program = match &self.reach {
            Reach::Swrk(program) => swrk::find(program.as_deref())?,
            Reach::Service(path) => {
                describe_to_another(call, true)?;
                let connection = Connection::to_service(path, deadline, self.cancel.as_ref())?;
                return require_same_pid_namespace(connection.ok_or_else(|| self.gave_up(call))?, call);
            }
            Reach::Over(socket) => {
                let socket = socket.lock().take();
                let socket = socket.ok_or_else(|| Error::Over {
                    reason: "this connection carries one request, and has carried it",
                })?;
                describe_to_another(call, false)?;
                return require_same_pid_namespace(Connection::over(socket)?, call);
            }
        };
        let mut arguments = self.arguments.clone();
        arguments.extend(address.into_iter().flat_map(|address| ["--address".into(), address.into()]));
        let command = Command { program: &program, arguments: &arguments, variables: &self.variables };
        match (&call.files, &mut call.opts) {
            (Files::InFolder(path), Some(opts)) => {
                let folder =
                    File::open(path).map_err(Error::io(format!("open the folder {}", path.display())))?;
                opts.images_dir = Some(format!("/proc/self/fd/{FIRST_LENT}"));
                Connection::start_detached(&command, &[folder.as_fd()], path.join(LOG))
            }
            (Files::Lent(lend), Some(opts)) => match &self.isolation {
                Some(isolation) => {
                    let (lent, namespaces) = within::prepare(isolation, lend, opts)?;
                    Connection::start_within(&command, lend.terminal, &lent, namespaces)
                }
                None => {
                    let apart = apart(call.request, opts, lend);
                    let root = opts.pid.filter(|_| is_dump(call.request));
                    if let Some(inside) = root.and_then(Inside::of) {
                        return within::start_inside(&command, call.request, lend, opts, apart, &inside);
                    }
                    let lent = lend.describe(opts, FIRST_LENT);
                    Connection::start(&command, lend.terminal, &lent, apart, None)
                }
            },
            _ => Connection::start(&command, None, &[], Apart::SESSION, None),
        }
    }

    /// The error for a call that ended before criu accepted the connection: the deadline passed, or
    /// the caller cancelled.
    fn gave_up(&self, call: &Call<'_>) -> Error {
        let criu_exit = CriuExit::default();
        let tree = Tree::default();
        let nothing = FailureContext {
            call,
            last_event: None,
            version: None,
            answer: None,
            criu_exit: &criu_exit,
            tree: &tree,
        };
        let failure = Box::new(Failure { cause: Cause::GivenUp, ..nothing.failure() });
        match self.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            true => Error::Cancelled(failure),
            false => Error::TimedOut(failure),
        }
    }
}

/// Returns the separation from the caller that the criu of a request needs.
fn apart(request: Request, opts: &CriuOpts, lend: &Lend<'_>) -> Apart {
    match request {
        Request::PageServer | Request::PageServerChild => Apart::SERVER,
        Request::Restore if !opts.exec_cmd.is_empty() => Apart::NOT,
        Request::Restore => {
            let pstree = open_in(lend.images, "pstree.img").ok();
            Apart::to_restore(pstree.and_then(|file| image::root(file).ok()).as_ref())
        }
        _ => Apart::SESSION,
    }
}

/// Names the files for a service, which inherits nothing from us.
fn describe_to_another(call: &mut Call<'_>, is_service: bool) -> Result<()> {
    match (&call.files, &mut call.opts) {
        (Files::InFolder(_), _) if !is_service => Err(unsupported("a self-dump needs a criu that we start")),
        (Files::InFolder(path), Some(opts)) => {
            let path = std::path::absolute(path).map_err(Error::io("find the folder for images"))?;
            opts.images_dir = Some(path.to_string_lossy().into_owned());
            Ok(())
        }
        (Files::Lent(lend), _) if lend.needs_inheritance() => {
            Err(unsupported("files to inherit can be lent to a criu that we start only"))
        }
        (_, Some(opts)) if is_service && opts.rst_sibling == Some(true) => {
            Err(unsupported("a service cannot make the tree our child: leave out `rst_sibling`"))
        }
        (Files::Lent(lend), Some(opts)) => {
            lend.describe(opts, FIRST_LENT);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Refuses a restore by a service in another pid namespace. The pid of its root means another
/// process here, which its owner would kill.
fn require_same_pid_namespace(connection: Connection, call: &Call<'_>) -> Result<Connection> {
    match call.request {
        Request::Restore if !connection.shares_pids() => Err(unsupported(
            "a service in another pid namespace cannot give us the tree: its numbers are others",
        )),
        _ => Ok(connection),
    }
}

fn unsupported(problem: &str) -> Error {
    Error::Options { option: "Criu", problem: problem.to_owned() }
}

/// A conversation. Dropping it closes the socket, and reaps criu.
#[derive(Debug)]
pub(super) struct Conversation {
    /// `None` after criu has failed and ended.
    connection: Option<Connection>,
    pub(super) version: Option<Version>,
    /// The time limit of a request.
    patience: Option<Duration>,
    /// The deadline of the next request, if it was begun already.
    deadline: Option<Instant>,
    cancel: Option<Cancel>,
    /// True if we started this criu.
    ours: bool,
}

/// The way an exchange ended.
enum End {
    Answer(Box<CriuResp>),
    Gone,
    Stopped(Stop),
}

/// The reason why we made a request fail.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    Deadline,
    Cancelled,
}

impl Conversation {
    /// Sends a request, and answers events. The answer is a successful one; after an error, criu is
    /// gone.
    pub(super) fn call(&mut self, mut call: Call<'_>) -> Result<CriuResp> {
        self.complete(&mut call)?;
        let answer = self.exchange(call, None);
        self.deadline = None; // the next request sets its own deadline
        answer
    }

    /// Sends a request, which may be a step on the way to `purpose`: an error then names that.
    fn exchange(&mut self, mut call: Call<'_>, purpose: Option<&Call<'_>>) -> Result<CriuResp> {
        let begun = self.deadline;
        let mut exchange = Exchange {
            session: Session::new(call.request),
            deadline: begun.or_else(|| Instant::now().checked_add(self.patience?)),
            stopping: None,
            answered: false,
            root: None,
            accepted: false,
            refusal: None,
            tree: tree_of(&call),
        };
        let connection = self
            .connection
            .take()
            .ok_or_else(|| Error::Over { reason: "a request before this one failed" })?;
        let mut unfinished = UnfinishedRestore::expected(&call, &connection)?;
        let end = match exchange.run(&connection, &mut call, &mut unfinished, self.cancel.as_ref()) {
            Ok(End::Answer(answer)) if answer.success => {
                self.connection = Some(connection);
                return Ok(*answer);
            }
            end => end,
        };
        let mut by_us = false;
        if call.request == Request::Restore && !exchange.answered {
            by_us = !matches!(end, Ok(End::Gone)) || !connection.has_ended();
            connection.kill(); // the restored processes are its children
        }
        let criu_exit = CriuExit { by_us, ..connection.finish() };
        Err(match purpose {
            Some(purpose) => self.failed(purpose, exchange, end, criu_exit, unfinished),
            None => self.failed(&call, exchange, end, criu_exit, unfinished),
        })
    }

    fn failed(
        &self,
        call: &Call<'_>,
        exchange: Exchange,
        end: Result<End>,
        criu_exit: CriuExit,
        unfinished: UnfinishedRestore,
    ) -> Error {
        let last_event = exchange.session.last_event.as_deref();
        let gather = |answer: Option<&CriuResp>| {
            let version = self.version.clone();
            let tree = &exchange.tree;
            Box::new(
                FailureContext { call, last_event, version, answer, criu_exit: &criu_exit, tree }.failure(),
            )
        };
        // After we made a request fail, criu's messages are about that.
        let given_up = || Box::new(Failure { cause: Cause::GivenUp, ..*gather(None) });
        let error = match (end, exchange.refusal) {
            (Err(error), _) => error,
            (Ok(End::Stopped(Stop::Deadline)), _) => Error::TimedOut(given_up()),
            (Ok(End::Stopped(Stop::Cancelled)), _) => Error::Cancelled(given_up()),
            (Ok(_), Some((event, source))) => Error::Refused { event, source },
            (Ok(End::Answer(answer)), None) => Error::Criu(gather(Some(&answer))),
            (Ok(End::Gone), None) => Error::Gone(gather(None)),
        };
        unfinished.clear(!exchange.answered, exchange.root, &error);
        error
    }

    /// Fails if this criu is older.
    pub(super) fn needs(&self, since: Version, option: &'static str) -> Result<()> {
        match &self.version {
            Some(version) if *version < since => Err(too_old(option, &since, version)),
            _ => Ok(()),
        }
    }

    /// Fails if the kernel does not track changes of memory: criu would fail in the middle of its
    /// work.
    pub(super) fn needs_mem_track(&mut self, purpose: &Call<'_>) -> Result<()> {
        let features = CriuFeatures { mem_track: Some(true), ..CriuFeatures::default() };
        let call = Call { features: Some(features), keep_open: true, ..Call::new(Request::FeatureCheck) };
        match self.call(call)?.features.and_then(|features| features.mem_track) {
            Some(true) => Ok(()),
            _ => {
                let (version, criu_exit) = (self.version.clone(), &CriuExit::default());
                let tree = &Tree::default();
                let gathering = FailureContext {
                    call: purpose,
                    last_event: None,
                    version,
                    answer: None,
                    criu_exit,
                    tree,
                };
                Err(Error::Criu(Box::new(Failure { cause: Cause::MemoryTracking, ..gathering.failure() })))
            }
        }
    }

    /// Names the files of a further request to the same criu, which cannot inherit any more.
    pub(super) fn describe_again(&self, call: &mut Call<'_>) -> Result<()> {
        let (Files::Lent(lend), Some(opts)) = (&call.files, &mut call.opts) else { return Ok(()) };
        lend.check()?;
        if lend.needs_inheritance() {
            return Err(unsupported("files to inherit must be lent with the first request of a row"));
        }
        lend.describe(opts, FIRST_LENT);
        Ok(())
    }

    /// Returns the init of the namespaces that criu restores into, if they are not ours.
    pub(super) fn init(&self) -> Option<Arc<Init>> {
        self.connection.as_ref()?.init().cloned()
    }

    /// Returns true if this criu is an ancestor of the process.
    pub(super) fn is_ancestor_of(&self, pid: i32) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.is_ancestor_of(pid))
    }

    /// Ends the conversation, and waits for criu's end. Returns its output.
    pub(super) fn close(self) -> String {
        self.finish().output
    }

    /// Ends the conversation as [`close`](Talk::close) does, and returns all facts about criu's
    /// end.
    pub(super) fn finish(mut self) -> CriuExit {
        self.connection.take().map(Connection::finish).unwrap_or_default()
    }

    /// Completes the options, and rejects those that this criu would not understand.
    pub(super) fn complete(&self, call: &mut Call<'_>) -> Result<()> {
        let Some(opts) = &mut call.opts else { return Ok(()) };
        if let Some(option) = field_with_zero_byte(opts) {
            let problem = "it contains a zero byte or is not UTF-8, which criu's messages cannot carry";
            return Err(Error::Options { option, problem: problem.to_owned() });
        }
        // Events of a restore report its root, which we reap after a failure. They also make it
        // possible to stop.
        if call.hooks.as_ref().is_some_and(|hooks| hooks.wanted()) || call.request == Request::Restore {
            opts.notify_scripts = Some(true);
        }
        opts.log_level.get_or_insert(2);
        let Some(version) = &self.version else { return Ok(()) };
        if self.ours && opts.log_file.is_none() && *version >= LOGS_TO_STDERR {
            opts.log_to_stderr = Some(true);
        }
        let by_path = opts.images_dir.is_some().then_some(match call.files {
            Files::InFolder(_) => "dump_self",
            Files::Lent(_) | Files::None => "isolated", // of the tree that is to be dumped
        });
        let takes_path = if self.ours { LOGS_TO_STDERR } else { TAKES_PATHS };
        let by_path = by_path.filter(|_| *version < takes_path).map(|option| (option, takes_path));
        let fields = younger_fields(opts).into_iter().chain(by_path);
        match fields.into_iter().find(|(_, since)| version < since) {
            Some((option, since)) => Err(too_old(option, &since, version)),
            None => Ok(()),
        }
    }
}

fn too_old(option: &'static str, since: &Version, version: &Version) -> Error {
    Error::TooOld { option, needs: since.clone().into(), found: version.clone().into() }
}

/// Returns true if criu is to work on a tree that lives.
fn is_dump(request: Request) -> bool {
    matches!(request, Request::Dump | Request::PreDump | Request::SinglePreDump)
}

/// Returns the tree that criu is to work on, in its state before.
fn tree_of(call: &Call<'_>) -> Tree {
    let root = call.opts.as_ref().and_then(|opts| opts.pid).filter(|_| is_dump(call.request));
    root.map_or_else(Tree::default, Tree::of)
}

/// One request and its answer.
struct Exchange {
    session: Session,
    deadline: Option<Instant>,
    stopping: Option<Stop>,
    /// True once criu has answered, and so has undone the request.
    answered: bool,
    /// The root of the tree that criu is restoring, once criu has reported it.
    root: Option<i32>,
    /// True once a hook has accepted the images of a dump.
    accepted: bool,
    /// The event that a hook refused, and the hook's error.
    refusal: Option<(String, BoxError)>,
    /// The tree to dump.
    tree: Tree,
}

impl Exchange {
    fn run(
        &mut self,
        connection: &Connection,
        call: &mut Call<'_>,
        unfinished: &mut UnfinishedRestore,
        cancel: Option<&Cancel>,
    ) -> Result<End> {
        let opts = call
            .opts
            .clone()
            .map(|opts| CriuOpts { pid: opts.pid.map(|root| connection.root_inside(root)), ..opts });
        let message = CriuReq {
            features: call.features,
            keep_open: call.keep_open.then_some(true),
            pid: call.child,
            ..self.session.open(opts)
        };
        let mut unsaid = Some(packet::encode(message, call.raw));
        loop {
            let cancel = cancel.filter(|_| self.stopping.is_none() && !self.accepted);
            let heard = match unsaid.take() {
                Some(packet) => {
                    let said = connection.say(&packet, self.deadline, cancel);
                    let Some(instead) = said.map_err(Error::io("send criu a message"))? else { continue };
                    instead
                }
                None => connection
                    .hear(self.deadline, cancel)
                    .map_err(Error::io("receive a message from criu"))?,
            };
            let stop = match heard {
                Heard::Message(packet, descriptors) => match self.session.hear(&packet)? {
                    Step::Done(answer) => return Ok(self.done(answer)),
                    Step::Notified { name, pid } => {
                        let here =
                            |pid| connection.root_here(pid).map_err(Error::io("find the root of the copy"));
                        let pid = pid.map(here).transpose()?;
                        self.root = pid.map(Pid::as_raw).or(self.root);
                        let mut external = Vec::new();
                        let event = Event::named(&name, pid, descriptors.into_iter().next(), &mut external);
                        let ignores_refusal = event.ignores_refusal();
                        let mut go_on = self.decide(call.hooks.as_deref_mut(), event);
                        // A hook takes time, or cancels. A refusal at this moment is sure to be
                        // heard.
                        if let Some(stop) = self.overdue(cancel).filter(|_| go_on && !ignores_refusal) {
                            self.stop(stop, connection, call);
                            go_on = false;
                        }
                        if go_on {
                            unfinished.go_on(&name);
                        }
                        if go_on && name == "pre-restore" {
                            let doing = "give the copy its own /run";
                            connection.before_restore().map_err(Error::io(doing))?;
                        }
                        unsaid = Some(packet::encode(self.session.acknowledge(go_on, external), &[]));
                        continue;
                    }
                },
                Heard::TooLarge(size) => {
                    return Err(self.session.protocol(format!("a packet of {size} bytes")));
                }
                Heard::HungUp => return Ok(self.stopping.map_or(End::Gone, End::Stopped)),
                Heard::Silence => Stop::Deadline,
                Heard::Cancelled => Stop::Cancelled,
            };
            if let Some(first) = self.stopping {
                return Ok(End::Stopped(first)); // criu's grace period is over
            }
            if !self.stop(stop, connection, call) {
                return Ok(End::Stopped(stop));
            }
        }
    }

    /// Returns the reason to stop now. `None` if the request is stopping already, or must complete.
    fn overdue(&self, cancel: Option<&Cancel>) -> Option<Stop> {
        if self.stopping.is_some() || self.accepted {
            return None;
        }
        if cancel.is_some_and(Cancel::is_cancelled) {
            return Some(Stop::Cancelled);
        }
        self.deadline.filter(|deadline| *deadline <= Instant::now()).map(|_| Stop::Deadline)
    }

    /// Makes the request fail, and gives it time for that. Returns true if an answer is still
    /// expected.
    fn stop(&mut self, stop: Stop, connection: &Connection, call: &Call<'_>) -> bool {
        self.stopping = Some(stop);
        let grace = if call.request == Request::Restore { GRACE_OF_RESTORE } else { GRACE };
        self.deadline = Some(Instant::now() + grace);
        make_fail(connection, call)
    }

    /// Ends with the answer, unless it only reports that we made the request fail.
    fn done(&mut self, answer: Box<CriuResp>) -> End {
        self.answered = true;
        match self.stopping {
            Some(stop) if !answer.success => End::Stopped(stop),
            _ => End::Answer(answer),
        }
    }

    /// Decides whether criu is to continue.
    fn decide(&mut self, hooks: Option<&mut (dyn Hooks + '_)>, event: Event<'_>) -> bool {
        // Cleanup also runs after we gave up. Other steps are refused.
        if self.stopping.is_some() && !event.ignores_refusal() {
            return false;
        }
        let name = event.name().to_owned();
        // Once the images are accepted, and maybe stored, the tree must end as requested.
        let accepts = hooks.is_some() && matches!(event, Event::PostDump);
        match hooks.map_or(Ok(()), |hooks| hooks::run_hook(hooks, event)) {
            Ok(()) => {
                if accepts {
                    self.accepted = true;
                    self.deadline = None;
                }
                true
            }
            Err(refusal) => {
                self.refusal.get_or_insert((name, refusal));
                false
            }
        }
    }
}

/// Makes the request fail without harm to any process. Returns true if an answer is still expected.
fn make_fail(connection: &Connection, call: &Call<'_>) -> bool {
    match call.request {
        Request::Dump | Request::PreDump | Request::SinglePreDump => {
            if let Files::Lent(Lend { page_server: Some(socket), .. }) = &call.files {
                hang_up(*socket);
            }
            connection.go_on(); // it may have been stopped
            connection.forbid_file_writes()
        }
        // The next event is refused. Without a further event, criu's processes are killed with it.
        Request::Restore => true,
        Request::Version
        | Request::Check
        | Request::FeatureCheck
        | Request::PageServer
        | Request::PageServerChild
        | Request::WaitPid
        | Request::CpuinfoDump
        | Request::CpuinfoCheck => {
            connection.kill();
            false
        }
    }
}

/// Closes the stream of memory, at both ends.
fn hang_up(socket: BorrowedFd<'_>) {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both); // it may be closed already
}
