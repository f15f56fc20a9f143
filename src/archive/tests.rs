//! What comes out of an archive is what went in, and a hostile one gets nowhere.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{BUFFER, Limits, Trees, header::BLOCK, pack, unpack};
use crate::{Digest256, Error, Result};

mod packing {
    use super::*;

    #[test]
    fn the_bytes_of_an_archive_never_change() {
        let scratch = Scratch::new();
        let one = scratch.images("one", GOLDEN);
        let several = BTreeMap::from([
            (9, scratch.images("nine", &GOLDEN[..1])),
            (10, scratch.images("ten", &GOLDEN[..2])),
        ]);
        golden("archive-v1.tar", &packed(&Trees::One(one)), GOLDEN_DIGEST);
        golden("archive-v1-trees.tar", &packed(&Trees::Several(several)), GOLDEN_TREES_DIGEST);
    }

    #[track_caller]
    fn golden(name: &str, archive: &[u8], digest: &str) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        assert_eq!(Digest256::of(archive).to_string(), digest, "{name}");
        assert!(fs::read(file).unwrap() == archive, "{name}");
    }

    #[test]
    fn what_is_no_image_is_left_out() {
        let scratch = Scratch::new();
        let images = scratch.images("images", GOLDEN);
        let archive = packed(&Trees::One(images.clone()));
        for name in ["dump.log", "stats-restore", "pidfile", "descriptors.json", "lazy-pages.socket"] {
            fs::write(images.join(name), name).unwrap();
        }
        fs::create_dir(images.join("work")).unwrap();
        assert!(packed(&Trees::One(images)) == archive);
    }

    #[test]
    fn an_image_that_cannot_be_carried_is_an_error() {
        for name in ["parent", "no good.img", "-1.img"] {
            let scratch = Scratch::new();
            let images = scratch.images("images", GOLDEN);
            fs::write(images.join(name), "").unwrap();
            assert!(refusal(pack(&Trees::One(images), &mut io::sink())).contains(name), "{name}");
        }
        let scratch = Scratch::new();
        let images = scratch.images("images", GOLDEN);
        fs::create_dir(images.join("pages-2.img")).unwrap();
        assert!(refusal(pack(&Trees::One(images), &mut io::sink())).contains("regular file"));
    }

    #[test]
    fn a_name_too_long_for_its_tree_is_an_error() {
        let scratch = Scratch::new();
        let images = scratch.images("images", GOLDEN);
        fs::write(images.join(format!("{}.img", "a".repeat(96))), "").unwrap();
        packed(&Trees::One(images.clone()));
        let several = Trees::Several(BTreeMap::from([(1, images)]));
        assert!(refusal(pack(&several, &mut io::sink())).contains("too long"));
    }

    #[test]
    fn a_folder_without_an_inventory_is_an_error() {
        let scratch = Scratch::new();
        let images = scratch.images("images", &[("core-1.img", b"x")]);
        assert!(refusal(pack(&Trees::One(images), &mut io::sink())).contains("not a criu capture"));
        assert!(refusal(pack(&Trees::Several(BTreeMap::new()), &mut io::sink())).contains("no tree"));
    }

    #[test]
    fn a_file_that_changes_while_it_is_packed_is_an_error() {
        for (size, how) in [(BUFFER as u64, "shrank"), (4 * BUFFER as u64, "grew")] {
            let scratch = Scratch::new();
            let images = scratch.images("images", &[("inventory.img", &[1; 3 * BUFFER])]);
            let mut meddler = OnWrite(|| {
                let file = fs::File::options().write(true).open(images.join("inventory.img"))?;
                file.set_len(size)
            });
            assert!(refusal(pack(&Trees::One(images.clone()), &mut meddler)).contains(how), "{how}");
        }
    }

    #[test]
    fn an_error_of_ours_comes_back_from_the_writer() {
        let scratch = Scratch::new();
        let images = Trees::One(scratch.images("images", GOLDEN));
        let digest = Digest256::of(b"");
        let mut full = OnWrite(|| Err(io::Error::other(Error::Missing { digest })));
        assert!(matches!(pack(&images, &mut full), Err(Error::Missing { .. })));
        let mut full = OnWrite(|| Err(io::ErrorKind::StorageFull.into()));
        assert!(matches!(pack(&images, &mut full), Err(Error::Io { .. })));
    }

    #[test]
    fn other_programs_read_it() {
        let scratch = Scratch::new();
        let archive = packed(&Trees::One(scratch.images("images", GOLDEN)));
        let mut seen = Vec::new();
        for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            seen.push((entry.path().unwrap().to_str().unwrap().to_owned(), content));
        }
        let mut golden: Vec<_> =
            GOLDEN.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
        golden.sort();
        assert_eq!(seen, golden);
    }

    struct OnWrite<F>(F);

    impl<F: FnMut() -> io::Result<()>> Write for OnWrite<F> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0()?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

