//! Memory in a folder of images: a map for each owner, and files of pages that the maps name.

use std::{
    fs::{self, File},
    io::{self, Read},
};

use prost::Message;

use super::{ImageDir, frame};
use crate::{
    Error, Result,
    pages::{PageOwner, PageRun, PageSink, PageSize},
    proto::images::{PagemapEntry, PagemapHead},
};

/// The number that says that an image is a map of pages.
const PAGEMAP: u32 = 0x5608_4025;

impl ImageDir {
    /// The owners whose maps are in the folder.
    pub(crate) fn owners(&self) -> Result<Vec<PageOwner>> {
        let folder = fs::read_dir(self.path()).map_err(Error::io("read the folder of images"))?;
        let names = folder.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut owners: Vec<_> = names.filter_map(|name| PageOwner::of_map(&name)).collect();
        owners.sort_unstable();
        Ok(owners)
    }

    /// Gives all memory that is in the folder to a sink, without closing it.
    pub(crate) fn feed(&self, page_size: PageSize, sink: &mut dyn PageSink) -> Result<()> {
        self.owners()?.into_iter().try_for_each(|owner| self.feed_one(owner, page_size, sink))
    }

    fn feed_one(&self, owner: PageOwner, page_size: PageSize, sink: &mut dyn PageSink) -> Result<()> {
        let name = owner.map_name();
        let Some(mut frames) = self.frames(&name)? else { return Ok(()) };
        let Some(head) = frames.next_entry::<PagemapHead>()? else { return Ok(()) };
        let file = format!("pages-{}.img", head.pages_id);
        let mut pages: Box<dyn Read> = match File::open(self.path().join(&file)) {
            // The sink takes it in large parts. A buffer would be one more copy to be wiped.
            Ok(file) => Box::new(file),
            // Without a page there is no file of them.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Box::new(io::empty()),
            Err(error) => return Err(Error::io(format!("read the image {file}"))(error)),
        };
        sink.open(owner)?;
        while let Some(entry) = frames.next_entry::<PagemapEntry>()? {
            let count = entry.nr_pages.unwrap_or(entry.compat_nr_pages.into());
            let parent = u32::from(entry.in_parent == Some(true));
            let flags = entry.flags.unwrap_or(if parent == 1 { 0 } else { PageRun::PRESENT }) | parent;
            let run = PageRun::new(page_size, entry.vaddr, count, flags)?;
            sink.run(run, &mut pages.by_ref().take(if run.is_present() { run.bytes() } else { 0 }))?;
        }
        // Pages of another size leave some over.
        let mut left = [0];
        if pages.read(&mut left).map_err(Error::io(format!("read the image {file}")))? > 0 {
            return Err(Error::corrupt(
                format!("the image {file}"),
                format!("{name} leaves a part of it over"),
            ));
        }
        Ok(())
    }

    /// Writes the map of an owner whose pages are in the file of this number.
    pub(crate) fn write_map(&self, owner: PageOwner, pages_id: u32, runs: &[PageRun]) -> Result<()> {
        let head = PagemapHead { pages_id }.encode_to_vec();
        let entries = runs.iter().map(|run| {
            PagemapEntry {
                vaddr: run.address,
                // Before 4.2 criu reads the one, since then the other, if it is there.
                compat_nr_pages: u32::try_from(run.pages).unwrap_or(0),
                nr_pages: Some(run.pages),
                in_parent: None,
                flags: Some(run.flags),
            }
            .encode_to_vec()
        });
        let image = frame::image(PAGEMAP, std::iter::once(head).chain(entries))?;
        let name = owner.map_name();
        fs::write(self.path().join(&name), image).map_err(Error::io(format!("write the image {name}")))
    }
}
