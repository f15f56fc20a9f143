//! [`Stream`]: a choice for a standard stream of a restored tree.

#[cfg(unix)]
use std::os::fd::OwnedFd as Handle;
#[cfg(windows)]
use std::os::windows::io::OwnedHandle as Handle;
use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter},
};

use crate::{Error, Result};

/// The choice for a standard stream of a restored tree; see
/// [`ProcsRestore::stdin`](crate::ProcsRestore::stdin).
///
/// Any file, end of a pipe or socket that converts into an `OwnedFd` (`OwnedHandle` on Windows)
/// converts into a `Stream`, too.
///
/// ```no_run
/// use std::io::{BufRead, BufReader, Write};
///
/// use criu_rpc::{Digest256, FsBlobStore, ProcsRestore, Stream};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let digest: Digest256 = "".parse()?;
/// let store = FsBlobStore::open("captures")?;
/// let restore = ProcsRestore::new().stdin(Stream::Piped).stdout(Stream::Piped).stderr(Stream::Null);
/// let mut shell = restore.restore(&store, &digest)?;
/// let (mut input, output) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
/// writeln!(input, "echo hello")?;
/// println!("{}", BufReader::new(output).lines().next().unwrap()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Stream {
    /// The caller's own stream, even if the tree's stream was a file.
    Inherit,
    /// No stream: input at its end, or discarded output (`/dev/null`).
    Null,
    /// A new pipe. [`Restored`](crate::Restored) has its other end.
    Piped,
    /// This file, pipe, socket or terminal.
    Fd(Handle),
}

impl<T: Into<Handle>> From<T> for Stream {
    fn from(file: T) -> Stream {
        Stream::Fd(file.into())
    }
}

/// The source of a standard stream for which the caller made a choice.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// The stream of the calling process.
    Own,
    File(File),
}

impl Chosen {
    pub(crate) fn file(&self) -> Option<&File> {
        match self {
            Chosen::Own => None,
            Chosen::File(file) => Some(file),
        }
    }
}

/// The caller's ends of new pipes.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<PipeWriter>,
    pub(crate) stdout: Option<PipeReader>,
    pub(crate) stderr: Option<PipeReader>,
}

/// Opens the streams, and returns the tree's ends and the caller's.
pub(crate) fn open(streams: &[Option<Stream>; 3]) -> Result<([Option<Chosen>; 3], Ends)> {
    let mut ends = Ends::default();
    let mut open = |number: usize| -> io::Result<Option<Chosen>> {
        let Some(stream) = &streams[number] else { return Ok(None) };
        let file: Handle = match stream {
            Stream::Inherit => return Ok(Some(Chosen::Own)),
            Stream::Null => {
                let null = if cfg!(windows) { "NUL" } else { "/dev/null" };
                File::options().read(number == 0).write(number != 0).open(null)?.into()
            }
            Stream::Piped => {
                let (reader, writer) = io::pipe()?;
                if number == 0 {
                    ends.stdin = Some(writer);
                    reader.into()
                } else {
                    let end = if number == 1 { &mut ends.stdout } else { &mut ends.stderr };
                    *end = Some(reader);
                    writer.into()
                }
            }
            Stream::Fd(file) => file.try_clone()?,
        };
        Ok(Some(Chosen::File(file.into())))
    };
    let mut opened = [const { None }; 3];
    for (number, chosen) in opened.iter_mut().enumerate() {
        *chosen = open(number).map_err(Error::io("open a standard stream for the tree"))?;
    }
    Ok((opened, ends))
}
