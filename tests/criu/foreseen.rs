//! The preflight of a restore finds what the restore then fails with, and a restore that it finds
//! clear succeeds.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::{
        fs::{MetadataExt, chown, symlink},
        process::CommandExt,
    },
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use criu_rpc::{BlobStore, Cancel, Cause, Chunking, Digest256, DumpOptions, Error, Foresight, GrownFiles, MemBlobStore, ProcsBlob, ProcsRestore, options::External, stored::reachable};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::stat::Mode,
    unistd::mkfifo,
};

use crate::{
    harness::tests,
    holders::{Sleeper, captured_with_a_follower},
    places::Home,
    program::{Program, Way, in_each_way, on_pipes},
    tree::{OrExplain, Revived, Victim, explain},
    ways::Script,
};

tests![
    files_that_are_not_as_they_were,
    files_that_went_on,
    pids_of_a_tree_that_lives,
    numbers_that_are_groups,
    a_group_whose_leader_is_gone_needs_its_number,
    a_placeholder_blocks_and_a_marked_capture_is_a_risk,
    memory_is_not_read_and_what_the_store_lacks_is_told,
    a_damaged_archive,
    a_criu_that_is_not_there_or_is_none,
    a_machine_that_lacks_instructions,
    an_external_file_that_is_not_lent,
    several_trees_are_all_looked_at,
    no_tree_runs_before_all_are_checked,
    a_look_ends_at_its_deadline_and_when_it_is_cancelled,
];

/// The preflight blocks for this cause alone, and the restore fails with it. Both say these words.
#[track_caller]
fn assert_blocks(restore: &ProcsRestore, store: &impl BlobStore, digest: &Digest256, cause: Cause, words: &str) {
    let foresight = restore.preflight(store, digest).or_explain();
    let said = foresight.blocks.iter().any(|finding| finding.to_string().contains(words));
    let alone = foresight.blocks.iter().all(|finding| finding.cause == Some(cause) && finding.cure.is_some());
    assert!(said && alone && !foresight.is_clear(), "{words}: {foresight:#?}");
    let error = restore.restore(store, digest).unwrap_err();
    let agrees = error.failure().is_some_and(|failure| failure.cause == cause);
    assert!(agrees && error.report().to_string().contains(words), "{words}: {}", explain(&error));
}

#[track_caller]
fn assert_clear(restore: &ProcsRestore, store: &impl BlobStore, digest: &Digest256) -> Foresight {
    let foresight = restore.preflight(store, digest).or_explain();
    assert!(foresight.is_clear() && foresight.processes > 0, "{foresight:#?}");
    foresight
}

const ANSWERS: &str = "echo ready; while read line; do echo \"$line\"; done";

#[track_caller]
fn captured(way: Way, home: &Home, script: &str) -> (criu_rpc::FsBlobStore, Digest256) {
    let mut program = Program::bash(&format!("cd {}; {script}; {ANSWERS}", home.word()));
    assert_eq!(program.talk.hear(), "ready");
    way.captured(home, program)
}

