//! [`Branched`]: a capture of a tree that lives, and copies of it that run.

use crate::{
    BlobStore, Chunking, Error, MemBlobStore, ProcessProblem, ProcsCapture, ProcsRestore, Restored, Result,
    Stored, Stream, Tree,
};

/// The result of [`ProcsCapture::branch`].
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
pub struct Branched {
    /// The capture. More copies can be made of it later.
    pub stored: Stored,
    /// The copies, or why they could not be made. A copy that failed does not
    /// affect the others.
    pub copies: Vec<Result<Restored>>,
}

impl ProcsCapture {
    /// Captures a tree, and revives copies of it, which run beside it. The tree goes on before the
    /// first copy is made.
    ///
    /// `restore` has the [isolation](ProcsRestore::isolated) of the copies and their standard
    /// streams. With [`Stream::Piped`] each copy has pipes of its own. A [`MemBlobStore`] holds the
    /// memory of the tree once more, until it is dropped.
    ///
    /// # Errors
    ///
    /// Those of [`run`](ProcsCapture::run). [`Error::Options`] if the restore makes no copies, or
    /// if the tree is to end. There are no copies then.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use criu_rpc::{Isolation, MemBlobStore, ProcsCapture, ProcsRestore, Stream};
    ///
    /// let copies = ProcsRestore::new().isolated(Isolation::new());
    /// let copies = copies.stdin(Stream::Piped).stdout(Stream::Piped);
    /// let branched = ProcsCapture::new([4242]).branch(&MemBlobStore::default(), &copies, 3)?;
    /// for copy in branched.copies {
    ///     println!("{:?}", copy?.trees);
    /// }
    /// # Ok::<(), criu_rpc::Error>(())
    /// ```
    pub fn branch(
        &self,
        store: &(impl BlobStore + ?Sized),
        restore: &ProcsRestore,
        count: usize,
    ) -> Result<Branched> {
        let refused = |option, problem: &str| Err(Error::Options { option, problem: problem.to_owned() });
        if !restore.makes_copies() {
            return refused("isolated", "the restore makes no copies: set `isolated`");
        }
        if !self.leaves_running() {
            return refused("leave_running", "a tree with branches must go on, and the capture is to end it");
        }
        let stored = self.run(store)?;
        let copies = restore.restore_many(store, &stored.digest, count);
        Ok(Branched { stored, copies })
    }
}

impl Tree {
    /// Makes copies of the tree, which keeps running: [`ProcsCapture::branch`] with a store in
    /// memory. The copies have pipes as standard streams. If the tree is a copy, they have the same
    /// isolation.
    ///
    /// # Errors
    ///
    /// Those of [`ProcsCapture::run`]; [`Error::Process`] if the root has ended. There are no
    /// copies then.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (store, digest) = (criu_rpc::MemBlobStore::default(), "".parse()?);
    /// let restored = criu_rpc::ProcsRestore::new().restore(&store, &digest)?;
    /// let tree = restored.into_tree().ok_or("nothing was captured")?;
    /// for copy in tree.branch(2)? {
    ///     println!("process {} runs beside {}", copy?.trees[0].pid(), tree.pid());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn branch(&self, count: usize) -> Result<Vec<Result<Restored>>> {
        let check = || match self.has_ended() {
            true => Err(Error::Process { pid: self.pid(), problem: ProcessProblem::Missing }),
            false => Ok(()),
        };
        check()?;
        let capture = ProcsCapture::new([self.pid()]).chunked(Chunking::default());
        let restore = ProcsRestore::new().isolated(self.isolation());
        let restore = restore.stdin(Stream::Piped).stdout(Stream::Piped).stderr(Stream::Piped);
        let store = MemBlobStore::default();
        let stored = capture.run(&store)?;
        check()?; // else it may have been another process with the same pid
        Ok(restore.restore_many(&store, &stored.digest, count))
    }
}
