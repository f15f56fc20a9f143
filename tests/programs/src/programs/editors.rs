//! Programs that use the whole screen of a terminal, and one that makes terminals itself.

use super::Program;
use crate::{
    failure::{Failure, Result},
    stage::Stage,
    talk::Kind,
};

pub(super) const PROGRAMS: &[Program] = &[
    Program::new("vim", &["vim"], vim),
    Program::new("less", &["less"], less),
    Program::new("tmux server", &["tmux", "bash"], tmux),
];

/// An editor with unsaved text, something to undo, and a register.
fn vim(stage: &mut Stage) -> Result {
    stage.place.write("notes.txt", "first\nsecond\n")?;
    stage.start(Kind::Terminal, &["vim", "-u", "NONE", "-i", "NONE", "--not-a-term", "notes.txt"])?;
    stage.expect("second")?;
    stage.say("\"ayyGothird, only in memory\x1bofourth")?;
    stage.expect("fourth")?;
    stage.say("\x1b")?;
    stage.moment(|now| {
        // Keys arrive one by one, without Enter.
        now.say("u")?;
        now.expect("1 line less")?;
        now.say("\"apggx")?;
        now.say(":set lines? columns?\r")?;
        now.expect("lines=40")?;
        now.say(":w! saved.txt\r")?;
        now.expect("saved.txt")?;
        now.expect("written")?;
        let saved = now.place.read("saved.txt")?;
        let wanted = "irst\nsecond\nthird, only in memory\nfirst\n";
        if saved != wanted {
            return Err(Failure::wrong(format!("vim saved {saved:?} instead of {wanted:?}")));
        }
        now.say(":q!\r")?;
        now.ends_well()
    })
}

/// A pager in the middle of a long text from a pipe. Only the pager has that text.
fn less(stage: &mut Stage) -> Result {
    stage.place.write(
        "show.sh",
        "for n in $(seq 500); do echo \"line $n of $((n * 7919))\"; done | less\necho \"less ended with $?\"\n",
    )?;
    stage.start(Kind::Terminal, &["bash", "show.sh"])?;
    stage.expect("line 39 of")?;
    stage.say("200g")?;
    stage.expect(&format!("line 200 of {}", 200 * 7919))?;
    stage.moment(|now| {
        now.say(" ")?;
        now.expect(&format!("line 270 of {}", 270 * 7919))?;
        now.say("/of 3112\r")?; // found in line 393 alone
        now.expect("line 393 ")?;
        now.say("q")?;
        now.expect("less ended with 0")?;
        now.ends_well()
    })
}

/// The server, a daemon, with a shell on a terminal of the server's own.
fn tmux(stage: &mut Stage) -> Result {
    let tmux = ["tmux", "-f", "/dev/null", "-S", "socket"];
    let with = |more: &[&'static str]| [&tmux[..], more].concat();
    let shell = "exec bash --norc --noprofile";
    let start = with(&["new-session", "-d", "-s", "work", "-x", "90", "-y", "30", shell]);
    stage.start(Kind::Pipes, &start)?;
    stage.ends_well()?;
    let pid = stage.run(&with(&["display-message", "-p", "-t", "work", "#{pid}"]))?;
    let pid = pid.trim().parse().map_err(|_| Failure::wrong(format!("tmux told no pid: {pid:?}")))?;
    stage.daemon(pid)?;
    stage.run(&with(&[
        "send-keys",
        "-t",
        "work",
        "value=$((6*7)); cd /usr; clear; echo \"re\"ady",
        "Enter",
    ]))?;
    let screen = with(&["capture-pane", "-p", "-t", "work"]);
    stage.wait_until("the shell is ready", |stage| {
        Ok(stage.run(&screen)?.contains("\nready") || stage.run(&screen)?.starts_with("ready"))
    })?;
    stage.moment(|now| {
        now.run(&with(&[
            "send-keys",
            "-t",
            "work",
            "echo \"val\"ue $value in $PWD on $(stty size)",
            "Enter",
        ]))?;
        now.wait_until("the shell answers", |now| {
            Ok(now.run(&screen)?.contains("value 42 in /usr on 30 90"))
        })?;
        now.run(&with(&["new-window", "-t", "work", "exec bash --norc"]))?;
        let windows = now.run(&with(&["list-windows", "-t", "work", "-F", "window #{window_index}"]))?;
        if windows != "window 0\nwindow 1\n" {
            return Err(Failure::wrong(format!("tmux has the windows {windows:?}")));
        }
        now.run(&with(&["kill-server"]))?;
        Ok(())
    })
}