fn files_that_are_not_as_they_were() {
    in_each_way(|way, home| {
        let own = home.folder("own");
        let (file, lock) = (own.join("file"), own.join("lock"));
        for path in [&file, &lock] {
            fs::write(path, "text\n").unwrap();
        }
        let (store, digest) = captured(way, home, "exec 3<>own/file 5<>own/lock; flock 5");
        let restore = home.restore();
        assert_eq!(assert_clear(&restore, &store, &digest).risks, []);
        let try_lock = || {
            let file = File::options().write(true).open(&lock).unwrap();
            Flock::lock(file, FlockArg::LockExclusiveNonblock)
        };

        let taken = try_lock().expect("a look locks nothing");
        assert_blocks(&restore, &store, &digest, Cause::LockTaken, &format!("by process {}", std::process::id()));
        drop(taken);

        let away = home.path("away");
        fs::rename(&file, &away).unwrap();
        assert_blocks(&restore, &store, &digest, Cause::FileChanged, "own/file: there is no such file");
        // criu would wait until a process writes into it.
        mkfifo(&file, Mode::S_IRWXU).unwrap();
        let words = "own/file: it is a named pipe now, and was a regular file at the capture";
        assert_blocks(&home.restore().replaced_files(true), &store, &digest, Cause::FileChanged, words);
        fs::remove_file(&file).unwrap();
        symlink(&away, &file).unwrap();
        assert_blocks(&restore, &store, &digest, Cause::FileReplaced, "own/file is a link to");
        fs::remove_file(&file).unwrap();
        fs::rename(&away, &file).unwrap();
        chown(&file, Some(1000), None).unwrap();
        assert_blocks(&restore, &store, &digest, Cause::FileReplaced, "belongs to user 1000");
        assert_clear(&home.restore().replaced_files(true), &store, &digest);

        // All of them are told at once.
        let taken = try_lock().unwrap();
        fs::write(&file, "another text\n").unwrap();
        let foresight = restore.preflight(&store, &digest).or_explain();
        let causes: HashSet<_> = foresight.blocks.iter().filter_map(|finding| finding.cause).collect();
        let all = [Cause::LockTaken, Cause::FileReplaced, Cause::FileChanged];
        assert_eq!(causes, HashSet::from(all), "{foresight:#?}");
        drop(taken);
        chown(&file, Some(0), None).unwrap();
        fs::write(&file, "text\n").unwrap();

        let inode = fs::metadata(&file).unwrap().ino();
        assert_clear(&restore, &store, &digest);
        home.assert_staging_empty();
        assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
        assert_eq!(on_pipes(restore, &store, &digest).ask("hello"), "hello");
    });
}

fn files_that_went_on() {
    let home = Home::new();
    let (data, log) = (home.path("data"), home.path("log"));
    fs::write(&data, "text\n").unwrap();
    let way = Way { leave_running: true, chunked: true };
    let (store, digest) = captured(way, &home, "exec 3<>data 4>log; echo one >&4");
    for path in [&data, &log] {
        let text = fs::read_to_string(path).unwrap() + "more\n";
        fs::write(path, text).unwrap();
    }
    let with = |choice| home.restore().grown_files(choice);
    let risks = |choice| -> Vec<String> {
        let foresight = with(choice).preflight(&store, &digest).or_explain();
        foresight.risks.iter().map(ToString::to_string).collect()
    };
    assert_blocks(&home.restore(), &store, &digest, Cause::FileChanged, "data: it has 10 bytes, and had 5");
    assert!(risks(GrownFiles::Continue)[0].contains("log grew from 4 to 9"));
    assert_blocks(&with(GrownFiles::Refuse), &store, &digest, Cause::FileChanged, "log: it has 9 bytes");
    for (choice, words) in [(GrownFiles::Keep, "can write over"), (GrownFiles::CutBack, "will be cut back")] {
        assert_clear(&with(choice), &store, &digest);
        let risks = risks(choice);
        let said = risks.iter().filter(|risk| risk.contains(words) && risk.contains("grown_files")).count();
        assert_eq!((risks.len(), said), (2, 2), "{risks:?}");
        assert_eq!(fs::read_to_string(&data).unwrap(), "text\nmore\n");
        if choice == GrownFiles::CutBack {
            assert_eq!(on_pipes(with(choice), &store, &digest).ask("hello"), "hello");
            assert_eq!(fs::read_to_string(&data).unwrap(), "text\n");
        }
    }
}

fn pids_of_a_tree_that_lives() {
    for chunked in [false, true] {
        let home = Home::new();
        let store = home.store();
        let victim = Victim::start(&["children=1", "threads=1"]);
        let way = Way { leave_running: true, chunked };
        let digest = way.capture(&home, [victim.pid()]).capture(&store).or_explain();
        let restore = home.restore();
        for pid in victim.members() {
            let words = format!("pid {pid} is held by");
            assert_blocks(&restore, &store, &digest, Cause::PidInUse, &words);
        }
        assert_eq!(restore.preflight(&store, &digest).unwrap().processes, victim.members().len());
        victim.end();
        assert_clear(&restore, &store, &digest);
        Revived::from(restore, &store, &digest).assert_counts_on(0);
    }
}

