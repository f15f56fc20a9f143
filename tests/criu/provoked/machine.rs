//! Machines that criu cannot work on, and programs that are no criu.

use std::{fs, fs::File, process::Command, time::Duration};

use criu_rpc::{
    Cause, Criu, DumpOptions, Error, RestoreOptions, Target,
    options::{CpuInfoOptions, NetworkLock, PageServerAddress, RawValue},
    rpc::{Lend, NoHooks},
};

use super::{Dumps, Taken, assert_cause, odd, refusing::Calls, plain};
use crate::{
    harness::{criu, skip, tests},
    places::Home,
    tree::{OrExplain, Victim, explain},
};

tests![
    a_place_without_criu,
    a_program_that_is_no_criu,
    a_criu_whose_children_nobody_may_wait_for,
    a_criu_that_may_not_enlarge_its_pipes,
    a_message_that_criu_does_not_understand,
    a_criu_under_a_filter_and_a_tree_with_one,
    a_kernel_that_does_not_tell_of_restartable_sequences,
    a_kernel_that_lists_no_sockets,
    a_kernel_without_time_namespaces,
    a_criu_that_may_not_set_clocks,
    a_criu_that_may_not_set_groups,
    a_criu_that_may_not_set_capabilities,
    a_restore_without_enough_memory,
    a_network_namespace_where_there_is_no_ip,
    a_plugin_that_is_not_there,
    a_processor_that_lacks_something,
    a_segment_of_ones_own,
    a_file_system_of_the_images_that_is_full,
    a_log_of_an_earlier_request,
];

/// Dumps with a criu that works, and restores with one that is started by these lines.
fn taken_for(victim: Victim, options: &DumpOptions, lines: &str) -> (Taken, Criu) {
    let mut taken = Dumps::new().taken(victim, options);
    let other = Dumps::through(lines);
    let usual = std::mem::replace(&mut taken.criu, other.criu);
    taken.homes.push(other.home);
    (taken, usual)
}

/// Restores in vain with a criu that lacks something, and then with one that does not.
#[track_caller]
fn refused_then_cured((mut taken, usual): (Taken, Criu), cause: Cause) {
    taken.refused(&RestoreOptions::default(), cause);
    taken.criu = usual;
    taken.cured(&RestoreOptions::default());
}

fn a_place_without_criu() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&[]);
    dumps.criu = Criu::at("/nonexistent/criu");
    let error = dumps.dump(victim.pid(), &plain()).unwrap_err();
    assert!(matches!(error, Error::NoCriu { .. }), "{}", explain(&error));
    assert_eq!(error.advice(), Some(Cause::NoCriu.advice()));
    dumps.criu = criu();
    dumps.cured(&mut victim, plain());
}

fn a_program_that_is_no_criu() {
    let mut victim = odd(&[]);
    for program in ["true", "false", "cat", "sh"] {
        let mut dumps = Dumps::new();
        dumps.criu = Criu::at(program);
        let error = dumps.dump(victim.pid(), &plain()).unwrap_err();
        assert!(matches!(error, Error::Gone(_)), "{}", explain(&error));
        assert_eq!(error.failure().unwrap().cause, Cause::NotCriu, "{}", explain(&error));
        victim.ask("tick");
    }
}

fn a_criu_whose_children_nobody_may_wait_for() {
    // As where SIGCHLD is ignored, which shells do not hand on. It has children when there is a
    // network to save.
    let calls = Calls::new(libc::SYS_wait4, &[(2, 0)], libc::ECHILD);
    let mut victim = in_network_namespace();
    let options = || plain().network_lock(NetworkLock::Skip);
    Dumps::through(&refusing(&calls)).refused(&mut victim, &options(), Cause::ChildrenIgnored);
    Dumps::new().cured(&mut victim, options());
}

fn a_criu_that_may_not_enlarge_its_pipes() {
    let calls = Calls::new(libc::SYS_fcntl, &[(1, libc::F_SETPIPE_SZ as u32)], libc::EPERM);
    let mut dumps = Dumps::through(&refusing(&calls));
    // A criu that could enlarge them would wait for a client to fetch the memory.
    dumps.criu = dumps.criu.deadline(Duration::from_secs(20));
    let mut victim = odd(&["memory"]);
    let lazy = plain().lazy_pages(true).ps(PageServerAddress::tcp("127.0.0.1", 0));
    dumps.refused(&mut victim, &lazy, Cause::PipesTooSmall);
    Dumps::new().cured(&mut victim, plain());
}

