//! Waiting for what passes by itself: connections that the kernel has not forgotten, and terminals
//! of programs that come and go.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::former::Former;
use crate::{Cause, Error, Result};

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// Restores again while the kernel still has a connection with both addresses of one of the tree's
/// or with its port, or another program was quicker to take the number of a terminal. When a tree
/// ends, its connections go into TIME_WAIT, and the kernel gives them anew after one or two
/// seconds, and a port after a minute.
pub(super) fn retry_while_taken<T>(
    patience: Duration,
    former: &Former,
    mut restore: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now().checked_add(patience);
    let port_deadline = Instant::now().checked_add(former.patience);
    let is_late = |deadline: Option<Instant>| deadline.is_some_and(|end| Instant::now() >= end);
    loop {
        match restore() {
            Err(error) if is_taken(&error) && !is_late(deadline) => thread::sleep(PAUSE),
            Err(error) if port_is_taken(&error) && former.hold_ports() => {
                former.forget();
                while former.hold_ports() {
                    former.until.check(|| "wait until the kernel gives a port free".to_owned())?;
                    if is_late(port_deadline) {
                        return Err(error);
                    }
                    thread::sleep(PAUSE);
                }
            }
            result => return result,
        }
    }
}

/// Returns true if criu could not bind a socket to a port.
fn port_is_taken(error: &Error) -> bool {
    let is_it =
        |line: &String| line.contains("Can't bind inet socket") && line.ends_with(": Address already in use");
    error.failure().is_some_and(|failure| {
        failure.cause == Cause::TcpNotRestored && failure.log.iter().chain(&failure.message).any(is_it)
    })
}

/// Returns true if criu could bind but not connect a socket, or if it could not open the terminal
/// of a given number.
fn is_taken(error: &Error) -> bool {
    const CONNECTION: &str = "Can't connect inet socket back: Cannot assign requested address";
    const TERMINAL: &str = "Unable to open dev/ptmx with specified index";
    error.failure().is_some_and(|failure| {
        let mut lines = failure.log.iter().chain(&failure.message);
        match failure.cause {
            Cause::TcpNotRestored => lines.any(|line| line.contains(CONNECTION)),
            Cause::TerminalTaken => lines.any(|line| line.contains(TERMINAL)),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Failure, Request};

    fn failed(line: &str) -> Error {
        Error::Criu(Box::new(Failure::foreseen(
            Request::Restore,
            Cause::TcpNotRestored,
            vec![line.to_owned()],
        )))
    }

    #[test]
    fn a_restore_waits_for_old_connections_and_for_nothing_else() {
        let cases = [
            ("inet: Can't connect inet socket back: Cannot assign requested address", true),
            ("inet: Can't bind inet socket (id 12): Address already in use", false),
            ("inet: Can't connect inet socket back: Network is unreachable", false),
        ];
        for (line, waits) in cases {
            let mut calls = 0;
            let restored = retry_while_taken(Duration::from_secs(60), &Former::default(), || {
                calls += 1;
                if calls > 1 { Ok(()) } else { Err(failed(line)) }
            });
            assert_eq!((restored.is_ok(), calls > 1), (waits, waits), "{line}");
        }
        assert!(
            retry_while_taken(Duration::ZERO, &Former::default(), || -> Result<()> {
                Err(failed(cases[0].0))
            })
            .is_err()
        );
    }
}
