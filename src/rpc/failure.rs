//! Everything that is to be known about a request that failed, gathered.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    time::UNIX_EPOCH,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{Mode, fstat},
};

use super::{
    ask::{Ask, Files, LOG},
    condition::{Condition, Tree, ended_first_thread_alone},
    transport::Remains,
};
use crate::{
    Cause, Failure, Pid, Request, Target, Version, diagnose, image::lines_in_names, plain::plain, preflight,
    procfs, proto::rpc::CriuResp,
};

/// Where a [`Failure`] is made from.
pub(super) struct Gathering<'a, 'ask> {
    pub(super) ask: &'a Ask<'ask>,
    pub(super) last_event: Option<&'a str>,
    pub(super) version: Option<Version>,
    pub(super) answer: Option<&'a CriuResp>,
    pub(super) remains: &'a Remains,
    /// The tree that was to be dumped, before.
    pub(super) tree: &'a Tree,
}

impl Gathering<'_, '_> {
    pub(super) fn failure(self) -> Failure {
        let request = self.ask.request;
        let errno = self.answer.and_then(|answer| answer.cr_errno);
        let said = self.answer.and_then(|answer| answer.cr_errmsg.as_deref());
        let log = self.log_file();
        let known = self.known(said, [Some(&*self.remains.output), log.as_deref()]);
        let mut output = diagnose::Output::parse_with(&self.remains.output, &known);
        if let Some(log) = log {
            output.errors.extend(diagnose::Output::parse_with(&log, &known).errors);
        }
        let message = said.map(|said| plain(diagnose::message(said)));
        let message = message.as_deref();
        let lines = output.telling().chain(message);
        let tracer = self.tracer();
        let lost = self.answer.is_none() && self.remains.exit.is_some_and(|status| !status.success());
        let condition = match self.pid() {
            Some(root) => self.tree.condition(root, tracer, lost),
            None => Condition { target: Target::None, findings: Vec::new() },
        };
        let Condition { target, findings } = condition;
        let cause = match diagnose::cause(request, errno, lines) {
            // All that criu says of a process whose first thread alone has ended is that it cannot
            // detach from it.
            Cause::NoSuchProcess if self.pid().is_some_and(ended_first_thread_alone) => {
                Cause::UnsupportedThreads
            }
            // So it is of one that somebody else traces.
            Cause::NoSuchProcess if tracer.is_some() => Cause::Untraceable,
            // Of a root that has ended criu learns nothing, and stumbles over that.
            Cause::CriuFault if target == Target::Gone => Cause::DeadRoot,
            // Of a queue that has no path in any mount criu says the same as of a file of another
            // mount namespace.
            Cause::FileOutsideMounts if self.pid().is_some_and(preflight::has_message_queue) => {
                Cause::UnsupportedFile
            }
            // Without a root folder criu loses its way among the mounts.
            Cause::CriuFault if request == Request::Restore && output.telling().any(is_about_mounts) => {
                Cause::RootFolderNeeded
            }
            Cause::Unknown if self.said_nothing() && output.errors.is_empty() => Cause::NotCriu,
            Cause::Unknown if self.lacks_privileges(&output, message) => Cause::NotPrivileged,
            Cause::Unknown if self.killed_by().is_some_and(is_a_fault) => Cause::CriuFault,
            cause
                if self.killed_by().is_some_and(|signal| !is_a_fault(signal)) && cause != Cause::GivenUp =>
            {
                Cause::CriuKilled
            }
            // Of the first image that it cannot make criu says that there is none.
            Cause::Unknown if self.pid().is_some() && self.folder_was_deleted() => Cause::FolderNotReachable,
            // By itself criu does not log that it cannot connect to a page server.
            Cause::Unknown
                if self.sends_memory_away()
                    && output.telling().chain(message).all(diagnose::only_follows) =>
            {
                Cause::PageServer
            }
            // Of an image that is missing criu says that it ends too early.
            Cause::DamagedImages | Cause::Unknown if self.image_is_missing() => Cause::NoImages,
            cause => cause,
        };
        Failure {
            request,
            cause,
            target,
            tracer,
            last_event: self.last_event.map(plain),
            errno,
            message: message.map(str::to_owned),
            log: output.errors,
            stderr: output.other,
            findings,
            exit: self.remains.exit,
            advice: self.advice(cause, tracer),
            version: self.version,
        }
    }

    /// The advice, if there is better advice than that of the cause.
    fn advice(&self, cause: Cause, tracer: Option<Pid>) -> Option<String> {
        match (cause, tracer, self.pid()) {
            (Cause::Untraceable, Some(tracer), Some(root)) => {
                let is_inside = procfs::lineage(tracer.as_raw()).contains(&root);
                is_inside.then(|| diagnose::advice_for_inner_tracer(tracer))
            }
            (Cause::Unknown, ..) => {
                let opts = self.ask.opts.as_ref()?;
                let to_file = opts.log_to_stderr.is_none() && opts.log_file.is_some();
                let file = opts.log_file.as_deref().filter(|_| to_file);
                diagnose::advice_for_unknown(opts.log_level.unwrap_or(0), file)
            }
            _ => None,
        }
    }

    /// Facts about criu's output: whether it has times, and names with line breaks in it.
    fn known(&self, message: Option<&str>, texts: [Option<&str>; 2]) -> diagnose::Known {
        const WITH_TIMES: i32 = 3;
        let level = self.ask.opts.as_ref().and_then(|opts| opts.log_level);
        let mut known = diagnose::Known::new(level.map(|level| level >= WITH_TIMES));
        known.name(message.unwrap_or_default());
        let starts: Vec<_> = texts.into_iter().flatten().flat_map(diagnose::starts).collect();
        if starts.is_empty() {
            return known;
        }
        if let Some(pid) = self.pid() {
            preflight::broken_names(Pid::from(pid), &mut |name| known.name(name));
        } else if let (Request::Restore, Files::Lent(lend)) = (self.ask.request, &self.ask.files) {
            let folder = format!("/proc/self/fd/{}", lend.images.as_raw_fd());
            for start in lines_in_names(folder.as_ref(), &starts) {
                known.start(start);
            }
        }
        known
    }

