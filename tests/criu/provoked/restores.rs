//! Trees that cannot be restored, and what lets them be.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use criu_rpc::{
    Cause, DumpOptions, RestoreOptions, Target, Version,
    options::{CgroupMode, LogLevel, NetworkLock},
    rpc::{Event, Lend, NoHooks},
};

use super::{
    Dumps, Taken, assert_cause,
    dumps::{free_port, in_mount_namespace, terminal},
    odd,
};
use crate::{
    harness::{dumps_tcp, skip, tests, version},
    places::{copy_program, wait_until},
    tree::{OrExplain, Victim},
};

tests![
    a_pid_that_is_taken,
    a_file_that_is_gone_or_grew,
    permissions_that_changed,
    a_program_that_is_another_build,
    a_tcp_connection_that_the_restore_does_not_expect,
    a_port_that_is_taken,
    a_terminal_that_is_not_lent,
    damaged_images,
    missing_images,
    images_of_an_unknown_version,
    a_lazy_restore_without_a_server,
    control_groups_that_exist,
    a_security_profile_without_the_module,
    a_user_namespace_by_itself,
    a_mount_namespace_without_a_root_folder,
    a_mount_namespace_and_its_root_folder,
    probes_that_were_allowed_before,
    the_first_process_of_a_pid_namespace_from_outside,
    a_terminal_whose_number_is_taken,
    a_session_whose_leader_is_no_ancestor,
    a_file_that_is_a_folder_now,
    a_working_folder_that_is_gone,
    a_lent_file_that_is_not_open,
    a_script_that_fails,
    a_temporary_name_that_is_taken,
    a_program_with_threads_that_ends_at_once,
];

fn plain() -> RestoreOptions {
    RestoreOptions::default()
}

fn taken(victim: Victim) -> Taken {
    Dumps::new().taken(victim, &DumpOptions::default())
}

fn a_pid_that_is_taken() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    dumps.dump(victim.pid(), &DumpOptions::default().leave_running(true)).unwrap();
    let pid = victim.pid();
    let Dumps { home, criu, .. } = dumps;
    let images = Taken { home, homes: Vec::new(), criu, members: vec![pid], keys: Default::default() };
    assert_cause(images.restore(&plain()), Cause::PidInUse, Target::None);
    assert_eq!(victim.ask("tick"), "count 1");
}

/// A tree that has this file open.
fn with_file() -> (Taken, std::path::PathBuf) {
    let dumps = Dumps::new();
    let path = dumps.home.path("file");
    fs::write(&path, "contents").unwrap();
    let victim = odd(&[&format!("file={}", path.display())]);
    (dumps.taken(victim, &DumpOptions::default()), path)
}

fn a_file_that_is_gone_or_grew() {
    let (taken, path) = with_file();
    fs::remove_file(&path).unwrap();
    taken.refused(&plain(), Cause::FileChanged);
    taken.refused(&plain().log_level(LogLevel::Error), Cause::FileChanged);
    fs::write(&path, "longer contents").unwrap();
    taken.refused(&plain(), Cause::FileChanged);
    fs::write(&path, "contents").unwrap();
    taken.cured(&plain());
}

fn permissions_that_changed() {
    let (taken, path) = with_file();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    taken.refused(&plain(), Cause::ModeChanged);
    taken.cured(&plain().skip_file_rwx_check(true));
}

fn a_program_that_is_another_build() {
    let dumps = Dumps::new();
    let program = dumps.home.path("program");
    copy_program(std::env::current_exe().unwrap(), &program);
    let mut command = Command::new(&program);
    command.args(["--odd", "session"]);
    let taken = dumps.taken(Victim::start_by(command), &DumpOptions::default());
    let build = |change: u8| {
        let mut bytes = fs::read(&program).unwrap();
        // Of the note: how long its name is, its length and its type, and the name.
        let note = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";
        let Some(place) = bytes.windows(note.len()).position(|window| window == note) else { return false };
        bytes[place + note.len()] ^= change;
        let (changed, other) = (program.with_extension("changed"), program.with_extension("other"));
        fs::write(&changed, bytes).unwrap();
        fs::set_permissions(&changed, fs::metadata(&program).unwrap().permissions()).unwrap();
        copy_program(&changed, &other);
        fs::rename(&other, &program).unwrap();
        true
    };
    if !build(1) {
        return;
    }
    taken.refused(&plain(), Cause::ProgramChanged);
    build(1);
    taken.cured(&plain());
}

