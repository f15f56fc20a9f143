//! The client of criu's RPC: [`Criu`] has one method for each request.
//!
//! It is for callers that know criu. [`ProcsCapture`](crate::ProcsCapture) and
//! [`ProcsRestore`](crate::ProcsRestore) find the right options by themselves.

// `session` knows the protocol but no socket, `transport` knows the socket but no protocol, and
// `talk` connects the two.

mod abandon;
mod call;
pub(crate) mod cancel;
mod condition;
mod failure;
mod hooks;
mod key;
pub(crate) mod kill;
mod lend;
mod listen;
mod packet;
mod page_server;
mod pages;
mod pre_dump;
mod reply;
mod session;
mod swrk;
mod talk;
mod transport;
pub(crate) mod tree;
mod within;

use std::{
    ffi::OsString,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use self::{
    call::{Call, Files},
    cancel::Cancel,
    page_server::KeptForReport,
    session::options,
};
pub use self::{
    hooks::{Event, Hooks, NoHooks},
    key::Key,
    lend::Lend,
    page_server::PageServer,
    pages::{PageStream, receive_pages},
    pre_dump::PreDumps,
    reply::{About, Dumped, Features, SelfDump},
};
pub(crate) use self::{
    key::check as check_key,
    pages::{check_nothing_left, page_sockets},
    tree::Tree,
};
pub use crate::pages::{PageOwner, PageRun, PageSink, PageSize};
use crate::{
    DumpOptions, Error, Isolation, Pid, Request, RestoreOptions, Result, Version, diagnose,
    lock::Mutex,
    options::{CpuInfoOptions, PageServerOptions, PreDumpOptions},
    preflight::{self, Preflight},
    proto::rpc::{CriuFeatures, CriuOpts, CriuResp},
};

/// A way to reach criu. It holds no process and no file: every call starts or connects to a criu of
/// its own, so many threads can share one handle.
///
/// ```no_run
/// use std::fs::{self, File};
/// use criu_rpc::{Criu, DumpOptions, rpc::{Lend, NoHooks}};
///
/// fs::create_dir("images")?;
/// let images = File::open("images")?;
/// Criu::new().dump(4242, &DumpOptions::default(), Lend::images(&images), &mut NoHooks)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Criu {
    reach: Reach,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    deadline: Option<Duration>,
    cancel: Option<Cancel>,
    /// The namespaces of a restore, if they are not ours.
    isolation: Option<Isolation>,
    /// The release of the last criu; clones of the handle share it.
    last_version: Arc<Mutex<Option<Version>>>,
}

/// The way to reach criu.
#[derive(Debug, Clone)]
enum Reach {
    /// Start `criu swrk`, with this name or path.
    Swrk(Option<PathBuf>),
    /// Connect to the socket of a `criu service`.
    Service(PathBuf),
    /// Use a connection of the caller's; empty once it was used.
    Over(Arc<Mutex<Option<OwnedFd>>>),
}

impl Default for Reach {
    fn default() -> Reach {
        Reach::Swrk(None)
    }
}

impl Criu {
    /// Returns the release of the criu that answered last, without a request.
    pub(crate) fn last_version(&self) -> Option<Version> {
        self.last_version.lock().clone()
    }

    /// Uses the criu in `PATH` or the system's usual folders. Each request starts it as
    /// `criu swrk`.
    pub fn new() -> Criu {
        Criu::default()
    }

    /// Uses this criu: a path, or a name to search for in `PATH` and the system's usual folders.
    pub fn at(program: impl Into<PathBuf>) -> Criu {
        Criu { reach: Reach::Swrk(Some(program.into())), ..Criu::default() }
    }

