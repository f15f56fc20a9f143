//! Restores into namespaces of their own, and dumps of trees in such namespaces: copies.

use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::ffi::OsStringExt,
    },
};

use super::{
    Criu, Lend,
    call::{Call, Files},
    failure::open_in,
    hooks::Hooks,
    swrk::{Apart, Command, FIRST_LENT},
    transport::Connection,
    tree::Tree,
};
use crate::{
    Error, Isolation, Request, RestoreOptions, Result, image,
    preflight::Inside,
    proto::rpc::CriuOpts,
    sys::{self, Namespaces},
};

impl Criu {
    /// Sets the namespaces of restores; `None` for our own.
    pub(crate) fn isolated(mut self, isolation: Option<Isolation>) -> Criu {
        self.isolation = isolation;
        self
    }

    /// Restores a tree as [`restore`](Criu::restore) does, in namespaces of its own.
    pub(super) fn restore_within(
        &self,
        options: &RestoreOptions,
        lend: Lend<'_>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tree> {
        let mut call = Call {
            opts: Some(options.wire()),
            raw: options.raw(),
            files: Files::Lent(lend),
            hooks: Some(hooks),
            ..Call::new(Request::Restore)
        };
        let mut conversation = self.open(&mut call)?;
        let init = conversation.init().ok_or(Error::Over { reason: "criu ended before the restore" })?;
        conversation.call(call)?;
        conversation.close();
        Tree::within(init, self.isolation.clone().unwrap_or_default())
    }
}

/// Names the files of a restore in `opts`. Returns them, and the namespaces that it needs.
pub(super) fn prepare<'a>(
    isolation: &Isolation,
    lend: &Lend<'a>,
    opts: &mut CriuOpts,
) -> Result<(Vec<BorrowedFd<'a>>, Namespaces)> {
    let pstree = || open_in(lend.images, "pstree.img").map_err(Error::io("open pstree.img"));
    let (root, highest) = (image::root(pstree()?)?.pid, image::highest_number(pstree()?)?);
    let mut namespaces = Namespaces::new(root, highest);
    if isolation.network {
        namespaces = namespaces.network();
    }
    if isolation.terminals {
        namespaces = namespaces.terminals();
    }
    let lent = lend.describe_within(opts, sys::FIRST_LENT);
    if let (Some(number), Some(folder)) = (opts.work_dir_fd, lend.work) {
        // criu mounts in its work folder, which it can do only in its own mount namespace.
        let path = fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let path = path.map_err(Error::io("find the work folder"))?;
        // A path has no zero byte.
        let path = CString::new(path.into_os_string().into_vec()).unwrap_or_default();
        namespaces = namespaces.folder(number, path);
    }
    Ok((lent, namespaces))
}

/// Starts criu in the namespaces of a copy, for a dump of a tree there.
pub(super) fn start_inside(
    command: &Command<'_>,
    request: Request,
    lend: &Lend<'_>,
    opts: &mut CriuOpts,
    apart: Apart,
    inside: &Inside,
) -> Result<Connection> {
    let refused = |option, problem| Err(Error::Options { option, problem });
    if request == Request::PreDump {
        let problem = "a copy cannot be pre-dumped in a row: dump it at once".to_owned();
        return refused("Criu::pre_dumps", problem);
    }
    let program = std::path::absolute(command.program).map_err(Error::io("find criu"))?;
    if !inside.has(&program) {
        return refused("criu", format!("the copy has another file at {}", program.display()));
    }
    let root = opts.pid.unwrap_or_default();
    let lent = lend.describe_inside(opts, FIRST_LENT)?;
    let command = Command { program: &program, ..*command };
    Connection::start_inside(&command, lend.terminal, &lent, apart, root, inside)
}
