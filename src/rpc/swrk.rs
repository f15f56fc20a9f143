//! Finds the criu binary, and starts it as `criu swrk`.

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use crate::{
    Error, Result,
    proto::images::PstreeEntry,
    sys::{self, Child, Init, InitCommand, Namespaces, Place, Spawn, Started},
};

/// The descriptor of the socket in criu: the first after the standard streams.
const SOCKET: i32 = 3;
/// The descriptor of the first lent file in criu.
pub(super) const FIRST_LENT: i32 = SOCKET + 1;

/// The command line and environment of criu.
pub(super) struct Command<'a> {
    pub(super) program: &'a Path,
    pub(super) arguments: &'a [OsString],
    pub(super) variables: &'a [(OsString, OsString)],
}

/// Protects criu from signals that are meant for the caller. A criu that a signal ends during a
/// dump takes threads of the tree with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Apart {
    place: Place,
    ignores: &'static [i32],
    /// True if a long-lived thread must start criu, because a revived tree is to be its child.
    lasting: bool,
}

impl Apart {
    /// No separation, for a criu that becomes a program of the caller's.
    pub(super) const NOT: Apart = Apart { place: Place::OurGroup, ignores: &[], lasting: false };
    /// A session of its own.
    pub(super) const SESSION: Apart =
        Apart { place: Place::OwnSession, ignores: sys::TO_END_PROGRAMS, lasting: false };
    /// The same for a server, which a signal must be able to end.
    pub(super) const SERVER: Apart =
        Apart { place: Place::OwnSession, ignores: sys::OF_A_TERMINAL, lasting: false };
    /// A child of init.
    pub(super) const DETACHED: Apart =
        Apart { place: Place::Detached, ignores: sys::TO_END_PROGRAMS, lasting: false };

    /// The separation for a restore of the tree with this root. criu restores a root without its
    /// own session or process group into criu's. So criu stays in the caller's, which has the
    /// terminal.
    pub(super) fn to_restore(root: Option<&PstreeEntry>) -> Apart {
        let place = match root {
            Some(root) if root.sid == root.pid => Place::OwnSession,
            Some(root) if root.pgid == root.pid => Place::OwnGroup,
            Some(_) | None => Place::OurGroup,
        };
        // criu ends a helper for control groups by SIGTERM and waits for it, so SIGTERM must not be
        // ignored. criu blocks it by itself during a restore.
        Apart { place, ignores: sys::OF_A_TERMINAL, lasting: true }
    }
}