    /// Uses the `criu service` that listens on this socket. Requests that need a criu of our own
    /// fail before they are sent: files to inherit, a terminal, a socket to a page server,
    /// `rst_sibling`.
    ///
    /// The service uses its own privileges, for every process that may connect. Without a service,
    /// requests fail with [`Error::NoService`]. A service in another pid namespace dumps by its own
    /// pids. It cannot restore, because the pid of the tree would mean another process here.
    ///
    /// ```no_run
    /// use criu_rpc::Criu;
    ///
    /// // criu service --address /run/criu.sock --daemon
    /// println!("{}", Criu::service("/run/criu.sock").version()?);
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    pub fn service(socket: impl Into<PathBuf>) -> Criu {
        Criu { reach: Reach::Service(socket.into()), ..Criu::default() }
    }

    /// Uses the criu at the other end of a connected `SOCK_SEQPACKET` socket, for one request. It
    /// opens lent files through the `/proc` entry of the process that made the socket.
    pub fn over(socket: impl Into<OwnedFd>) -> Criu {
        Criu { reach: Reach::Over(Arc::new(Mutex::new(Some(socket.into())))), ..Criu::default() }
    }

    /// Adds an argument for `criu swrk`, for options without a field in criu's RPC, such as
    /// `--file-validation`, `filesize`.
    ///
    /// A field of a request overrules an argument, a [`config_file`](DumpOptions::config_file)
    /// overrules both, and a [`raw_field`](DumpOptions::raw_field) overrules the field with its
    /// number. An argument applies if the request does not set its option. If an argument is given
    /// twice, the last one counts. A request that serves memory (`lazy_pages`) adds its own
    /// `--address` last.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Criu {
        self.arguments.push(argument.into());
        self
    }

    /// Sets a variable in criu's environment. If it is set twice, the last value counts. Those that
    /// change criu's behaviour (`CRIU_*`, `CR_*`, `HOME`, `XDG_RUNTIME_DIR`) are not inherited.
    #[must_use]
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Criu {
        let name = name.into();
        self.variables.retain(|(given, _)| *given != name);
        self.variables.push((name, value.into()));
        self
    }

    /// Limits the time of each request; the default is no limit. A late request fails with
    /// [`Error::TimedOut`].
    ///
    /// It is safe at every moment, because criu is never killed while it works on a living tree:
    ///
    /// - A dump is made to fail, and the tree goes on unharmed. That can take a few milliseconds
    ///   more. Once a hook has accepted [`Event::PostDump`], the dump completes.
    /// - A restore ends at its next event, or after five seconds more, and nothing of the tree is
    ///   left. If it was complete already, it succeeds.
    /// - A hook is not interrupted. When it returns, a late or cancelled request is refused.
    /// - A dump of the calling process, and a criu that we did not start, can be stopped only at an
    ///   event. Otherwise they go on, and the call returns.
    ///
    /// For the freezing alone there is [`DumpOptions::timeout`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Criu {
        self.deadline = Some(deadline);
        self
    }

    /// Lets this token cancel every request, as safely as [`deadline`](Criu::deadline) does. It
    /// ends with [`Error::Cancelled`].
    ///
    /// ```no_run
    /// use criu_rpc::{Cancel, Criu};
    ///
    /// let cancel = Cancel::new()?;
    /// let criu = Criu::new().cancelled_by(&cancel);
    /// // … and from another thread:
    /// cancel.cancel();
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    #[must_use]
    pub fn cancelled_by(mut self, cancel: &Cancel) -> Criu {
        self.cancel = Some(cancel.clone());
        self
    }

    /// Returns the path of the binary that would be started.
    ///
    /// # Errors
    ///
    /// [`Error::NoCriu`], with the paths that were tried; [`Error::Options`] for a criu that we do
    /// not start.
    pub fn program(&self) -> Result<PathBuf> {
        match &self.reach {
            Reach::Swrk(program) => swrk::find(program.as_deref()),
            Reach::Service(_) | Reach::Over(_) => {
                Err(Error::Options { option: "Criu", problem: "another program starts this criu".to_owned() })
            }
        }
    }

    /// Returns the release of this criu. Takes a few milliseconds. criu 3.0.
    ///
    /// # Errors
    ///
    /// [`Error::NoCriu`], or [`Error::Gone`] if the program is not criu.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use criu_rpc::{Criu, Version};
    ///
    /// assert!(Criu::new().version()? >= Version::new(3, 16, 0));
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    pub fn version(&self) -> Result<Version> {
        let (answer, _) = self.call(Call::new(Request::Version))?;
        reply::version(answer).ok_or_else(|| protocol(Request::Version, "an answer without a version"))
    }

    /// Checks that criu can work on this kernel, with these privileges. `criu check`.
    ///
    /// # Errors
    ///
    /// [`Error::Criu`], whose [`Failure`](crate::Failure) says what is missing.
    pub fn check(&self) -> Result<()> {
        // Before 4.2 criu needs a folder, and writes a log into it without log_to_stderr.
        let root = File::open("/").map_err(Error::io("open /"))?;
        let opts = CriuOpts { log_to_stderr: Some(true), ..options() };
        self.call(Call {
            opts: Some(opts),
            files: Files::Lent(Lend::images(&root)),
            ..Call::new(Request::Check)
        })?;
        Ok(())
    }

    /// Returns the optional kernel features that criu can use here. criu 1.8; a feature younger
    /// than this criu is reported as missing.
    ///
    /// # Errors
    ///
    /// [`Error::Criu`] if criu cannot tell.
    pub fn features(&self) -> Result<Features> {
        let (answer, _) =
            self.call(Call { features: Some(all_features()), ..Call::new(Request::FeatureCheck) })?;
        features(&answer)
    }

    /// Returns the release and the features, from one criu: faster than [`version`](Criu::version)
    /// and [`features`](Criu::features) after each other.
    ///
    /// # Errors
    ///
    /// As these two.
    pub fn about(&self) -> Result<About> {
        let mut call = Call { features: Some(all_features()), ..Call::new(Request::FeatureCheck) };
        let mut conversation = self.open(&mut call)?;
        let answer = conversation.call(call)?;
        let version = conversation.version.clone();
        conversation.close();
        let version = version.ok_or_else(|| protocol(Request::Version, "an answer without a version"))?;
        Ok(About { version, features: features(&answer)? })
    }

    /// Finds problems for a dump of the tree with the root `pid`, or for its restore, without
    /// touching a process. It reports problems with exactly these options:
    /// [`ProcsCapture`](crate::ProcsCapture) would solve those of terminals, standard streams and
    /// `shell_job` by itself. It takes milliseconds. criu itself is asked only if the options track
    /// changes of memory.
    ///
    /// # Errors
    ///
    /// [`Error::Process`] if `pid` is not a process that can be dumped, and what
    /// [`features`](Criu::features) says if criu had to be asked.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use criu_rpc::{Criu, DumpOptions};
    ///
    /// let options = DumpOptions::default().tcp_established(true);
    /// for finding in Criu::new().preflight(4242, &options)?.blockers() {
    ///     eprintln!("{finding}");
    /// }
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    pub fn preflight(&self, pid: impl Into<Pid>, options: &DumpOptions) -> Result<Preflight> {
        let tracks_memory = || self.features().map(|features| features.mem_track);
        preflight::look(pid.into(), options, tracks_memory, &|| self.version().ok())
    }

    /// Dumps the process tree with the root `pid` into the lent folder. `criu dump`.
    ///
    /// **criu kills the tree afterwards**, unlike [`ProcsCapture`](crate::ProcsCapture), unless
    /// [`leave_running`](DumpOptions::leave_running) or
    /// [`leave_stopped`](DumpOptions::leave_stopped) is set. The caller reaps its child.
    ///
    /// For a criu that we start the pid is that of our namespace, so a pid that cannot be dumped
    /// fails before criu is asked. Of a tree in a [copy](crate::ProcsRestore::isolated), the images
    /// and [`Dumped::interrupted`] have the pids inside.
    ///
    /// # Errors
    ///
    /// [`Error::Process`] if `pid` is not a process that can be dumped. [`Error::Criu`] with
    /// everything that criu told; [`Error::Refused`] if a hook refused. In all these cases the tree
    /// goes on as it was. [`Error::Gone`] if criu itself died, [`Error::TimedOut`] past the
    /// [`deadline`](Criu::deadline).
    pub fn dump(
        &self,
        pid: impl Into<Pid>,
        options: &DumpOptions,
        lend: Lend<'_>,
        hooks: &mut dyn Hooks,
    ) -> Result<Dumped> {
        let opts = CriuOpts { pid: Some(self.root(pid.into())?), ..options.wire() };
        let call = Call {
            opts: Some(opts),
            raw: options.raw(),
            files: Files::Lent(lend),
            hooks: Some(hooks),
            ..Call::new(Request::Dump)
        };
        let (_, version, output) = self.call_to_the_end(call)?;
        Ok(Dumped { version, interrupted: interrupted(&output) })
    }

    /// Writes the memory of a running tree into the lent folder, to make a later dump shorter: name
    /// the folder there as [`parent_img`](DumpOptions::parent_img), and set
    /// [`track_mem`](DumpOptions::track_mem). `criu pre-dump`. criu 3.17; needs a kernel that
    /// tracks changes of memory.
    ///
    /// # Errors
    ///
    /// [`Error::Process`] if `pid` is not a process that can be dumped. [`Error::Criu`] with
    /// everything that criu told, and with [`Cause::MemoryTracking`](crate::Cause::MemoryTracking)
    /// if the kernel does not track memory. The tree runs on.
    pub fn pre_dump(&self, pid: impl Into<Pid>, options: &PreDumpOptions, lend: Lend<'_>) -> Result<()> {
        let opts = CriuOpts { pid: Some(self.root(pid.into())?), ..options.wire() };
        let mut call = Call {
            opts: Some(opts),
            raw: options.raw(),
            files: Files::Lent(lend),
            ..Call::new(Request::SinglePreDump)
        };
        let mut conversation = self.open(&mut call)?;
        conversation.needs(Version::new(3, 17, 0), "pre_dump")?;
        conversation.needs_mem_track(&call)?;
        conversation.call(call)?;
        conversation.close();
        Ok(())
    }

    /// Prepares a row of pre-dumps of the tree with the root `pid`, by one criu. No request is sent
    /// yet.
    pub fn pre_dumps(&self, pid: impl Into<Pid>) -> PreDumps {
        PreDumps::new(self.clone(), pid.into())
    }

    /// Starts a page server, which receives the memory of one dump and writes it into the lent
    /// folder.
    /// `criu page-server`. criu 3.7.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if there is neither an address ([`ps`](PageServerOptions::ps)) nor a lent
    /// socket: criu would listen on all addresses. [`Error::Criu`], for instance if criu cannot
    /// listen.
    pub fn page_server(&self, options: &PageServerOptions, lend: Lend<'_>) -> Result<PageServer> {
        says_where(options, &lend)?;
        let mut call = Call {
            opts: Some(options.wire()),
            raw: options.raw(),
            files: Files::Lent(lend.clone()),
            keep_open: true,
            ..Call::new(Request::PageServerChild)
        };
        let mut conversation = self.open(&mut call)?;
        conversation.complete(&mut call)?;
        let kept = KeptForReport::keep(call.opts.as_ref(), &lend)?;
        let server = conversation.call(call)?.ps.unwrap_or_default();
        match server.pid {
            Some(pid) if pid > 1 => Ok(PageServer::new(conversation, pid, port(server.port), kept)),
            pid => Err(protocol(Request::PageServerChild, &format!("success with the pid {pid:?}"))),
        }
    }

    /// Starts a page server as a daemon without an owner: it ends after one dump, and its result is
    /// not reported. Returns its port, if it listens on one. `criu page-server --daemon`.
    ///
    /// It waits for one connection for ever, and ends with it: to end an unneeded server, connect
    /// to its port and hang up. criu does not report its pid, but can write it into a new file: see
    /// `--pidfile` and [`argument`](Criu::argument). To own a page server, use
    /// [`page_server`](Criu::page_server).
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if there is neither an address ([`ps`](PageServerOptions::ps)) nor a lent
    /// socket: criu would listen on all addresses. [`Error::Criu`], for instance if criu cannot
    /// listen.
    pub fn page_server_daemon(&self, options: &PageServerOptions, lend: Lend<'_>) -> Result<Option<u16>> {
        says_where(options, &lend)?;
        let (answer, _) = self.call(Call {
            opts: Some(options.wire()),
            raw: options.raw(),
            files: Files::Lent(lend),
            ..Call::new(Request::PageServer)
        })?;
        Ok(port(answer.ps.unwrap_or_default().port))
    }

    /// Writes the processor's features into `cpuinfo.img` in the lent folder. `criu cpuinfo dump`.
    ///
    /// # Errors
    ///
    /// [`Error::Criu`] with everything that criu told.
    pub fn cpuinfo_dump(&self, options: &CpuInfoOptions, lend: Lend<'_>) -> Result<()> {
        self.cpuinfo(Request::CpuinfoDump, options, lend)
    }

    /// Checks that this processor has the features in the lent folder's `cpuinfo.img`, so that
    /// images from that machine can be restored here. `criu cpuinfo check`.
    ///
    /// # Errors
    ///
    /// [`Error::Criu`], if a feature is missing.
    pub fn cpuinfo_check(&self, options: &CpuInfoOptions, lend: Lend<'_>) -> Result<()> {
        self.cpuinfo(Request::CpuinfoCheck, options, lend)
    }

    fn cpuinfo(&self, request: Request, options: &CpuInfoOptions, lend: Lend<'_>) -> Result<()> {
        let files = Files::Lent(lend);
        self.call(Call { opts: Some(options.wire()), raw: options.raw(), files, ..Call::new(request) })?;
        Ok(())
    }

    /// Dumps the process that calls this, with its descendants, and returns twice, like `fork`:
    /// once in the process that goes on, as [`SelfDump::Dumped`], and once in every copy that is
    /// restored from the images, as [`SelfDump::Restored`].
    ///
    /// The process always goes on: [`leave_running`](DumpOptions::leave_running) is set. There can
    /// be no hooks, because the process that would answer is frozen. A tree that leads no session
    /// needs [`shell_job`](DumpOptions::shell_job). criu 3.19.
    ///
    /// Everything else in this process is copied too: its other threads, its open files (which must
    /// be there at the restore, with the size they had), its terminal.
    ///
    /// # Errors
    ///
    /// As [`dump`](Criu::dump).
    pub fn dump_self(&self, options: &DumpOptions, images: &Path) -> Result<SelfDump> {
        self.dump_around_self(Pid::own(), options, images)
    }

    /// Dumps the tree with the root `pid`, which includes the calling process; otherwise like
    /// [`dump_self`](Criu::dump_self).
    ///
    /// # Errors
    ///
    /// As [`dump`](Criu::dump).
    pub fn dump_around_self(
        &self,
        pid: impl Into<Pid>,
        options: &DumpOptions,
        images: &Path,
    ) -> Result<SelfDump> {
        let pid = Some(self.root(pid.into())?);
        let opts = CriuOpts { pid, leave_running: Some(true), ..options.wire() };
        let call = Call {
            opts: Some(opts),
            raw: options.raw(),
            files: Files::InFolder(images),
            ..Call::new(Request::Dump)
        };
        let (answer, version, output) = self.call_to_the_end(call)?;
        match answer.dump.and_then(|dump| dump.restored) {
            Some(true) => Ok(SelfDump::Restored),
            _ => Ok(SelfDump::Dumped(Dumped { version, interrupted: interrupted(&output) })),
        }
    }

    /// Restores the process tree in the lent folder. `criu restore`.
    ///
    /// The tree gets the pids that it had, so they must be free. With
    /// [`rst_sibling`](RestoreOptions::rst_sibling) the tree is a child of the caller, and
    /// [`Tree::wait`] gives its exit status; otherwise of init, or the nearest subreaper. Without
    /// `rst_sibling`, a root that asked for a signal at the end of its parent (PR_SET_PDEATHSIG)
    /// gets that signal as soon as criu ends, right after the restore.
    ///
    /// criu does not check images: damaged ones make it hang, or restore something else. Restore
    /// only images that you wrote yourself, or verified.
    ///
    /// # Errors
    ///
    /// [`Error::Criu`] with everything that criu told; [`Error::Refused`] if a hook refused.
    /// Nothing of the tree runs then; without [`rst_sibling`](RestoreOptions::rst_sibling) its root
    /// is init's to reap, and holds its pid until then.
    pub fn restore(&self, options: &RestoreOptions, lend: Lend<'_>, hooks: &mut dyn Hooks) -> Result<Tree> {
        if self.isolation.is_some() {
            return self.restore_within(options, lend, hooks);
        }
        let call = Call {
            opts: Some(options.wire()),
            raw: options.raw(),
            files: Files::Lent(lend),
            hooks: Some(hooks),
            ..Call::new(Request::Restore)
        };
        let (answer, _) = self.call(call)?;
        match answer.restore.map(|restore| restore.pid) {
            Some(pid) if pid > 1 => Tree::own(pid),
            pid => Err(protocol(Request::Restore, &format!("success with the pid {pid:?}"))),
        }
    }

    /// Returns the pid if the process can be the root of a dump, as far as is known before criu is
    /// asked: a criu that we did not start may see another process under this pid.
    fn root(&self, pid: Pid) -> Result<i32> {
        match self.reach {
            Reach::Swrk(_) => preflight::check_root(pid)?,
            Reach::Service(_) | Reach::Over(_) => preflight::check_number(pid)?,
        }
        Ok(pid.as_raw())
    }
}

