//! Jobs of a shell that are stopped come back stopped, whatever stopped them, and go on.

use std::{fs, process::Command};

use criu_rpc::Cause;
use nix::sys::signal::Signal;

use crate::{
    harness::{criu, tests},
    places::{Home, family, state, wait_until},
    program::{Program, Terminal, in_each_way},
    tree::{OrExplain, Revived, signal},
};

tests![
    a_job_that_read_in_the_background,
    a_job_that_wrote_in_the_background,
    a_job_with_threads_that_read_in_the_background,
    a_job_that_a_user_stopped,
    signals_for_a_stopped_job_go_on_waiting,
    criu_alone_refuses_such_a_job,
];

const READER: &str = "sh -c 'read x; echo got-$x' &";

/// A shell in a terminal, and a job of it that is stopped.
#[track_caller]
fn shell_with_job(terminal: &Terminal, job: &str) -> (Program, i32) {
    let mut shell = Command::new("bash");
    shell.args(["--norc", "--noprofile", "-i"]);
    let mut program = Program::in_terminal(terminal, &shell);
    program.talk.tell("PS1=; PS2=; echo rea\"dy\"");
    program.talk.until("ready");
    program.talk.tell(job);
    let root = program.pid();
    let find = || family(root).into_iter().find(|pid| *pid != root && state(*pid) == Some('T'));
    wait_until("the job is stopped", || find().is_some());
    let job = find().unwrap();
    (program, job)
}

/// In the original that goes on, and in what is revived.
#[track_caller]
fn goes_on(job: &str, press: &str, answer: &str) {
    in_each_way(|way, home| {
        let terminal = Terminal::new();
        let (mut program, _) = shell_with_job(&terminal, job);
        let (store, pid) = (home.store(), program.pid());
        let capture = || way.capture(home, [pid]);
        let foresight = capture().preflight().or_explain();
        let stopped = foresight.risks.iter().any(|risk| risk.to_string().contains("stopped"));
        assert!(foresight.is_clear() && !stopped, "{foresight:?}");
        let digest = capture().capture(&store).or_explain();
        home.assert_staging_empty();
        if way.leave_running {
            continue_job(&mut program.talk, press, answer);
        }
        program.end();
        drop(terminal);
        let mut revived: Revived = Terminal::new().revive(home.restore(), &store, &digest);
        continue_job(&mut revived.talk, press, answer);
    });
}

#[track_caller]
fn continue_job(talk: &mut crate::talk::Talk, press: &str, answer: &str) {
    talk.tell("jobs; echo list\"ed\"");
    assert!(talk.until("listed").contains("Stopped"), "the job is stopped");
    talk.tell("fg");
    talk.until("sh -c");
    if !press.is_empty() {
        talk.tell(press);
    }
    talk.until(answer);
    talk.tell("echo do\"ne\"");
    talk.until("done");
}

fn a_job_that_read_in_the_background() {
    goes_on(READER, "word", "got-word");
}

fn a_job_that_wrote_in_the_background() {
    goes_on("stty tostop; sh -c 'echo went-$((1 + 1))' &", "", "went-2");
}

fn a_job_with_threads_that_read_in_the_background() {
    let program = "import threading, time, sys; \
                   [threading.Thread(target=time.sleep, args=(1000,), daemon=True).start() for _ in range(3)]; \
                   print(\"got-\" + sys.stdin.readline())";
    goes_on(&format!("sh -c \"exec python3 -c '{program}'\" &", program = program.replace('"', "\\\"")), "word", "got-word");
}

fn a_job_that_a_user_stopped() {
    goes_on("sh -c 'kill -TSTP $$; echo went-$((1 + 1))' &", "", "went-2");
}

/// No signal reaches it before the job goes on.
fn signals_for_a_stopped_job_go_on_waiting() {
    let home = Home::new();
    let terminal = Terminal::new();
    let (mut program, job) = shell_with_job(&terminal, "sh -c 'trap \"echo told\" TERM; read x; echo got-$x' &");
    signal(job, Signal::SIGTERM);
    home.capture([program.pid()]).capture(&home.store()).or_explain();
    assert_eq!(state(job), Some('T'));
    let status = fs::read_to_string(format!("/proc/{job}/status")).unwrap();
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let term = 1 << (Signal::SIGTERM as i32 - 1);
    assert_eq!((mask("ShdPnd:") & term, mask("SigBlk:")), (term, 0), "{status}");
    program.talk.tell("fg");
    program.talk.until("told");
}

fn criu_alone_refuses_such_a_job() {
    let home = Home::new();
    let terminal = Terminal::new();
    let (mut program, job) = shell_with_job(&terminal, READER);
    let options = criu_rpc::DumpOptions::default().shell_job(true).leave_running(true);
    let findings = criu().preflight(program.pid(), &options).or_explain().findings;
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((finding.pid.as_raw(), finding.obstacle.cause()), (job, Cause::StoppedJob));
    let error = crate::client::dump(&home, "images", program.pid(), &options, &mut criu_rpc::rpc::NoHooks);
    assert_eq!(error.unwrap_err().failure().unwrap().cause, Cause::StoppedJob);
    continue_job(&mut program.talk, "word", "got-word");
}