mod unpacking {
    use super::*;

    #[test]
    fn any_trees_come_back_and_pack_to_the_same_bytes() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..60 {
            let scratch = Scratch::new();
            let trees = random.trees(&scratch);
            let archive = packed(&trees);
            let into = scratch.folder("into");
            let back = unpack(&archive[..], &into, &Limits::default()).unwrap();
            assert_eq!(matches!(back, Trees::One(_)), matches!(trees, Trees::One(_)));
            assert!(packed(&back) == archive);
        }
    }

    #[test]
    fn trees_are_told_by_their_pids() {
        let scratch = Scratch::new();
        let archive =
            [file("tree-7/inventory.img", b"7"), file("tree-12/inventory.img", b"12"), end()].concat();
        let trees = unpack(&archive[..], &scratch.0, &Limits::default()).unwrap();
        let folder = |pid: i32| (pid, scratch.0.join(format!("tree-{pid}")));
        assert_eq!(trees, Trees::Several(BTreeMap::from([folder(7), folder(12)])));
        assert_eq!(fs::read(scratch.0.join("tree-12").join("inventory.img")).unwrap(), b"12");
    }

    #[test]
    fn archives_of_other_programs_are_read() {
        let scratch = Scratch::new();
        let images = scratch.images("images", GOLDEN);
        fs::write(images.join("dump.log"), "log").unwrap();
        fs::write(images.join("stats-restore"), "stats").unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_dir_all(".", &images).unwrap();
        let mut archive = tar.into_inner().unwrap();
        archive.resize(archive.len().next_multiple_of(10240), 0);

        let into = scratch.folder("into");
        assert_eq!(unpack(&archive[..], &into, &Limits::default()).unwrap(), Trees::One(into.clone()));
        assert_eq!(contents(&into), contents(&scratch.images("expected", GOLDEN)));
    }

    #[test]
    fn folders_and_harmless_attributes_are_passed_over() {
        let times = entry(b"./PaxHeaders/x", b'x', b"30 mtime=1700000000.123456789\n12 comment=\n");
        let archive = [
            entry(b"./", b'5', b""),
            entry(b"./tree-1/", b'5', b""),
            entry(b"tree-2", b'5', b""),
            times,
            file("./tree-1/inventory.img", b"i"),
            file("tree-1/criu.log", b"log"),
            end(),
        ];
        let scratch = Scratch::new();
        let trees = unpack(&archive.concat()[..], &scratch.0, &Limits::default()).unwrap();
        assert_eq!(trees, Trees::Several(BTreeMap::from([(1, scratch.0.join("tree-1"))])));
        assert_eq!(contents(&scratch.0).len(), 2);
    }

    #[test]
    fn a_slow_and_interrupted_reader_is_read_to_its_end() {
        let archive = [file("inventory.img", &[7; 1000]), end(), vec![0; 5000]].concat();
        let mut input = Trickle { bytes: &archive, turn: 0 };
        let scratch = Scratch::new();
        unpack(&mut input, &scratch.0, &Limits::default()).unwrap();
        assert!(input.bytes.is_empty());
        assert_eq!(fs::read(scratch.0.join("inventory.img")).unwrap(), [7; 1000]);
    }

    #[test]
    fn an_error_of_ours_comes_back_from_the_reader() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other(Error::corrupt("blob", "wrong digest")))
            }
        }
        let scratch = Scratch::new();
        let start = file("inventory.img", b"i");
        let error = unpack(start.chain(Broken), &scratch.0, &Limits::default()).unwrap_err();
        assert_eq!(error.to_string(), "blob is damaged: wrong digest");
    }

    struct Trickle<'a> {
        bytes: &'a [u8],
        turn: usize,
    }

    impl Read for Trickle<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.turn += 1;
            let most = into.len().min(self.turn % 7);
            if self.turn % 7 == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.bytes.read(&mut into[..most])
        }
    }
}

mod hostile {
    use super::*;

