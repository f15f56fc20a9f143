//! A full disk: nothing is stored in part, and a collection makes room again. The tests need root.
//! Without it they say that they were skipped, and fail with `CRIU_TESTS=must`.

use std::{collections::HashSet, env, fs, io::Write as _, path::Path, process::Command, time::Duration};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error, FsBlobStore, store::Gc};

use crate::stores::{Folder, files_below};

/// Runs the test on a tmpfs and on an ext4 of 32 MiB each.
fn on_small_disks(test: impl Fn(&Path) + std::panic::RefUnwindSafe) {
    for kind in ["tmpfs", "ext4"] {
        let place = Folder::new();
        let image = place.with_extension("image");
        if let Err(problem) = mount(kind, &place, &image) {
            let said = format!("skipped: no small {kind} can be mounted here: {problem}");
            assert!(env::var_os("CRIU_TESTS").is_none_or(|must| must != "must"), "{said}");
            eprintln!("{said}");
            continue;
        }
        let tried = std::panic::catch_unwind(|| test(&place));
        run(Command::new("umount").arg("-l").arg(&*place)).unwrap();
        let _ = fs::remove_file(&image);
        if let Err(panic) = tried {
            eprintln!("on {kind}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn mount(kind: &str, place: &Path, image: &Path) -> Result<(), String> {
    if kind == "tmpfs" {
        return run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=32m", "none"]).arg(place));
    }
    fs::File::create(image).and_then(|file| file.set_len(32 << 20)).map_err(|error| error.to_string())?;
    // No blocks are reserved for root, so the disk is full for root as well.
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image))?;
    run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(place))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Returns 512 blobs of 4 KiB that do not compress.
fn some(seed: u64) -> Vec<(Digest256, Vec<u8>)> {
    let word = |n: u64| *Digest256::of(&[seed, n].map(u64::to_le_bytes).concat()).as_bytes();
    let blob = |n: u64| (0..128).flat_map(|part| word(n << 8 | part)).collect::<Vec<u8>>();
    (0..512).map(blob).map(|bytes| (Digest256::of(&bytes), bytes)).collect()
}

fn put(store: &FsBlobStore, blobs: &[(Digest256, Vec<u8>)]) -> criu_rpc::Result<()> {
    let batch = store.batch()?;
    let blobs: Vec<_> = blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice())).collect();
    batch.put(&blobs)?;
    batch.commit()
}

/// Stores batches until the disk is full, then fills the rest to the last byte.
fn fill(store: &FsBlobStore, place: &Path) -> Vec<Vec<(Digest256, Vec<u8>)>> {
    let mut stored = Vec::new();
    for seed in 0.. {
        let blobs = some(seed);
        match put(store, &blobs) {
            Ok(()) => stored.push(blobs),
            Err(error) => {
                assert!(matches!(error, Error::Io { .. }), "{error:?}");
                break;
            }
        }
    }
    fill_up(place);
    stored
}

fn fill_up(place: &Path) {
    for (name, size) in [("ballast-1", 1 << 16), ("ballast-2", 4096)] {
        let mut ballast = fs::File::options().append(true).create(true).open(place.join(name)).unwrap();
        while ballast.write_all(&vec![1; size]).is_ok() {}
        let _ = ballast.sync_data(); // what was promised room and gets none
        while ballast.write_all(&vec![1; size]).is_ok() {}
    }
}

fn assert_there(store: &FsBlobStore, blobs: &[(Digest256, Vec<u8>)]) {
    assert!(blobs.iter().all(|(digest, bytes)| store.get(digest).unwrap() == *bytes));
}

fn digests(blobs: &[(Digest256, Vec<u8>)]) -> impl Iterator<Item = Digest256> + '_ {
    blobs.iter().map(|(digest, _)| *digest)
}

