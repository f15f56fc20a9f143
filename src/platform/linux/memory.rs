//! Memory on its way from criu, through a socket, to the sink that takes it in.

use std::{fs, os::unix::net::UnixStream, thread};

use crate::{
    Error, Pid, Result,
    platform::Memory,
    procfs::tree,
    rpc::{PageStream, check_nothing_left, page_sockets, receive_pages},
    sys,
    threads::{joined, spawn},
};

/// Dumps a tree while its memory is taken in. `dump` gets the socket that is to be lent, and drops
/// it, and the other end.
pub(super) fn stream<T>(
    memory: &dyn Memory,
    root: Pid,
    dump: impl FnOnce(UnixStream, &UnixStream) -> Result<T>,
) -> Result<T> {
    let (ours, theirs) = page_sockets().map_err(Error::io("make a socket for memory"))?;
    thread::scope(|scope| {
        let receive = || receive_pages(&ours, &mut *memory.sink(root));
        let receiver = spawn(scope, receive)?;
        let dumped = dump(theirs, &ours);
        let received = joined(receiver.join());
        match (dumped, received) {
            // Why we hung up says more than what criu makes of that.
            (_, Err(error)) | (Err(error), Ok(_)) => Err(error),
            (Ok(dumped), Ok(PageStream::Whole)) => check_nothing_left(&ours).map(|()| dumped),
            (Ok(_), Ok(_)) => Err(Error::corrupt("criu's stream of memory", "it ended too early")),
        }
    })
}

/// About how many bytes of memory the trees have of their own.
pub(super) fn expected(roots: impl Iterator<Item = Pid>) -> u64 {
    let processes = roots.flat_map(|root| tree(root.as_raw()));
    let pages = processes.fold(0_u64, |pages, pid| pages.saturating_add(own_pages(pid).unwrap_or(0)));
    pages.saturating_mul(sys::page_size().bytes())
}

/// The pages in memory that are of no file.
fn own_pages(pid: i32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = statm.split_ascii_whitespace().skip(1).map(|field| field.parse::<u64>().ok());
    let (resident, shared) = (fields.next()??, fields.next()??);
    Some(resident.saturating_sub(shared))
}
