//! [`PreDumps`]: a row of pre-dumps of one tree, and the dump that ends it.

use super::{
    Criu, Dumped, Lend,
    call::{Call, Files},
    hooks::Hooks,
    talk::Conversation,
};
use crate::{DumpOptions, Pid, Request, Result, options::PreDumpOptions, proto::rpc::CriuOpts};

/// A row of pre-dumps of one tree by one criu: after each there can be another, or the dump.
///
/// Each needs a folder of its own, and names the previous one as its
/// [`parent_img`](PreDumpOptions::parent_img), relative to its own: then it holds only the memory
/// that changed in between. The tree goes on after every pre-dump. Dropping the row ends it.
///
/// ```no_run
/// use std::fs::{self, File};
/// use criu_rpc::{Criu, DumpOptions, options::PreDumpOptions, rpc::{Lend, NoHooks}};
///
/// for name in ["images/1", "images/2"] {
///     fs::create_dir_all(name)?;
/// }
/// let (first, second) = (File::open("images/1")?, File::open("images/2")?);
/// let row = Criu::new().pre_dumps(4242);
/// let row = row.pre_dump(&PreDumpOptions::default(), Lend::images(&first))?;
/// let last = DumpOptions::default().track_mem(true).parent_img("../1");
/// row.dump(&last, Lend::images(&second), &mut NoHooks)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct PreDumps {
    criu: Criu,
    pid: Pid,
    conversation: Option<Conversation>,
}

impl PreDumps {
    pub(super) fn new(criu: Criu, pid: Pid) -> PreDumps {
        PreDumps { criu, pid, conversation: None }
    }

    /// Writes the tree's memory into the lent folder. The tree is frozen only for a moment.
    ///
    /// # Errors
    ///
    /// As [`Criu::pre_dump`]. An error ends the row, because criu exits after a failed pre-dump.
    pub fn pre_dump(mut self, options: &PreDumpOptions, lend: Lend<'_>) -> Result<PreDumps> {
        let opts = CriuOpts { pid: Some(self.criu.root(self.pid)?), ..options.wire() };
        self.call(Call {
            opts: Some(opts),
            raw: options.raw(),
            files: Files::Lent(lend),
            ..Call::new(Request::PreDump)
        })?;
        Ok(self)
    }

    /// Dumps the tree, as [`Criu::dump`] does, and ends the row.
    ///
    /// # Errors
    ///
    /// As [`Criu::dump`].
    pub fn dump(mut self, options: &DumpOptions, lend: Lend<'_>, hooks: &mut dyn Hooks) -> Result<Dumped> {
        let opts = CriuOpts { pid: Some(self.criu.root(self.pid)?), ..options.wire() };
        self.call(Call {
            opts: Some(opts),
            raw: options.raw(),
            files: Files::Lent(lend),
            hooks: Some(hooks),
            ..Call::new(Request::Dump)
        })?;
        let conversation = self.conversation.take().expect("because it was asked just now");
        let version = conversation.version.clone();
        conversation.close();
        Ok(Dumped { version, interrupted: Vec::new() })
    }

    /// Sends a request. The first one starts criu; later ones lend files to the same criu.
    fn call(&mut self, mut call: Call<'_>) -> Result<()> {
        let conversation = match self.conversation.take() {
            None => {
                let mut conversation = self.criu.open(&mut call)?;
                if call.request == Request::PreDump {
                    conversation.needs_mem_track(&call)?;
                }
                self.conversation.insert(conversation)
            }
            Some(conversation) => {
                conversation.describe_again(&mut call)?;
                self.conversation.insert(conversation)
            }
        };
        conversation.call(call).map(|_| ())
    }
}
