//! A restore into namespaces of its own: a copy.

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
    tree::Tree,
};
use crate::{
    Error, Isolation, Request, RestoreOptions, Result, image,
    proto::rpc::CriuOpts,
    sys::{FIRST_LENT, Namespaces},
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
        Tree::within(init)
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
    let lent = lend.describe_within(opts, FIRST_LENT);
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
