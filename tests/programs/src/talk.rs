//! [`Talk`]: a conversation with a program through pipes or a terminal. Every wait has a deadline.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    pty::{OpenptyResult, Winsize, openpty},
    unistd::pipe2,
};

use crate::failure::{Failure, Result};

/// The longest wait for the program. The machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The two kinds of standard streams that agents give to programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Three pipes.
    Pipes,
    /// A terminal of 40 rows and 100 columns.
    Terminal,
}

/// The size of every terminal here, different from any default.
pub(crate) const SIZE: Winsize = Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };

/// The agent's side of a program's standard streams.
#[derive(Debug)]
pub(crate) struct Talk {
    to: File,
    output: Heard,
    errors: Option<Heard>,
}

/// The program's side: standard input, output and error.
pub(crate) type Streams = [OwnedFd; 3];

impl Talk {
    /// Both sides of new standard streams. All are close-on-exec.
    pub(crate) fn open(kind: Kind) -> Result<(Talk, Streams)> {
        match kind {
            Kind::Pipes => {
                let (their_input, to) = pipe2(OFlag::O_CLOEXEC)?;
                let (output, their_output) = pipe2(OFlag::O_CLOEXEC)?;
                let (errors, their_errors) = pipe2(OFlag::O_CLOEXEC)?;
                let talk = Talk {
                    to: to.into(),
                    output: Heard::from(output.into()),
                    errors: Some(Heard::from(errors.into())),
                };
                Ok((talk, [their_input, their_output, their_errors]))
            }
            Kind::Terminal => {
                let OpenptyResult { master, slave } = openpty(&SIZE, None)?;
                for side in [&master, &slave] {
                    fcntl(side, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
                }
                let output = Heard::from(master.try_clone()?.into());
                let talk = Talk { to: master.into(), output, errors: None };
                Ok((talk, [slave.try_clone()?, slave.try_clone()?, slave]))
            }
        }
    }

    /// Types this text.
    pub(crate) fn say(&mut self, text: &str) -> Result {
        self.to
            .write_all(text.as_bytes())
            .map_err(|error| Failure::wrong(format!("cannot say {text:?}: {error}")))
    }

    /// Waits for this text in the output, after the last expected text.
    pub(crate) fn expect(&mut self, text: &str) -> Result {
        match self.output.wait_for(text, PATIENCE) {
            Ok(()) => Ok(()),
            Err(why) => Err(Failure::wrong(format!("{why} {text:?}{}", self.said()))),
        }
    }

    /// Waits for this text, and returns the rest of its line.
    pub(crate) fn expect_line(&mut self, before: &str) -> Result<String> {
        self.expect(before)?;
        let start = self.output.passed();
        self.expect("\n")?;
        Ok(self.output.since(start).trim_end().to_owned())
    }

    /// Waits until no process has the other side of the output, and returns the rest of the output.
    pub(crate) fn rest_to_end(&mut self) -> Result<String> {
        if self.output.wait_for_end(PATIENCE) {
            return Ok(self.output.take());
        }
        Err(Failure::wrong(format!("the output does not end{}", self.said())))
    }

    /// Returns the end of the output, for messages.
    pub(crate) fn said(&self) -> String {
        let mut said = format!("; output {:?}", tail(&self.output.rest()));
        if let Some(errors) = self.errors.as_ref().map(Heard::rest).filter(|errors| !errors.is_empty()) {
            said += &format!(", errors {:?}", tail(&errors));
        }
        said
    }
}

/// Returns the last few hundred characters.
fn tail(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(400);
    text.chars().skip(skip).collect()
}

/// The bytes that a thread read from a stream so far.
#[derive(Debug)]
struct Heard {
    shared: Arc<(Mutex<Buffer>, Condvar)>,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// The position after the last expected text.
    passed: usize,
    ended: bool,
}

impl Heard {
    /// Reads until the end of the stream, which comes when no process has its other side.
    fn from(mut stream: File) -> Heard {
        let shared = Arc::new((Mutex::new(Buffer::default()), Condvar::new()));
        let heard = Heard { shared: Arc::clone(&shared) };
        thread::spawn(move || {
            let mut piece = [0; 1 << 16];
            loop {
                let count = match stream.read(&mut piece) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Ok(count) => count,
                    Err(_) => 0, // a terminal says EIO at its end
                };
                let mut buffer = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                buffer.bytes.extend(&piece[..count]);
                buffer.ended = count == 0;
                shared.1.notify_all();
                if buffer.ended {
                    return;
                }
            }
        });
        heard
    }

    fn wait_for(&self, text: &str, patience: Duration) -> std::result::Result<(), &'static str> {
        let deadline = Instant::now() + patience;
        let mut buffer = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(at) = position(&buffer.bytes[buffer.passed..], text.as_bytes()) {
                buffer.passed += at + text.len();
                return Ok(());
            }
            if buffer.ended {
                return Err("the output ended without");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("did not hear");
            }
            buffer = self.shared.1.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wait_for_end(&self, patience: Duration) -> bool {
        let buffer = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.shared.1.wait_timeout_while(buffer, patience, |buffer| !buffer.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    fn passed(&self) -> usize {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).passed
    }

    /// Returns the expected output after that position.
    fn since(&self, start: usize) -> String {
        let buffer = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&buffer.bytes[start..buffer.passed]).into_owned()
    }

    /// Returns the output that was not expected yet.
    fn rest(&self) -> String {
        let buffer = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&buffer.bytes[buffer.passed..]).into_owned()
    }

    fn take(&self) -> String {
        let rest = self.rest();
        let mut buffer = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.passed = buffer.bytes.len();
        rest
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