    #[test]
    fn a_path_that_leads_outside_is_refused() {
        for name in [
            "/inventory.img",
            "//a.img",
            "../a.img",
            "./../a.img",
            "tree-1/../a.img",
            "tree-1/../../a.img",
            "..",
            "a/b.img",
            "tree-1/tree-2/a.img",
            "tree-1//a.img",
            "/tree-1/a.img",
            "tree-01/a.img",
            "tree--1/a.img",
            "tree-+1/a.img",
            "tree-0/a.img",
            "tree-1x/a.img",
            "././a.img",
            "C:a.img",
            "a\\..\\..\\b.img",
            "",
            "/",
            "..\\a.img",
            "tree-1/",
            "tree-1/.",
            "../dump.log",
            "a/dump.log",
            "tree-1/../dump.log",
            "..\\dump.log",
            "../tree-1/a.img",
        ] {
            let problem = refused(&[file(name, b"x")]);
            assert!(problem.contains(&format!("{name:?}")), "{name}: {problem}");
        }
        for folder in ["/", "..", "../", "images/", "tree-1/x/", "tree-01", "/tree-1", "tree-1//"] {
            assert!(
                refused(&[entry(folder.as_bytes(), b'5', b"")]).contains("no folder of this name"),
                "{folder}"
            );
        }
    }

    #[test]
    fn a_path_to_a_file_that_exists_outside_is_refused() {
        let outside = Scratch::new();
        let target = outside.0.join("a.img");
        let name = target.to_str().unwrap();
        fs::write(&target, "precious").unwrap();
        refused(&[file(name, b"x")]);
        assert_eq!(fs::read(target).unwrap(), b"precious");
    }

