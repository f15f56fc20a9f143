//! [`Key`]: criu's name of a resource that a lent file replaces.

use std::{
    fmt, fs,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
};

use crate::{Error, Pid, Result};

/// criu's name of a resource, for [`Lend::inherit`](super::Lend::inherit): a restore replaces the
/// resource by the lent file.
///
/// The name is that of the resource at the dump. [`Key::of`] and [`Key::of_process`] find it while
/// the resource exists; or build it from values in `/proc`.
///
/// ```
/// use criu_rpc::rpc::Key;
///
/// // The pipe that a program has as its standard output: `readlink /proc/<pid>/fd/1` says `pipe:[4711]`.
/// assert_eq!(Key::Pipe { inode: 4711 }.to_string(), "pipe:[4711]");
///
/// let file = std::fs::File::open("Cargo.toml")?;
/// assert!(Key::of(&file)?.to_string().ends_with("/Cargo.toml"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Key {
    /// A pipe.
    Pipe {
        /// Its inode.
        inode: u64,
    },
    /// A socket; for a pair, the tree's own end.
    Socket {
        /// Its inode.
        inode: u64,
    },
    /// A terminal that was dumped as [`External::Terminal`](crate::options::External::Terminal).
    Terminal {
        /// The device number of the terminal (`st_rdev`).
        rdev: u64,
        /// The device number of the file system it is on (`st_dev`).
        dev: u64,
    },
    /// A file that was dumped as [`External::File`](crate::options::External::File).
    File {
        /// The mount it is on, as in `/proc/<pid>/fdinfo`.
        mount: i32,
        /// Its inode.
        inode: u64,
    },
    /// A file by its path.
    Path(String),
    /// A namespace, or another resource with this label in
    /// [`DumpOptions::external`](crate::DumpOptions::external).
    Label(String),
}

impl Key {
    /// Returns the name of the resource behind a descriptor of this process.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if the resource cannot be replaced.
    pub fn of(file: impl AsFd) -> Result<Key> {
        Key::of_process(Pid::own(), file.as_fd().as_raw_fd())
    }

    /// Returns the name of the resource behind a descriptor of another process.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] if the resource cannot be replaced, [`Error::Io`] if the descriptor does
    /// not exist.
    pub fn of_process(pid: impl Into<Pid>, descriptor: i32) -> Result<Key> {
        let path = format!("/proc/{}/fd/{descriptor}", pid.into());
        let doing = || Error::io(format!("look at {path}"));
        let target = fs::read_link(&path).map_err(doing())?.to_string_lossy().into_owned();
        let metadata = fs::metadata(&path).map_err(doing())?;
        let (kind, inode) = (metadata.file_type(), metadata.ino());
        match () {
            () if kind.is_socket() => Ok(Key::Socket { inode }),
            () if kind.is_fifo() && target.starts_with("pipe:") => Ok(Key::Pipe { inode }),
            () if target.starts_with("/dev/pts/") => {
                Ok(Key::Terminal { rdev: metadata.rdev(), dev: metadata.dev() })
            }
            () if target.starts_with('/') => Ok(Key::Path(target)),
            () => Err(Error::Options { option: "inherit", problem: format!("{target} cannot be replaced") }),
        }
    }
}

impl fmt::Display for Key {
    /// Writes the key as criu does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Pipe { inode } => write!(f, "pipe:[{inode}]"),
            Key::Socket { inode } => write!(f, "socket:[{inode}]"),
            Key::Terminal { rdev, dev } => write!(f, "tty[{rdev:x}:{dev:x}]"),
            Key::File { mount, inode } => write!(f, "file[{mount:x}:{inode:x}]"),
            Key::Path(path) => f.write_str(path.trim_start_matches('/')),
            Key::Label(label) => f.write_str(label),
        }
    }
}

/// Fails for a text that cannot be criu's name of a resource. A label ([`Key::Label`]) can be any
/// text that is not the beginning of another name.
pub(crate) fn check(option: &'static str, key: &str) -> Result<()> {
    let decimal = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let hex = |text: &str| {
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        text.split_once(':').is_some_and(|(one, other)| is_number(one) && is_number(other))
    };
    let inside = |open: &str| key.strip_prefix(open).and_then(|rest| rest.strip_suffix(']'));
    let (is_right, form) = match key.split([':', '[']).next().unwrap_or_default() {
        "" => (false, "`pipe:[4711]`, or a path"),
        "pipe" => (inside("pipe:[").is_some_and(decimal), "`pipe:[4711]`"),
        "socket" => (inside("socket:[").is_some_and(decimal), "`socket:[4711]`"),
        "tty" => (inside("tty[").is_some_and(hex), "`tty[8803:19]`"),
        "file" if key.starts_with("file[") => (inside("file[").is_some_and(hex), "`file[2b:4711]`"),
        _ => (true, ""),
    };
    match is_right {
        true => Ok(()),
        false => {
            let problem = format!("{key:?} is no name that criu gives; it must be like {form} (see `Key`)");
            Err(Error::Options { option, problem })
        }
    }
}

impl From<Key> for String {
    fn from(key: Key) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_text_that_is_no_key_is_refused() {
        for right in [
            Key::Pipe { inode: 7 },
            Key::Socket { inode: 7 },
            Key::Terminal { rdev: 0x8803, dev: 0x1f },
            Key::File { mount: 43, inode: 7 },
            Key::Path("/var/log/x".to_owned()),
            Key::Path("/file".to_owned()),
            Key::Label("net".to_owned()),
        ] {
            check("inherit", &right.to_string()).unwrap();
        }
        for wrong in [
            "",
            "pipe",
            "pipe:12",
            "pipe:[1",
            "pipe:[]",
            "pipe:[x]",
            "pipe[1]",
            "socket",
            "socket:[1]2",
            "tty",
            "tty:[1:2]",
            "tty[1]",
            "tty[1:]",
            "file[1:x]",
            ":[1]",
        ] {
            let refused = check("stdout", wrong);
            assert!(matches!(refused, Err(Error::Options { option: "stdout", .. })), "{wrong}: {refused:?}");
        }
    }

    #[test]
    fn a_key_says_what_a_descriptor_leads_to() {
        let (socket, _other) = UnixStream::pair().unwrap();
        assert!(matches!(Key::of(&socket).unwrap(), Key::Socket { inode } if inode > 0));
        let (read, write) = nix::unistd::pipe().unwrap();
        assert_eq!(Key::of(&read).unwrap(), Key::of(&write).unwrap());
        assert!(Key::of(&read).unwrap().to_string().starts_with("pipe:["));
        let null = fs::File::open("/dev/null").unwrap();
        assert_eq!(Key::of(&null).unwrap().to_string(), "dev/null");
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        assert!(matches!(Key::of(&event), Err(Error::Options { .. })));
        assert!(matches!(Key::of_process(Pid::own(), 1 << 20), Err(Error::Io { .. })));
        assert_eq!(Key::Path("/var/log/x".into()).to_string(), "var/log/x");
    }
}
