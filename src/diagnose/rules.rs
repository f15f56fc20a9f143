//! The table of known failures: how criu words them, what they mean, and what to do.
//!
//! criu's line numbers change with every release and its messages carry names and numbers, so a rule is a text that
//! the line contains, and maybe a second one.

use crate::{Cause, Request};

/// The cause of a failure, from all that is known: the first line that a rule knows, then criu's error number.
pub(crate) fn cause<'a>(
    request: Request,
    errno: Option<i32>,
    lines: impl IntoIterator<Item = &'a str>,
) -> Cause {
    if let Some(rule) = lines.into_iter().find_map(matching) {
        return rule.cause;
    }
    match (request, errno) {
        (Request::Dump, Some(ESRCH)) => Cause::NoSuchProcess,
        (Request::Restore, Some(EEXIST)) => Cause::PidInUse,
        _ => Cause::Unknown,
    }
}

const ESRCH: i32 = 3;
const EEXIST: i32 = 17;

/// The rule that knows the line.
pub(super) fn matching(line: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| line.contains(rule.says) && line.contains(rule.and))
}

/// One wording of criu's.
#[derive(Debug)]
pub(super) struct Rule {
    says: &'static str,
    /// Something else that the line must contain; may be empty.
    and: &'static str,
    cause: Cause,
}

const fn rule(says: &'static str, cause: Cause) -> Rule {
    Rule { says, and: "", cause }
}

const RULES: &[Rule] = &[
    rule("vdso: Unexpected rt vDSO area bounds", Cause::TooOldForKernel),
    rule("failed when initializing kerndat", Cause::TooOldForKernel),
    rule("vdso: Can't find", Cause::TooOldForKernel),
    rule("CAP_CHECKPOINT_RESTORE capability", Cause::NotPrivileged),
    rule("Running as non-root requires", Cause::NotPrivileged),
    rule("Setting PID failed", Cause::NotPrivileged),
    Rule { says: "Can't fork for", and: "Operation not permitted", cause: Cause::NotPrivileged },
    rule("The criu itself is within dumped tree", Cause::CriuInsideTree),
    Rule { says: "Unable to interrupt task", and: "No such process", cause: Cause::NoSuchProcess },
    Rule { says: "Can't fork for", and: "File exists", cause: Cause::PidInUse },
    rule("do not match expected", Cause::PidInUse),
    rule("is not a session leader. Consider using --shell-job", Cause::ShellJob),
    rule("without correspond master peer", Cause::ShellJob),
    rule("Found dangling tty with sid", Cause::ShellJob),
    rule("Only one slave external peer is allowed", Cause::ShellJob),
    rule("Don't have tty to inherit session from", Cause::ShellJob),
    rule("is outside of its pid namespace", Cause::ShellJob),
    rule("Connected TCP socket, consider using --tcp-established", Cause::EstablishedTcp),
    rule("Connected TCP socket in image", Cause::EstablishedTcp),
    rule("Need to set the --tcp-close options", Cause::EstablishedTcp),
    rule("External socket is used. Consider using --ext-unix-sk", Cause::ExternalUnixSocket),
    rule("Can't dump half of stream unix connection", Cause::ExternalUnixSocket),
    rule("Can't dump name-less external socket", Cause::ExternalUnixSocket),
    rule("External socket found in image", Cause::ExternalUnixSocket),
    rule("Some file locks are hold by dumping tasks", Cause::FileLocks),
    Rule { says: "File ", and: " has bad size", cause: Cause::FileChanged },
    Rule { says: "File ", and: " has bad mode", cause: Cause::FileChanged },
    Rule { says: "File ", and: " has bad build-ID", cause: Cause::FileChanged },
    Rule { says: "Can't open file", and: "on restore: No such file or directory", cause: Cause::FileChanged },
];

