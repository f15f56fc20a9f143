//! A capture warns of files that lead out of a tree and are not standard streams, and of data in
//! files that come back empty.

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    process::Command,
};

use criu_rpc::Warning;

use crate::{
    harness::{dumps_tcp, skip, tests},
    places::{Home, wait_until},
    program::Terminal,
    talk::{Talk, pipe},
    tree::{OrExplain, Revived, Victim},
    ways::{Script, WAYS},
};

tests![
    a_pipe_to_the_outside_is_told_and_can_be_given_anew,
    a_terminal_that_is_no_stream_is_told,
    a_terminal_that_is_held_outside_is_told_of_its_master,
    a_file_in_proc_of_a_process_outside_is_told,
    datagrams_that_were_not_read_are_told,
    events_of_watched_files_that_were_not_read_are_told,
    nothing_is_told_of_a_socket_without_data,
    nothing_is_told_of_a_watch_without_events,
];

/// Captures a victim in every way, checks what is told, and revives it.
#[track_caller]
pub(crate) fn is_told(start: impl Fn() -> Script, is: impl Fn(&Warning) -> bool, check: impl Fn(&mut Talk)) {
    for way in WAYS {
        let home = Home::new();
        let mut victim = start();
        let members = victim.members();
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        assert!(matches!(&stored.warnings[..], [one] if is(one)), "{way:?}: {:?}", stored.warnings);
        victim.end(&members, way);
        let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
        check(&mut revived.talk);
    }
}

/// The path of an open file of this program, by which a victim opens it again.
fn path(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

pub(crate) fn is_lost(warning: &Warning, of: &str) -> bool {
    matches!(warning, Warning::Lost { what, .. } if *what == of)
}

fn a_pipe_to_the_outside_is_told_and_can_be_given_anew() {
    for way in WAYS {
        let home = Home::new();
        let (from, to) = pipe();
        let mut heard = Talk::new(to.try_clone().unwrap(), from);
        let mut victim = Script::perl(&format!(
            "open(STDERR, '>&', \\*STDOUT); open(my $out, '>', '{}') or die; sub answer {{ syswrite($out, \"$_[0]\\n\"); return 'said'; }}",
            path(&to)
        ));
        assert_eq!((victim.ask("one"), heard.hear()), ("said".to_owned(), "one".to_owned()));
        let members = victim.members();
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        let wanted = format!("pipe:[{}]", to.metadata().unwrap().ino());
        let [Warning::LeadsOut { pid, key, .. }] = &stored.warnings[..] else { panic!("{:?}", stored.warnings) };
        assert_eq!((pid.as_raw(), key), (victim.pid(), &wanted));
        victim.end(&members, way);
        let (from, to) = pipe();
        let mut heard = Talk::new(to.try_clone().unwrap(), from);
        let mut revived = Revived::from(home.restore().inherit(key, to), &home.store(), &stored.digest);
        assert_eq!((revived.ask("two"), heard.hear()), ("said".to_owned(), "two".to_owned()));
    }
}

fn a_terminal_that_is_no_stream_is_told() {
    let terminal = Terminal::new();
    let side = fs::read_link(path(&terminal.side)).unwrap();
    let start = || {
        Script::perl(&format!(
            "use Fcntl; sysopen(my $t, '{}', O_RDWR | O_NOCTTY) or die; \
             sub answer {{ return POSIX::isatty(fileno($t)) ? 'terminal' : 'none'; }}",
            side.display()
        ))
    };
    let is = |warning: &Warning| matches!(warning, Warning::LeadsOut { key, .. } if key.starts_with("tty["));
    // It has hung up, for the restore was given no terminal.
    is_told(start, is, |talk| assert_eq!(talk.ask("?"), "none"));
}

/// A victim in python, with `answer(line)` as what it answers.
#[track_caller]
fn python(program: &str) -> Script {
    let program = format!(
        "import ctypes, os, pty, select, socket, sys\nos.setsid()\n{program}\nprint('ready', os.getpid(), flush=True)\n\
         for line in sys.stdin:\n    if line.strip() == 'exit 0': sys.exit(0)\n    print(answer(line.strip()), flush=True)\n"
    );
    let mut command = Command::new("python3");
    command.args(["-c", &program]);
    Script::by(command)
}

fn a_terminal_that_is_held_outside_is_told_of_its_master() {
    for held in [true, false] {
        for way in WAYS {
            let home = Home::new();
            let mut victim = python(
                "master, slave = pty.openpty()\nname = os.ttyname(slave)\n\
                 def answer(line):\n    if line == 'close': os.close(slave)\n    return name",
            );
            let name = victim.ask("name");
            let side = File::options().read(true).write(true).custom_flags(libc_noctty()).open(&name).unwrap();
            victim.ask("close");
            let side = held.then_some(side);
            let members = victim.members();
            let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
            let told = matches!(&stored.warnings[..], [one] if is_lost(one, "other side of a terminal that it is the master of"));
            assert_eq!(told, held, "{way:?}: {:?}", stored.warnings);
            drop(side);
            victim.end(&members, way);
        }
    }
}

fn libc_noctty() -> i32 {
    nix::fcntl::OFlag::O_NOCTTY.bits()
}

fn a_file_in_proc_of_a_process_outside_is_told() {
    let outside = Victim::start(&[]);
    let name = format!("/proc/{}/stat", outside.pid());
    let start = || {
        Script::perl(&format!(
            "open(my $f, '<', '{name}') or die; sub answer {{ seek($f, 0, 0); return (split / /, <$f>)[0]; }}"
        ))
    };
    let is = |warning: &Warning| matches!(warning, Warning::ProcOfOther { path, .. } if path.to_str() == Some(&name));
    is_told(start, is, |talk| assert_eq!(talk.ask("?"), outside.pid().to_string()));
}

/// A victim that answers `waits` if its socket has something to read, else `empty`.
fn datagrams(sends: &str) -> Script {
    python(&format!(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('127.0.0.1', 0))\n{sends}\n\
         def answer(line): return 'waits' if select.select([s], [], [], 0)[0] else 'empty'"
    ))
}

