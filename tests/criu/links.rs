//! Files that are open under a deleted name while they have another: the tree comes back, as often
//! as is wanted.

use std::{fs, path::Path, process::Command};

use criu_rpc::{Warning};

use crate::{
    harness::{skip, tests},
    places::{Home, copy_program, names},
    tree::{OrExplain, Revived},
    ways::{Script, WAYS, comes_back},
};

tests![
    a_name_in_the_same_folder,
    a_name_in_another_folder,
    several_opens_of_one_file,
    a_mapping_as_of_a_named_semaphore,
    a_file_whose_other_name_passes_comes_back_with_its_contents,
    a_file_whose_other_name_is_found_has_no_copy,
    semaphores_of_python,
    a_program_that_was_renamed,
];

/// Opens `first`, which then has the name `second` only, and answers with what is in the file.
fn opened_by_a_deleted_name(first: &Path, second: &Path) -> String {
    fs::write(first, "abc").unwrap();
    fs::hard_link(first, second).unwrap();
    format!(
        "open(my $f, '+<', '{0}') or die; unlink '{0}'; \
         sub answer {{ seek($f, 0, 0); my $l = <$f>; return $l . ' ' . (stat $f)[3]; }}",
        first.display()
    )
}

fn a_name_in_the_same_folder() {
    comes_back(
        |home| {
            let folder = home.folder("files");
            let script = opened_by_a_deleted_name(&folder.join("first"), &folder.join("second"));
            Script::perl(&script)
        },
        |talk| assert_eq!(talk.ask("?"), "abc 1"),
    );
}

fn a_name_in_another_folder() {
    comes_back(
        |home| {
            let (one, other) = (home.folder("one"), home.folder("other"));
            fs::create_dir(other.join("deep")).unwrap();
            Script::perl(&opened_by_a_deleted_name(&one.join("first"), &other.join("deep/second")))
        },
        |talk| assert_eq!(talk.ask("?"), "abc 1"),
    );
}

fn several_opens_of_one_file() {
    comes_back(
        |home| {
            let path = home.path("first");
            fs::write(&path, "abc").unwrap();
            fs::hard_link(&path, home.path("second")).unwrap();
            Script::perl(&format!(
                "my $p = '{0}'; open(my $f, '<', $p) or die; open(my $g, '<', $p) or die; unlink $p; \
                 <$f>; sub answer {{ return tell($f) . ' ' . tell($g) . ' ' . join(' ', (stat $f)[1] == (stat $g)[1]); }}",
                path.display()
            ))
        },
        |talk| assert_eq!(talk.ask("?"), "3 0 1"),
    );
}

/// glibc makes a file of another name, maps it, gives it its name, and deletes the first one.
fn a_mapping_as_of_a_named_semaphore() {
    let name = format!("criu-rpc-test-{}", std::process::id());
    let (first, second) = (Path::new("/dev/shm").join(format!("{name}-1")), Path::new("/dev/shm").join(&name));
    comes_back(
        |_| {
            let _ = fs::remove_file(&second); // of the way before
            fs::write(&first, vec![b'x'; 4096]).unwrap();
            fs::hard_link(&first, &second).unwrap();
            Script::perl(&format!(
                "open(my $f, '+<', '{0}') or die; my $at = syscall(9, 0, 4096, 3, 1, fileno($f), 0); $at > 0 or die; \
                 close $f; unlink '{0}'; \
                 sub answer {{ open(my $g, '+<', '{1}') or die; syswrite($g, $_[0]); close $g; \
                 return substr(unpack('P4096', pack('J', $at)), 0, length $_[0]); }}",
                first.display(),
                second.display()
            ))
        },
        |talk| {
            assert_eq!(talk.ask("shared"), "shared");
            assert_eq!(talk.ask("always"), "always");
        },
    );
    fs::remove_file(&second).unwrap();
    let left = names(Path::new("/dev/shm"));
    assert!(!left.iter().any(|name| name.starts_with("link_remap.")), "{left:?}");
}

/// A file on NFS that is deleted while it is open gets such a name, and loses it when the last
/// process closes it.
fn a_file_whose_other_name_passes_comes_back_with_its_contents() {
    for way in WAYS {
        let home = Home::new();
        let (first, second) = (home.path("first"), home.path(".nfs00000000000000000001"));
        let mut victim = Script::perl(&opened_by_a_deleted_name(&first, &second));
        let members = victim.members();
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        assert!(
            matches!(&stored.warnings[..], [Warning::Copied { path, .. }] if *path == first),
            "{:?}",
            stored.warnings
        );
        victim.end(&members, way);
        fs::remove_file(&second).unwrap();
        for _ in 0..2 {
            let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
            assert_eq!(revived.ask("?"), "abc 0");
        }
        assert_eq!(names(&home.path("")), ["staging", "store"]);
    }
}

fn a_file_whose_other_name_is_found_has_no_copy() {
    for way in WAYS {
        let home = Home::new();
        let folder = home.folder("files");
        let mut victim =
            Script::perl(&opened_by_a_deleted_name(&folder.join("first"), &folder.join("second")));
        let members = victim.members();
        let digest = way.capture(&home, victim.pid()).capture(&home.store()).or_explain();
        victim.end(&members, way);
        assert_eq!(names(&folder), ["second"]);
        fs::write(folder.join("second"), "xyz").unwrap();
        let mut revived = Revived::after_changes(home.restore(), &home.store(), &digest);
        assert_eq!(revived.ask("?"), "xyz 1");
        assert_eq!(names(&folder), ["second"]);
    }
}

/// The worker is a process of its own, started anew, with which a lock is shared by name.
const WORKERS: &str = r#"
import multiprocessing, os, sys
def work(lock, count, pipe):
    while True:
        pipe.recv()
        with lock: count.value += 1
        pipe.send(count.value)
if __name__ == '__main__':
    context = multiprocessing.get_context(sys.argv[1])
    lock, count = context.Lock(), context.Value('i', 0)
    ours, theirs = context.Pipe()
    worker = context.Process(target=work, args=(lock, count, theirs), daemon=True); worker.start()
    print('ready', os.getpid(), flush=True)
    for line in iter(sys.stdin.readline, ''):
        if line == 'exit 0\n': os._exit(0)
        with lock: pass
        ours.send(1); print('count', ours.recv(), flush=True)
"#;

fn semaphores_of_python() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        skip("there is no python3 here");
    }
    comes_back(
        |home| {
            let program = home.path("workers.py");
            fs::write(&program, WORKERS).unwrap();
            let mut command = Command::new("setsid");
            command.arg("python3").arg(program).arg("spawn");
            let mut victim = Script::by(command);
            assert_eq!(victim.ask("?"), "count 1");
            victim
        },
        |talk| assert!(talk.ask("?").starts_with("count ")),
    );
}

/// criu notes more of a program than of other files.
fn a_program_that_was_renamed() {
    comes_back(
        |home| {
            let (first, second) = (home.path("first"), home.path("second"));
            let perl = String::from_utf8(Command::new("which").arg("perl").output().unwrap().stdout).unwrap();
            copy_program(perl.trim(), &first);
            fs::hard_link(&first, &second).unwrap();
            let mut command = Command::new(&first);
            command.args(["-e", "use POSIX; POSIX::setsid(); $| = 1; print \"ready $$\\n\"; while (<STDIN>) { \
                print readlink('/proc/self/exe') =~ /second$/ ? \"new\\n\" : \"old\\n\"; }"]);
            let victim = Script::by(command);
            fs::remove_file(&first).unwrap();
            victim
        },
        |talk| assert!(matches!(&talk.ask("?")[..], "new" | "old")),
    );
}