fn numbers_that_are_groups() {
    let home = Home::new();
    let store = home.store();
    let (_, digest, mut follower) = captured_with_a_follower(&home, &store);
    let restore = home.restore().wait_for_pids(Duration::from_millis(50));
    let words = format!("held as a process group by process {}", follower.0.id());
    assert_blocks(&restore, &store, &digest, Cause::PidInUse, &words);

    // A zombie is waited for, in vain here.
    follower.0.kill().unwrap();
    crate::places::wait_until("it is a zombie", || {
        crate::places::state(i32::try_from(follower.0.id()).unwrap()) == Some('Z')
    });
    let foresight = assert_clear(&restore, &store, &digest);
    let risk = foresight.risks.iter().find(|risk| risk.cause == Some(Cause::PidInUse)).expect("it is a risk");
    assert!(risk.to_string().contains("zombie") && risk.to_string().contains("wait_for_pids"), "{risk}");
    let error = restore.restore(&store, &digest).unwrap_err();
    assert_eq!(error.failure().map(|failure| failure.cause), Some(Cause::PidInUse), "{}", explain(&error));
    drop(follower);
    Revived::from(restore, &store, &digest).assert_counts_on(0);
}

/// criu makes a process for such a group, which needs the number.
fn a_group_whose_leader_is_gone_needs_its_number() {
    for chunked in [false, true] {
        let home = Home::new();
        let store = home.store();
        let mut command = Command::new("perl");
        command.process_group(0).args([
            "-e",
            "use POSIX; use strict; $| = 1; pipe(my $r, my $w); my $leader = fork; \
             if (!$leader) { setpgid(0, 0); sysread(STDIN, my $b, 1) if 0; <$r>; POSIX::_exit(0); } \
             setpgid($leader, $leader); my $member = fork; \
             if (!$member) { close $w; setpgid(0, $leader); open(STDIN, '<', '/dev/null'); \
             open(STDOUT, '>', '/dev/null'); sleep 1000 while 1; } \
             select(undef, undef, undef, 0.001) until getpgrp($member) == $leader; \
             print $w \"go\\n\"; close $w; waitpid($leader, 0); print \"ready $$\\n\"; \
             while (<STDIN>) { print \"$leader\\n\" } kill 9, $member; waitpid($member, 0);",
        ]);
        let mut victim = Script::by(command);
        let group: i32 = victim.ask("?").parse().unwrap();
        let members = victim.members();
        let way = crate::ways::Way { ends: false, chunked };
        let digest = way.capture(&home, victim.pid()).capture(&store).or_explain();
        let follower = Sleeper::in_group(group);
        victim.end(&members, way);
        let words = format!("pid {group} is held as a process group by process {}", follower.0.id());
        assert_blocks(&home.restore(), &store, &digest, Cause::PidInUse, &words);
        drop(follower);
        assert_clear(&home.restore(), &store, &digest);
        let mut revived = Revived::from(home.restore(), &store, &digest);
        assert_eq!(revived.ask("?"), group.to_string());
    }
}

fn a_placeholder_blocks_and_a_marked_capture_is_a_risk() {
    let home = Home::new();
    let store = home.store();
    let placeholder = ProcsBlob::Unsupported { unsupported_on: "macos".into(), note: "a note".into() };
    let digest = store.put(&placeholder.to_json()).unwrap();
    let foresight = home.restore().preflight(&store, &digest).or_explain();
    assert!(!foresight.is_clear() && foresight.processes == 0, "{foresight:?}");
    assert!(foresight.blocks[0].to_string().contains("a note"), "{foresight:?}");

    let victim = Victim::start(&[]);
    let digest = home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
    victim.end();
    store.gc(&[], Duration::from_secs(3600)).unwrap();
    assert!(store.is_marked(&digest).unwrap());
    let foresight = assert_clear(&home.restore(), &store, &digest);
    assert!(foresight.risks.iter().any(|risk| risk.to_string().contains("marked for deletion")), "{foresight:?}");
}

/// A store without one blob, that counts how often it gives out a page of memory.
#[derive(Debug)]
struct Counting {
    inner: MemBlobStore,
    lacks: Option<Digest256>,
    pages: AtomicUsize,
}

impl BlobStore for Counting {
    fn put(&self, bytes: &[u8]) -> criu_rpc::Result<Digest256> {
        self.inner.put(bytes)
    }

    fn get(&self, digest: &Digest256) -> criu_rpc::Result<Vec<u8>> {
        if self.lacks == Some(*digest) {
            return Err(Error::missing(digest));
        }
        let bytes = self.inner.get(digest)?;
        self.pages.fetch_add(usize::from(bytes.len() == 4096), Ordering::Relaxed);
        Ok(bytes)
    }

