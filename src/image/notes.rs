//! [`Notes`]: facts about a tree that criu does not write down, kept with its images.
//!
//! They are one more field of the only entry of `inventory.img`. criu and older releases of this
//! crate pass over fields that they do not know, so every image stays what it was to them.

use std::fs;

use prost::Message;

use super::{ImageDir, frame};
pub(crate) use crate::proto::images::Notes;
use crate::{Error, Result, proto::images::NotedInventoryEntry};

/// The largest inventory with notes, in bytes: some hundred for each of a hundred thousand tasks.
const CEILING: usize = 16 << 20;
const INVENTORY: &str = "inventory.img";

impl ImageDir {
    /// Reads the notes; `None` if the capture was made without.
    pub(crate) fn notes(&self) -> Result<Option<Notes>> {
        let Some(mut frames) = self.frames(INVENTORY)? else { return Ok(None) };
        let Some(entry) = frames.next_bytes()? else { return Ok(None) };
        check_size(entry.len())?;
        let noted = NotedInventoryEntry::decode(entry.as_slice())
            .map_err(|error| Error::corrupt(format!("the image {INVENTORY}"), error.to_string()))?;
        Ok(noted.notes)
    }

    /// Adds notes to the images. Each call adds to what the calls before have noted.
    pub(crate) fn write_notes(&self, notes: &Notes) -> Result<()> {
        let path = self.path().join(INVENTORY);
        let doing = || Error::io(format!("edit the image {INVENTORY}"));
        let field = NotedInventoryEntry { notes: Some(notes.clone()) }.encode_to_vec();
        let old = fs::read(&path).map_err(doing())?;
        check_size(old.len() + field.len())?;
        fs::write(&path, frame::extended(&old, INVENTORY, &field)?).map_err(doing())
    }
}

fn check_size(bytes: usize) -> Result<()> {
    match bytes <= CEILING {
        true => Ok(()),
        false => {
            let problem = format!("it has {bytes} bytes with its notes; the most are {CEILING}");
            Err(Error::corrupt(format!("the image {INVENTORY}"), problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::images::{InventoryEntry, PipeNotes};

    /// A folder with an inventory of this entry, as criu writes it: with one magic number, not two.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn with(name: &str, entry: &[u8]) -> Folder {
            let folder = std::env::temp_dir().join(format!("criu-rpc-notes-{}-{name}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let size = u32::try_from(entry.len()).unwrap().to_le_bytes();
            let image = [&0x5831_3116_u32.to_le_bytes(), &size, entry].concat();
            fs::write(folder.join(INVENTORY), image).unwrap();
            Folder(folder)
        }

        fn images(&self) -> ImageDir {
            ImageDir::new(&self.0)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn inventory() -> Vec<u8> {
        InventoryEntry { img_version: 2, tcp_close: Some(true), ..InventoryEntry::default() }.encode_to_vec()
    }

    #[allow(clippy::needless_update)] // there will be more fields
    fn ended(pipes: &[u32]) -> Notes {
        Notes { pipes: Some(PipeNotes { ended: pipes.to_vec() }), ..Notes::default() }
    }

    #[test]
    fn notes_are_read_as_they_were_written_and_leave_the_inventory_as_it_was() {
        let folder = Folder::with("written", &inventory());
        let images = folder.images();
        assert_eq!(images.notes().unwrap(), None);
        images.write_notes(&ended(&[7, u32::MAX])).unwrap();
        assert_eq!(images.notes().unwrap(), Some(ended(&[7, u32::MAX])));
        assert!(images.tcp_closed().unwrap());
        let image = fs::read(folder.0.join(INVENTORY)).unwrap();
        assert_eq!(&image[8..8 + inventory().len()], inventory());
    }

    #[test]
    fn notes_of_nothing_are_notes() {
        let folder = Folder::with("nothing", &inventory());
        folder.images().write_notes(&Notes::default()).unwrap();
        assert_eq!(folder.images().notes().unwrap(), Some(Notes::default()));
    }

    #[test]
    fn notes_beyond_reason_are_refused_and_not_written() {
        let folder = Folder::with("large", &inventory());
        let many = ended(&vec![u32::MAX; CEILING / 5]);
        assert!(matches!(folder.images().write_notes(&many), Err(Error::Corrupt { .. })));
        assert_eq!(folder.images().notes().unwrap(), None);
        let field = NotedInventoryEntry { notes: Some(many) }.encode_to_vec();
        let folder = Folder::with("hostile", &[inventory(), field].concat());
        assert!(matches!(folder.images().notes(), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn notes_that_make_no_sense_are_an_error() {
        let field = NotedInventoryEntry { notes: Some(ended(&[7])) }.encode_to_vec();
        for length in 1..field.len() {
            let folder = Folder::with("cut", &[inventory(), field[..length].to_vec()].concat());
            assert!(matches!(folder.images().notes(), Err(Error::Corrupt { .. })), "{length}");
        }
        let folder = Folder::with("empty", &[]);
        assert_eq!(folder.images().notes().unwrap(), None);
        assert!(folder.images().write_notes(&ended(&[7])).is_ok());
    }

    #[test]
    fn a_folder_without_an_inventory_has_no_notes() {
        let folder = Folder::with("none", &[]);
        fs::remove_file(folder.0.join(INVENTORY)).unwrap();
        assert_eq!(folder.images().notes().unwrap(), None);
        assert!(matches!(folder.images().write_notes(&ended(&[7])), Err(Error::Io { .. })));
    }
}
