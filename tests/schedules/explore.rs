//! Runs the structures in random orders of their threads. Shuttle fails if all threads wait.

use std::sync::Arc;

use shuttle::{check_random, thread};

use crate::{
    Error, Result,
    ahead::{Ahead, Failure, Found, Part},
    chunked, claims,
    lock::{Condvar, Mutex},
    pages::{PageFile, PageFiles},
};

/// The buffers of a capture are reused until all windows are stored. No thread waits for ever.
pub fn buffers_go_round(orders: usize) {
    for workers in 1..=3 {
        check_random(move || chunked::go_round(workers, None), orders);
        check_random(move || chunked::go_round(workers, Some(3)), orders);
    }
}

/// Threads of a batch that put the same blob store it once, and none relies on a missing blob.
pub fn each_blob_is_claimed_once(orders: usize) {
    check_random(claims::share_blobs, orders);
}

/// Readers get the bytes that they ask for, while workers read ahead.
pub fn readers_get_their_bytes(orders: usize) {
    check_random(|| serve(None), orders);
}

/// Readers get an error once the store has failed, and the workers end.
pub fn a_failing_store_ends_all_readers(orders: usize) {
    check_random(|| serve(Some((0, 1))), orders);
}

/// Two files in pieces of seven bytes. Each byte tells its place.
struct Numbers {
    files: [PageFile; 2],
    broken: Option<(usize, usize)>,
}

fn byte(file: usize, at: u64) -> u8 {
    u8::try_from(file * 100).unwrap() + u8::try_from(at).unwrap()
}

impl PageFiles for Numbers {
    fn files(&self) -> &[PageFile] {
        &self.files
    }

    fn read(&self, file: usize, piece: usize, into: &mut [u8]) -> Result<()> {
        if self.broken == Some((file, piece)) {
            return Err(Error::Store);
        }
        let range = self.files[file].range(piece);
        into.iter_mut().zip(range).for_each(|(place, at)| *place = byte(file, at));
        Ok(())
    }
}

/// Reads of a server, with the lock under which it asks for them: see `src/serve/mod.rs`.
struct Server {
    ahead: Ahead<'static>,
    waiting: Mutex<Vec<Read>>,
    answers: Mutex<Vec<(Read, Option<Vec<u8>>)>>,
    answered: Condvar,
}

type Read = (usize, u64, usize);

impl Server {
    fn ask(&self, read: Read) {
        let mut waiting = self.waiting.lock();
        match self.ahead.find(read.0, read.1, read.2) {
            Found::Later => waiting.push(read),
            found => {
                drop(waiting);
                self.give(read, found);
            }
        }
    }

    fn give(&self, read: Read, found: Found) {
        let bytes = match found {
            Found::Bytes(parts) => {
                let bytes = parts.iter().flat_map(Part::bytes).copied().collect();
                self.ahead.give_back(parts);
                Some(bytes)
            }
            _ => None,
        };
        self.answers.lock().push((read, bytes));
        self.answered.notify_all();
    }

    fn answer_waiting(&self) {
        let mut ready = Vec::new();
        let mut waiting = self.waiting.lock();
        waiting.retain(|read| match self.ahead.find(read.0, read.1, read.2) {
            Found::Later => true,
            found => {
                ready.push((*read, found));
                false
            }
        });
        drop(waiting);
        ready.into_iter().for_each(|(read, found)| self.give(read, found));
    }
}

fn serve(broken: Option<(usize, usize)>) {
    let files = [PageFile { ends: vec![7, 14, 20] }, PageFile { ends: vec![7] }];
    let pages: &'static Numbers = Box::leak(Box::new(Numbers { files, broken }));
    let server = Arc::new(Server {
        ahead: Ahead::new(pages),
        waiting: Mutex::default(),
        answers: Mutex::default(),
        answered: Condvar::new(),
    });
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let server = server.clone();
            thread::spawn(move || server.ahead.run_worker(&|| server.answer_waiting()))
        })
        .collect();
    let reads: [&[Read]; 2] = [&[(0, 0, 5), (0, 5, 10), (0, 15, 100)], &[(1, 2, 5), (0, 8, 3)]];
    let readers = reads.map(|reads| {
        let server = server.clone();
        thread::spawn(move || {
            for read in reads {
                server.ask(*read);
                let mut answers = server.answers.lock();
                let answer = loop {
                    match answers.iter().position(|(of, _)| of == read) {
                        Some(place) => break answers.swap_remove(place).1,
                        None => answers = server.answered.wait(answers),
                    }
                };
                drop(answers);
                let (file, from, length) = *read;
                let end = (from + length as u64).min(pages.files[file].bytes());
                let right: Vec<u8> = (from..end).map(|at| byte(file, at)).collect();
                match answer {
                    Some(bytes) => assert_eq!(bytes, right),
                    None => assert!(broken.is_some(), "an error although the store is whole"),
                }
            }
            if reads.len() == 2 {
                server.ahead.forget(1);
            }
        })
    });
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    server.ahead.close();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    match server.ahead.failure() {
        Some(Failure::Error(error)) => assert_eq!((error, broken.is_some()), (Error::Store, true)),
        Some(Failure::Panic(_)) => panic!("no store panics here"),
        None => assert!(broken.is_none(), "the failure is lost"),
    }
}
