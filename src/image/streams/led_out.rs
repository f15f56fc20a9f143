//! Files that lead out of a tree, and that a restore has nothing for by itself.

use std::collections::HashSet;

use super::{
    Offer, Plan, stream_of,
    tables::{Inherited, Resource, Tables},
};
use crate::{Result, image::ImageDir, proto::images::TtyInfoEntry};

/// A file that leads out of the tree and is not a standard stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LedOut {
    /// The first process that has it.
    pub(crate) pid: u32,
    pub(crate) descriptor: u32,
    /// criu's name of it, by which a restore can be given another.
    pub(crate) key: String,
    /// The standard stream that a restore assumes it to be; none if the restore has nothing for it.
    pub(crate) assumed: Option<u32>,
}

impl ImageDir {
    /// Finds the pipes, sockets and terminals that a restore on new streams would leave without
    /// their other side, or take for a stream by a guess, each once. The `inherited` ones, by
    /// criu's names, are left out.
    pub(crate) fn led_out(&self, inherited: &[&str]) -> Result<Vec<LedOut>> {
        let tables = Tables::read(self, &Inherited(inherited))?;
        let offer = Offer::default();
        let plan = Plan::new(&tables, &offer);
        // A tree that has a terminal as a stream is given another one, and that takes the place of
        // all.
        let has_terminal = plan.of_any.keys().any(|resource| matches!(resource, Resource::Terminal(_)));
        let (mut found, mut known) = (Vec::new(), HashSet::new());
        for (table, descriptors) in &tables.descriptors {
            for descriptor in descriptors {
                let Some(outside) = tables.outside(descriptor.id) else { continue };
                let is_cared_for = match outside.resource {
                    Resource::Terminal(terminal) => has_terminal || tables.terminals.is_hung(terminal),
                    Resource::Pipe(_) | Resource::Socket(_) => false,
                };
                let assumed =
                    plan.saved.get(&outside.resource).and_then(|stream| u32::try_from(*stream).ok());
                let is_known = assumed.is_none() && plan.stream(outside, descriptor.fd).is_some();
                if is_cared_for || is_known || !known.insert(outside.resource) {
                    continue;
                }
                let (pid, key) = (self.first_with(*table)?, self.key(outside.resource)?);
                found.push(LedOut { pid, descriptor: descriptor.fd, key, assumed });
            }
        }
        Ok(found)
    }

    /// Standard streams that lead out and are also on their way through a unix socket: a restore
    /// replaces the streams, and criu finds nothing to put into the socket.
    pub(crate) fn streams_in_flight(&self) -> Result<Vec<String>> {
        let rights = self.in_flight()?;
        if rights.is_empty() {
            return Ok(Vec::new());
        }
        let tables = Tables::read(self, &Inherited(&[]))?;
        let streams = tables.of_root().filter_map(stream_of);
        let lost =
            streams.filter(|(_, stream)| rights.contains(&stream.id) && tables.outside(stream.id).is_some());
        let problem = |(stream, _)| {
            format!(
                "the standard stream {stream} is on its way through a unix socket, and leads out of the tree"
            )
        };
        Ok(lost.map(problem).collect())
    }

    /// The first process that has this table of descriptors.
    fn first_with(&self, table: u32) -> Result<u32> {
        for process in self.processes()? {
            if self.files_id(process.pid)? == Some(table) {
                return Ok(process.pid);
            }
        }
        Ok(0)
    }

    fn key(&self, resource: Resource) -> Result<String> {
        Ok(match resource {
            Resource::Pipe(pipe) => format!("pipe:[{pipe}]"),
            Resource::Socket(inode) => format!("socket:[{inode}]"),
            Resource::Terminal(terminal) => {
                let mut key = "tty".to_owned();
                self.each("tty-info.img", |tty: TtyInfoEntry| {
                    if tty.id == terminal {
                        key = format!("tty[{:x}:{:x}]", tty.rdev, tty.dev.unwrap_or(0));
                    }
                })?;
                key
            }
        })
    }
}