/// One line on what happened.
pub(crate) fn summary(cause: Cause) -> &'static str {
    match cause {
        Cause::Unknown => "criu did not say why",
        Cause::NoCriu => "there is no criu",
        Cause::TooOldForKernel => "this criu is too old for this kernel",
        Cause::NotPrivileged => "criu lacks a privilege",
        Cause::NoSuchProcess => "the process does not exist, or is traced or dumped by somebody else",
        Cause::PidInUse => "a pid of the tree is in use",
        Cause::ShellJob => "the tree depends on a session or terminal outside it",
        Cause::EstablishedTcp => "the tree has an established TCP connection",
        Cause::ExternalUnixSocket => "the tree has a unix socket whose other end is outside",
        Cause::FileLocks => "the tree holds file locks",
        Cause::FileChanged => "a file is not what it was when the tree was dumped",
        Cause::CriuInsideTree => "criu itself is a part of the tree",
    }
}

/// What a person can do.
pub(crate) fn advice(cause: Cause) -> &'static str {
    match cause {
        Cause::Unknown => "dump again with `log_level(LogLevel::Debug)` and read criu's log",
        Cause::NoCriu => {
            "install criu (Debian, Ubuntu, Fedora: the package `criu`), or name it with `criu(path)`"
        }
        Cause::TooOldForKernel => "install a newer criu: each release works up to the kernels of its time",
        Cause::NotPrivileged => {
            "run as root, in a container with `--privileged` or CAP_CHECKPOINT_RESTORE, CAP_SYS_PTRACE and \
             CAP_SYS_ADMIN"
        }
        Cause::NoSuchProcess => {
            "check the pid as criu sees it (in its pid namespace), and detach debuggers and other dumps from it"
        }
        Cause::PidInUse => {
            "wait for the old tree to end and reap it (a zombie still holds its pid), or restore in a new pid \
             namespace"
        }
        Cause::ShellJob => {
            "start the program with `setsid` and without a terminal, or set `shell_job(true)` on both sides"
        }
        Cause::EstablishedTcp => {
            "set `tcp_established(true)` on both sides to carry the connection along, or `tcp_close(true)` on both \
             to drop it"
        }
        Cause::ExternalUnixSocket => {
            "name the tree's end with `external(\"unix[inode]\")`, and lend a replacement at restore as \
             `socket:[inode]`; or close it before the dump"
        }
        Cause::FileLocks => "set `file_locks(true)` to carry the locks along",
        Cause::FileChanged => {
            "put the file back as it was at the dump (size, mode and, for programs, contents), or lend another in \
             its place"
        }
        Cause::CriuInsideTree => {
            "capture the tree from a process outside it; a process that captures itself must not be the parent of \
             all (pid 1, or a subreaper above)"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_criu_wrote_are_known() {
        for (line, expected) in [
            ("vdso: Unexpected rt vDSO area bounds", Cause::TooOldForKernel),
            ("kerndat_vdso_fill_symtable failed when initializing kerndat.", Cause::TooOldForKernel),
            ("Can't fork for 4242: File exists", Cause::PidInUse),
            ("Can't fork for 4242: Operation not permitted", Cause::NotPrivileged),
            ("inet: Connected TCP socket, consider using --tcp-established option.", Cause::EstablishedTcp),
            ("unix: Can't dump half of stream unix connection.", Cause::ExternalUnixSocket),
            (
                "Some file locks are hold by dumping tasks! You can try --file-locks to dump them.",
                Cause::FileLocks,
            ),
            ("File tmp/x has bad size 12 (expect 3)", Cause::FileChanged),
            ("tty: Found slave peer index 3 without correspond master peer", Cause::ShellJob),
            ("seize: The criu itself is within dumped tree.", Cause::CriuInsideTree),
        ] {
            assert_eq!(cause(Request::Dump, None, [line]), expected, "{line}");
        }
    }

    #[test]
    fn the_error_number_speaks_where_no_line_does() {
        assert_eq!(cause(Request::Dump, Some(ESRCH), ["something"]), Cause::NoSuchProcess);
        assert_eq!(cause(Request::Restore, Some(EEXIST), []), Cause::PidInUse);
        assert_eq!(cause(Request::Check, Some(ESRCH), []), Cause::Unknown);
        assert_eq!(cause(Request::Dump, None, ["Some file locks are hold"]), Cause::Unknown);
    }
}
