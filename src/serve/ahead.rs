//! [`Ahead`]: pieces of memory, read by workers before they are asked for.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    Error,
    lock::{Condvar, Mutex, MutexGuard},
    pages::PageFiles,
    wiped::Wiped,
};

/// The most pieces that are read before criu asks for them: 64 MiB for all files, half of that for
/// one file. As much is read while criu starts.
const AHEAD: usize = 64;

/// Reads pieces of page files in the order in which criu will probably read them.
pub(super) struct Ahead<'a> {
    pages: &'a dyn PageFiles,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pieces: HashMap<Piece, Slot>,
    /// The piece that criu will probably read next, for each file that is being read.
    next: BTreeMap<usize, usize>,
    wanted: Vec<Piece>,
    /// Buffers for reuse: fresh pages from the kernel would cost more than the reading.
    idle: Vec<Wiped>,
    failure: Option<Failure>,
    failed: bool,
    closed: bool,
}

/// The number of a file, and the number of a piece in it.
type Piece = (usize, usize);

enum Slot {
    Loading,
    Ready {
        bytes: Arc<Wiped>,
        /// The number of bytes that have not been given out yet.
        left: usize,
    },
}

/// The reason that a piece could not be read.
pub(super) enum Failure {
    Error(Error),
    /// The store panicked, with this.
    Panic(Box<dyn Any + Send>),
}

/// Bytes of one piece.
pub(super) struct Part {
    piece: Arc<Wiped>,
    from: usize,
    to: usize,
}

impl Part {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.piece[self.from..self.to]
    }
}