fn a_message_that_criu_does_not_understand() {
    let mut victim = odd(&[]);
    // The address of a page server is a message of its own.
    let options = plain().raw_field(11, RawValue::Bytes(vec![0xff]));
    let error = Dumps::new().dump(victim.pid(), &options).unwrap_err();
    assert_eq!(error.failure().unwrap().cause, Cause::ConversationBroken, "{}", explain(&error));
    victim.ask("tick");
}

/// With a criu for which the kernel refuses these calls.
fn refusing(calls: &Calls) -> String {
    format!("exec {} CRIU \"$@\"", calls.command())
}

fn a_criu_under_a_filter_and_a_tree_with_one() {
    let mut victim = odd(&["filter"]);
    Dumps::through(&refusing(&Calls::none())).refused(&mut victim, &plain(), Cause::Seccomp);
    Dumps::new().cured(&mut victim, plain());
}

fn a_kernel_that_does_not_tell_of_restartable_sequences() {
    criu_remembers_nothing();
    const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
    let calls = Calls::new(libc::SYS_ptrace, &[(0, PTRACE_GET_RSEQ_CONFIGURATION)], libc::EIO);
    let mut victim = odd(&[]);
    Dumps::through(&refusing(&calls)).refused(&mut victim, &plain(), Cause::RestartableSequences);
    Dumps::new().cured(&mut victim, plain());
}

/// Skips the test where `/run` is a tmpfs: criu keeps there what it finds out about the kernel. It
/// would not look again, and other tests would take what this one pretends for the truth.
fn criu_remembers_nothing() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    if mounts.lines().any(|line| line.split(' ').take(3).skip(1).eq(["/run", "tmpfs"])) {
        skip("it remembers in /run what the kernel can");
    }
}

fn a_kernel_that_lists_no_sockets() {
    criu_remembers_nothing();
    let calls = [(0, libc::AF_NETLINK as u32), (2, libc::NETLINK_SOCK_DIAG as u32)];
    let calls = Calls::new(libc::SYS_socket, &calls, libc::EPROTONOSUPPORT);
    let mut victim = odd(&[]);
    Dumps::through(&refusing(&calls)).refused(&mut victim, &plain(), Cause::SocketModules);
    Dumps::new().cured(&mut victim, plain());
}

fn a_kernel_without_time_namespaces() {
    let calls = Calls::new(libc::SYS_unshare, &[(0, 0x80)], libc::EINVAL);
    refused_then_cured(taken_for(odd(&[]), &plain(), &refusing(&calls)), Cause::TimeNamespace);
}

/// A criu without this privilege.
fn without(privilege: &str) -> String {
    format!("exec setpriv --bounding-set -{privilege} CRIU \"$@\"")
}

fn a_criu_that_may_not_set_clocks() {
    refused_then_cured(taken_for(odd(&[]), &plain(), &without("sys_time")), Cause::TimeNamespace);
}

fn a_criu_that_may_not_set_groups() {
    refused_then_cured(taken_for(odd(&[]), &plain(), &without("setgid")), Cause::Credentials);
}

fn a_criu_that_may_not_set_capabilities() {
    refused_then_cured(taken_for(odd(&[]), &plain(), &without("sys_boot")), Cause::Credentials);
}

fn a_restore_without_enough_memory() {
    let limited = "ulimit -v 60000; exec CRIU \"$@\"";
    refused_then_cured(taken_for(odd(&["memory"]), &plain(), limited), Cause::NotEnoughMemory);
}

fn a_network_namespace_where_there_is_no_ip() {
    let victim = in_network_namespace();
    let options = plain().network_lock(NetworkLock::Skip);
    let nowhere = "PATH=/nonexistent exec CRIU \"$@\"";
    refused_then_cured(taken_for(victim, &options, nowhere), Cause::NetworkNamespace);
}

fn in_network_namespace() -> Victim {
    let mut command = Command::new("unshare");
    command.arg("--net").arg(std::env::current_exe().unwrap()).args(["--odd", "session", "quiet"]);
    Victim::start_by(command)
}

fn a_plugin_that_is_not_there() {
    let mut dumps = Dumps::new();
    // Without a folder of plugins criu does not look for any, and not for what the images need
    // either.
    let folder = dumps.home.folder("plugins");
    dumps.criu = dumps.criu.argument("--libdir").argument(folder);
    let taken = dumps.taken(odd(&[]), &plain());
    let image = taken.image("inventory.img");
    let good = fs::read(&image).unwrap();
    // A number that says which image it is, its length, and the message; in that, field 12 names
    // the plugins.
    let field = [&[12 << 3 | 2, 10, 12 << 3 | 2, 8][..], b"a-plugin"].concat();
    let length = u32::from_le_bytes(good[4..8].try_into().unwrap()) + 12;
    let image_with_plugin = [&good[..4], &length.to_le_bytes(), &good[8..], &field].concat();
    fs::write(&image, image_with_plugin).unwrap();
    taken.refused(&RestoreOptions::default(), Cause::Plugin);
    fs::write(&image, good).unwrap();
    taken.cured(&RestoreOptions::default());
}

