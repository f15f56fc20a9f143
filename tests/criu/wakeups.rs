//! Threads that wake each other all the time are captured again and again: no wake-up is lost, by
//! eventfds, epoll, futexes or sockets, nor a byte of a stream.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::{
    harness::{dumps_tcp, tests},
    places::Home,
    tree::{OrExplain, Revived, signal},
    ways::{Script, WAYS},
};

tests![no_wake_up_is_lost];

/// Each capture but the first is of the revived tree.
fn no_wake_up_is_lost() {
    let mut command = Command::new("python3");
    command.args(["-c", include_str!("wakeups.py")]);
    if !dumps_tcp() {
        command.args(["tcp_edge", "tcp_ping_pong"]);
    }
    let home = Home::new();
    let mut victim = Script::by(command);
    let (pid, members) = (victim.pid(), victim.members());
    let mut revived: Option<Revived> = None;
    for way in WAYS {
        let stored = way.capture(&home, pid).run(&home.store()).or_explain();
        let mut ask = || match &mut revived {
            Some(revived) => revived.ask("?"),
            None => victim.ask("?"),
        };
        if !way.ends {
            assert_eq!(ask(), "all go on", "{way:?}");
        }
        match revived.take() {
            None => victim.end(&members, way),
            Some(mut old) => {
                if !way.ends {
                    signal(pid, Signal::SIGKILL);
                }
                old.tree().wait().or_explain();
            }
        }
        let new = revived.insert(Revived::from(home.restore(), &home.store(), &stored.digest));
        assert_eq!(new.ask("?"), "all go on", "revived, {way:?}");
    }
}