    fn contains(&self, digest: &Digest256) -> criu_rpc::Result<bool> {
        Ok(self.lacks != Some(*digest) && self.inner.contains(digest)?)
    }
}

fn memory_is_not_read_and_what_the_store_lacks_is_told() {
    let home = Home::new();
    let mut store = Counting { inner: MemBlobStore::new(), lacks: None, pages: AtomicUsize::new(0) };
    let victim = Victim::start(&["memory=4"]);
    let digest = home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
    victim.end();
    let all = reachable(&store, &[digest]).unwrap();
    store.pages.store(0, Ordering::Relaxed);
    for check in [false, true] {
        assert_clear(&home.restore().check_memory(check), &store, &digest);
        assert_eq!(store.pages.load(Ordering::Relaxed), 0, "memory was read");
    }
    let is_page = |blob: &&Digest256| store.inner.get(blob).unwrap().len() == 4096;
    let page = *all.iter().find(is_page).unwrap();
    for lacks in [page, digest] {
        store.lacks = Some(lacks);
        let foresight = home.restore().check_memory(true).preflight(&store, &digest).or_explain();
        assert!(foresight.blocks.iter().any(|finding| finding.to_string().contains(&lacks.to_string())), "{foresight:?}");
        let error = home.restore().restore(&store, &digest).unwrap_err();
        assert!(matches!(error, Error::Missing { digest, .. } if digest == lacks), "{}", explain(&error));
    }
    store.lacks = None;
    home.restore().restore(&store, &digest).or_explain().into_tree().unwrap().kill_and_wait().unwrap();
    assert!(store.pages.load(Ordering::Relaxed) > 0, "pages of memory are counted");
    home.assert_staging_empty();
}

fn a_damaged_archive() {
    let home = Home::new();
    let store = MemBlobStore::new();
    let victim = Victim::start(&["memory=1"]);
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.end();
    let ProcsBlob::Criu { criu_dump, pids } = ProcsBlob::from_json(&store.get(&digest).unwrap()).unwrap()
    else {
        panic!("it is no archive")
    };
    let archive = store.get(&criu_dump).unwrap();
    let cut = store.put(&archive[..archive.len() / 2]).unwrap();
    let manifest = ProcsBlob::Criu { criu_dump: cut, pids };
    let damaged = store.put(&manifest.to_json()).unwrap();
    let foresight = home.restore().preflight(&store, &damaged).or_explain();
    assert!(!foresight.is_clear(), "{foresight:?}");
    let error = home.restore().restore(&store, &damaged).unwrap_err();
    assert!(foresight.blocks[0].to_string().starts_with(&error.to_string()), "{foresight:?}: {error}");
    home.assert_staging_empty();
}

fn a_criu_that_is_not_there_or_is_none() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&[]);
    let digest = home.capture([victim.pid()]).capture(&store).or_explain();
    victim.end();
    let foresight = home.restore().criu("/nonexistent/criu").preflight(&store, &digest).or_explain();
    assert_eq!(foresight.blocks[0].cause, Some(Cause::NoCriu), "{foresight:?}");
    let error = home.restore().criu("/nonexistent/criu").restore(&store, &digest).unwrap_err();
    assert!(matches!(error, Error::NoCriu { .. }), "{error}");
    assert_blocks(&home.restore().criu("/bin/true"), &store, &digest, Cause::NotCriu, "criu");
    home.assert_staging_empty();
}

fn a_machine_that_lacks_instructions() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&[]);
    let digest = home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
    victim.end();
    let ProcsBlob::Chunked(mut blob) = ProcsBlob::from_json(&store.get(&digest).unwrap()).unwrap() else {
        panic!("it is not chunked")
    };
    blob.host.cpu.push("avx9000".to_owned());
    blob.host.kernel = "99.0".to_owned();
    let other = store.put(&ProcsBlob::Chunked(blob).to_json()).unwrap();
    let foresight = home.restore().preflight(&store, &other).or_explain();
    assert!(foresight.blocks[0].to_string().contains("avx9000"), "{foresight:?}");
    assert!(foresight.blocks[0].cure.as_ref().is_some_and(|cure| cure.contains("any_host")), "{foresight:?}");
    assert!(foresight.risks.iter().any(|risk| risk.to_string().contains("older than the 99.0")), "{foresight:?}");
    assert!(matches!(home.restore().restore(&store, &other), Err(Error::Host { .. })));
    assert_clear(&home.restore().any_host(true), &store, &other);
}