impl Command<'_> {
    /// Starts criu with these files, in the namespaces of the process `inside` if there is one.
    /// `None` if it is detached, because it is not our child then.
    pub(super) fn spawn(
        &self,
        terminal: Option<BorrowedFd<'_>>,
        output: BorrowedFd<'_>,
        socket: BorrowedFd<'_>,
        lent: &[BorrowedFd<'_>],
        apart: Apart,
        inside: Option<BorrowedFd<'_>>,
    ) -> Result<Option<Child>> {
        let nothing = File::open("/dev/null").map_err(Error::io("open /dev/null"))?;
        let mut files = vec![terminal.unwrap_or(nothing.as_fd()), output, output, socket];
        files.extend(lent);
        let spawn = Spawn {
            program: c_string("Criu", self.program.as_os_str())?,
            executable: None,
            namespaces: 0,
            inside,
            arguments: self.words()?,
            environment: self.environment()?,
            files,
            place: apart.place,
            ignores: apart.ignores,
            lasting: apart.lasting,
        };
        sys::spawn(spawn).map_err(Error::io(format!("start {}", self.program.display())))
    }

    /// Starts criu in namespaces of its own, with these files from [`FIRST_LENT`](sys::FIRST_LENT)
    /// on.
    pub(super) fn start_within(
        &self,
        terminal: Option<BorrowedFd<'_>>,
        output: BorrowedFd<'_>,
        lent: &[BorrowedFd<'_>],
        namespaces: Namespaces,
    ) -> Result<Started> {
        let nothing = File::open("/dev/null").map_err(Error::io("open /dev/null"))?;
        let command = InitCommand {
            program: c_string("Criu", self.program.as_os_str())?,
            arguments: self.words()?,
            environment: self.environment()?,
            streams: [terminal.unwrap_or(nothing.as_fd()), output, output],
            lent,
        };
        let doing = || format!("start {} in namespaces of its own", self.program.display());
        Init::start(namespaces, command).map_err(Error::io(doing()))
    }

    /// Returns the arguments of criu, with its name.
    fn words(&self) -> Result<Vec<CString>> {
        let socket = SOCKET.to_string();
        let mut words = vec![self.program.as_os_str(), OsStr::new("--no-default-config")];
        words.extend(self.arguments.iter().map(OsString::as_os_str));
        words.extend([OsStr::new("swrk"), OsStr::new(&socket)]);
        words.into_iter().map(|word| c_string("argument", word)).collect()
    }

    /// Returns our environment, without variables that change criu's behaviour, and with a PATH in
    /// which criu finds `ip` and `iptables`.
    fn environment(&self) -> Result<Vec<CString>> {
        for (name, _) in self.variables {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                let problem = format!("{name:?} is no name of a variable");
                return Err(Error::Options { option: "variable", problem });
            }
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from));
        let path = env::join_paths(folders).unwrap_or(path);
        let ours = env::vars_os().filter(|(name, _)| !changes_criu(name));
        ours.chain([("PATH".into(), path)])
            .filter(|(name, _)| !self.variables.iter().any(|(given, _)| given == name))
            .chain(self.variables.iter().cloned())
            .map(|(mut variable, value)| {
                variable.push("=");
                variable.push(value);
                c_string("variable", &variable)
            })
            .collect()
    }
}

fn changes_criu(name: &OsStr) -> bool {
    let prefixes = [&b"CRIU_"[..], b"CR_"];
    name == "PATH"
        || name == "HOME"
        || name == "XDG_RUNTIME_DIR"
        || prefixes.iter().any(|prefix| name.as_bytes().starts_with(prefix))
}

fn c_string(option: &'static str, text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| Error::Options { option, problem: format!("{text:?} contains a zero byte") })
}

/// Folders of criu and its tools, for users with no `sbin` in their PATH.
const SYSTEM_FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Finds the criu to start: the one that the caller named, or the first in PATH and the system's
/// folders. A name without a slash is searched for, too.
pub(super) fn find(named: Option<&Path>) -> Result<PathBuf> {
    let name = named.unwrap_or(Path::new("criu"));
    let mut searched = Vec::new();
    if name.components().count() > 1 || name.is_absolute() {
        searched.push(name.to_path_buf());
    } else {
        let path = env::var_os("PATH").unwrap_or_default();
        for folder in env::split_paths(&path).chain(SYSTEM_FOLDERS.iter().map(PathBuf::from)) {
            let candidate = folder.join(name);
            if folder.is_absolute() && !searched.contains(&candidate) {
                searched.push(candidate);
            }
        }
    }
    match searched.iter().position(|path| why_no_program(path).is_none()) {
        Some(place) => Ok(searched.swap_remove(place)),
        None => {
            let unusable = searched.iter().filter(|path| path.exists()).find_map(|path| why_no_program(path));
            Err(Error::NoCriu { searched, unusable })
        }
    }
}

/// Returns the reason why this cannot be started, if there is one.
fn why_no_program(path: &Path) -> Option<String> {
    let problem = match path.metadata() {
        Err(_) => "does not exist",
        Ok(found) if found.is_dir() => "is a folder",
        Ok(found) if !found.is_file() => "is no file",
        Ok(_) if access(path, AccessFlags::X_OK).is_err() => "is not executable",
        Ok(_) => return None,
    };
    Some(format!("{} {problem}", path.display()))
}
