//! A victim that changes: a ring of pages that a thread goes round all the time, and regions of
//! memory that change as it is told. It knows what each page has to be.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::exit,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// The size of a page, in words.
const PAGE: usize = 512;

pub(crate) fn main(_: &[String]) {
    nix::unistd::setsid().unwrap();
    let mut state = State::default();
    let ring = state.ring.clone();
    thread::spawn(move || {
        loop {
            ring.lock().unwrap().go_round();
            thread::sleep(Duration::from_millis(1));
        }
    });
    println!("ready {}", std::process::id());
    state.converse(io::stdin().lock(), io::stdout());
    state.exit();
}

#[derive(Default)]
struct State {
    ring: Arc<Mutex<Ring>>,
    regions: BTreeMap<String, Region>,
    children: BTreeMap<String, (nix::unistd::Pid, UnixStream)>,
}

impl State {
    fn converse(&mut self, from: impl BufRead, mut to: impl Write) {
        for line in from.lines().map_while(Result::ok) {
            let answer = self.obey(line.trim_end());
            writeln!(to, "{answer}").unwrap();
        }
    }

    fn obey(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().unwrap();
        let name = || words[1].to_owned();
        match words[0] {
            "make" | "zero" | "share" => {
                let pages = number(2) << 8;
                let mut region = match words[0] {
                    "share" => Region::shared(pages),
                    _ => Region { memory: Words::Own(vec![0; pages * PAGE]), seeds: Words::Own(vec![0; pages]) },
                };
                if words[0] != "zero" {
                    region.fill(0, pages, number(3) as u64);
                }
                self.regions.insert(name(), region);
            }
            "fill" => self.region(&words).fill(number(2), number(3), number(4) as u64),
            "wipe" => self.region(&words).fill(number(2), number(3), 0),
            "discard" => self.region(&words).discard(number(2), number(3)),
            "grow" => self.region(&words).grow(number(2) << 8, number(3) as u64),
            "drop" => drop(self.regions.remove(words[1]).unwrap()),
            "fork" => self.fork(name()),
            "fork-as" => {
                let pid = number(2);
                fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
                self.fork(name());
                assert_eq!(self.children[words[1]].0.as_raw(), i32::try_from(pid).unwrap());
            }
            "end" => self.end(words[1]),
            "pid" => return self.children[words[1]].0.to_string(),
            "ask" => {
                let (_, stream) = self.children.get_mut(words[1]).unwrap();
                writeln!(stream, "{}", words[2..].join(" ")).unwrap();
                let mut answer = String::new();
                BufReader::new(&*stream).read_line(&mut answer).unwrap();
                return answer.trim_end().to_owned();
            }
            "count" => return self.ring.lock().unwrap().count.to_string(),
            "check" => return self.check(),
            "exit" => self.exit(),
            _ => panic!("unknown command {line}"),
        }
        "done".to_owned()
    }

    fn region(&mut self, words: &[&str]) -> &mut Region {
        self.regions.get_mut(words[1]).unwrap()
    }

    /// A copy of this process, with all its memory but without the thread.
    fn fork(&mut self, name: String) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ring = self.ring.clone();
        let whole = ring.lock().unwrap();
        // SAFETY: the copy allocates, which this C library allows, and holds the only lock that
        // there is.
        #[allow(unsafe_code)]
        let side = unsafe { nix::unistd::fork() }.unwrap();
        drop(whole);
        match side {
            nix::unistd::ForkResult::Parent { child } => {
                self.children.insert(name, (child, ours));
            }
            nix::unistd::ForkResult::Child => {
                drop(ours);
                self.children.clear();
                self.converse(BufReader::new(theirs.try_clone().unwrap()), theirs);
                exit(0);
            }
        }
    }

    fn end(&mut self, name: &str) {
        let (pid, stream) = self.children.remove(name).unwrap();
        // Those that came later have copies of our end.
        let _ = writeln!(&stream, "exit"); // it may be gone
        nix::sys::wait::waitpid(pid, None).unwrap();
    }

    fn exit(&mut self) -> ! {
        let names: Vec<_> = self.children.keys().cloned().collect();
        names.iter().for_each(|name| self.end(name));
        exit(0);
    }

    /// Checks the memory: returns `fine` and a sum of each region, or the first fault.
    fn check(&self) -> String {
        let mut answer = "fine".to_owned();
        if let Some(broken) = self.ring.lock().unwrap().broken() {
            return format!("the ring is broken at page {broken}");
        }
        for (name, region) in &self.regions {
            let seeds = region.seeds.words();
            if let Some(page) = region.damaged() {
                return format!("{name} is damaged at page {page} of {}", seeds.len());
            }
            let sum = seeds.iter().fold(0_u64, |sum, seed| sum.wrapping_mul(31).wrapping_add(*seed));
            answer += &format!(" {name}:{}:{sum:x}", seeds.len());
        }
        answer
    }
}

