//! The table of criu's messages, and the cause of each.
//!
//! criu's line numbers change with every release, and its messages contain names and numbers. So a
//! rule is a pattern of the line: texts in order, with `…` for anything between them, `#` for a
//! number, `$` for the end.

use crate::{Cause, Request};

/// Returns the cause of a failure: from the first line that tells one, else from a hint, else from
/// criu's error number, else from the first consequence.
pub(crate) fn cause<'a>(
    request: Request,
    errno: Option<i32>,
    lines: impl IntoIterator<Item = &'a str>,
) -> Cause {
    let lines: Vec<_> = lines.into_iter().collect();
    let told = |rules| first(rules, &lines).map(|(_, cause)| cause);
    let numbered = || match (request, errno) {
        (Request::Dump, Some(ESRCH)) => Some(Cause::NoSuchProcess),
        (Request::Restore, Some(EEXIST)) => Some(Cause::PidInUse),
        (_, Some(EBADRQC)) => Some(Cause::OptionsRefused),
        _ => None,
    };
    told(CAUSES)
        .or_else(|| told(HINTS))
        .or_else(numbered)
        .or_else(|| told(CONSEQUENCES))
        .unwrap_or(Cause::Unknown)
}

const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
/// The number is the same on all of criu's architectures but MIPS.
const EBADRQC: i32 = 56;

/// Returns the first line that tells of a cause, if only by a hint.
pub(super) fn telling<'a>(lines: &[&'a str]) -> Option<&'a str> {
    first(CAUSES, lines).or_else(|| first(HINTS, lines)).map(|(line, _)| line)
}

/// Returns true if the line is not an error but may name the reason of a failure.
pub(super) fn hints(line: &str) -> bool {
    HINTS.iter().any(|(stem, _)| *stem != REFUSED && says(line, stem))
}

/// Returns true if a line that is not an error tells the reason of a failure once criu repeats it.
pub(super) fn hints_if_repeated(line: &str) -> bool {
    says(line, REFUSED)
}

/// Returns true if a rule knows the beginning of the line.
pub(super) fn begins(line: &str) -> bool {
    CAUSES.iter().any(|(stem, _)| !stem.starts_with('…') && says(line, stem))
}

/// Returns true if the line only reports a consequence of another error.
pub(super) fn is_consequence(line: &str) -> bool {
    CONSEQUENCES.iter().any(|(stem, _)| says(line, stem))
}

fn first<'a>(rules: &[Rule], lines: &[&'a str]) -> Option<(&'a str, Cause)> {
    lines
        .iter()
        .find_map(|line| rules.iter().find(|(stem, _)| says(line, stem)).map(|(_, cause)| (*line, *cause)))
}

/// Returns true if a line belongs to this cause.
pub(super) fn tells(line: &str, cause: Cause) -> bool {
    [CAUSES, HINTS, CONSEQUENCES]
        .iter()
        .any(|rules| first(rules, &[line]).is_some_and(|(_, told)| told == cause))
}

/// Returns true if the line matches the stem: begins with its first part, after names of criu's
/// modules such as `mnt: `, and has the other parts in order. Lines also contain names of the tree,
/// so only a stem that begins with `…` matches anywhere.
pub(super) fn says(line: &str, stem: &str) -> bool {
    let mut text = line;
    for _ in 0..3 {
        if fits(text, stem) {
            return true;
        }
        let Some((module, rest)) = text.split_once(": ") else { return false };
        let is_module =
            module.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_module {
            return false;
        }
        text = rest.trim_start();
    }
    false
}

fn fits(text: &str, stem: &str) -> bool {
    let (stem, to_the_end) = match stem.strip_suffix('$') {
        Some(stem) => (stem, true),
        None => (stem, false),
    };
    let mut parts = stem.split('…');
    let Some(mut rest) = parts.next().and_then(|part| after(text, part)) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if to_the_end && parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let found = rest.char_indices().find_map(|(start, _)| after(&rest[start..], part));
        match found.or_else(|| part.is_empty().then_some("")) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    !to_the_end || rest.is_empty()
}

/// Returns the text after `part`, if the text begins with it. A `#` stands for a number.
fn after<'a>(text: &'a str, part: &str) -> Option<&'a str> {
    let mut pieces = part.split('#');
    let mut rest = text.strip_prefix(pieces.next()?)?;
    for piece in pieces {
        let digits = rest.len() - rest.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
        rest = rest[digits..].strip_prefix(piece).filter(|_| digits > 0)?;
    }
    Some(rest)
}

