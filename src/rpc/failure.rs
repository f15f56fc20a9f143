//! Collects all facts about a failed request.

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
    call::{Call, Files, LOG},
    condition::{Condition, Tree, ended_first_thread_alone},
    transport::CriuExit,
};
use crate::{
    Cause, Failure, Pid, Request, Target, Version, diagnose, image::lines_in_names, plain::plain, preflight,
    procfs, proto::rpc::CriuResp,
};

/// The facts that a [`Failure`] is made from.
pub(super) struct FailureContext<'a, 'call> {
    pub(super) call: &'a Call<'call>,
    pub(super) last_event: Option<&'a str>,
    pub(super) version: Option<Version>,
    pub(super) answer: Option<&'a CriuResp>,
    pub(super) criu_exit: &'a CriuExit,
    /// The state of the tree before its dump.
    pub(super) tree: &'a Tree,
}

impl FailureContext<'_, '_> {
    pub(super) fn failure(self) -> Failure {
        let request = self.call.request;
        let errno = self.answer.and_then(|answer| answer.cr_errno);
        let said = self.answer.and_then(|answer| answer.cr_errmsg.as_deref());
        let log = self.log_file();
        let known = self.known(said, [Some(&*self.criu_exit.output), log.as_deref()]);
        let mut output = diagnose::Output::parse_with(&self.criu_exit.output, &known);
        if let Some(log) = log {
            output.errors.extend(diagnose::Output::parse_with(&log, &known).errors);
        }
        let message = said.map(|said| plain(diagnose::message(said)));
        let message = message.as_deref();
        let lines = output.telling().chain(message);
        let tracer = self.tracer();
        let lost = self.answer.is_none() && self.criu_exit.status.is_some_and(|status| !status.success());
        let condition = match self.pid() {
            Some(root) => self.tree.condition(root, tracer, lost),
            None => Condition { target: Target::None, findings: Vec::new() },
        };
        let Condition { target, mut findings } = condition;
        let cause = match diagnose::cause(request, errno, lines) {
            // If only the main thread has ended, criu's one message is that it cannot detach.
            Cause::NoSuchProcess if self.pid().is_some_and(ended_first_thread_alone) => {
                Cause::UnsupportedThreads
            }
            // criu reports the same for a process that is traced already.
            Cause::NoSuchProcess if tracer.is_some() => Cause::Untraceable,
            // criu finds no data of a root that has ended, and reports an internal error.
            Cause::CriuFault if target == Target::Gone => Cause::DeadRoot,
            // criu reports a message queue without a mounted path like a file of another mount
            // namespace.
            Cause::FileOutsideMounts if self.pid().is_some_and(preflight::has_message_queue) => {
                Cause::UnsupportedFile
            }
            // Without a root folder criu fails at the mounts.
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
            // criu reports the first image that it cannot create as missing.
            Cause::Unknown if self.pid().is_some() && self.folder_was_deleted() => Cause::FolderNotReachable,
            // criu does not log that it cannot connect to a page server.
            Cause::Unknown
                if self.sends_memory_away()
                    && output.telling().chain(message).all(diagnose::only_follows) =>
            {
                Cause::PageServer
            }
            // criu reports a missing image as one that ends too early.
            Cause::DamagedImages | Cause::Unknown if self.image_is_missing() => Cause::NoImages,
            cause => cause,
        };
        if let (Cause::NotCriu, Some(program)) = (cause, &self.criu_exit.program) {
            findings.push(format!("the program is {}", program.display()));
        }
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
            exit: self.criu_exit.status,
            advice: self.advice(cause, tracer),
            version: self.version,
        }
    }

    /// Returns advice that is better than that of the cause, if there is any.
    fn advice(&self, cause: Cause, tracer: Option<Pid>) -> Option<String> {
        match (cause, tracer, self.pid()) {
            (Cause::Untraceable, Some(tracer), Some(root)) => {
                let is_inside = procfs::lineage(tracer.as_raw()).contains(&root);
                is_inside.then(|| diagnose::advice_for_inner_tracer(tracer))
            }
            (Cause::Unknown, ..) => {
                let opts = self.call.opts.as_ref()?;
                let to_file = opts.log_to_stderr.is_none() && opts.log_file.is_some();
                let file = opts.log_file.as_deref().filter(|_| to_file);
                diagnose::advice_for_unknown(opts.log_level.unwrap_or(0), file)
            }
            _ => None,
        }
    }

    /// Collects facts about criu's output: whether it has times, and names with line breaks in it.
    fn known(&self, message: Option<&str>, texts: [Option<&str>; 2]) -> diagnose::OutputContext {
        const WITH_TIMES: i32 = 3;
        let level = self.call.opts.as_ref().and_then(|opts| opts.log_level);
        let mut known = diagnose::OutputContext::new(level.map(|level| level >= WITH_TIMES));
        known.name(message.unwrap_or_default());
        let starts: Vec<_> = texts.into_iter().flatten().flat_map(diagnose::starts).collect();
        if starts.is_empty() {
            return known;
        }
        if let Some(pid) = self.pid() {
            preflight::broken_names(Pid::from(pid), &mut |name| known.name(name));
        } else if let (Request::Restore, Files::Lent(lend)) = (self.call.request, &self.call.files) {
            let folder = format!("/proc/self/fd/{}", lend.images.as_raw_fd());
            for start in lines_in_names(folder.as_ref(), &starts) {
                known.start(start);
            }
        }
        known
    }

    /// Returns true if the program that we started has exited without a message of criu's protocol.
    fn said_nothing(&self) -> bool {
        let ended = self.criu_exit.status.is_some_and(|status| status.code().is_some());
        ended && self.version.is_none() && self.answer.is_none() && self.last_event.is_none()
    }

    /// Returns true if memory was to be sent to the address of a page server.
    fn sends_memory_away(&self) -> bool {
        let server = self.call.opts.as_ref().and_then(|opts| opts.ps.as_ref());
        let sends = matches!(self.call.request, Request::Dump | Request::PreDump);
        sends && server.is_some_and(|server| server.fd.is_none())
    }

    /// Returns the signal that killed criu before its answer, unless we sent it.
    fn killed_by(&self) -> Option<i32> {
        let ended = self.criu_exit.status.filter(|_| self.answer.is_none() && !self.criu_exit.by_us);
        ended.and_then(|status| status.signal())
    }

    /// Returns true if the criu that we started lacks privileges and reports no other error. It has
    /// our privileges.
    fn lacks_privileges(&self, output: &diagnose::Output, message: Option<&str>) -> bool {
        const SYS_ADMIN: u64 = 1 << 21;
        const CHECKPOINT_RESTORE: u64 = 1 << 40;
        let is_ours = self.criu_exit.status.is_some();
        let refused =
            |line: &str| line.contains("Permission denied") || line.contains("Operation not permitted");
        let mut lines = output.telling().chain(message);
        let says_so = lines.clone().next().is_none() || lines.any(refused);
        // The privileges of the calling thread, which started criu. A program started by root gets
        // its bounding set.
        let may = |status: procfs::Status| match status.uids[1] {
            0 => status.bounding & SYS_ADMIN != 0,
            _ => status.effective & (SYS_ADMIN | CHECKPOINT_RESTORE) != 0,
        };
        is_ours && says_so && !procfs::Status::read("/proc/thread-self/status").is_none_or(may)
    }

    /// Returns true if the first image that this request reads is missing.
    fn image_is_missing(&self) -> bool {
        let name = match self.call.request {
            Request::Restore => "inventory.img",
            Request::CpuinfoCheck => "cpuinfo.img",
            _ => return false,
        };
        let Files::Lent(lend) = &self.call.files else { return false };
        open_in(lend.images, name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Returns true if the image folder is deleted, so that no file can be created in it.
    fn folder_was_deleted(&self) -> bool {
        let Files::Lent(lend) = &self.call.files else { return false };
        fstat(lend.images).is_ok_and(|folder| folder.st_nlink == 0)
    }

    /// Reads the log, if it went to a file. A log that was not written since the conversation began
    /// belongs to an earlier request.
    fn log_file(&self) -> Option<String> {
        let opts = self.call.opts.as_ref()?;
        let name = opts.log_file.as_deref().unwrap_or(LOG);
        let file = match &self.call.files {
            _ if opts.log_to_stderr.is_some() => return None,
            Files::Lent(lend) => open_in(lend.work.unwrap_or(lend.images), name),
            Files::InFolder(path) => File::open(path).and_then(|folder| open_in(folder.as_fd(), name)),
            Files::None => return None,
        };
        let file = file.ok()?;
        let written = file.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        if self.criu_exit.since.is_none_or(|since| written < since) {
            return None;
        }
        let mut text = Vec::new();
        file.take(1 << 20).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// Returns the root of the tree to dump.
    fn pid(&self) -> Option<i32> {
        let is_dump = matches!(self.call.request, Request::Dump | Request::PreDump | Request::SinglePreDump);
        self.call.opts.as_ref()?.pid.filter(|_| is_dump)
    }

    /// Returns the tracer of a process of the tree, except criu. A criu that we started has ended
    /// by now. A service may hold this tree a moment longer, and other trees too.
    fn tracer(&self) -> Option<Pid> {
        let is_criu =
            |pid: &i32| self.criu_exit.criu.is_some_and(|criu| procfs::lineage(*pid).contains(&criu));
        let tracer = preflight::tracers(Pid::from(self.pid()?)).find(|tracer| !is_criu(tracer));
        tracer.map(Pid::from)
    }
}

/// Returns true if the signal shows a fault of the program that it ended.
fn is_a_fault(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSEGV | libc::SIGABRT | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP
    )
}

fn is_about_mounts(line: &str) -> bool {
    line.contains("BUG at criu/mount")
}

/// Makes the failure of a restore that was not begun, because another restore in this program needs
/// the same pid.
pub(super) fn pid_in_use(pid: i32) -> Failure {
    let finding = format!("pid {pid} is being given to another restore in this program");
    Failure::foreseen(Request::Restore, Cause::PidInUse, vec![finding])
}

/// Opens a file in a folder, and nowhere else. Opening a pipe does not block.
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
