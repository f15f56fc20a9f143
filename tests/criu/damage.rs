//! Nothing that is damaged reaches criu.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use criu_rpc::{BlobStore, Digest256, Error, ProcsBlob, Stored};

use crate::{
    harness::tests,
    places::{Home, file_of, lives, state},
    tree::{OrExplain, Revived, Victim, explain, wait_gone},
};

tests![
    a_damaged_archive_is_refused_wherever_the_damage_is,
    a_damaged_manifest_is_refused,
    an_archive_without_an_image_that_criu_needs_is_refused,
    an_archive_whose_pages_are_cut_short_is_refused,
];

/// A capture of a victim that is gone, and the files that it is stored in.
struct Captured {
    home: Home,
    stored: Stored,
    pid: i32,
    members: Vec<i32>,
}

impl Captured {
    #[track_caller]
    fn new() -> Captured {
        let home = Home::new();
        let victim = Victim::start(&["children=1"]);
        let (pid, members) = (victim.pid(), victim.members());
        let stored = home.capture([pid]).run(&home.store()).or_explain();
        victim.end();
        Captured { home, stored, pid, members }
    }

    fn archive(&self) -> Digest256 {
        match &self.stored.manifest {
            ProcsBlob::Criu { criu_dump, .. } => *criu_dump,
            other => panic!("{other:?}"),
        }
    }

    fn file(&self, digest: &Digest256) -> PathBuf {
        file_of(&self.home.path("store"), digest)
    }

    /// Tries to revive it, in vain.
    #[track_caller]
    fn refused(&self, digest: &Digest256, what: &str) -> Error {
        let nothing = || File::options().read(true).write(true).open("/dev/null").unwrap();
        let restore = self.home.restore().stdin(nothing()).stdout(nothing());
        let error = match restore.restore(&self.home.store(), digest) {
            Err(error) => error,
            Ok(mut restored) => {
                for tree in &mut restored.trees {
                    tree.kill().unwrap();
                    tree.wait().unwrap();
                }
                panic!("revived, although {what}");
            }
        };
        assert_eq!(state(self.pid), None, "{what}: something was revived");
        assert!(!self.members.iter().any(|pid| lives(*pid)), "{what}: something was left running");
        wait_gone(&self.members);
        self.home.assert_staging_empty();
        error
    }

    /// The undamaged one can be revived, of course.
    #[track_caller]
    fn assert_good(&self) {
        Revived::from(self.home.restore(), &self.home.store(), &self.stored.digest).assert_counts_on(0);
    }
}

fn a_damaged_archive_is_refused_wherever_the_damage_is() {
    let captured = Captured::new();
    let file = captured.file(&captured.archive());
    let good = fs::read(&file).unwrap();
    let end = good.len();
    for place in [0, 100, 511, 512, end / 3, end / 2, end - 2000, end - 1] {
        let mut bad = good.clone();
        bad[place] ^= 0x10;
        overwrite(&file, &bad);
        let error = captured.refused(&captured.stored.digest, &format!("bit at {place}"));
        assert!(matches!(error, Error::Corrupt { .. }), "{place}: {}", explain(&error));
    }
    for length in [0, 1, 512, end / 2, end - 512, end - 1] {
        overwrite(&file, &good[..length]);
        let error = captured.refused(&captured.stored.digest, &format!("cut to {length}"));
        assert!(matches!(error, Error::Corrupt { .. }), "{length}: {}", explain(&error));
    }
    overwrite(&file, &[&good[..], &[0; 512]].concat());
    let error = captured.refused(&captured.stored.digest, "longer");
    assert!(matches!(error, Error::Corrupt { .. }), "{}", explain(&error));

    fs::remove_file(&file).unwrap();
    let error = captured.refused(&captured.stored.digest, "missing");
    assert!(
        matches!(error, Error::Missing { digest, .. } if digest == captured.archive()),
        "{}",
        explain(&error)
    );

    overwrite(&file, &good);
    captured.assert_good();
}

fn a_damaged_manifest_is_refused() {
    let captured = Captured::new();
    let file = captured.file(&captured.stored.digest);
    let good = fs::read(&file).unwrap();
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 1;
        overwrite(&file, &bad);
        let error = captured.refused(&captured.stored.digest, &format!("bit at {place}"));
        assert!(matches!(error, Error::Corrupt { .. }), "{place}: {}", explain(&error));
    }
    fs::remove_file(&file).unwrap();
    let error = captured.refused(&captured.stored.digest, "missing");
    assert!(matches!(error, Error::Missing { .. }), "{}", explain(&error));
    overwrite(&file, &good);
    captured.assert_good();
}

fn an_archive_without_an_image_that_criu_needs_is_refused() {
    let captured = Captured::new();
    let store = captured.home.store();
    let archive = store.get(&captured.archive()).unwrap();
    let core = format!("core-{}.img", captured.pid);
    let mm = format!("mm-{}.img", captured.pid);
    for missing in ["inventory.img", "pstree.img", &core, &mm] {
        let shorter = store.put(&without(&archive, missing)).unwrap();
        let manifest = ProcsBlob::Criu { criu_dump: shorter, pids: vec![captured.pid.into()] };
        let digest = store.put(&manifest.to_json()).unwrap();
        captured.refused(&digest, &format!("{missing} is missing"));
    }
    captured.assert_good();
}

fn an_archive_whose_pages_are_cut_short_is_refused() {
    // criu would wait for the missing pages for ever.
    let captured = Captured::new();
    let store = captured.home.store();
    let archive = store.get(&captured.archive()).unwrap();
    let shorter =
        store.put(&edited(&archive, "pages-1.img", |pages| pages.truncate(pages.len() - 4096))).unwrap();
    let manifest = ProcsBlob::Criu { criu_dump: shorter, pids: vec![captured.pid.into()] };
    let digest = store.put(&manifest.to_json()).unwrap();
    let error = captured.refused(&digest, "pages are missing");
    assert!(
        matches!(&error, Error::Corrupt { what, .. } if what.contains("pages-1.img")),
        "{}",
        explain(&error)
    );
}

/// The archive without one of its files.
fn without(archive: &[u8], name: &str) -> Vec<u8> {
    rebuilt(archive, name, |_| false)
}

/// The archive with one of its files changed.
fn edited(archive: &[u8], name: &str, edit: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    rebuilt(archive, name, |content| {
        edit(content);
        true
    })
}

/// The archive with one of its files changed, or left out.
fn rebuilt(archive: &[u8], name: &str, keep: impl Fn(&mut Vec<u8>) -> bool) -> Vec<u8> {
    let mut new = tar::Builder::new(Vec::new());
    let mut found = 0;
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if entry.path().unwrap() == Path::new(name) {
            found += 1;
            if !keep(&mut content) {
                continue;
            }
        }
        let mut header = entry.header().clone();
        header.set_size(content.len() as u64);
        header.set_cksum();
        new.append(&header, &content[..]).unwrap();
    }
    assert_eq!(found, 1, "{name}");
    new.into_inner().unwrap()
}

fn overwrite(file: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(file); // it may be read-only, or gone
    File::create(file).unwrap().write_all(bytes).unwrap();
}