/// criu 4.1 dumps neither TCP nor UDP sockets on newer kernels.
fn needs_datagrams() {
    if !dumps_tcp() {
        skip("it cannot dump UDP sockets on this kernel");
    }
}

fn datagrams_that_were_not_read_are_told() {
    needs_datagrams();
    for sent in ["b'x'", "b''"] {
        let start = || {
            let mut victim = datagrams(&format!("s.sendto({sent}, s.getsockname())"));
            assert_eq!(victim.ask("?"), "waits");
            victim
        };
        let is = |warning: &Warning| is_lost(warning, "unread datagrams");
        is_told(start, is, |talk| assert_eq!(talk.ask("?"), "empty"));
    }
}

fn watch(folder: &std::path::Path) -> Script {
    python(&format!(
        "libc = ctypes.CDLL(None)\nf = libc.inotify_init()\nlibc.inotify_add_watch(f, b'{}', 0x100)\n\
         def answer(line): return 'waits' if select.select([f], [], [], 0)[0] else 'empty'",
        folder.display()
    ))
}

fn events_of_watched_files_that_were_not_read_are_told() {
    let home = Home::new();
    fs::create_dir(home.path("watched")).unwrap();
    let start = || {
        let mut victim = watch(&home.path("watched"));
        let file = home.path("watched").join("new");
        File::create(&file).unwrap().write_all(b"x").unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(victim.ask("?"), "waits");
        victim
    };
    let is = |warning: &Warning| is_lost(warning, "unread events of watched files");
    is_told(start, is, |talk| assert_eq!(talk.ask("?"), "empty"));
}

fn nothing_is_told_of_a_socket_without_data() {
    needs_datagrams();
    crate::ways::comes_back(|_| datagrams(""), |talk| assert_eq!(talk.ask("?"), "empty"));
}

fn nothing_is_told_of_a_watch_without_events() {
    let folder = Home::new();
    fs::create_dir(folder.path("watched")).unwrap();
    crate::ways::comes_back(
        |_| watch(&folder.path("watched")),
        |talk| {
            assert_eq!(talk.ask("?"), "empty");
            File::create(folder.path("watched").join("new")).unwrap();
            wait_until("the watch works", || talk.ask("?") == "waits");
            fs::remove_file(folder.path("watched").join("new")).unwrap();
        },
    );
}