fn a_tcp_connection_that_the_restore_does_not_expect() {
    if !dumps_tcp() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp={}", listener.local_addr().unwrap().port());
    let start = || (odd(&[&address]), listener.accept().unwrap());

    let (victim, _end) = start();
    let options = DumpOptions::default().tcp_established(true).network_lock(NetworkLock::Skip);
    let taken = Dumps::new().taken(victim, &options);
    taken.refused(&plain(), Cause::EstablishedTcp);
    taken.cured(&plain().tcp_established(true));

    let (victim, _end) = start();
    let taken = Dumps::new().taken(victim, &DumpOptions::default().tcp_close(true));
    taken.refused(&plain(), Cause::EstablishedTcp);
    taken.cured(&plain().tcp_close(true));
}

fn a_port_that_is_taken() {
    if !dumps_tcp() {
        return;
    }
    let port = free_port();
    let taken = taken(odd(&[&format!("listen={port}")]));
    let other = TcpListener::bind(("127.0.0.1", port)).unwrap();
    taken.refused(&plain(), Cause::TcpNotRestored);
    drop(other);
    taken.cured(&plain());
}

fn a_terminal_that_is_not_lent() {
    let (master, name) = terminal();
    let options = DumpOptions::default().shell_job(true);
    let taken = Dumps::new().taken(odd(&[&format!("terminal={name}")]), &options);
    taken.refused(&plain().shell_job(true), Cause::ShellJob);
    taken.refused(&plain(), Cause::ShellJob);
    drop(master);
}

/// Does something to an image, tries, and puts it back.
#[track_caller]
fn with_image(taken: &Taken, name: &str, change: impl Fn(&Path), cause: Cause) {
    let image = taken.image(name);
    let good = fs::read(&image).unwrap();
    change(&image);
    assert_cause(taken.restore(&plain()), cause, Target::None);
    crate::tree::wait_gone(&taken.members);
    fs::write(&image, good).unwrap();
}

fn damaged_images() {
    let taken = taken(odd(&["child=cat"]));
    let core = format!("core-{}.img", taken.pid());
    let cut = |image: &Path| File::options().write(true).open(image).unwrap().set_len(30).unwrap();
    with_image(&taken, &core, cut, Cause::DamagedImages);
    for (name, place) in [(&*core, 0), ("inventory.img", 1), ("inventory.img", 8), (&*core, 12)] {
        let flip = |image: &Path| {
            let mut bytes = fs::read(image).unwrap();
            bytes[place] ^= 0xff;
            File::create(image).unwrap().write_all(&bytes).unwrap();
        };
        with_image(&taken, name, flip, Cause::DamagedImages);
    }
    taken.cured(&plain());
}

fn missing_images() {
    let taken = taken(odd(&["child=cat"]));
    let core = format!("core-{}.img", taken.pid());
    let mm = format!("mm-{}.img", taken.pid());
    let remove = |image: &Path| fs::remove_file(image).unwrap();
    with_image(&taken, "inventory.img", remove, Cause::NoImages);
    with_image(&taken, &core, remove, Cause::DamagedImages);
    // Without this one criu crashes, and says no more.
    with_image(&taken, &mm, remove, Cause::TaskDied);
    taken.cured(&plain());
}

fn images_of_an_unknown_version() {
    let taken = taken(odd(&[]));
    let another = |image: &Path| {
        let mut bytes = fs::read(image).unwrap();
        assert_eq!(bytes[8], 8); // the field `img_version`
        bytes[9] = 99;
        fs::write(image, bytes).unwrap();
    };
    with_image(&taken, "inventory.img", another, Cause::ImagesVersion);
    taken.cured(&plain());
}

fn a_lazy_restore_without_a_server() {
    if !crate::harness::criu().features().unwrap().lazy_pages {
        return;
    }
    let taken = taken(odd(&[]));
    taken.refused(&plain().lazy_pages(true), Cause::LazyPages);
    taken.cured(&plain());
}