    #[test]
    fn names_that_no_image_has_are_refused() {
        for name in
            ["evil.sh", "parent", ".img", "inventory.img.", "a b.img", "core-1.img\n", "nul.img", "aux.img"]
        {
            assert!(refused(&[file(name, b"")]).contains("not the name of an image"), "{name}");
        }
        assert!(refused(&[entry(b"\xff.img", b'0', b"")]).contains("UTF-8"));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_by_its_sort() {
        for (kind, problem) in [
            (b'1', "hard link"),
            (b'2', "symbolic link"),
            (b'3', "device"),
            (b'4', "device"),
            (b'6', "fifo"),
            (b'7', "neither"),
            (b'S', "sparse"),
            (b'V', "neither"),
            (b'M', "neither"),
            (b'D', "neither"),
        ] {
            let mut link = entry(b"core-1.img", kind, b"");
            link[157..163].copy_from_slice(b"../../");
            seal(&mut link);
            assert!(refused(&[link, file("core-1.img", b"x")]).contains(problem), "{}", char::from(kind));
        }
        assert!(refused(&[entry(b"./", b'5', b"content")]).contains("folder with content"));
    }

    #[test]
    fn nothing_overrides_what_a_header_says() {
        let long = entry(b"././@LongLink", b'L', b"../../evil.img\0");
        assert!(refused(&[long, file("core-1.img", b"")]).contains("too long"));
        for record in
            ["15 path=../evil\n", "10 size=9\n", "14 linkpath=x\n", "22 GNU.sparse.major=1\n", "6 x=1"]
        {
            let attributes = entry(b"x", b'x', record.as_bytes());
            assert!(refused(&[attributes, file("core-1.img", b"")]).contains("overrides"), "{record}");
        }
        for record in [
            "",
            " ",
            "x",
            "99999999999999999999 a=b\n",
            "0 a=b\n",
            "2 \n",
            "-1 mtime=0\n",
            "11 mtime=0\n15 path=../evil\n",
        ] {
            if !record.is_empty() {
                refused(&[entry(b"x", b'x', record.as_bytes())]);
            }
        }
        assert!(refused(&[entry(b"x", b'x', &[b' '; 70_000])]).contains("too large"));
        assert!(refused(&[entry(b"x", b'g', b"15 path=../evil\n")]).contains("of all entries"));

        let mut split = file("core-1.img", b"");
        split[257..265].copy_from_slice(b"ustar\x0000");
        split[345..347].copy_from_slice(b"..");
        seal(&mut split);
        assert!(refused(&[split]).contains("too long"));
    }

    #[test]
    fn an_entry_that_is_there_twice_is_refused() {
        assert!(refused(&[file("core-1.img", b"1"), file("core-1.img", b"2")]).contains("twice"));
        assert!(refused(&[file("core-1.img", b"1"), file("./core-1.img", b"2")]).contains("twice"));
        assert!(refused(&[file("tree-1/a.img", b"1"), file("tree-1/a.img", b"2")]).contains("twice"));
    }

    #[test]
    fn trees_at_the_top_and_in_folders_do_not_mix() {
        let (top, tree) = (file("inventory.img", b""), file("tree-1/inventory.img", b""));
        assert!(refused(&[top.clone(), tree.clone()]).contains("one tree is at the top"));
        assert!(refused(&[tree, top]).contains("one tree is at the top"));
    }

    #[test]
    fn what_has_no_inventory_is_no_capture() {
        assert!(refusal(unpacked(&end())).contains("not a criu capture"));
        assert!(
            refusal(unpacked(&[file("core-1.img", b"x"), end()].concat())).contains("not a criu capture")
        );
        let archive = [file("tree-1/inventory.img", b""), file("tree-2/core-2.img", b""), end()];
        assert!(refusal(unpacked(&archive.concat())).contains("in tree-2"));
    }

    #[test]
    fn json_is_told_from_an_archive() {
        assert!(refusal(unpacked(br#"{"kind":"procs.criu.v1"}"#)).contains("JSON"));
        assert!(refusal(unpacked(&[b'{'; 5000])).contains("JSON"));
    }

    #[test]
    fn an_archive_cut_short_anywhere_is_refused() {
        let archive = [file("inventory.img", &[1; 1300]), file("core-1.img", b"x"), end()].concat();
        unpacked(&archive).unwrap();
        for length in (0..archive.len()).filter(|length| [0, 1, 2, 300, 511].contains(&(length % BLOCK))) {
            assert!(refusal(unpacked(&archive[..length])).contains("cut short"), "{length}");
        }
    }

    #[test]
    fn what_follows_the_end_is_refused() {
        let whole = [file("inventory.img", b""), end()].concat();
        unpacked(&[&whole[..], &[0; 9000]].concat()).unwrap();
        for junk in [&b"x"[..], &[[0; BLOCK], [1; BLOCK]].concat(), &file("core-1.img", b"")] {
            assert!(refusal(unpacked(&[&whole, junk].concat())).contains("follows its end"));
        }
        let scratch = Scratch::new();
        let endless = whole.chain(io::repeat(0));
        assert!(refusal(unpack(endless, &scratch.0, &Limits::default())).contains("too many zeros"));
        let block = vec![0; BLOCK];
        refusal(unpacked(&[file("inventory.img", b""), block, file("core-1.img", b""), end()].concat()));
    }

    #[test]
    fn ceilings_hold_whatever_sort_an_entry_is_of() {
        let limits = Limits { entries: 3, bytes: 10 };
        let bounded = |archive: &[Vec<u8>]| {
            let scratch = Scratch::new();
            unpack(&[archive.concat(), end()].concat()[..], &scratch.0, &limits)
        };
        let (inventory, folder) = (file("inventory.img", b""), entry(b"./", b'5', b""));
        bounded(&[inventory.clone(), folder.clone(), file("a.log", &[0; 10])]).unwrap();
        let many = [inventory.clone(), folder.clone(), folder, file("a.log", b"")];
        assert!(refusal(bounded(&many)).contains("one entry too many"));
        let large = [inventory, file("a.log", &[0; 6]), file("core-1.img", &[0; 5])];
        assert!(refusal(bounded(&large)).contains("it has 5 bytes, 4 more are allowed"));
    }

    #[test]
    fn a_declared_size_is_not_believed() {
        for size in [1 << 33, 1 << 50, u64::MAX - 511, u64::MAX] {
            let mut bomb = file("pages-1.img", b"");
            bomb[124..136].fill(0);
            bomb[124] = 0x80;
            bomb[128..136].copy_from_slice(&u64::to_be_bytes(size));
            seal(&mut bomb);
            let problem = refused(&[bomb.clone()]);
            assert!(problem.contains("allowed") || problem.contains("cut short"), "{problem}");

            let scratch = Scratch::new();
            let limits = Limits { entries: u64::MAX, bytes: u64::MAX };
            assert!(refusal(unpack(&bomb[..], &scratch.0, &limits)).contains("cut short"));
        }
    }

    #[test]
    fn a_damaged_header_is_refused() {
        let mut damaged = file("core-1.img", b"");
        damaged[130] ^= 1;
        assert!(refused(&[damaged]).contains("header is damaged"));
        let mut nameless = file("core-1.img", b"");
        nameless[257..265].fill(0);
        seal(&mut nameless);
        assert!(refused(&[nameless]).contains("unknown sort of tar"));
        refused(&[vec![0xff; BLOCK]]);
    }

    #[test]
    fn random_damage_neither_panics_nor_gets_outside() {
        let mut random = Random(42);
        let times = entry(b"x", b'x', b"11 mtime=0\n");
        let whole =
            [file("tree-1/inventory.img", b"x"), times, file("tree-1/core-1.img", &[5; 600]), end()].concat();
        let scratch = Scratch::new();
        let canary = scratch.images("canary", GOLDEN);
        for round in 0..400 {
            let mut archive = whole.clone();
            for _ in 0..=random.below(3) {
                let (at, byte) = (random.below(archive.len()), random.next().to_le_bytes()[0]);
                archive[at] = byte;
            }
            for header in [0, 1024, 2048] {
                seal(&mut archive[header..header + BLOCK]);
            }
            let into = scratch.folder(&format!("into-{round}"));
            let _ = unpack(&archive[..], &into, &Limits::default());
            fs::remove_dir_all(into).unwrap();
            assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
        }
        assert_eq!(contents(&canary).len(), GOLDEN.len());
    }

    /// The problem with an archive of these entries, if it is more than a missing inventory.
    #[track_caller]
    fn refused(entries: &[Vec<u8>]) -> String {
        let mut archive = entries.concat();
        archive.append(&mut end());
        let problem = refusal(unpacked(&archive));
        assert!(!problem.contains("not a criu capture"), "the entries were accepted");
        problem
    }

    /// Unpacks beside a canary, which must not change.
    #[track_caller]
    fn unpacked(archive: &[u8]) -> Result<()> {
        let scratch = Scratch::new();
        scratch.images("canary", GOLDEN);
        fs::write(scratch.0.join("a.img"), "canary").unwrap();
        let before = contents(&scratch.0);
        let into = scratch.folder("into");
        let result = unpack(archive, &into, &Limits::default());
        fs::remove_dir_all(into).unwrap();
        assert_eq!(contents(&scratch.0), before);
        result.map(drop)
    }
}

/// The problem that an [`Error::Corrupt`] tells of, and of what.
#[track_caller]
fn refusal<T>(result: Result<T>) -> String {
    match result {
        Err(error @ Error::Corrupt { .. }) => error.to_string(),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[track_caller]
fn packed(trees: &Trees) -> Vec<u8> {
    let mut archive = Vec::new();
    let count = pack(trees, &mut archive).unwrap();
    assert_eq!(count, archive.len() as u64);
    archive
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    entry(name.as_bytes(), b'0', content)
}

/// An entry as the tar crate makes it, if it made one like this at all.
fn entry(name: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut entry = header.as_bytes().to_vec();
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(BLOCK), 0);
    entry
}

/// Makes the checksum right again.
fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..BLOCK].iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

/// All files and folders beneath one, and what is in the files.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
                all.insert(name, None);
            } else {
                all.insert(name, Some(fs::read(path).unwrap()));
            }
        }
    }
    all
}

