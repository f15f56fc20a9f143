//! Files of pages as real files, for who cannot be served: all of them, before criu begins.

use std::{
    fs::File,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::{
    Error, Result, Until,
    pages::{PageFile, PageFiles},
    private_files,
    threads::{joined, spawn},
    wiped::Wiped,
};

/// Reads all pieces, on all processors, and writes them into the folder.
pub(super) fn write(folder: &Path, pages: &dyn PageFiles, until: &Until) -> Result<()> {
    let make = |file: &PageFile| {
        let doing = || Error::io(format!("make the image {}", file.name));
        let made = private_files::create_file(&folder.join(&file.name)).map_err(doing())?;
        made.set_len(file.bytes()).map_err(doing())
    };
    pages.files().iter().try_for_each(make)?;
    let numbered = pages.files().iter().enumerate();
    let pieces: Vec<(usize, usize)> =
        numbered.flat_map(|(number, file)| (0..file.ends.len()).map(move |piece| (number, piece))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut bytes = Wiped::default();
        while let Some((number, piece)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            let file = &pages.files()[number];
            bytes.resize(file.length(piece));
            let may_go_on = until.check(|| "fetch the memory of the tree".to_owned());
            let written = may_go_on.and_then(|()| pages.read(number, piece, &mut bytes)).and_then(|()| {
                let doing = Error::io(format!("write the image {}", file.name));
                // A large tree has more files than a program may have open.
                let image = File::options().write(true).open(folder.join(&file.name));
                let written =
                    image.and_then(|image| private_files::write_at(&image, &bytes, file.range(piece).start));
                written.map_err(doing)
            });
            if let Err(error) = written {
                next.store(pieces.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    let others = thread::available_parallelism().map_or(1, |count| count.get()).min(pieces.len());
    thread::scope(|scope| {
        let threads: Vec<_> = (1..others).map_while(|_| spawn(scope, work).ok()).collect();
        let mut done = work();
        for thread in threads {
            let other = joined(thread.join());
            done = done.and(other);
        }
        done
    })
}