fn control_groups_that_exist() {
    let Some(group) = Group::new("exists") else { return };
    let victim = odd(&[]);
    fs::write(group.0.join("cgroup.procs"), victim.pid().to_string()).unwrap();
    let options = DumpOptions::default().manage_cgroups_mode(CgroupMode::Full);
    let taken = Dumps::new().taken(victim, &options);
    taken.refused(&plain().manage_cgroups_mode(CgroupMode::Strict), Cause::Cgroups);
    drop(taken.cured(&plain().manage_cgroups_mode(CgroupMode::Ignore)));
    drop(group);
}

/// A control group of the test's own.
pub(crate) struct Group(pub(crate) std::path::PathBuf);

impl Group {
    /// None where control groups of the first version are not mounted in the usual place.
    pub(crate) fn new(name: &str) -> Option<Group> {
        let folder = Path::new("/sys/fs/cgroup/freezer");
        let group = folder.join(format!("criu-rpc-test-{}-{name}", std::process::id()));
        (folder.join("cgroup.procs").exists() && fs::create_dir(&group).is_ok()).then_some(Group(group))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        wait_until("the control group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

fn a_security_profile_without_the_module() {
    if fs::exists("/sys/kernel/security/apparmor").unwrap() {
        return;
    }
    let taken = taken(odd(&[]));
    taken.refused(&plain().lsm_profile("apparmor:some-profile"), Cause::SecurityProfile);
    taken.cured(&plain());
}

fn a_user_namespace_by_itself() {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]).arg(std::env::current_exe().unwrap());
    command.args(["--odd", "session"]);
    taken(Victim::start_by(command)).refused(&plain(), Cause::UserNamespace);
}

fn a_mount_namespace_without_a_root_folder() {
    if version() < Version::new(4, 2, 0) {
        return;
    }
    // criu crashes before it says that it wants `root`.
    taken(in_mount_namespace("exec", &[])).refused(&plain(), Cause::RootFolderNeeded);
}

fn a_mount_namespace_and_its_root_folder() {
    let victim = in_mount_namespace("exec", &[]);
    let dumps = Dumps::through(
        "exec unshare --mount --propagation private sh -c \
         'mount --bind / /mnt && exec \"$0\" \"$@\"' CRIU \"$@\"",
    );
    let taken = dumps.taken(victim, &DumpOptions::default());
    let compatible = || plain().mntns_compat_mode(true);
    taken.refused(&compatible(), Cause::RootFolderNeeded);
    taken.cured(&compatible().root("/mnt"));
    taken.cured(&plain().root("/mnt"));
}

fn probes_that_were_allowed_before() {
    if version() < Version::new(4, 2, 0) {
        return;
    }
    let mut victim = odd(&[]);
    let Some(probe) = super::odd::probe(victim.pid()) else { return };
    victim.ask("probed");
    drop(probe);
    let mut dumps = Dumps::new();
    let plainer = std::mem::replace(&mut dumps.criu, crate::harness::criu().argument("--allow-uprobes"));
    let mut taken = dumps.taken(victim, &DumpOptions::default());
    let allowing = std::mem::replace(&mut taken.criu, plainer);
    taken.refused(&plain(), Cause::Uprobes);
    taken.criu = allowing;
    taken.cured(&plain());
}

fn the_first_process_of_a_pid_namespace_from_outside() {
    let victim = super::odd_below(&["unshare", "--pid", "--fork"], &["session"]);
    let inner = super::child(&victim);
    let file = File::open(format!("/proc/{inner}/ns/pid")).unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    let options = DumpOptions::default().external(format!("pid[{inode}]:there"));
    Dumps::new().taken_of(victim, inner, &options).refused(&plain(), Cause::NewPidNamespace);
}

fn a_terminal_whose_number_is_taken() {
    let (master, name) = terminal();
    let options = DumpOptions::default().orphan_pts_master(true);
    let taken = Dumps::new().taken(odd(&[&format!("terminal={name}")]), &options);
    taken.refused(&plain().orphan_pts_master(true), Cause::TerminalTaken);
    drop(master);
    // Another test may have taken the number meanwhile.
    let mut masters = Vec::new();
    let mut hook = |event: Event<'_>| {
        if let Event::OrphanPtsMaster(master) = event {
            masters.push(master);
        }
        Ok(())
    };
    wait_until("the number is free", || {
        let result = taken.restore_with(&plain().orphan_pts_master(true), &mut hook);
        match result {
            Err(error) if error.failure().is_some_and(|failure| failure.cause == Cause::TerminalTaken) => false,
            result => result.or_explain().ask("tick").starts_with("count "),
        }
    });
    assert_eq!(masters.len(), 1);
}