fn protocol(request: Request, problem: &str) -> Error {
    Error::Protocol { request, problem: problem.to_owned() }
}

fn all_features() -> CriuFeatures {
    CriuFeatures { mem_track: Some(true), lazy_pages: Some(true), pidfd_store: Some(true) }
}

fn features(answer: &CriuResp) -> Result<Features> {
    let features =
        answer.features.ok_or_else(|| protocol(Request::FeatureCheck, "an answer without features"))?;
    Ok(Features {
        mem_track: features.mem_track.unwrap_or(false),
        lazy_pages: features.lazy_pages.unwrap_or(false),
        pidfd_store: features.pidfd_store.unwrap_or(false),
    })
}

fn port(port: Option<i32>) -> Option<u16> {
    port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

/// Refuses a page server without an address: it would listen on all of them, and its clients can
/// write into the images.
fn says_where(options: &PageServerOptions, lend: &Lend<'_>) -> Result<()> {
    match options.wire().ps.is_some() || lend.page_server.is_some() {
        true => Ok(()),
        false => Err(Error::Options {
            option: "ps",
            problem: "set the address on which the page server listens, or lend it a socket".to_owned(),
        }),
    }
}

/// Returns the threads whose system calls a dump has ended.
fn interrupted(output: &str) -> Vec<Pid> {
    diagnose::interrupted(output).into_iter().map(Pid::from).collect()
}

/// Takes a packet of criu's, for fuzzers.
#[cfg(fuzzing)]
pub(crate) fn fuzz_packet(bytes: &[u8]) {
    for request in [Request::Dump, Request::Restore, Request::Version] {
        let _ = session::Session::new(request).hear(bytes);
    }
}
