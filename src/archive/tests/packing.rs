//! Tests of the packer: the files that it takes, and the bytes that it writes.

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
    let mut golden: Vec<_> = GOLDEN.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
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