fn a_session_whose_leader_is_no_ancestor() {
    // The child leads a session, in which its child has a child before it leaves it. Then the first
    // of them ends.
    let family = "\
        use POSIX; setsid; pipe(R, W); \
        unless (fork) { my $in_between = fork; setsid if $in_between; close W; while (<STDIN>) {} exit } \
        close W; <R>";
    let victim = odd(&["reaper", &format!("perl={family}")]);
    wait_until("the leader has ended", || crate::places::children(victim.pid()).len() == 2);
    taken(victim).refused(&plain(), Cause::SessionNumbers);
}

fn a_file_that_is_a_folder_now() {
    let (taken, path) = with_file();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    taken.refused(&plain(), Cause::NotReopened);
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "contents").unwrap();
    taken.cured(&plain());
}

fn a_working_folder_that_is_gone() {
    let dumps = Dumps::new();
    let folder = dumps.home.folder("folder");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--odd", "session"]).current_dir(&folder);
    let taken = dumps.taken(Victim::start_by(command), &DumpOptions::default());
    fs::remove_dir(&folder).unwrap();
    taken.refused(&plain(), Cause::FileChanged);
    fs::create_dir(&folder).unwrap();
    taken.cured(&plain());
}

fn a_lent_file_that_is_not_open() {
    let mut taken = taken(odd(&[]));
    let closing = "\
        exec perl -e 'use POSIX; \
        for (grep { readlink(\"/proc/self/fd/$_\") =~ /^pipe/ } 3 .. 1000) { POSIX::close($_) } \
        exec @ARGV' CRIU \"$@\"";
    let closing = Dumps::through(closing);
    let usual = std::mem::replace(&mut taken.criu, closing.criu);
    // Before 4.2 criu keeps to itself what is wrong with its options.
    let told = version() >= Version::new(4, 2, 0);
    taken.refused(&plain(), if told { Cause::InheritedFile } else { Cause::Unknown });
    taken.criu = usual;
    taken.cured(&plain());
}

fn a_script_that_fails() {
    let taken = taken(odd(&[]));
    let path = taken.home.path("options");
    fs::write(&path, "action-script /bin/false\n").unwrap();
    taken.refused(&plain().config_file(path.display().to_string()), Cause::RefusedByClient);
    taken.cured(&plain());
}

fn a_temporary_name_that_is_taken() {
    let dumps = Dumps::new();
    let ghost = dumps.home.path("ghost");
    let options = DumpOptions::default().ghost_limit(8_u32 << 20);
    let taken = dumps.taken(odd(&[&format!("ghost={}", ghost.display())]), &options);
    // What restores leave that are killed. criu numbers such files, and this tree has one.
    let left: Vec<_> = (0..4).map(|number| ghost.with_extension(format!("cr.{number}.ghost"))).collect();
    for name in &left {
        fs::write(name, "").unwrap();
    }
    taken.refused(&plain(), Cause::LinkRemapFailed);
    for name in left {
        let _ = fs::remove_file(name); // criu has removed the one that stood in its way
    }
    taken.cured(&plain());
}

fn a_program_with_threads_that_ends_at_once() {
    let taken = taken(odd(&["threads"]));
    let end_at_once = |taken: &Taken| {
        let (mut talk, input, output) = crate::talk::Talk::through_pipes();
        talk.hang_up();
        let folder = File::open(taken.home.path("images-1")).unwrap();
        let lend = Lend::images(&folder).inherit(&*taken.keys[0], &input).inherit(&*taken.keys[1], &output);
        taken.criu.restore(&plain().rst_sibling(true), lend, &mut NoHooks)
    };
    // It is a race of the program's end with criu's going from thread to thread, which one with
    // many threads wins.
    for _ in 0..20 {
        match end_at_once(&taken) {
            Ok(mut tree) => drop(tree.wait().unwrap()),
            Err(error) => {
                let failure = error.failure().unwrap();
                assert_eq!(failure.cause, Cause::TaskDied, "{}", crate::tree::explain(&error));
                assert!(failure.telling_line().unwrap().starts_with("Unable to detach"), "{}", failure.report());
                return crate::tree::wait_gone(&taken.members);
            }
        }
    }
    skip("the program never ended early enough");
}
