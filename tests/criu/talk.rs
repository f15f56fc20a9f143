//! [`Talk`]: a conversation with a victim, line by line, in which no wait is for ever.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};

use crate::places::PATIENCE;

/// The two files to talk through.
#[derive(Debug)]
pub(crate) struct Talk {
    to: Option<File>,
    from: File,
    heard: Vec<u8>,
}

impl Talk {
    pub(crate) fn new(to: impl Into<OwnedFd>, from: impl Into<OwnedFd>) -> Talk {
        Talk { to: Some(File::from(to.into())), from: File::from(from.into()), heard: Vec::new() }
    }

    /// A conversation through two new pipes, and the far ends of them: what to read from, what to
    /// write to.
    pub(crate) fn through_pipes() -> (Talk, File, File) {
        let (their_input, to) = pipe();
        let (from, their_output) = pipe();
        (Talk::new(to, from), their_input, their_output)
    }

    /// Says a line, and hears one.
    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }

    #[track_caller]
    pub(crate) fn tell(&mut self, line: &str) {
        let to = self.to.as_mut().expect("because nobody hung up");
        to.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    #[track_caller]
    pub(crate) fn hear(&mut self) -> String {
        self.hear_or_end().expect("there should have been one more line")
    }

    /// The next line; `None` if the other side is gone.
    #[track_caller]
    pub(crate) fn hear_or_end(&mut self) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).trim_end_matches('\r').to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no answer in time; heard so far: {:?}", self.heard);
            if !self.hear_more(deadline) {
                return None;
            }
        }
    }

    /// Waits for something to be said, but not longer; false at the end.
    fn hear_more(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).unwrap_or(0) == 0 {
            return true;
        }
        let mut buffer = [0; 4096];
        match self.from.read(&mut buffer) {
            Ok(0) | Err(_) => false, // a terminal says EIO at its end
            Ok(count) => {
                self.heard.extend(&buffer[..count]);
                true
            }
        }
    }

    /// Waits until this was said, and gives everything up to there.
    #[track_caller]
    pub(crate) fn until(&mut self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(place) = self.heard.windows(words.len()).position(|part| part == words.as_bytes()) {
                let said: Vec<u8> = self.heard.drain(..place + words.len()).collect();
                return String::from_utf8_lossy(&said).into_owned();
            }
            let heard = String::from_utf8_lossy(&self.heard).into_owned();
            assert!(Instant::now() < deadline, "{words:?} was not said; heard so far: {heard:?}");
            assert!(self.hear_more(deadline), "{words:?} was not said before the end: {heard:?}");
        }
    }

    /// Says these bytes, as keys of a terminal are.
    #[track_caller]
    pub(crate) fn press(&mut self, keys: &str) {
        self.to.as_mut().expect("because nobody hung up").write_all(keys.as_bytes()).unwrap();
    }

    /// Says no more.
    pub(crate) fn close(&mut self) {
        self.to = None;
    }

    /// Ends the conversation, upon which a victim ends.
    pub(crate) fn hang_up(&mut self) {
        if let Some(mut to) = self.to.take() {
            // A terminal has no end as long as we listen to it. A victim that is gone need not be
            // told.
            let _ = to.write_all(b"exit 0\n");
        }
    }
}

/// A pipe: what to read from, what to write to.
pub(crate) fn pipe() -> (File, File) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    (read.into(), write.into())
}
