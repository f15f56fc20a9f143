//! Tests that unpacking restores what was packed.

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
fn memory_is_left_out_when_it_is_not_wanted() {
    let scratch = Scratch::new();
    let pages = vec![7; 10_000];
    let archive =
        [file("inventory.img", b"i"), file("pages-1.img", &pages), file("pagemap-1.img", b"map"), end()];
    unpack_without_memory(&archive.concat()[..], &scratch.0, &Limits::default()).unwrap();
    assert_eq!(fs::read(scratch.0.join("pages-1.img")).unwrap(), vec![0; pages.len()]);
    assert_eq!(fs::read(scratch.0.join("pagemap-1.img")).unwrap(), b"map");
}

#[test]
fn trees_are_told_by_their_pids() {
    let scratch = Scratch::new();
    let archive = [file("tree-7/inventory.img", b"7"), file("tree-12/inventory.img", b"12"), end()].concat();
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
    unpack(io::BufReader::new(&mut input), &scratch.0, &Limits::default()).unwrap();
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
    let error = unpack(io::BufReader::new(start.chain(Broken)), &scratch.0, &Limits::default()).unwrap_err();
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
        if self.turn.is_multiple_of(7) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.bytes.read(&mut into[..most])
    }
}
