//! Checks that everything the images refer to exists. criu does not check: it waits for ever for
//! pages that a file does not have. Without some images it crashes, or restores something else.

use std::{fs, io};

use super::ImageDir;
use crate::{
    Cause, Error, Failure, Request, Result,
    pages::{PageOwner, PageRun, PageSize},
    proto::images::{InventoryEntry, MmEntry, PagemapEntry, PagemapHead, VmaEntry},
};

/// The largest pid that Linux gives.
const LARGEST_PID: u32 = 4 << 20;
/// The page is in the file of pages.
const PRESENT: u32 = 4;

/// Place of a tree's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryIn {
    /// With the images.
    Folder,
    /// Sent elsewhere.
    Stream,
    /// In a store; the maps of it are with the images.
    Blobs,
}

/// The newest version of images that we know: that of criu 4.2.
const NEWEST_VERSION: u32 = 2;
/// The flags of a run of pages that we know: in the parent, lazy, in the file of pages.
const KNOWN_FLAGS: u32 = 1 | 2 | PRESENT;

/// Refuses images of a version that we do not know: nothing that is read of them here would be
/// certain.
pub(crate) fn check_version(images: &ImageDir, request: Request) -> Result<()> {
    let inventory = images.first::<InventoryEntry>("inventory.img")?;
    match inventory.map_or(NEWEST_VERSION, |inventory| inventory.img_version) {
        ..=NEWEST_VERSION => Ok(()),
        version => {
            let finding = format!(
                "inventory.img says that the images have version {version}; the newest that is known here is \
                 {NEWEST_VERSION}, of criu 4.2"
            );
            Err(Error::Criu(Failure::foreseen(request, Cause::ImagesVersion, vec![finding]).into()))
        }
    }
}

/// Finds out what is missing: of the images of each process and thread, and of the pages that each
/// map speaks of.
pub(crate) fn check_complete(images: &ImageDir, memory: MemoryIn, page_size: PageSize) -> Result<()> {
    let processes = images.processes()?;
    if processes.is_empty() {
        return Err(Error::corrupt("the image pstree.img", "it is missing, or has no process"));
    }
    for process in processes {
        if !(1..=LARGEST_PID).contains(&process.pid) {
            let problem = format!("no process can have the pid {}", process.pid);
            return Err(Error::corrupt("the image pstree.img", problem));
        }
        must_exist(images, &format!("core-{}.img", process.pid))?;
        if images.files_id(process.pid)?.is_none() {
            continue; // a zombie has nothing more, and what criu says of its threads is arbitrary
        }
        for thread in &process.threads {
            must_exist(images, &format!("core-{thread}.img"))?;
        }
        must_exist(images, &format!("mm-{}.img", process.pid))?;
        if memory != MemoryIn::Stream {
            must_exist(images, &format!("pagemap-{}.img", process.pid))?;
        }
    }
    if memory != MemoryIn::Folder {
        return Ok(());
    }
    for entry in fs::read_dir(images.path()).map_err(Error::io("read the folder of images"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("pagemap-") {
            check_pages(images, &name, page_size)?;
        }
    }
    Ok(())
}

impl ImageDir {
    /// Finds out whether there is a process whose memory `is_there` denies.
    pub(crate) fn check_owners(&self, is_there: impl Fn(PageOwner) -> bool) -> Result<()> {
        for process in self.processes()? {
            let owner = PageOwner::Task(process.pid);
            if self.files_id(process.pid)?.is_some() && !is_there(owner) {
                return Err(Error::corrupt(format!("the image {}", owner.map_name()), "it is missing"));
            }
        }
        Ok(())
    }
}

impl ImageDir {
    /// Refuses pages of a process at addresses at which it has no memory.
    pub(crate) fn check_regions(&self, owner: PageOwner, runs: &[PageRun]) -> Result<()> {
        let PageOwner::Task(pid) = owner else { return Ok(()) };
        let Some(mm) = self.first::<MmEntry>(&format!("mm-{pid}.img"))? else {
            let problem = format!("there is no process {pid} among the images");
            return Err(Error::corrupt(format!("the memory of process {pid}"), problem));
        };
        match outside(&mm.vmas, runs) {
            None => Ok(()),
            Some(run) => {
                let problem =
                    format!("{} pages at {:#x}, where the process has no memory", run.pages, run.address);
                Err(Error::corrupt(format!("the memory of process {pid}"), problem))
            }
        }
    }
}

/// The first run that is not all in these areas.
fn outside<'a>(areas: &[VmaEntry], runs: &'a [PageRun]) -> Option<&'a PageRun> {
    let mut regions: Vec<(u64, u64)> = Vec::new();
    let mut sorted: Vec<_> = areas.iter().map(|area| (area.start, area.end)).collect();
    sorted.sort_unstable();
    for (start, end) in sorted {
        match regions.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => regions.push((start, end)),
        }
    }
    runs.iter().find(|run| {
        let next = regions.partition_point(|region| region.0 <= run.address);
        let region = next.checked_sub(1).map(|place| regions[place]);
        region.is_none_or(|(_, end)| run.address + run.bytes() > end)
    })
}

