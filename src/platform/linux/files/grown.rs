//! Files that went on after the capture: a log that grew, a script that was edited.
//!
//! criu wants each file to have the size that it had. Where the tree can go on with what is there
//! now, the size is taken out of the images, and where it would write over what came since, its
//! place in the file is moved.

use nix::{
    fcntl::OFlag,
    sys::stat::{FileStat, SFlag},
};

use super::{File, Now, refuse, shown, walk::kind};
use crate::{
    Cause, GrownFiles, Result, Warning,
    image::{NamedFile, Place},
    proto::images::FileNote,
};

/// A file that has another size than at the capture, and what comes of it.
enum Fate {
    /// The tree goes on with it as it is.
    Kept,
    /// The tree goes on with it as it is, in the middle of it.
    Overwritten,
    /// The tree goes on at its end.
    Continued,
    /// It is cut back.
    Cut,
    Refused(&'static str),
}

/// A file that is to have the size again that it had.
#[derive(Debug, Clone)]
pub(in super::super) struct Cut {
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
    /// Its device and inode, when it was looked at.
    pub(super) identity: (u64, u64),
}

/// The decisions about all files that have another size than at the capture.
#[derive(Debug, Default)]
pub(in super::super) struct Grown {
    pub(super) cuts: Vec<Cut>,
    pub(super) warnings: Vec<Warning>,
    /// The files that criu is to take in any size, and the place to begin at in some.
    pub(super) entries: Vec<(u32, Option<u64>)>,
    refused: Vec<String>,
    /// Changes of files that the caller asked for, and that no warning names.
    asked: Vec<String>,
}

impl Grown {
    pub(super) fn decide(files: &[File], choice: GrownFiles) -> Grown {
        let mut grown = Grown::default();
        for file in files {
            let note = file.note.as_ref();
            let Some((then, now)) = sizes(file, note, choice) else { continue };
            let fate = fate(file, now, then, choice);
            grown.add(&file.named, now, then, fate);
        }
        grown
    }

    fn add(&mut self, file: &NamedFile, now: &FileStat, then: u64, fate: Fate) {
        let size = now.st_size.unsigned_abs();
        let path = shown(&file.path);
        let changed = format!("{path}: it has {size} bytes, and had {then} at the capture");
        match fate {
            Fate::Kept => self.entries.push((file.id, None)),
            Fate::Overwritten => {
                self.entries.push((file.id, None));
                self.asked
                    .push(format!("{changed}; the tree can write over what came since (`grown_files`)"));
            }
            Fate::Continued => {
                self.entries.push((file.id, Some(size)));
                self.warnings.push(Warning::FileContinued { path, then, now: size });
            }
            Fate::Cut => {
                self.entries.push((file.id, None));
                let identity = (now.st_dev, now.st_ino);
                self.cuts.push(Cut { path: file.path.clone(), size: then, identity });
                self.asked.push(format!("{changed}; it will be cut back (`grown_files`)"));
            }
            Fate::Refused(why) => self.refused.push(format!("{changed}; {why}")),
        }
    }

    /// Refuses to begin while the tree cannot go on with a file.
    pub(in super::super) fn check(&self) -> Result<()> {
        refuse(Cause::FileChanged, self.refused.iter().cloned())
    }

    /// Changes of files that the restore will make or warn of, for people.
    pub(in super::super) fn risks(&self) -> impl Iterator<Item = String> {
        self.warnings.iter().map(Warning::to_string).chain(self.asked.iter().cloned())
    }
}

/// The size that a file had, where it has another now.
fn sizes<'a>(file: &'a File, note: Option<&FileNote>, choice: GrownFiles) -> Option<(u64, &'a FileStat)> {
    let Now::There(now) = &file.now else { return None };
    if file.named.place != Place::Opened || kind(now.st_mode) != SFlag::S_IFREG {
        return None;
    }
    // criu does not care for the size of a log that is open for appending alone.
    let noted = || note.filter(|_| choice == GrownFiles::CutBack).map(|note| note.size);
    let then = file.named.size.or_else(noted)?;
    (u64::try_from(now.st_size) != Ok(then)).then_some((then, now))
}

/// Returns true if the file is the one that the capture noted. An editor that replaces a file twice
/// can give it the old inode again, so the time of its birth is compared where it is known.
fn is_same(note: &FileNote, now: &FileStat, born: Option<i64>) -> bool {
    note.ino == now.st_ino && (note.born.is_none() || born.is_none() || note.born == born)
}

fn fate(File { named: file, born, note, .. }: &File, now: &FileStat, then: u64, choice: GrownFiles) -> Fate {
    let flags = OFlag::from_bits_retain(i32::from_ne_bytes(file.flags.to_ne_bytes()));
    let access = flags & OFlag::O_ACCMODE;
    let (reads, writes) = (access != OFlag::O_WRONLY, access != OFlag::O_RDONLY);
    let appends = flags.contains(OFlag::O_APPEND);
    let shrunk = now.st_size.unsigned_abs() < then;
    let is_same = note.as_ref().is_some_and(|note| is_same(note, now, *born));
    match choice {
        _ if file.uses.other => Fate::Refused("the tree has it mapped, or executes it"),
        GrownFiles::Keep if writes && !appends && !shrunk => Fate::Overwritten,
        GrownFiles::Keep => Fate::Kept,
        GrownFiles::Refuse => Fate::Refused("that is not allowed (`grown_files`)"),
        _ if shrunk => Fate::Refused("it was cut since"),
        GrownFiles::CutBack if writes && note.is_some() && !is_same => Fate::Refused("it is another file"),
        GrownFiles::CutBack if writes => Fate::Cut,
        _ if !writes && is_same => Fate::Kept,
        _ if !writes => Fate::Refused("it is another file, or was not noted at the capture"),
        _ if appends => Fate::Kept,
        _ if reads => Fate::Refused("the tree reads and writes it"),
        _ if file.position == then => Fate::Continued,
        _ => Fate::Refused("the tree was writing in the middle of it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_another_if_it_was_made_at_another_time() {
        let now = nix::sys::stat::stat("/").unwrap();
        let note = |ino, born| FileNote { ino, born, ..FileNote::default() };
        for (ino, then, born, expected) in [
            (now.st_ino, Some(7), Some(7), true),
            (now.st_ino, Some(7), Some(8), false),
            (now.st_ino, None, Some(8), true),
            (now.st_ino, Some(7), None, true),
            (now.st_ino + 1, Some(7), Some(7), false),
        ] {
            assert_eq!(is_same(&note(ino, then), &now, born), expected, "{ino} {then:?} {born:?}");
        }
    }
}
