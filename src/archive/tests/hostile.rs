//! Tests with malicious and damaged archives.

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
    for record in ["15 path=../evil\n", "10 size=9\n", "14 linkpath=x\n", "22 GNU.sparse.major=1\n", "6 x=1"]
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
    assert!(refusal(unpacked(&[file("core-1.img", b"x"), end()].concat())).contains("not a criu capture"));
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
    let endless = io::BufReader::new(whole.chain(io::repeat(0)));
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

/// Returns the problem with an archive of these entries, beyond a missing inventory.
#[track_caller]
fn refused(entries: &[Vec<u8>]) -> String {
    let mut archive = entries.concat();
    archive.append(&mut end());
    let problem = refusal(unpacked(&archive));
    assert!(!problem.contains("not a criu capture"), "the entries were accepted");
    problem
}

/// Unpacks next to a canary file, which must not change.
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
