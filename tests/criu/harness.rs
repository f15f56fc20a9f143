//! Runs the tests, or says why not; and knows which criu to test with.

use std::{
    env,
    panic::{catch_unwind, resume_unwind},
    path::PathBuf,
    process,
    sync::{Mutex, OnceLock},
};

use criu_rpc::{Criu, ProcsCapture, ProcsRestore, Version};
use libtest_mimic::{Arguments, Completion, Trial};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// A test: its name, and what it does.
pub(crate) type Test = (&'static str, fn());

/// A part that this binary plays in other processes: the argument that calls for it, and what it
/// does.
pub(crate) type Part = (&'static str, fn(&[String]));

/// A list of the functions, with their names.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::harness::Test] =
            &[$((concat!(module_path!(), "::", stringify!($test)), $test)),*];
    };
}
pub(crate) use tests;

/// Plays a part if the first argument names one, else runs the tests.
pub(crate) fn main(parts: &[Part], tests: &[&'static [Test]]) {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some((_, play)) =
        parts.iter().find(|(name, _)| arguments.first().is_some_and(|first| first == name))
    {
        return play(&arguments[1..]);
    }
    hear_interrupts();
    leave_a_session_from_outside();
    inherit_streams_alone();
    let reason = unusable();
    if let Some(reason) = &reason {
        eprintln!("criu cannot be tested with here: {reason}");
        if env::var_os("CRIU_TESTS").is_some_and(|value| value == "must") {
            process::exit(1);
        }
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(TESTS_AT_ONCE);
    let all = || tests.iter().copied().flatten();
    let conclusion = libtest_mimic::run(&arguments, all().map(|test| trial(test, reason.as_ref())).collect());
    let failed = std::mem::take(&mut *FAILED.lock().unwrap());
    if failed.is_empty() || failed.len() > DISTURBED || !again() {
        conclusion.exit();
    }
    println!("\nonce more, without other tests beside them: {}", failed.join(", "));
    let again = all().filter(|(name, _)| failed.contains(&short(name)));
    arguments.test_threads = Some(1);
    let conclusion = libtest_mimic::run(&arguments, again.map(|test| trial(test, reason.as_ref())).collect());
    if !conclusion.has_failed() {
        println!("FLAKY, each of them a bug of the crate or of its test: {}", failed.join(", "));
    }
    conclusion.exit();
}

/// Returns true if `CRIU_TESTS_AGAIN` is set.
fn again() -> bool {
    env::var_os("CRIU_TESTS_AGAIN").is_some_and(|value| !value.is_empty())
}

/// The most tests that are run a second time. More have not failed by chance.
const DISTURBED: usize = 3;

/// The names of the tests that failed.
static FAILED: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

fn short(name: &'static str) -> &'static str {
    name.trim_start_matches("criu::")
}

/// The test, or its reason for a skip.
fn trial((name, test): &'static Test, reason: Option<&String>) -> Trial {
    let (name, test, reason) = (short(name), *test, reason.cloned());
    Trial::ignorable_test(name, move || match reason {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => Ok(completed(name, test)),
    })
}

/// The default number of concurrent tests. Most of them wait, for a program or for init.
const TESTS_AT_ONCE: usize = 4;

/// Leads a session of its own, if that of the caller is led from outside of this pid namespace, as
/// in a container: criu cannot dump any process that stays in such a session.
fn leave_a_session_from_outside() {
    if nix::unistd::getsid(None).is_ok_and(|session| session.as_raw() == 0) {
        nix::unistd::setsid().expect("a process that leads a group has its session in its own pid namespace");
    }
}

/// Lets victims be interrupted: what a shell starts in the background ignores the signals of a
/// terminal, and so would they.
fn hear_interrupts() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for interrupt in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: no handler is set, so no code runs in one.
        #[allow(unsafe_code)]
        unsafe { signal(interrupt, SigHandler::SigDfl) }.unwrap();
    }
}

/// Keeps from the victims what the caller of the tests left open, such as the pipes of a job
/// server: they have what the tests give them.
fn inherit_streams_alone() {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let numbers: Vec<i32> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // SAFETY: it is used for this one call, which says so if the number is that of no file any
        // more.
        #[allow(unsafe_code)]
        let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
        let _ = fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)); // the folder was closed
    }
}

/// Runs a test, which may find that this criu cannot do what is to be tested.
fn completed(name: &'static str, test: fn()) -> Completion {
    match catch_unwind(test) {
        Ok(()) => Completion::Completed,
        Err(panic) => match panic.downcast::<Skip>() {
            Ok(skip) => Completion::ignored_with(skip.0),
            Err(panic) => {
                FAILED.lock().unwrap().push(name);
                resume_unwind(panic)
            }
        },
    }
}

/// The payload with which a skipped test unwinds.
struct Skip(String);

/// Ends the test here, as one that this criu cannot pass.
pub(crate) fn skip(reason: &str) -> ! {
    resume_unwind(Box::new(Skip(format!("criu {}: {reason}", version()))))
}

/// The reason that nothing can be tested here.
fn unusable() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("this is not root".to_owned());
    }
    let error = criu().check().err()?;
    Some(match error.failure() {
        Some(failure) => failure.report().to_string(),
        None => error.to_string(),
    })
}

/// The variable that names another criu to test with.
pub(crate) const CRIU: &str = "CRIU";

/// The criu to test with, if it is not the usual one.
fn named() -> Option<PathBuf> {
    env::var_os(CRIU).filter(|name| !name.is_empty()).map(PathBuf::from)
}

/// The criu to test with.
pub(crate) fn criu() -> Criu {
    named().map_or_else(Criu::new, Criu::at)
}

/// Its release.
pub(crate) fn version() -> Version {
    static VERSION: OnceLock<Version> = OnceLock::new();
    VERSION.get_or_init(|| criu().version().unwrap()).clone()
}

/// Returns true if this criu can dump TCP sockets: before 4.2 it cannot on newer kernels.
pub(crate) fn dumps_tcp() -> bool {
    version() >= Version::new(4, 2, 0)
}

/// A capture of these processes, by the criu to test with.
pub(crate) fn capture(pids: impl IntoIterator<Item = i32>) -> ProcsCapture {
    let capture = ProcsCapture::new(pids);
    named().map_or(capture.clone(), |criu| capture.criu(criu))
}

/// A restore by the criu to test with.
pub(crate) fn restore() -> ProcsRestore {
    let restore = ProcsRestore::new();
    match named() {
        Some(criu) => restore.criu(criu),
        None => restore,
    }
}