    /// Whether what we started has ended by itself, without a word of criu's protocol.
    fn said_nothing(&self) -> bool {
        let ended = self.remains.exit.is_some_and(|status| status.code().is_some());
        ended && self.version.is_none() && self.answer.is_none() && self.last_event.is_none()
    }

    /// Returns true if memory was to be sent to the address of a page server.
    fn sends_memory_away(&self) -> bool {
        let server = self.ask.opts.as_ref().and_then(|opts| opts.ps.as_ref());
        let sends = matches!(self.ask.request, Request::Dump | Request::PreDump);
        sends && server.is_some_and(|server| server.fd.is_none())
    }

    /// The signal that killed criu before it answered, if it was not ours.
    fn killed_by(&self) -> Option<i32> {
        let ended = self.remains.exit.filter(|_| self.answer.is_none() && !self.remains.by_us);
        ended.and_then(|status| status.signal())
    }

    /// Whether the criu that we started cannot do anything, and says nothing else. It has our
    /// privileges.
    fn lacks_privileges(&self, output: &diagnose::Output, message: Option<&str>) -> bool {
        const SYS_ADMIN: u64 = 1 << 21;
        const CHECKPOINT_RESTORE: u64 = 1 << 40;
        let is_ours = self.remains.exit.is_some();
        let refused =
            |line: &str| line.contains("Permission denied") || line.contains("Operation not permitted");
        let mut lines = output.telling().chain(message);
        let says_so = lines.clone().next().is_none() || lines.any(refused);
        // Of the calling thread, which started criu. What a program that root starts gets is not
        // out of bounds.
        let may = |status: procfs::Status| match status.uids[1] {
            0 => status.bounding & SYS_ADMIN != 0,
            _ => status.effective & (SYS_ADMIN | CHECKPOINT_RESTORE) != 0,
        };
        is_ours && says_so && !procfs::Status::read("/proc/thread-self/status").is_none_or(may)
    }

    /// Whether the first image that this request reads is not there.
    fn image_is_missing(&self) -> bool {
        let name = match self.ask.request {
            Request::Restore => "inventory.img",
            Request::CpuinfoCheck => "cpuinfo.img",
            _ => return false,
        };
        let Files::Lent(lend) = &self.ask.files else { return false };
        open_in(lend.images, name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Whether the folder for the images is deleted, so that nothing can be made in it any more.
    fn folder_was_deleted(&self) -> bool {
        let Files::Lent(lend) = &self.ask.files else { return false };
        fstat(lend.images).is_ok_and(|folder| folder.st_nlink == 0)
    }

    /// The log, where it went to a file. One that nobody has written since we came is of an earlier
    /// request.
    fn log_file(&self) -> Option<String> {
        let opts = self.ask.opts.as_ref()?;
        let name = opts.log_file.as_deref().unwrap_or(LOG);
        let file = match &self.ask.files {
            _ if opts.log_to_stderr.is_some() => return None,
            Files::Lent(lend) => open_in(lend.work.unwrap_or(lend.images), name),
            Files::InFolder(path) => File::open(path).and_then(|folder| open_in(folder.as_fd(), name)),
            Files::None => return None,
        };
        let file = file.ok()?;
        let written = file.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        if self.remains.since.is_none_or(|since| written < since) {
            return None;
        }
        let mut text = Vec::new();
        file.take(1 << 20).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// The root of the tree that was to be dumped.
    fn pid(&self) -> Option<i32> {
        let is_dump = matches!(self.ask.request, Request::Dump | Request::PreDump | Request::SinglePreDump);
        self.ask.opts.as_ref()?.pid.filter(|_| is_dump)
    }

    /// Who traces a process of the tree. A criu that we started has ended by now; one that somebody
    /// else started may hold the tree for an instant longer, or its like another tree.
    fn tracer(&self) -> Option<Pid> {
        let is_criu = |pid: &i32| self.remains.criu.is_some_and(|criu| procfs::lineage(*pid).contains(&criu));
        let tracer = preflight::tracers(Pid::from(self.pid()?)).find(|tracer| !is_criu(tracer));
        tracer.map(Pid::from)
    }
}

/// Returns true if a program that such a signal ended has a mistake in it.
fn is_a_fault(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSEGV | libc::SIGABRT | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP
    )
}

fn is_about_mounts(line: &str) -> bool {
    line.contains("BUG at criu/mount")
}

/// A restore that was not begun, because another one in this program is to get the same pid.
pub(super) fn pid_in_use(pid: i32) -> Failure {
    let finding = format!("pid {pid} is being given to another restore in this program");
    Failure::foreseen(Request::Restore, Cause::PidInUse, vec![finding])
}

/// Opens a file in a folder, and nowhere else. A pipe of that name does not make us wait for its
/// other end.
pub(super) fn open_in(folder: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file: OwnedFd = openat(folder, name, flags, Mode::empty())?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_repeat_are_told_once() {
        let failure =
            Failure { log: ["a", "b", "b", "b", "a"].map(str::to_owned).to_vec(), ..pid_in_use(42) };
        let report = failure.report().to_string();
        let said: Vec<_> = report.lines().filter_map(|line| line.strip_prefix("  criu says:   ")).collect();
        assert_eq!(said, ["a", "b (3 times)", "a"]);
        assert!(report.contains("the tree:    nothing was revived"), "{report}");
    }
}