fn must_exist(images: &ImageDir, name: &str) -> Result<()> {
    match images.path().join(name).is_file() {
        true => Ok(()),
        false => Err(Error::corrupt(format!("the image {name}"), "it is missing")),
    }
}

/// Holds a map of pages against its file of pages.
fn check_pages(images: &ImageDir, pagemap: &str, page_size: PageSize) -> Result<()> {
    let Some(mut frames) = images.frames(pagemap)? else { return Ok(()) };
    let Some(head) = frames.next_entry::<PagemapHead>()? else { return Ok(()) };
    let mut pages = 0_u64;
    while let Some(entry) = frames.next_entry::<PagemapEntry>()? {
        if let Some(unknown) = entry.flags.map(|flags| flags & !KNOWN_FLAGS).filter(|unknown| *unknown != 0) {
            let problem = format!("a run of pages has flags that are not known: {unknown:#x}");
            return Err(Error::corrupt(format!("the image {pagemap}"), problem));
        }
        if entry.in_parent != Some(true) && entry.flags.is_none_or(|flags| flags & PRESENT != 0) {
            pages = pages.saturating_add(entry.nr_pages.unwrap_or(entry.compat_nr_pages.into()));
        }
    }
    let file = format!("pages-{}.img", head.pages_id);
    let size = match fs::metadata(images.path().join(&file)) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(Error::io(format!("look at the image {file}"))(error)),
    };
    let wanted = pages.saturating_mul(page_size.bytes());
    if size < wanted {
        let problem = format!("it has {size} bytes, and {pagemap} speaks of at least {wanted}");
        return Err(Error::corrupt(format!("the image {file}"), problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::image::frame;

    /// A folder of images with these, each of one entry.
    fn folder(test: &str, images: &[(&str, Vec<u8>)]) -> ImageDir {
        let folder = std::env::temp_dir().join(format!("criu-rpc-image-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (name, entry) in images {
            let image = frame::image(0x5831_3116, [entry.clone()].into_iter()).unwrap();
            fs::write(folder.join(name), image).unwrap();
        }
        ImageDir::new(folder)
    }

    #[test]
    fn images_of_a_later_version_are_refused_by_name() {
        for (version, known) in [(1, true), (2, true), (3, false), (u32::MAX, false)] {
            let entry = InventoryEntry { img_version: version, ..InventoryEntry::default() };
            let images = folder("version", &[("inventory.img", entry.encode_to_vec())]);
            let checked = check_version(&images, Request::Restore);
            fs::remove_dir_all(images.path()).unwrap();
            let Err(error) = checked else {
                assert!(known, "{version}");
                continue;
            };
            let failure = error.failure().unwrap();
            assert!(!known && failure.cause == Cause::ImagesVersion, "{version}: {}", failure.report());
            assert!(failure.to_string().contains(&format!("version {version};")), "{failure}");
            assert!(failure.report().to_string().contains("what to do:"));
        }
    }

    #[test]
    fn pages_where_a_process_has_no_memory_are_refused() {
        let area = |start, end| VmaEntry { start, end, ..VmaEntry::default() };
        // Two that touch, and one apart.
        let mm = MmEntry {
            vmas: vec![area(0x5000, 0x7000), area(0x2000, 0x5000), area(0x9000, 0xa000)],
            ..MmEntry::default()
        };
        let images = folder("regions", &[("mm-7.img", mm.encode_to_vec())]);
        let check = |pid, address, pages| {
            let run = PageRun::new(PageSize::SMALLEST, address, pages, PageRun::PRESENT).unwrap();
            images.check_regions(PageOwner::Task(pid), &[run])
        };
        for (address, pages, there) in [
            (0x2000, 5, true),
            (0x4000, 2, true),
            (0x9000, 1, true),
            (0x1000, 1, false),
            (0x1000, 2, false),
            (0x6000, 2, false),
            (0x8000, 1, false),
            (0xa000, 1, false),
        ] {
            let checked = check(7, address, pages);
            assert_eq!(checked.is_ok(), there, "{pages} at {address:#x}: {checked:?}");
        }
        assert!(check(8, 0x2000, 1).is_err(), "no such process");
        fs::remove_dir_all(images.path()).unwrap();
    }

    #[test]
    fn a_file_with_fewer_pages_than_its_map_is_refused() {
        for page_size in PageSize::TESTED {
            let entries = [(0x1_0000, 3), (0x20_0000, 2)].map(|(vaddr, pages)| {
                let nr_pages = Some(pages);
                PagemapEntry { vaddr, nr_pages, flags: Some(PRESENT), ..PagemapEntry::default() }
                    .encode_to_vec()
            });
            let head = PagemapHead { pages_id: 1 }.encode_to_vec();
            let image = frame::image(0x5608_4025, std::iter::once(head).chain(entries)).unwrap();
            let images = folder(&format!("short-{}", page_size.bytes()), &[]);
            fs::write(images.path().join("pagemap-1.img"), image).unwrap();
            let checked = |bytes: usize| {
                fs::write(images.path().join("pages-1.img"), vec![0; bytes]).unwrap();
                check_pages(&images, "pagemap-1.img", page_size)
            };
            let whole = 5 * page_size.length();
            assert!(checked(whole).is_ok(), "{page_size:?}");
            for bytes in [whole - 1, whole - page_size.length(), 5 * page_size.length() / 4, 0] {
                assert!(checked(bytes).is_err(), "{page_size:?} {bytes}");
            }
            fs::remove_dir_all(images.path()).unwrap();
        }
    }

    #[test]
    fn flags_of_pages_that_are_not_known_are_refused() {
        let entry = PagemapEntry { flags: Some(4 | 8), nr_pages: Some(0), ..PagemapEntry::default() };
        let mut image = frame::image(
            0x5608_4025,
            [PagemapHead { pages_id: 1 }.encode_to_vec(), entry.encode_to_vec()].into_iter(),
        )
        .unwrap();
        let images = folder("flags", &[]);
        let path = images.path().join("pagemap-1.img");
        fs::write(&path, &image).unwrap();
        let error = check_pages(&images, "pagemap-1.img", PageSize::SMALLEST).unwrap_err().to_string();
        assert!(error.contains("0x8"), "{error}");
        *image.iter_mut().rfind(|byte| **byte == 12).unwrap() = 4;
        fs::write(&path, &image).unwrap();
        check_pages(&images, "pagemap-1.img", PageSize::SMALLEST).unwrap();
        fs::remove_dir_all(images.path()).unwrap();
    }
}