/// Numbers that are the same in each run (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn trees(&mut self, scratch: &Scratch) -> Trees {
        match self.below(4) {
            0 => Trees::One(self.images(scratch, 1)),
            count => Trees::Several(
                (0..count)
                    .map(|_| 1 + self.below(1 << 22))
                    .map(|pid| i32::try_from(pid).unwrap())
                    .collect::<Vec<_>>()
                    .into_iter()
                    .map(|pid| (pid, self.images(scratch, pid)))
                    .collect(),
            ),
        }
    }

    fn images(&mut self, scratch: &Scratch, pid: i32) -> PathBuf {
        let folder = scratch.images(&format!("images-{pid}"), &[("inventory.img", b"i")]);
        for _ in 0..self.below(12) {
            let name = format!("core-{}.img", self.below(99));
            let size =
                [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 4096, self.below(9000), BUFFER + self.below(BUFFER)];
            let size = size[self.below(size.len())];
            let content: Vec<u8> = (0..size).map(|_| self.next().to_le_bytes()[0]).collect();
            fs::write(folder.join(name), content).unwrap();
        }
        folder
    }
}

/// A folder that goes away with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("criu-rpc-archive-{}-{number}", process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    fn images(&self, folder: &str, images: &[(&str, &[u8])]) -> PathBuf {
        let path = self.folder(folder);
        for (name, content) in images {
            fs::write(path.join(name), content).unwrap();
        }
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const GOLDEN: &[(&str, &[u8])] = &[
    ("inventory.img", b"the inventory"),
    ("core-4242.img", &[0xc0; 600]),
    ("pages-1.img", &[0x5a; BLOCK]),
    ("seccomp.img", b""),
    ("stats-dump", b"the statistics"),
    ("tmpfs-17.tar.gz.img", b"a tmpfs"),
];

const GOLDEN_DIGEST: &str = "sha256:598b7ab43365cc923148ab639794b5507b37b66f44746b5cced1de8a04712e14";
const GOLDEN_TREES_DIGEST: &str = "sha256:597ffdc166be5dc75ae6d31827f349a95542e21059c597a31dfd6b69c96fb474";
