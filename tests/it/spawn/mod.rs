//! Starting criu. A shell script of a few lines stands in for it, and records how it was started.
//!
//! Tests that concern a whole process (its signals, its children, its memory) run in a process of
//! their own: [`Apart`].

mod conversation;
mod given;
mod leftovers;
mod outcomes;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    Cause, Criu, DumpOptions, Error, Failure, Request, RestoreOptions, Result, Version,
    options::{PageServerAddress, PageServerOptions},
    rpc::{Dumped, Lend, NoHooks, PageServer, SelfDump},
};
use nix::{
    errno::Errno,
    sys::{
        signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, pthread_sigmask, signal},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, close, dup, dup2_stderr, dup2_stdin, dup2_stdout, setpgid},
};

use prost::Message;

use crate::{
    apart::Apart,
    peer::{self, DumpResp, Kind, Req, Resp},
    stores::Folder,
};

/// The failure of a criu that left without an answer.
#[track_caller]
fn gone(error: &Error) -> &Failure {
    assert!(matches!(error, Error::Gone(_)), "{error}");
    error.failure().unwrap()
}

/// A shell script in the place of criu.
struct StandIn(Folder);

impl StandIn {
    /// A script that records how it was started, runs these commands, and ends.
    fn doing(commands: &str) -> StandIn {
        StandIn::saying(&format!("{HEAD}{commands}\n"))
    }

    /// A script that reports this release of criu, reads one more request, and runs these commands.
    fn talking((major, minor): (i32, i32), commands: &str) -> StandIn {
        let version = Some(peer::Version { major, minor, ..peer::Version::default() });
        let answer = says(Resp { version, ..Resp::good(Kind::Version) });
        let hears = |name| format!("dd bs=65536 count=1 <&3 >\"$folder/{name}\" 2>/dev/null");
        StandIn::doing(&format!("{}\n{answer}\n{}\n{commands}", hears("first"), hears("second")))
    }

    /// The requests that the script received.
    fn heard(&self) -> [Req; 2] {
        ["first", "second"].map(|name| Req::decode(fs::read(self.0.join(name)).unwrap().as_slice()).unwrap())
    }

    /// A program with this text.
    fn saying(text: &str) -> StandIn {
        let script = StandIn(Folder::new());
        // Another process writes the file. In this process, a child that another test starts at the
        // same moment could hold it open for writing, and the kernel would not execute it.
        let mut writer = Command::new("/bin/sh");
        writer.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(script.program()).stdin(Stdio::piped());
        let mut writer = writer.spawn().unwrap();
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        script
    }

    fn program(&self) -> PathBuf {
        self.0.join("criu")
    }

    fn criu(&self) -> Criu {
        Criu::at(self.program())
    }

    /// Asks the script for its version, which it does not answer.
    #[track_caller]
    fn ends(&self, criu: &Criu) {
        let error = criu.version().unwrap_err();
        assert_eq!(gone(&error).exit.unwrap().code(), Some(0));
    }

    /// The file that the script wrote under this name.
    fn told(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn arguments(&self) -> Vec<String> {
        self.told("arguments").lines().map(str::to_owned).collect()
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let told = self.told("environment");
        let mut environment = BTreeMap::new();
        for (name, value) in told.split_terminator('\0').filter_map(|line| line.split_once('=')) {
            let earlier = environment.insert(name.to_owned(), value.to_owned());
            assert_eq!(earlier, None, "{name} is there twice");
        }
        environment
    }

    /// The open files of the script, without its own file.
    fn descriptors(&self) -> BTreeMap<u32, String> {
        let mut descriptors = listed(&self.told("descriptors"));
        let own = self.program();
        descriptors.retain(|_, file| Path::new(file) != own);
        descriptors
    }

    /// A set of signals from its status.
    fn signals(&self, set: &str) -> BTreeSet<u32> {
        let status = self.told("status");
        let line = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(':')).unwrap();
        let bits = u64::from_str_radix(line.trim(), 16).unwrap();
        (1..=64).filter(|signal| bits >> (signal - 1) & 1 == 1).collect()
    }
}

const HEAD: &str = r#"#!/bin/sh
folder=${0%/*}
printf '%s\n' "$@" >"$folder/arguments"
cat /proc/$$/environ >"$folder/environment"
(ls -l /proc/$$/fd >"$folder/descriptors")
"#;

/// Parses descriptors and their files from `ls -l` of a process's folder.
fn listed(text: &str) -> BTreeMap<u32, String> {
    let lines = text.lines().filter_map(|line| line.split_once(" -> "));
    let number = |head: &str| head.rsplit(' ').next().unwrap().parse().unwrap();
    lines.map(|(head, file)| (number(head), file.to_owned())).collect()
}

/// The shell command that sends a message.
fn says(message: Resp) -> String {
    let bytes: String = message.encode_to_vec().iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!("printf '{bytes}' >&3")
}

/// Ignores a signal in this whole process.
#[allow(unsafe_code)]
fn ignore(one: Signal) {
    // SAFETY: no handler is installed, and the one that is replaced is never put back.
    unsafe { signal(one, SigHandler::SigIgn) }.unwrap();
}

/// Handles a signal by doing nothing, in this whole process.
#[allow(unsafe_code)]
fn outlive(one: Signal) {
    extern "C" fn handled(_: i32) {}
    // SAFETY: the handler does nothing, and the one that is replaced is never put back.
    unsafe { signal(one, SigHandler::Handler(handled)) }.unwrap();
}