fn an_external_file_that_is_not_lent() {
    for chunked in [false, true] {
        let home = Home::new();
        let store = home.store();
        let path = home.path("file");
        fs::write(&path, "theirs\n").unwrap();
        let mut program = Program::bash(&format!("exec 3<{}; {ANSWERS}", path.display()));
        assert_eq!(program.talk.hear(), "ready");
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/3", program.pid())).unwrap();
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap().trim().parse().unwrap();
        let external = External::File { mount, inode: fs::metadata(&path).unwrap().ino() };
        let way = Way { leave_running: true, chunked };
        let capture = way.capture(&home, [program.pid()]);
        let capture = capture.options(DumpOptions::default().external(external.clone()));
        let digest = capture.capture(&store).or_explain();
        program.end();
        let key = external.to_string();
        assert_blocks(&home.restore(), &store, &digest, Cause::InheritedFile, &key);
        let restore = home.restore().inherit(key, File::open(&path).unwrap());
        assert_clear(&restore, &store, &digest);
        assert_eq!(on_pipes(restore, &store, &digest).ask("hello"), "hello");
    }
}

fn several_trees_are_all_looked_at() {
    let home = Home::new();
    let store = home.store();
    let paths = ["one", "two"].map(|name| home.path(name));
    let programs = paths.each_ref().map(|path| {
        let mut program = Program::bash(&format!("exec 3>{}; {ANSWERS}", path.display()));
        assert_eq!(program.talk.hear(), "ready");
        program
    });
    let pids = programs.each_ref().map(Program::pid);
    let digest = home.capture(pids).capture(&store).or_explain();
    programs.into_iter().for_each(Program::end);
    assert_eq!(assert_clear(&home.restore(), &store, &digest).processes, 2);
    paths.iter().for_each(|path| fs::remove_file(path).unwrap());
    let foresight = home.restore().preflight(&store, &digest).or_explain();
    for path in &paths {
        let told = |line: String| line.contains(&format!("{}: there is no such file", path.display()));
        assert!(foresight.blocks.iter().any(|finding| told(finding.to_string())), "{foresight:?}");
    }
    home.assert_staging_empty();
}

fn no_tree_runs_before_all_are_checked() {
    let home = Home::new();
    let store = home.store();
    let (ticks, own) = (home.path("ticks"), home.path("own"));
    let writes = format!("echo ready; while :; do echo tick >> {}; done", ticks.display());
    let has_open = format!("exec 3>{}; {ANSWERS}", own.display());
    let programs = [writes, has_open].map(|script| {
        let mut program = Program::bash(&script);
        assert_eq!(program.talk.hear(), "ready");
        program
    });
    let pids = programs.each_ref().map(Program::pid);
    let digest = home.capture(pids).capture(&store).or_explain();
    programs.into_iter().for_each(Program::end);
    fs::remove_file(&own).unwrap();
    let before = fs::metadata(&ticks).unwrap().len();
    let error = home.restore().restore(&store, &digest).unwrap_err();
    assert_eq!(error.failure().map(|failure| failure.cause), Some(Cause::FileChanged), "{}", explain(&error));
    assert_eq!(fs::metadata(&ticks).unwrap().len(), before, "the first tree has run");
    home.assert_staging_empty();
}

fn a_look_ends_at_its_deadline_and_when_it_is_cancelled() {
    let home = Home::new();
    let store = home.store();
    let victim = Victim::start(&[]);
    let whole = home.capture([victim.pid()]).capture(&store).or_explain();
    let chunked = home.capture([victim.pid()]).chunked(Chunking::default()).capture(&store).or_explain();
    victim.end();
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    for digest in [whole, chunked] {
        let late = home.restore().deadline(Duration::ZERO).preflight(&store, &digest).unwrap_err();
        assert!(late.is_timeout(), "{}", explain(&late));
        let cancelled = home.restore().cancelled_by(&cancel).preflight(&store, &digest).unwrap_err();
        assert!(cancelled.is_cancelled(), "{}", explain(&cancelled));
    }
    home.assert_staging_empty();
}
