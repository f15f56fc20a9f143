//! [`PreDumps`]: a row of pre-dumps of one tree, and the dump that ends it.

use super::{
    Criu, Dumped, Lend,
    ask::{Ask, Files},
    hooks::Hooks,
    talk::Talk,
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
    talk: Option<Talk>,
}

impl PreDumps {
    pub(super) fn new(criu: Criu, pid: Pid) -> PreDumps {
        PreDumps { criu, pid, talk: None }
    }

    /// Writes the tree's memory into the lent folder. The tree is frozen only for a moment.
    ///
    /// # Errors
    ///
    /// As [`Criu::pre_dump`]. An error ends the row, because criu exits after a failed pre-dump.
    pub fn pre_dump(mut self, options: &PreDumpOptions, lend: Lend<'_>) -> Result<PreDumps> {
        let opts = CriuOpts { pid: Some(self.criu.root(self.pid)?), ..options.wire() };
        self.ask(Ask {
            opts: Some(opts),
            raw: options.raw(),
            files: Files::Lent(lend),
            ..Ask::new(Request::PreDump)
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
        self.ask(Ask {
            opts: Some(opts),
            raw: options.raw(),
            files: Files::Lent(lend),
            hooks: Some(hooks),
            ..Ask::new(Request::Dump)
        })?;
        let talk = self.talk.take().expect("because it was asked just now");
        let version = talk.version.clone();
        talk.close();
        Ok(Dumped { version, interrupted: Vec::new() })
    }

    /// Sends a request. The first one starts criu; later ones lend files to the same criu.
    fn ask(&mut self, mut ask: Ask<'_>) -> Result<()> {
        let talk = match self.talk.take() {
            None => {
                let mut talk = self.criu.open(&mut ask)?;
                if ask.request == Request::PreDump {
                    talk.needs_mem_track(&ask)?;
                }
                self.talk.insert(talk)
            }
            Some(talk) => {
                talk.describe_again(&mut ask)?;
                self.talk.insert(talk)
            }
        };
        talk.ask(ask).map(|_| ())
    }
}
