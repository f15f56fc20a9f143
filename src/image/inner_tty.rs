//! Opens of `/dev/tty` by sessions whose terminal the tree has both sides of.
//!
//! criu has one name for `/dev/tty`, for all processes. If a tree has one terminal outside and one
//! inside, criu dumps all these opens as external. Here the opens of the inner terminal become
//! opens of its slave again.
//!
//! A master of the terminal outside may have leaked into the tree. It becomes a terminal of its
//! own.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::{Edit, ImageDir};
use crate::{
    Result,
    proto::images::{FileEntry, TtyDataEdit, TtyDataEntry, TtyFileEntry, TtyInfoEdit, TtyInfoEntry, TtyType},
};

/// The device number of `/dev/tty`.
const CONTROLLING: u32 = 0x500;
/// The number of bytes that always fit into a new terminal: each may become two on the way in.
const ROOM: usize = 4096;

impl ImageDir {
    /// Joins each open of `/dev/tty` with the terminal in the tree that controls its session, if
    /// there is one.
    pub(crate) fn join_inner_terminals(&self) -> Result<()> {
        let (mut opens, mut slaves) = (BTreeMap::new(), BTreeMap::new());
        self.each("tty-info.img", |tty: TtyInfoEntry| {
            let is = |kind: TtyType| tty.sid != 0 && tty.r#type == i32::from(kind);
            let is_slave = tty.id.is_multiple_of(2);
            if is(TtyType::ExtTty) && tty.rdev == CONTROLLING {
                opens.insert(tty.id, tty.sid);
            } else if is(TtyType::Pty) && is_slave {
                slaves.insert(tty.sid, tty.id);
            }
        })?;
        let mut joined: BTreeMap<u32, u32> =
            opens.into_iter().filter_map(|(open, session)| Some((open, *slaves.get(&session)?))).collect();
        let mut names = BTreeMap::new();
        if joined.is_empty() {
            return Ok(());
        }
        self.each("files.img", |file: FileEntry| {
            if let Some((info, name)) = file.tty.and_then(|tty| Some((tty.tty_info_id, tty.regf_id?))) {
                names.insert(info, name);
            }
        })?;
        joined.retain(|_, slave| names.contains_key(slave));
        let edit = |file: &FileEntry| {
            let tty = file.tty.as_ref();
            let Some((tty, slave)) = tty.and_then(|tty| Some((tty, joined.get(&tty.tty_info_id)?))) else {
                return Edit::Keep;
            };
            let name = names.get(slave).copied();
            let tty = TtyFileEntry { tty_info_id: *slave, regf_id: name, ..*tty };
            let joined =
                FileEntry { r#type: file.r#type, id: file.id, tty: Some(tty), ..FileEntry::default() };
            Edit::Extend(joined.encode_to_vec())
        };
        self.rewrite::<FileEntry, FileEntry>("files.img", edit, &[])?;
        let edit = |tty: &TtyInfoEntry| if joined.contains_key(&tty.id) { Edit::Drop } else { Edit::Keep };
        self.rewrite::<TtyInfoEntry, TtyInfoEntry>("tty-info.img", edit, &[])
    }

    /// Truncates the unread data of each terminal to the size that fits into a new one. criu writes
    /// it before a process of the tree can read, so it would wait for room for ever. criu has such
    /// data only where a capture could not take it out before.
    pub(crate) fn cut_terminal_data(&self) -> Result<()> {
        const NAME: &str = "tty-data.img";
        let mut is_long = false;
        self.each(NAME, |entry: TtyDataEntry| is_long |= entry.data.len() > ROOM)?;
        if !is_long {
            return Ok(());
        }
        let edit = |entry: &TtyDataEntry| match entry.data.get(..ROOM) {
            Some(start) => {
                let cut = TtyDataEdit { tty_id: None, data: Some(start.to_vec()) };
                Edit::Extend(cut.encode_to_vec())
            }
            None => Edit::Keep,
        };
        self.rewrite::<TtyDataEntry, TtyDataEdit>(NAME, edit, &[])
    }

    /// Takes the session from each master in the tree whose slave is outside: that master leaked
    /// into the tree. criu would make it the controlling terminal, in the place of the one that is
    /// lent.
    pub(crate) fn part_leaked_masters(&self) -> Result<()> {
        let (mut masters, mut outside) = (BTreeMap::new(), BTreeSet::new());
        self.each("tty-info.img", |tty: TtyInfoEntry| {
            let is = |kind: TtyType| tty.sid != 0 && tty.r#type == i32::from(kind);
            if is(TtyType::ExtTty) && tty.rdev != CONTROLLING {
                outside.insert(tty.sid);
            } else if is(TtyType::Pty) && !tty.id.is_multiple_of(2) {
                masters.insert(tty.id, tty.sid);
            }
        })?;
        masters.retain(|_, session| outside.contains(session));
        if masters.is_empty() {
            return Ok(());
        }
        let parted = TtyInfoEdit { sid: Some(0), pgrp: Some(0), ..TtyInfoEdit::default() };
        let edit = |tty: &TtyInfoEntry| match masters.contains_key(&tty.id) {
            true => Edit::Extend(parted.encode_to_vec()),
            false => Edit::Keep,
        };
        self.rewrite::<TtyInfoEntry, TtyInfoEntry>("tty-info.img", edit, &[])
    }
}