/// A text of criu's, and its cause.
pub(super) type Rule = (&'static str, Cause);

/// Errors that tell of a cause. If two rules match a line, the first one counts.
pub(super) const CAUSES: &[Rule] = &[
    // The disk is full, whatever was being written.
    ("Can't create ghost …: No space left on device$", Cause::NoSpace),
    ("Can't make ghost …: No space left on device$", Cause::NoSpace),
    // criu and this machine
    ("vdso: Unexpected rt vDSO area bounds", Cause::TooOldForKernel),
    ("vdso: Can't find", Cause::TooOldForKernel),
    // criu prints this if it may not use the network, although its kernel can.
    ("kerndat_has_nftables_concat failed when initializing kerndat", Cause::NotPrivileged),
    ("kerndat_… failed when initializing kerndat", Cause::TooOldForKernel),
    // An internet socket: newer kernels do not report SO_PASSCRED for one, and criu before 4.2
    // asks.
    ("Can't get 1:16 opt: Operation not supported", Cause::TooOldForKernel),
    ("CRIU needs to have the CAP_SYS_ADMIN or the CAP_CHECKPOINT_RESTORE capability", Cause::NotPrivileged),
    ("Can't get rlimit #: Operation not permitted", Cause::OtherUser),
    ("Unable to drop capability #: ", Cause::NotPrivileged),
    ("Unable to set socket SO_SNDBUFFORCE/SO_RCVBUFFORCE: Operation not permitted", Cause::NotPrivileged),
    ("libnet_init failed (…Operation not permitted", Cause::NotPrivileged),
    ("Can't change root: Operation not permitted", Cause::NotPrivileged),
    ("Running as non-root requires", Cause::NotPrivileged),
    ("Setting PID failed", Cause::NotPrivileged),
    ("Can't fork for …: Operation not permitted", Cause::NotPrivileged),
    ("Can't open dir /proc/…: Permission denied", Cause::NotPrivileged),
    ("Tracking memory is not available", Cause::MemoryTracking),
    ("BUG at criu/mem.c", Cause::MemoryTracking),
    ("Can't open dir …: ", Cause::FolderNotReachable),
    ("Can't open images directory", Cause::FolderNotReachable),
    ("waitpid() failed: No child processes", Cause::ChildrenIgnored),
    ("Unable to set a pipe size: Operation not permitted", Cause::PipesTooSmall),
    ("tee: …: Operation not permitted", Cause::PipesTooSmall),
    ("splice: -1: Bad file descriptor", Cause::PipesTooSmall),
    ("Can't read request", Cause::ConversationBroken),
    ("Failed unpacking request", Cause::ConversationBroken),
    ("Client exited unexpectedly", Cause::ConversationBroken),
    // The tree as a whole
    ("The criu itself is within dumped tree", Cause::CriuInsideTree),
    ("Unseizable non-zombie … found, state …", Cause::Untraceable),
    ("The root process # is not a session leader. Consider using --shell-job", Cause::ShellJob),
    ("Found slave peer index … without correspond master peer", Cause::ShellJob),
    ("Found dangling tty with sid … pgid …", Cause::ShellJob),
    ("Only one slave external peer is allowed (index …)", Cause::ShellJob),
    ("Don't have tty to inherit session from", Cause::ShellJob),
    ("ctty inheritance detected sid/pgrp ", Cause::ShellJob),
    ("A session leader of … is outside of its pid namespace", Cause::SessionOutsidePidNamespace),
    ("A root task is dead", Cause::DeadRoot),
    ("SEIZE #: unsupported stop signal #", Cause::StoppedJob),
    ("Can't make VM id for #", Cause::SharedState),
    ("Can't make FS id for #", Cause::SharedState),
    ("Can't make FILES id for #", Cause::SharedState),
    ("Can't make IO id for #", Cause::SharedState),
    ("Can't dump the … thread with a pending SIGTRAP", Cause::PendingTrap),
    ("Zombies with threads are not supported", Cause::UnsupportedThreads),
    ("Zombie thread not supported", Cause::UnsupportedThreads),
    ("Individually stopped threads not supported", Cause::UnsupportedThreads),
    ("Timeout reached. Try to interrupt", Cause::FreezeTimeout),
    ("Unable to freeze cgroup", Cause::FreezeTimeout),
    ("Neither a cgroupv1 (freezer.state) or cgroupv2 (cgroup.freeze) control file found", Cause::NoFreezer),
    ("Can't dump nested … namespace for …", Cause::NestedNamespaces),
    ("Nested mount namespaces are not supported", Cause::NestedNamespaces),
    ("Can't restore sub-task in NS", Cause::NamespaceOfChild),
    ("Can't dump a pid namespace without the process init", Cause::PidNamespaceWithoutInit),
    ("Unable to open the proc file system: Operation not permitted", Cause::UserNamespace),
    // Connections
    ("Connected TCP socket, consider using --tcp-established", Cause::EstablishedTcp),
    ("Connected TCP socket in image", Cause::EstablishedTcp),
    ("Need to set the --tcp-close options", Cause::EstablishedTcp),
    ("In-flight connection (l) for", Cause::InFlightTcp),
    ("In-flight connections can be ignored with the --", Cause::InFlightTcp),
    ("recv failed (#, want #)", Cause::TcpMoved),
    ("Locking network failed", Cause::NetworkNotLocked),
    ("Iptables configuration failed", Cause::NetworkNotLocked),
    ("Failed to lock TCP connection", Cause::NetworkNotLocked),
    ("Locking connection failed using nftables", Cause::NetworkNotLocked),
    ("execvp(\"iptables-restore\", …failed", Cause::NetworkNotLocked),
    ("CRIU was built without libnftables support", Cause::NetworkNotLocked),
    ("Can't bind inet socket", Cause::TcpNotRestored),
    ("Can't connect inet socket back", Cause::TcpNotRestored),
    ("External socket is used. Consider using --ext-unix-sk", Cause::ExternalUnixSocket),
    ("Can't dump half of stream unix connection", Cause::ExternalUnixSocket),
    ("Can't dump name-less external socket", Cause::ExternalUnixSocket),
    ("External socket found in image", Cause::ExternalUnixSocket),
    ("Can't dump corked dgram socket ", Cause::CorkedSocket),
    ("Control messages in queue, not supported", Cause::QueuedCredentials),
    ("Unable too cut … from …", Cause::SocketPath),
    ("Dangling connection", Cause::UnixSocketBusy),
    ("In-flight connection on non-listening socket", Cause::UnixSocketBusy),
    ("Non-empty write queue on an in-flight socket", Cause::UnixSocketBusy),
    ("Found a closed in-flight socket", Cause::UnixSocketBusy),
    ("pidfd pid … is not a part of process tree", Cause::PidfdOutside),
    ("PIDFD_THREAD flag is currently not supported", Cause::UnsupportedFile),
    ("Unix socket … with unreachable peer", Cause::UnixSocketBusy),
    ("Unsupported proto 262 for socket", Cause::Mptcp),
    ("For Go programs, consider using \"GODEBUG=multipathtcp=0\" to disable MPTCP", Cause::Mptcp),
    ("Unsupported proto … for socket", Cause::UnsupportedSocket),
    ("The socket has data to read", Cause::NetlinkSocket),
    ("The netlink socket … has more than 32 groups", Cause::NetlinkSocket),
    ("The netlink socket … is bound to groups but not to portid", Cause::NetlinkSocket),
    ("BUG! Unknown socket collected (family #)", Cause::UnsupportedSocket),
    ("Can't dump … inet socket …. Only stream, dgram and raw are supported", Cause::UnsupportedSocket),
    ("Can't create sock diag socket", Cause::SocketModules),
    ("Unable to find an external netns", Cause::NetworkNamespace),
    ("a macvlan parent for … is required", Cause::MacvlanParent),
    ("Can't open tun device", Cause::TunDevice),
    ("Net namespace is required to dump tun link", Cause::TunOutside),
    ("IP tool failed on", Cause::NetworkNamespace),
    ("iptables-restore failed", Cause::NetworkNamespace),
    ("nft restore failed", Cause::NetworkNamespace),
    // Files
    ("Some file locks are hold by dumping tasks", Cause::FileLocks),
    ("Unresolved lock found pid … ino …", Cause::ForeignFileLock),
    ("Can not set ofd lock", Cause::LockTaken),
    ("Can't dump ghost file … of … size, increase limit", Cause::GhostFileTooBig),
    ("Can't create link remap for …. Use link-remap option", Cause::LinkRemap),
    ("Can't link remap to", Cause::LinkRemapFailed),
    ("Can't link …link_remap.", Cause::LinkRemapGone),
    ("Can't create ghost ", Cause::LinkRemapFailed),
    ("Can't create node for ghost ", Cause::LinkRemapFailed),
    ("Can't make ghost dir", Cause::LinkRemapFailed),
    ("Can't lookup mount=# for fd=# path=/secretmem (deleted)$", Cause::UnsupportedFile),
    ("Can't lookup mount=… for fd=… path=…", Cause::FileOutsideMounts),
    ("Open files on overmounted mounts are not supported yet", Cause::Overmounted),
    ("The path [… is not supported", Cause::UnsupportedPath),
    ("Unaccessible path opened", Cause::UnsupportedPath),
    ("Can't dump file … of that type […anon_inode:[io_uring]", Cause::IoUring),
    ("Unknown shit … (anon_inode:[io_uring])", Cause::IoUring),
    ("Can't dump file … of that type […", Cause::UnsupportedFile),
    ("The packetized mode for pipes is not supported yet", Cause::PacketPipe),
    ("Unknown clock type 8 for #", Cause::AlarmTimer),
    ("Unknown clock type 9 for #", Cause::AlarmTimer),
    ("Can't stat fd #: No such file or directory", Cause::ProcFile),
    ("send_fds failed (-22)", Cause::IoUring),
    ("Can't retrieve FDs from socket", Cause::IoUring),
    ("Message reply from daemon is trimmed (4/0)", Cause::IoUring),
    ("Can't create memfd in victim: Too many open files", Cause::DescriptorLimit),
    // criu's code in the tree ended before it had a socket.
    ("Message reply from daemon is trimmed (12/0)", Cause::DescriptorLimit),
    ("Can't dump that handle", Cause::WatchedFile),
    ("Can't find suitable path for handle", Cause::WatchedFile),
    ("Unable to lookup a mount by dev", Cause::WatchedFile),
    ("File … has bad size … (expect …)", Cause::FileChanged),
    ("Dump eventpoll (pid: #) failed with", Cause::EpollElsewhere),
    ("Can't add event on …: Operation not permitted$", Cause::EpollOnFile),
    ("Can't open file proc/#/… on restore: ", Cause::ProcFile),
    ("Can't open file … on restore: No such file or directory", Cause::FileChanged),
    ("Can't open fake fifo …: No such file or directory$", Cause::FileChanged),
    ("Can't bind id …: No such file or directory$", Cause::FileChanged),
    ("ghost: Can't bind on socket …: No such file or directory$", Cause::FileChanged),
    ("File … has bad build-ID", Cause::ProgramChanged),
    ("File … has bad mode 0… (expect 0…)", Cause::ModeChanged),
    ("Can't fstat inherit fd", Cause::InheritedFile),
    // Memory and processes
    ("Unsupported mapping found", Cause::UnsupportedMapping),
    ("Can't handle non-regular mapping on", Cause::UnsupportedMapping),
    ("Strange file mapped at", Cause::UnsupportedMapping),
    ("Can't open …'s mapfile link …: No such device or address", Cause::UnsupportedMapping),
    ("Bogus mapping", Cause::UnsupportedMapping),
    ("Cannot apply seals on memfd: Device or resource busy", Cause::SealedMemfd),
    ("PID # has uprobes vma. Consider using --allow-uprobes", Cause::Uprobes),
    ("Dumped with --allow-uprobes. Need to set it on restore as well", Cause::Uprobes),
    ("Task # with SysVIPC shmem map … doesn't live in IPC ns", Cause::SysvShm),
    ("Can't dump task … running in 32-bit mode", Cause::UnsupportedProgram),
    ("Can't dump task … with LDT descriptors", Cause::UnsupportedProgram),
    ("Can't fetch filter on tid_real", Cause::Seccomp),
    ("Kernel doesn't support PTRACE_O_SUSPEND_SECCOMP", Cause::Seccomp),
    ("seccomp: SECCOMP_SET_MODE_FILTER returned", Cause::Seccomp),
    ("suspending seccomp failed", Cause::Seccomp),
    ("couldn't suspend seccomp", Cause::Seccomp),
    ("failed to suspend seccomp, restore will probably fail", Cause::Seccomp),
    ("# has rseq but kernel lacks get_rseq_conf feature", Cause::RestartableSequences),
    ("failed to collect AA namespace", Cause::SecurityProfile),
    ("Invalid selinux context", Cause::SecurityProfile),
    ("mismatched lsm types and lsm profile specified", Cause::SecurityProfile),
    ("apparmor LSM specified but apparmor not supported by kernel", Cause::SecurityProfile),
    ("selinux LSM specified but selinux not supported by kernel", Cause::SecurityProfile),
    ("unknown lsm ", Cause::SecurityProfile),
    ("can't write lsm profile", Cause::SecurityProfile),
    ("Unable to restore capabilities: ", Cause::Credentials),
    ("Can't setgroups(", Cause::Credentials),
    ("Unable to set real, effective and saved user ID", Cause::Credentials),
    ("Unable to create a new time namespace", Cause::TimeNamespace),
    ("Unable to set a monotonic clock offset", Cause::TimeNamespace),
    ("remote mmap() failed: Cannot allocate memory", Cause::MemoryLimit),
    ("Unable to reserve memory", Cause::NotEnoughMemory),
    ("Can't restore … mapping with", Cause::NotEnoughMemory),
    ("CPU instruction capabilities do not match run time", Cause::CpuMismatch),
    ("CPU capabilities do not match run time", Cause::CpuMismatch),
    ("FPU feature required by image is not supported on host", Cause::CpuMismatch),
    ("CPU xfeatures has unsupported bits", Cause::CpuMismatch),
    ("CPU xsave size mismatch", Cause::CpuMismatch),
    ("No cpuinfo image", Cause::NoImages),
    ("Task had vdso, restorer doesn't", Cause::CpuMismatch),
    ("Missing required plugin", Cause::Plugin),
    // Mounts and control groups
    ("FS mnt … unsupported id", Cause::UnsupportedFileSystem),
    ("#:… doesn't have a proper root mount", Cause::ExternalMount),
    ("Mount # … has unreachable sharing. Try --enable-external-masters", Cause::ExternalMount),
    ("Sharing group (#, #) has unreachable sharing. Try --enable-external-masters", Cause::ExternalMount),
    ("No mapping for #:… mountpoint", Cause::ExternalMount),
    ("A few mount points can't be mounted", Cause::ExternalMount),
    ("Mount #:… is autodetected external mount. Try \"--ext-mount-map auto\"", Cause::ExternalMount),
    ("The root task has another root than mntns", Cause::ChangedRoot),
    ("Can't parse #'s mountinfo", Cause::ChangedRoot),
    ("The --root option is required to restore a mount namespace", Cause::RootFolderNeeded),
    // Without a root folder criu unmounts the namespace's first mounts, and fails at those beneath
    // /sys.
    ("Can't umount at ./", Cause::RootFolderNeeded),
    ("Cgroup dir … doesn't exist", Cause::Cgroups),
    ("Abort restore of existing cgroups", Cause::Cgroups),
    ("Restoring … special property failed", Cause::Cgroups),
    ("Can't move … into", Cause::Cgroups),
    // Dumps on top of others, and memory sent elsewhere
    ("Invalid parent image directory provided", Cause::ParentImages),
    ("Missing … in parent pagemap", Cause::ParentImages),
    ("Hole … not found in parent", Cause::ParentImages),
    ("Pid-reuse detection failed: no parent inventory", Cause::ParentImages),
    ("Failed to resolve hostname", Cause::PageServer),
    ("The page server doesn't answer", Cause::PageServer),
    ("Can't write pages to socket", Cause::PageServer),
    ("Can't send PSI # to server", Cause::PageServer),
    ("Can't write to page server", Cause::PageServer),
    ("The data were not flushed", Cause::PageServer),
    ("connect to …lazy-pages.socket failed", Cause::LazyPages),
    ("Unable to open an userfaultfd descriptor", Cause::LazyPages),
    ("register … failed: rc:", Cause::LazyPages),
    ("Restorer unexpectedly closed the connection", Cause::LazyPages),
    ("Failed sending restore finished indication", Cause::LazyPages),
    // Restores
    ("Can't fork for …: File exists", Cause::PidInUse),
    ("Unable to create a thread: -17", Cause::PidInUse),
    ("Pid … do not match expected", Cause::PidInUse),
    ("This process tree can only be restored in a new pid namespace", Cause::NewPidNamespace),
    ("Unable to restore into an empty PID namespace", Cause::NewPidNamespace),
    ("First PID in a PID namespace needs to be", Cause::NewPidNamespace),
    ("Unable to open … with specified index", Cause::TerminalTaken),
    ("Requested sid … doesn't match inherited", Cause::SessionNumbers),
    ("Can't find a session leader for", Cause::SessionNumbers),
    ("Can't restore pgid (", Cause::SessionNumbers),
    ("Current sid … intersects with", Cause::SessionNumbers),
    ("Read … bytes while … expected from", Cause::DamagedImages),
    ("Unexpected EOF on", Cause::DamagedImages),
    ("Head magic doesn't match for", Cause::DamagedImages),
    ("Magic doesn't match for", Cause::DamagedImages),
    ("Failed unpacking object", Cause::DamagedImages),
    ("Page entry address … outside of VMA", Cause::DamagedImages),
    ("No IDS for root task", Cause::DamagedImages),
    ("Can't read pages data", Cause::DamagedImages),
    ("Not supported images version", Cause::ImagesVersion),
    ("Too old image, no longer supported", Cause::ImagesVersion),
    ("Deprecated functionality (…) rejected", Cause::Deprecated),
    // Refusals
    ("RPC client reported script error", Cause::RefusedByClient),
    ("One of more action scripts failed", Cause::RefusedByClient),
    // Consequences of reasons above
    ("BUG at criu/", Cause::CriuFault),
    // Messages about options that we always set, and those of the program that starts criu.
    ("…: unrecognized option '--no-default-config'", Cause::NotCriu),
    ("…: unrecognized option '", Cause::OptionsRefused),
    ("…: error while loading shared libraries: ", Cause::NotCriu),
    // The disk is full. This comes after all rules that match a beginning, because a name can
    // contain these words, too.
    ("…: No space left on device$", Cause::NoSpace),
];

/// Warnings and other lines that name a cause. They count only without an error, because criu also
/// warns of problems that it can ignore.
pub(super) const HINTS: &[Rule] = &[
    ("Unable to interrupt task: … (No such process)", Cause::NoSuchProcess),
    (REFUSED, Cause::Untraceable),
    ("Can't connect to server ", Cause::PageServer),
    // This is in every log of a kernel without one of the modules, whether the tree needs it or
    // not.
    ("Diag module missing", Cause::SocketModules),
];

/// criu prints it for zombies, and dumps them all the same. It tries to seize a thread several
/// times, and then prints nothing else.
const REFUSED: &str = "Unable to interrupt task: … (Operation not permitted)";

/// Errors that follow from others. They count without another error, since criu does not always
/// print the reason.
pub(super) const CONSEQUENCES: &[Rule] = &[
    ("# was stopped by # unexpectedly", Cause::Disturbed),
    ("Unexpected # task interruption, aborting", Cause::Disturbed),
    ("Unable to open fd=… id=", Cause::NotReopened),
    ("`- Can't open vma", Cause::NotReopened),
    ("Can't open cwd", Cause::NotReopened),
    ("Can't open root", Cause::NotReopened),
    ("# stopped by signal", Cause::TaskDied),
    ("# killed by signal", Cause::TaskDied),
    ("# exited, status=", Cause::TaskDied),
    ("Child … died too early", Cause::TaskDied),
    // A process of a dump, whatever the reason of the failure.
    ("Unable to detach from …", Cause::Unknown),
    // A thread of a restored process that ended as soon as it was resumed.
    ("Unable to detach …: No such process", Cause::TaskDied),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_number_speaks_where_no_line_does() {
        assert_eq!(cause(Request::Dump, Some(ESRCH), ["something"]), Cause::NoSuchProcess);
        assert_eq!(cause(Request::Restore, Some(EEXIST), []), Cause::PidInUse);
        assert_eq!(cause(Request::Check, Some(ESRCH), []), Cause::Unknown);
        assert_eq!(cause(Request::Dump, Some(EBADRQC), ["something"]), Cause::OptionsRefused);
        assert_eq!(
            cause(Request::Dump, Some(ESRCH), ["The criu itself is within dumped tree."]),
            Cause::CriuInsideTree
        );
    }

    #[test]
    fn the_parts_of_a_stem_come_in_order() {
        assert!(
            says("a 1 b", "a …b") && says("mnt: axb", "a…b") && says("ab", "a…b") && says("anything", "…")
        );
        assert!(!says("b a", "a…b") && !says("a", "aa") && !says("aXb", "ab") && !says("a", "a…a"));
        assert!(!says("xab", "a…b") && says("xab", "…a…b") && !says("A: ab", "a…b"));
        assert!(
            says("12 a", "# a") && !says("x a", "# a") && !says(" a", "# a") && says("a 1:x b", "a #:… b")
        );
        assert!(says("a b b", "a… b$") && !says("a b c", "a… b$") && says("a", "a$") && !says("ab", "a$"));
        assert_eq!(cause(Request::Dump, None, ["Some file locks are hold"]), Cause::Unknown);
    }
}
