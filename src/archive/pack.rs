//! Writes images to an archive.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
};

use super::{
    BUFFER, Limits, Trees, WHAT,
    header::{BLOCK, Header},
    names::{self, INVENTORY, LONGEST, is_image},
};
use crate::{Error, Result, wiped::Wiped};

/// Writes the archive of these images to `out`, and returns its size in bytes.
///
/// Files that are not images are left out: logs, statistics of restores, pid files, sockets,
/// folders. An error of ours that `out` wraps is returned as it is.
///
/// # Errors
///
/// [`Error::Corrupt`] if an image is missing or cannot be stored: `parent` refers to images in
/// another folder, or an image is not a regular file, has a name that readers refuse, or changes
/// while it is read.
pub(crate) fn pack(trees: &Trees, out: &mut dyn Write) -> Result<u64> {
    let mut images = match trees {
        Trees::One(folder) => list(folder, "")?,
        Trees::Several(folders) => {
            let mut images = Vec::new();
            for (pid, folder) in folders {
                images.extend(list(folder, &format!("{}/", names::tree_folder(*pid)))?);
            }
            images
        }
    };
    if images.is_empty() {
        return Err(Error::corrupt(WHAT, "there is no tree to put into it"));
    }
    if images.len() as u64 > Limits::default().entries {
        let problem = format!("it has {} images, more than readers take", images.len());
        return Err(Error::corrupt(WHAT, problem));
    }
    images.sort_unstable_by(|one, other| one.name.cmp(&other.name));

    let mut blocks = Blocks { out, buffer: Wiped::zeroed(BUFFER), filled: 0, written: 0 };
    for image in &images {
        image.append_to(&mut blocks)?;
    }
    blocks.finish()
}

/// Returns the images in a folder, unsorted.
fn list(folder: &Path, prefix: &str) -> Result<Vec<Image>> {
    let reading = || Error::io(format!("list {}", folder.display()));
    let mut images = Vec::new();
    for entry in fs::read_dir(folder).map_err(reading())? {
        let entry = entry.map_err(reading())?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let problem = if name == "parent" {
            "the images are incomplete: the others are in the folder that this link leads to"
        } else if !is_image(&name) {
            if !name.ends_with(".img") {
                continue;
            }
            "readers would refuse an image of this name"
        } else if prefix.len() + name.len() > LONGEST {
            "its name is too long"
        } else if !entry.file_type().map_err(reading())?.is_file() {
            "it is not a regular file"
        } else {
            images.push(Image { name: format!("{prefix}{name}"), path: entry.path() });
            continue;
        };
        return Err(Error::corrupt(entry.path().display().to_string(), problem));
    }
    if !images.iter().any(|image| image.name[prefix.len()..] == *INVENTORY) {
        let problem = format!("it has no {INVENTORY}, so it is not a criu capture");
        return Err(Error::corrupt(folder.display().to_string(), problem));
    }
    Ok(images)
}

/// A file and its name in the archive.
struct Image {
    name: String,
    path: PathBuf,
}

impl Image {
    fn append_to(&self, blocks: &mut Blocks<'_>) -> Result<()> {
        let reading = || Error::io(format!("read {}", self.path.display()));
        let mut file = File::open(&self.path).map_err(reading())?;
        let size = file.metadata().map_err(reading())?.len();

        blocks.append(&Header::encode(&self.name, size))?;
        let mut left = size;
        while left > 0 {
            let space = blocks.space()?;
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(space.len());
            match read(&mut file, &mut space[..part]).map_err(reading())? {
                0 => return Err(self.changed("shrank")),
                count => {
                    blocks.filled += count;
                    left -= count as u64;
                }
            }
        }
        if read(&mut file, &mut [0]).map_err(reading())? != 0 {
            return Err(self.changed("grew"));
        }
        blocks.pad()
    }

    fn changed(&self, how: &str) -> Error {
        Error::corrupt(self.path.display().to_string(), format!("it {how} while it was read"))
    }
}

fn read(file: &mut File, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Gathers headers and contents into large writes, without copying the contents.
struct Blocks<'a> {
    out: &'a mut dyn Write,
    buffer: Wiped,
    filled: usize,
    written: u64,
}

impl Blocks<'_> {
    /// Returns room for at least one byte. The caller that fills it advances `filled`.
    fn space(&mut self) -> Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let space = self.space()?;
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.filled += count;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Writes zeros up to the next block.
    fn pad(&mut self) -> Result<()> {
        // The buffer holds whole blocks, so its end is as far from a block's end as the archive's.
        self.append(&[0; BLOCK][..self.filled.next_multiple_of(BLOCK) - self.filled])
    }

    /// Writes the end of an archive: two blocks of zeros.
    fn finish(mut self) -> Result<u64> {
        self.append(&[0; 2 * BLOCK])?;
        self.flush()?;
        Ok(self.written)
    }

    fn flush(&mut self) -> Result<()> {
        let result = self.out.write_all(&self.buffer[..self.filled]);
        result.map_err(|error| error.downcast().unwrap_or_else(Error::io("write the archive")))?;
        self.written += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}