/// Memory, and the seed of each page; 0 stands for zeros.
struct Region {
    memory: Words,
    seeds: Words,
}

enum Words {
    Own(Vec<u64>),
    Shared(&'static mut [u64]),
}

impl Words {
    /// So many words, which copies of this process share with it to the end.
    fn shared(count: usize) -> Words {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: it asks for new memory, wherever there is room.
        #[allow(unsafe_code)]
        let start = unsafe { libc::mmap(std::ptr::null_mut(), count * 8, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: it has that many words and stays; of those who share it, one at a time does
        // anything.
        #[allow(unsafe_code)]
        Words::Shared(unsafe { std::slice::from_raw_parts_mut(start.cast::<u64>(), count) })
    }

    fn words(&self) -> &[u64] {
        match self {
            Words::Own(words) => words,
            Words::Shared(words) => words,
        }
    }

    fn words_mut(&mut self) -> &mut [u64] {
        match self {
            Words::Own(words) => words,
            Words::Shared(words) => words,
        }
    }
}

impl Region {
    fn shared(pages: usize) -> Region {
        Region { memory: Words::shared(pages * PAGE), seeds: Words::shared(pages) }
    }

    fn words(&mut self) -> &mut [u64] {
        self.memory.words_mut()
    }

    fn fill(&mut self, from: usize, to: usize, seed: u64) {
        for page in from..to {
            for (at, word) in self.words()[page * PAGE..(page + 1) * PAGE].iter_mut().enumerate() {
                *word = value(seed, page, at);
            }
            self.seeds.words_mut()[page] = seed;
        }
    }

    /// Gives pages back to the kernel, which has zeros in their place.
    fn discard(&mut self, from: usize, to: usize) {
        let words = &mut self.words()[from * PAGE..to * PAGE];
        // Of memory that is not in step with the pages, the pages that are within.
        let start = words.as_mut_ptr() as usize;
        let (first, last) = (start.next_multiple_of(4096), (start + words.len() * 8) / 4096 * 4096);
        words[..(first - start) / 8].fill(0);
        words[(last - start) / 8..].fill(0);
        // SAFETY: whole pages of anonymous memory that we borrow alone; zeros are words as well.
        #[allow(unsafe_code)]
        let done = unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_DONTNEED) };
        assert_eq!(done, 0);
        self.seeds.words_mut()[from..to].fill(0);
    }

    /// Moves it, if need be, to where it has room.
    fn grow(&mut self, pages: usize, seed: u64) {
        let (Words::Own(words), Words::Own(seeds)) = (&mut self.memory, &mut self.seeds) else {
            panic!("it is shared");
        };
        let before = seeds.len();
        words.resize((before + pages) * PAGE, 0);
        seeds.resize(before + pages, 0);
        if seed != 0 {
            self.fill(before, before + pages, seed);
        }
    }

    fn damaged(&self) -> Option<usize> {
        let pages = self.memory.words().chunks(PAGE).zip(self.seeds.words()).enumerate();
        let mut fine = pages.map(|(page, (words, seed))| {
            words.iter().enumerate().all(|(at, word)| *word == value(*seed, page, at))
        });
        fine.position(|fine| !fine)
    }
}

fn value(seed: u64, page: usize, at: usize) -> u64 {
    match seed {
        0 => 0,
        _ => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((page << 16) + at) as u64,
    }
}

/// Pages that are written one after the other, each with how often that was done.
struct Ring {
    count: u64,
    words: Vec<u64>,
    /// The first page that was not what it was left as.
    broken: Option<usize>,
}

impl Default for Ring {
    fn default() -> Ring {
        Ring { count: 0, words: vec![0; 300 * PAGE], broken: None }
    }
}

impl Ring {
    fn go_round(&mut self) {
        for _ in 0..7 {
            let pages = self.words.len() / PAGE;
            let page = usize::try_from(self.count).unwrap() % pages;
            if !self.is_fine(page) {
                self.broken.get_or_insert(page);
            }
            self.count += 1;
            let count = self.count;
            self.words[page * PAGE..(page + 1) * PAGE].fill(count);
        }
    }

    /// Returns true if the page has the number of its last turn.
    fn is_fine(&self, page: usize) -> bool {
        let pages = self.words.len() / PAGE;
        let (turns, next) = (self.count / pages as u64, self.count % pages as u64);
        let turns = if (page as u64) < next { turns + 1 } else { turns };
        let expected = if turns == 0 { 0 } else { (turns - 1) * pages as u64 + page as u64 + 1 };
        self.words[page * PAGE..(page + 1) * PAGE].iter().all(|word| *word == expected)
    }

    fn broken(&self) -> Option<usize> {
        self.broken.or_else(|| (0..self.words.len() / PAGE).find(|page| !self.is_fine(*page)))
    }
}
