//! The address at which criu serves memory: never wider than the caller named.
//!
//! A request can carry the address for a criu that sends memory, and for a page server. A criu that
//! serves memory (`lazy_pages`) takes only the port from the request, and would listen on all
//! addresses.

use super::call::{Call, Files};
use crate::{Error, Request, Result};

/// Returns the address for criu's argument `--address`, if the request cannot carry it.
///
/// # Errors
///
/// [`Error::Options`] if criu would listen on all addresses unasked. `ours` is true if criu is
/// started here.
pub(super) fn address(call: &Call<'_>, ours: bool) -> Result<Option<String>> {
    let serves = matches!(call.request, Request::Dump | Request::PageServer | Request::PageServerChild);
    let Some(opts) = call.opts.as_ref().filter(|opts| serves && opts.lazy_pages == Some(true)) else {
        return Ok(None);
    };
    if matches!(&call.files, Files::Lent(lend) if lend.page_server.is_some()) {
        return refused(
            "Lend::page_server",
            "criu serves memory (`lazy_pages`) on a port only: name it with `ps`",
        );
    }
    match opts.ps.as_ref().map(|ps| &ps.address) {
        None => refused("ps", "set the address at which criu serves the memory that `lazy_pages` leaves out"),
        Some(None) => Ok(None), // on all addresses, as asked
        Some(Some(address)) if ours => Ok(Some(address.clone())),
        Some(Some(_)) => refused(
            "lazy_pages",
            "a criu that is not started here cannot be told the address: it would listen on all addresses",
        ),
    }
}

fn refused<T>(option: &'static str, problem: &str) -> Result<T> {
    Err(Error::Options { option, problem: problem.to_owned() })
}
