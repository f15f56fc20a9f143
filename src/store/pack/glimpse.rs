//! [`glimpse`]: one name of a frame, without the rest of its header.

use std::io;

use super::{
    PackId, bytes_at,
    frame::{FIXED, Form, Frame, MAGIC, NAME},
};
use crate::store::{name::Name, read_at::ReadAt};

/// Reads the name at this offset of the header at `at`. Returns it with the pack that the header
/// names, and the index of the entry; `None` if this is not a header. The header is not verified:
/// the caller must compare the name with the one that it expects.
pub(crate) fn glimpse(
    pack: &impl ReadAt,
    at: u64,
    offset: usize,
) -> io::Result<Option<(PackId, usize, Name)>> {
    let (mut fixed, mut name) = ([0; FIXED], [0; NAME]);
    let read = pack.read_full(&mut fixed, at)? + pack.read_full(&mut name, at + offset as u64)?;
    if read < FIXED + NAME || fixed[..8] != MAGIC || fixed[24..32] != at.to_le_bytes() {
        return Ok(None);
    }
    let Some(entry) = Form::of(fixed[32]).map(Form::entry) else { return Ok(None) };
    let index = offset.saturating_sub(FIXED) / entry;
    let count = usize::from(u16::from_le_bytes(bytes_at(&fixed, 34)));
    let is_there = FIXED + index * entry == offset && index < count;
    Ok(is_there.then(|| (PackId(bytes_at(&fixed, 8)), index, Name::from_bytes(name))))
}

impl Frame {
    /// Returns the offset of an entry's name in the header.
    pub(crate) fn place_of_name(&self, index: usize) -> usize {
        FIXED + index * self.form.entry()
    }
}
