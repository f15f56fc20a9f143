//! New numbers for the terminals that a tree has both sides of.
//!
//! criu makes such a terminal with the number that it had, and fails if another has that number
//! now: a terminal of the caller's, for instance, that is new. What a program knows of the number
//! is the name of its terminal, and that is asked for anew each time.

use std::collections::BTreeMap;

use prost::Message;

use super::{Edit, ImageDir};
use crate::{
    Result,
    proto::images::{FileEntry, TtyDataEdit, TtyDataHead, TtyInfoEdit, TtyInfoEntry, TtyPtyEntry, TtyType},
};

impl ImageDir {
    /// The numbers of the terminals whose masters the tree has.
    pub(crate) fn own_terminals(&self) -> Result<Vec<u32>> {
        let mut numbers = Vec::new();
        self.each("tty-info.img", |tty: TtyInfoEntry| {
            let is_master = tty.r#type == i32::from(TtyType::Pty) && tty.id & 1 == 1;
            numbers.extend(tty.pty.filter(|_| is_master).map(|pty| pty.index));
        })?;
        Ok(numbers)
    }

    /// Gives terminals other numbers: both sides, their names, and what is in them.
    pub(crate) fn renumber_terminals(&self, numbers: &BTreeMap<u32, u32>) -> Result<()> {
        let (mut entries, mut names) = (BTreeMap::new(), BTreeMap::new());
        self.each("tty-info.img", |tty: TtyInfoEntry| {
            let number = tty.pty.and_then(|pty| numbers.get(&pty.index).map(|new| (pty.index, *new)));
            entries.extend(number.map(|(old, new)| (tty.id, (old, new))));
        })?;
        self.each("files.img", |file: FileEntry| {
            let tty = file.tty.and_then(|tty| Some((tty.regf_id?, *entries.get(&tty.tty_info_id)?)));
            names.extend(tty);
        })?;
        let entry = |id: u32| entries.get(&id).map(|(_, new)| (new << 1) | (id & 1));
        let edit = |tty: &TtyInfoEntry| match entries.get(&tty.id) {
            Some((_, new)) => Edit::Extend(renumbered(tty, *new).encode_to_vec()),
            None => Edit::Keep,
        };
        self.rewrite::<TtyInfoEntry, TtyInfoEntry>("tty-info.img", edit, &[])?;
        let edit = |file: &FileEntry| {
            let mut new = FileEntry { r#type: file.r#type, id: file.id, ..FileEntry::default() };
            let tty = file.tty.and_then(|tty| Some((entry(tty.tty_info_id)?, tty)));
            new.tty = tty.map(|(tty_info_id, mut tty)| {
                tty.tty_info_id = tty_info_id;
                tty
            });
            let name = file.reg.clone().and_then(|reg| Some((*names.get(&file.id)?, reg)));
            new.reg = name.map(|((old, new), mut reg)| {
                if let Some(folder) = reg.name.strip_suffix(format!("/{old}").as_bytes()) {
                    reg.name = [folder, format!("/{new}").as_bytes()].concat();
                }
                reg
            });
            if new.tty.is_some() || new.reg.is_some() {
                Edit::Extend(new.encode_to_vec())
            } else {
                Edit::Keep
            }
        };
        self.rewrite::<FileEntry, FileEntry>("files.img", edit, &[])?;
        if self.path().join("tty-data.img").exists() {
            let edit = |data: &TtyDataHead| match entry(data.tty_id) {
                Some(tty_id) => {
                    Edit::Extend(TtyDataEdit { tty_id: Some(tty_id), data: None }.encode_to_vec())
                }
                None => Edit::Keep,
            };
            self.rewrite::<TtyDataHead, TtyDataEdit>("tty-data.img", edit, &[])?;
        }
        Ok(())
    }
}

/// The fields of a terminal's entry that change with its number.
fn renumbered(tty: &TtyInfoEntry, number: u32) -> TtyInfoEdit {
    const SLAVES: u32 = 136;
    let is_slave = tty.id & 1 == 0;
    let device = ((SLAVES + (number >> 20)) << 8) | (number & 0xff) | ((number & 0xf_ff00) << 12);
    TtyInfoEdit {
        id: Some((number << 1) | (tty.id & 1)),
        rdev: is_slave.then_some(device),
        pty: Some(TtyPtyEntry { index: number }),
        ..TtyInfoEdit::default()
    }
}
