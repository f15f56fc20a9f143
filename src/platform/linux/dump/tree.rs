//! [`Tree`]: a tree that is to be dumped.

use std::{collections::HashMap, path::PathBuf};

use super::super::{foreign::Foreign, settle::by_inner_number};
use crate::{
    DumpOptions, Error, Pid, Result,
    lock::Mutex,
    preflight::Inside,
    procfs::{Stat, is_free},
};

/// A tree that is to be dumped, and where its images go.
pub(in super::super) struct Tree {
    pub(in super::super) root: Pid,
    pub(in super::super) folder: PathBuf,
    pub(in super::super) options: DumpOptions,
    /// True for a tree in the namespaces of a copy. Its images have the pids inside.
    pub(super) is_copy: bool,
    /// The processes of a copy by their numbers inside, once they stand still.
    numbers: Mutex<HashMap<u32, i32>>,
    /// The files of a copy that were opened elsewhere.
    pub(super) foreign: Foreign,
}

impl Tree {
    /// Prepares the dump of a tree.
    pub(super) fn new(root: Pid, folder: PathBuf, options: DumpOptions, has_others: bool) -> Result<Tree> {
        let is_copy = Inside::of(root.as_raw()).is_some();
        if is_copy && has_others {
            let problem = format!("process {root} is in a copy: capture it alone, not with other trees");
            return Err(Error::Options { option: "ProcsCapture::new", problem });
        }
        let foreign = if is_copy { Foreign::of(root, &options) } else { Foreign::default() };
        let options = foreign.declare(options);
        Ok(Tree { root, folder, options, is_copy, numbers: Mutex::default(), foreign })
    }

    /// Returns a process that the images know as `pid`, or the root in place of one that has ended.
    pub(super) fn here(&self, pid: u32) -> Pid {
        match self.is_copy {
            false => Pid::from(pid),
            true => self.numbers.lock().get(&pid).map_or(self.root, |pid| Pid::from(*pid)),
        }
    }

    pub(super) fn note_numbers(&self) {
        if self.is_copy {
            *self.numbers.lock() = by_inner_number(self.root.as_raw());
        }
    }

    pub(super) fn lives(&self) -> bool {
        match Stat::of(self.root.as_raw()) {
            Ok(stat) => !stat.is_zombie(),
            Err(_) => !is_free(self.root.as_raw()),
        }
    }
}