/// The answer to a request for bytes.
pub(super) enum Found {
    Bytes(Vec<Part>),
    /// They are being read.
    Later,
    Failed,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(pages: &'a dyn PageFiles) -> Ahead<'a> {
        let mut state = State::default();
        state.next.insert(0, 0);
        Ahead { pages, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Reads pieces until the serving ends or a read fails. Calls `ready` after each piece.
    pub(super) fn run_worker(&self, ready: &dyn Fn()) {
        let mut state = self.lock();
        while !state.closed && !state.failed {
            let Some(piece) = self.choose(&mut state) else {
                state = self.changed.wait(state);
                continue;
            };
            state.pieces.insert(piece, Slot::Loading);
            let mut bytes = state.idle.pop().unwrap_or_default();
            drop(state);
            bytes.resize(self.pages.files()[piece.0].length(piece.1));
            // A reader of the piece must have an answer, even if the store panics: criu would wait
            // for ever.
            let read = catch_unwind(AssertUnwindSafe(|| self.pages.read(piece.0, piece.1, &mut bytes)));
            let read = match read {
                Ok(read) => read.map_err(Failure::Error),
                Err(panic) => Err(Failure::Panic(panic)),
            };
            state = self.lock();
            match read {
                Ok(()) => {
                    let left = bytes.len();
                    state.pieces.insert(piece, Slot::Ready { bytes: Arc::new(bytes), left });
                }
                Err(failure) => {
                    state.failed = true;
                    state.failure.get_or_insert(failure);
                }
            }
            drop(state);
            ready();
            state = self.lock();
        }
        self.changed.notify_all();
    }

    /// Chooses the piece to read next: one that a reader waits for, or one that comes after it.
    fn choose(&self, state: &mut State) -> Option<Piece> {
        while let Some(piece) = state.wanted.pop() {
            if !state.pieces.contains_key(&piece) {
                return Some(piece);
            }
        }
        if state.pieces.len() >= AHEAD {
            return None;
        }
        let files = self.pages.files();
        state.next.iter().find_map(|(file, next)| {
            let pieces = *next..files.get(*file)?.ends.len().min(next + AHEAD / 2);
            pieces.map(|piece| (*file, piece)).find(|piece| !state.pieces.contains_key(piece))
        })
    }

    /// The bytes from `offset` on, as many as the file has and `bytes` says.
    pub(super) fn find(&self, file: usize, offset: u64, bytes: usize) -> Found {
        let Some(content) = self.pages.files().get(file) else { return Found::Failed };
        let ends = &content.ends;
        let end = offset.saturating_add(bytes as u64).min(content.bytes());
        let first = ends.partition_point(|piece_end| *piece_end <= offset);
        let beyond = ends.partition_point(|piece_end| *piece_end < end) + 1;
        let pieces = || (first..beyond.min(ends.len())).filter(|_| offset < end);

        let mut state = self.lock();
        if state.failed || state.closed {
            return Found::Failed;
        }
        let mut later = false;
        for piece in pieces().rev() {
            let piece = (file, piece);
            match state.pieces.get(&piece) {
                Some(Slot::Ready { .. }) => continue,
                None if !state.wanted.contains(&piece) => state.wanted.push(piece),
                _ => {}
            }
            later = true;
        }
        // No reader will ask for the pieces that were skipped.
        state
            .pieces
            .retain(|piece, slot| piece.0 != file || piece.1 >= first || matches!(slot, Slot::Loading));
        state.next.insert(file, first);
        if later {
            drop(state);
            self.changed.notify_all();
            return Found::Later;
        }
        let mut parts = Vec::new();
        for piece in pieces() {
            let here = content.range(piece);
            let place = |at: u64| usize::try_from(at.clamp(here.start, here.end) - here.start).unwrap_or(0);
            let (from, to) = (place(offset), place(end));
            let Some(Slot::Ready { bytes, left }) = state.pieces.get_mut(&(file, piece)) else { continue };
            parts.push(Part { piece: bytes.clone(), from, to });
            *left = left.saturating_sub(to - from);
            if *left == 0 {
                state.pieces.remove(&(file, piece));
                match ends.len() {
                    all if all == piece + 1 => state.next.remove(&file),
                    _ => state.next.insert(file, piece + 1),
                };
            }
        }
        drop(state);
        self.changed.notify_all();
        Found::Bytes(parts)
    }

    /// Takes memory back that is read no more.
    pub(super) fn give_back(&self, parts: Vec<Part>) {
        for part in parts {
            if let Some(bytes) = Arc::into_inner(part.piece) {
                let mut state = self.lock();
                if state.idle.len() < AHEAD {
                    state.idle.push(bytes);
                }
            }
        }
    }

    /// Takes note that a file is read no more, at least not where it was.
    pub(super) fn forget(&self, file: usize) {
        let mut state = self.lock();
        state.pieces.retain(|piece, slot| piece.0 != file || matches!(slot, Slot::Loading));
        state.next.remove(&file);
        drop(state);
        self.changed.notify_all();
    }

    /// Stops the workers, once they are done with what they are reading.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Takes the reason that reading failed, if it did.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.lock().failure.take()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;
    use crate::{
        Result,
        pages::{PageFile, PageSize},
    };

    /// Files whose bytes tell their place, in pieces of seven bytes.
    struct Numbers {
        files: Vec<PageFile>,
        reads: AtomicUsize,
        broken: Option<Piece>,
    }

    impl Numbers {
        fn new(lengths: &[u64]) -> Numbers {
            let ends = |length: u64| (1..=length.div_ceil(7)).map(|piece| (piece * 7).min(length)).collect();
            let files =
                lengths.iter().map(|length| PageFile { name: String::new(), ends: ends(*length) }).collect();
            Numbers { files, reads: AtomicUsize::new(0), broken: None }
        }
    }

    fn byte(file: usize, at: u64) -> u8 {
        u8::try_from((file as u64 * 101 + at * 7) % 251).unwrap()
    }

    impl PageFiles for Numbers {
        fn files(&self) -> &[PageFile] {
            &self.files
        }

        fn page_size(&self) -> Option<PageSize> {
            None
        }

        fn read(&self, file: usize, piece: usize, into: &mut [u8]) -> Result<()> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            if self.broken == Some((file, piece)) {
                return Err(Error::Revived);
            }
            let range = self.files[file].range(piece);
            assert_eq!(into.len() as u64, range.end - range.start);
            into.iter_mut().zip(range).for_each(|(place, at)| *place = byte(file, at));
            Ok(())
        }
    }

    /// Works with two workers, and gives `read(file, offset, bytes)`, which waits.
    fn with<T>(pages: &Numbers, work: impl FnOnce(&dyn Fn(usize, u64, usize) -> Option<Vec<u8>>) -> T) -> T {
        let ahead = Ahead::new(pages);
        let read = |file, offset, bytes| {
            loop {
                match ahead.find(file, offset, bytes) {
                    Found::Later => thread::yield_now(),
                    Found::Failed => return None,
                    Found::Bytes(parts) => {
                        let found = parts.iter().flat_map(Part::bytes).copied().collect();
                        ahead.give_back(parts);
                        return Some(found);
                    }
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| ahead.run_worker(&|| {}));
            scope.spawn(|| ahead.run_worker(&|| {}));
            let done = work(&read);
            ahead.close();
            done
        })
    }

    #[test]
    fn whatever_is_asked_for_in_whatever_order_is_given() {
        let lengths = [1000, 0, 7, 333];
        let pages = Numbers::new(&lengths);
        with(&pages, |read| {
            let mut number = 12345_u64;
            for _ in 0..2000 {
                number = number.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let (file, offset, bytes) = ((number >> 33) % 4, (number >> 40) % 1100, (number >> 50) % 90);
                let file = usize::try_from(file).unwrap();
                let end = (offset + bytes).min(lengths[file]);
                let wanted: Vec<u8> = (offset..end).map(|at| byte(file, at)).collect();
                assert_eq!(read(file, offset, usize::try_from(bytes).unwrap()), Some(wanted));
            }
            assert_eq!(read(4, 0, 1), None, "there is no such file");
        });
    }

    #[test]
    fn who_reads_on_has_each_piece_read_once() {
        let pages = Numbers::new(&[7 * 500]);
        with(&pages, |read| (0..350).for_each(|part| assert!(read(0, part * 10, 10).is_some())));
        assert_eq!(pages.reads.load(Ordering::Relaxed), 500);
    }

    #[test]
    fn a_piece_that_cannot_be_read_ends_it() {
        let pages = Numbers { broken: Some((0, 40)), ..Numbers::new(&[7 * 500]) };
        let given = with(&pages, |read| (0..500).take_while(|part| read(0, part * 7, 7).is_some()).count());
        assert!(given <= 40, "{given}");
    }
}