fn a_processor_that_lacks_something() {
    let home = Home::new();
    let folder = File::open(home.folder("images")).unwrap();
    let options = CpuInfoOptions::default();
    criu().cpuinfo_dump(&options, Lend::images(&folder)).or_explain();
    let image = home.path("images/cpuinfo.img");
    let mut bytes = fs::read(&image).unwrap();
    let Some(place) = end_of_amd_features(&bytes) else { skip("it knows no features of this processor") };
    // 3DNow, which no processor of today has.
    assert_eq!(bytes[place] & 8, 0);
    bytes[place] |= 8;
    fs::write(&image, bytes).unwrap();
    let result = criu().cpuinfo_check(&options, Lend::images(&folder));
    assert_cause(result, Cause::CpuMismatch, Target::None);
}

/// Returns the place in a cpuinfo.img of the upper bits of the features that AMD was first to name.
fn end_of_amd_features(image: &[u8]) -> Option<usize> {
    // Two numbers that say which image it is, and its length; the processor, and its length; and of
    // it seven numbers, each after a tag. The last two are of features, 32 bits, by sevens.
    let mut bytes = image.iter().enumerate().skip(12);
    let mut end_of_number = || bytes.find(|(_, byte)| **byte < 0x80);
    for _ in 0..2 + 5 * 2 + 2 + 1 {
        end_of_number()?;
    }
    let (place, _) = end_of_number()?;
    cfg!(target_arch = "x86_64").then_some(place)
}

fn a_segment_of_ones_own() {
    // Tables of descriptors are a thing of x86, and not of every kernel.
    if !cfg!(target_arch = "x86_64") || odd::modify_ldt(0, &mut []) < 0 {
        return;
    }
    let mut victim = odd(&["segment"]);
    Dumps::new().refused(&mut victim, &plain(), Cause::UnsupportedProgram);
}

fn a_file_system_of_the_images_that_is_full() {
    let mut dumps = Dumps::new();
    let mut victim = odd(&["memory"]);
    // Full before the first image, full with the log's file and the memory still to come.
    for size in ["4k", "64k"] {
        let folder = dumps.home.path(&format!("images-{}", dumps.count + 1));
        fs::create_dir(&folder).unwrap();
        let mounted = Mounted::tmpfs(&folder, size);
        let images = File::open(&folder).unwrap();
        let result = dumps.criu.dump(victim.pid(), &plain(), Lend::images(&images), &mut NoHooks);
        assert_cause(result, Cause::NoSpace, Target::Running);
        victim.ask("tick");
        dumps.count += 1;
        drop((images, mounted));
    }
    dumps.cured(&mut victim, plain());
}

fn a_log_of_an_earlier_request() {
    let mut victim = odd(&[]);
    let mut dumps = Dumps::through("exit 1");
    let folder = dumps.home.folder("images");
    let log = File::create(folder.join("log")).unwrap();
    fs::write(folder.join("log"), "(00.1) Error (criu/x.c:1): Some file locks are hold by dumping tasks!\n").unwrap();
    let dump = |criu: &Criu, pid| {
        let images = File::open(&folder).unwrap();
        criu.dump(pid, &plain().log_file("log"), Lend::images(&images), &mut NoHooks).unwrap_err()
    };
    log.set_modified(std::time::SystemTime::now() - Duration::from_secs(1)).unwrap();
    let error = dump(&dumps.criu, victim.pid());
    let failure = error.failure().unwrap();
    assert_eq!((failure.cause, failure.log.len()), (Cause::NotCriu, 0), "{}", explain(&error));
    // One that is being written is of this request.
    dumps.criu = criu();
    let stopped = Victim::start_in_our_session(&[]);
    let error = dump(&dumps.criu, stopped.pid());
    let failure = error.failure().unwrap();
    assert_eq!(failure.cause, Cause::ShellJob, "{}", explain(&error));
    assert!(!failure.log.is_empty());
    victim.ask("tick");
}

/// A file system in a folder, unmounted at the end.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(folder: &std::path::Path, size: &str) -> Mounted {
        let options = format!("size={size}");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder);
        assert!(command.status().unwrap().success());
        Mounted(folder.to_path_buf())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status(); // no caller is left to tell
    }
}