#[test]
fn a_full_disk_is_collected() {
    on_small_disks(|place| {
        let root = place.join("store");
        let store = FsBlobStore::open(&root).unwrap();
        let loose = store.put(&[7; 100_000]).unwrap();
        let stored = fill(&store, place);
        assert!(stored.len() > 8, "{}", stored.len());
        // One blob of the first pack is needed, all of the second, and nothing else.
        let keep: HashSet<_> = digests(&stored[0]).take(1).chain(digests(&stored[1])).collect();
        let first = store.retain(&keep, Duration::ZERO).unwrap();
        assert!(first.marked.blobs > 4000, "{first:?}");
        let second = store.retain(&keep, Duration::ZERO).unwrap();
        assert!(second.packs >= stored.len() as u64 - 2, "{second:?}");
        let third = store.retain(&keep, Duration::ZERO).unwrap();
        assert_eq!(third.postponed.blobs, 0, "{third:?}");
        assert!(store.get(&loose).is_err());
        let usage = store.usage().unwrap();
        assert_eq!((usage.blobs.blobs, usage.marked.blobs), (513, 0));
        assert_eq!(store.get(&stored[0][0].0).unwrap(), stored[0][0].1);
        assert_there(&FsBlobStore::open(&root).unwrap(), &stored[1]);
        put(&store, &some(1 << 20)).unwrap();
        assert!(store.verify().unwrap().damage.is_empty());
        // The room is reserved again, for the next time.
        assert!(root.join("gc.room").exists());
    });
}

#[test]
fn a_rewrite_that_finds_no_room_is_postponed_and_loses_nothing() {
    on_small_disks(|place| {
        let store = FsBlobStore::open(place.join("store")).unwrap();
        let stored = fill(&store, place);
        // Half of each pack is needed, so no pack can go without room.
        let halves: Vec<_> = stored.iter().map(|blobs| blobs[..300].to_vec()).collect();
        let keep: HashSet<_> = halves.iter().flat_map(|blobs| digests(blobs)).collect();
        store.retain(&keep, Duration::ZERO).unwrap();
        for _ in 0..3 {
            fill_up(place);
            let gc = store.retain(&keep, Duration::ZERO).unwrap();
            assert!(gc.postponed.blobs > 0, "{gc:?}");
            fill_up(place);
        }
        halves.iter().for_each(|blobs| assert_there(&store, blobs));
        // There is room for one pack, and each rewritten pack makes room for the next.
        fs::remove_file(place.join("ballast-1")).unwrap();
        let mut room = fs::File::create(place.join("ballast-1")).unwrap();
        let _ = room.write_all(&[1; 1000]);
        let mut gc = Gc::default();
        for _ in 0..4 {
            gc = store.retain(&keep, Duration::ZERO).unwrap();
        }
        let left = store.usage().unwrap().marked.blobs;
        halves.iter().for_each(|blobs| assert_there(&store, blobs));
        assert!(left == 0 || gc.postponed.blobs > 0, "{left} are left, and nothing is said: {gc:?}");
    });
}

#[test]
fn what_finds_no_room_leaves_nothing_half() {
    on_small_disks(|place| {
        let root = place.join("store");
        let store = FsBlobStore::open(&root).unwrap();
        let stored = fill(&store, place);
        let before = files_below(&root.join("tmp"));
        assert_eq!(before, Vec::<std::path::PathBuf>::new());
        let blob = some(1 << 21).remove(0).1;
        assert!(matches!(store.put(&blob), Err(Error::Io { .. })));
        assert!(!store.contains(&Digest256::of(&blob)).unwrap());
        assert!(put(&store, &some(1 << 21)).is_err());
        let mut writer = store.writer().unwrap();
        let written = (0..100).try_for_each(|_| writer.write_all(&blob));
        match written {
            Ok(()) => assert!(writer.commit(&Digest256::of(&blob.repeat(100))).is_err()),
            Err(_) => drop(writer),
        }
        assert_eq!(files_below(&root.join("tmp")), before);

        // Damaged blobs are still quarantined, and then purged.
        let pack = fs::read_dir(root.join("packs")).unwrap().next().unwrap().unwrap().path();
        let length = fs::metadata(&pack).unwrap().len();
        fs::File::options().write(true).open(&pack).unwrap().set_len(length - 1).unwrap();
        fill_up(place);
        let damage = store.verify().unwrap();
        assert_eq!(damage.damage.len(), 1);
        store.quarantine(&damage).unwrap();
        assert!(store.verify().unwrap().damage.is_empty());
        let keep: HashSet<_> = digests(&stored[0]).collect();
        let gc = store.purge_all_but(&keep).unwrap();
        assert!(gc.removed.blobs > 4000, "{gc:?}");
        let gc = store.purge_all_but(&keep).unwrap();
        assert_eq!(gc.postponed.blobs, 0, "{gc:?}");
        assert!(
            stored[1..].iter().flat_map(|blobs| digests(blobs)).all(|digest| store.get(&digest).is_err())
        );
        assert!(digests(&stored[0]).filter(|digest| store.get(digest).is_ok()).count() >= 511);
    });
}
