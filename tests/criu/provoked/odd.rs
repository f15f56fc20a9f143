//! The odd victim: a program that has something that criu cannot take. It counts, as the other
//! does.

#![allow(unsafe_code)] // for what no safe crate offers; nothing but tests call it

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, BufRead, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::{
        signal::{SigSet, Signal, raise},
        socket::{AddressFamily, SockFlag, SockType, socket},
    },
};

use super::refusing::Calls;

/// Things that the process has; kept until it ends.
#[derive(Debug, Default)]
struct Things {
    files: Vec<OwnedFd>,
    locks: Vec<Flock<File>>,
    children: Vec<Child>,
    memory: Vec<u8>,
}

pub(crate) fn main(flags: &[String]) {
    let mut things = Things::default();
    let mut name = std::process::id().to_string();
    for flag in flags {
        match flag.as_str() {
            // It is the child of what the test started, maybe with a number of its own.
            "below" => name = parent(),
            _ => {
                let (kind, value) = flag.split_once('=').unwrap_or((flag, ""));
                things.take(kind, value);
            }
        }
    }
    println!("ready {name}");
    if flags.iter().any(|flag| flag == "segment") {
        thread::spawn(|| {
            converse();
            std::process::exit(0);
        });
        stay_in_own_segment();
    }
    if flags.iter().any(|flag| flag == "leaderless") {
        thread::spawn(|| {
            converse();
            std::process::exit(0);
        });
        syscall(libc::SYS_exit, [0; 5]);
    }
    converse();
    for mut child in things.children {
        drop(child.stdin.take()); // `cat` ends
        child.wait().unwrap();
    }
}

fn converse() {
    let mut count = 0;
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        count += 1;
        match line.as_str() {
            "tick" => println!("count {count}"),
            "probed" => println!("{}", probed(count)),
            _ => println!("what?"),
        }
        io::stdout().flush().unwrap();
    }
}

/// The function that a test probes.
#[inline(never)]
pub(super) extern "C" fn probed(count: u64) -> u64 {
    std::hint::black_box(count)
}

/// The number of our parent where the test is, from a `/proc` of there.
fn parent() -> String {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().to_owned()
}

impl Things {
    fn take(&mut self, kind: &str, value: &str) {
        let mut keep = |file: OwnedFd| self.files.push(file);
        match kind {
            "session" => drop(nix::unistd::setsid().unwrap()),
            "leaderless" | "segment" => {}
            "threads" => {
                for _ in 0..200 {
                    thread::spawn(|| loop { thread::park() });
                }
            }
            "filter" => Calls::none().refuse(),
            // Enough for a limit to tell it from what every program has.
            "memory" => self.memory = vec![7; 64 << 20],
            // The files that we were given may be from outside.
            "quiet" => {
                syscall(libc::SYS_close_range, [3, i64::from(u32::MAX), 0, 0, 0]);
                nix::unistd::dup2_stderr(File::create("/dev/null").unwrap()).unwrap();
            }
            "file" => {
                let mut options = File::options();
                keep(options.read(true).write(true).create(true).truncate(false).open(value).unwrap().into());
            }
            // The first that a session's leader opens becomes the session's.
            "terminal" => keep(File::options().read(true).write(true).open(value).unwrap().into()),
            "ghost" => {
                let file = File::create(value).unwrap();
                (&file).write_all(&vec![7; 2 << 20]).unwrap();
                fs::remove_file(value).unwrap();
                keep(file.into());
            }
            "link" => {
                let file = File::create(value).unwrap();
                fs::hard_link(value, format!("{value}-other")).unwrap();
                fs::remove_file(value).unwrap();
                keep(file.into());
            }
            "lock" => {
                let file = File::options().read(true).write(true).open(value).unwrap();
                self.locks.push(Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap());
            }
            // No process accepts the connection.
            "connecting" | "connecting-and-talking" => {
                let listener = UnixListener::bind(value).unwrap();
                let mut end = UnixStream::connect(value).unwrap();
                if kind == "connecting-and-talking" {
                    end.write_all(b"hello").unwrap();
                }
                keep(listener.into());
                keep(end.into());
            }
            "stream" => keep(UnixStream::connect(value).unwrap().into()),
            "datagram" => {
                let end = UnixDatagram::unbound().unwrap();
                end.connect(value).unwrap();
                keep(end.into());
            }
            "tcp" => keep(TcpStream::connect(("127.0.0.1", value.parse().unwrap())).unwrap().into()),
            "listen" => keep(TcpListener::bind(("127.0.0.1", value.parse().unwrap())).unwrap().into()),
            "vsock" => {
                let flags = SockFlag::SOCK_CLOEXEC;
                keep(socket(AddressFamily::Vsock, SockType::Stream, flags, None).unwrap());
            }
            "mptcp" => keep(descriptor(
                libc::SYS_socket,
                [libc::AF_INET.into(), libc::SOCK_STREAM.into(), libc::IPPROTO_MPTCP.into(), 0, 0],
            )),
            "watch" => {
                let watch = descriptor(libc::SYS_inotify_init1, [0; 5]);
                let path = CString::new(value).unwrap();
                let arguments = [watch.as_raw_fd().into(), path.as_ptr() as i64, libc::IN_MODIFY.into(), 0, 0];
                assert!(syscall(libc::SYS_inotify_add_watch, arguments) > 0);
                keep(watch);
            }
            "userfaultfd" => keep(descriptor(libc::SYS_userfaultfd, [1, 0, 0, 0, 0])),
            "io_uring" => keep(io_uring()),
            "perf_event" => keep(perf_event()),
            // Their memory, without themselves.
            "io_uring_memory" => map(1 << 12, &io_uring()),
            "perf_memory" => map(2 << 12, &perf_event()),
            "fscontext" => {
                let kind = CString::new("tmpfs").unwrap();
                keep(descriptor(libc::SYS_fsopen, [kind.as_ptr() as i64, 0, 0, 0, 0]));
            }
            "shm" => {
                // Destroyed as soon as it is there, so that nothing is left when we end.
                let id = syscall(libc::SYS_shmget, [0, 4096, 0o600, 0, 0]);
                assert!(syscall(libc::SYS_shmat, [id, 0, 0, 0, 0]) > 0);
                syscall(libc::SYS_shmctl, [id, 0, 0, 0, 0]);
            }
            "trap" => {
                SigSet::from(Signal::SIGTRAP).thread_block().unwrap();
                raise(Signal::SIGTRAP).unwrap();
            }
            "unshare" => {
                let flags = match value {
                    "mount" => libc::CLONE_NEWNS,
                    other => panic!("{other}"),
                };
                assert_eq!(syscall(libc::SYS_unshare, [flags.into(), 0, 0, 0, 0]), 0);
            }
            "private" => mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE),
            "tmpfs" => mount("none", value, "tmpfs", 0),
            "root" => nix::unistd::chroot(value).unwrap(),
            "reaper" => nix::sys::prctl::set_child_subreaper(true).unwrap(),
            // A child that may be gone before us, and its descendants that are not.
            "perl" => {
                let mut command = Command::new("perl");
                command.args(["-e", value]).stdin(Stdio::piped()).stdout(Stdio::null());
                self.children.push(command.spawn().unwrap());
            }
            // A child that waits for us to end.
            "child" => {
                let mut words = value.split(' ');
                let mut command = Command::new(words.next().unwrap());
                command.args(words).stdin(Stdio::piped()).stdout(Stdio::null());
                self.children.push(command.spawn().unwrap());
            }
            // A child that keeps us from being frozen until it hears something.
            "stuck" => {
                println!("ready {}", std::process::id());
                let flags = libc::CLONE_VFORK | libc::SIGCHLD;
                if syscall(libc::SYS_clone, [flags.into(), 0, 0, 0, 0]) == 0 {
                    // An error is an end as well.
                    let _ = io::stdin().lock().read_line(&mut String::new());
                    syscall(libc::SYS_exit_group, [0; 5]);
                }
            }
            other => panic!("unknown thing {other}"),
        }
    }
}

/// Never leaves a segment of memory that only we have, as old games and emulators do.
#[cfg(target_arch = "x86_64")]
fn stay_in_own_segment() {
    // Entry 0: from the bottom, as many pages as can be, 32-bit code that can be read.
    let mut code_segment = [0, 0, 0xfffff, 1 | 2 << 1 | 1 << 4 | 1 << 6];
    assert_eq!(modify_ldt(0x11, &mut code_segment), 0);
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_32BIT);
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses a place that is free.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    // pause, and back to it
    // SAFETY: the page is ours, and larger than this.
    unsafe { place.cast::<[u8; 4]>().write([0xf3, 0x90, 0xeb, 0xfc]) };
    // SAFETY: it goes to what was just written, and never comes back.
    unsafe { std::arch::asm!("push 7", "push {}", "retfq", in(reg) place, options(noreturn)) };
}

#[cfg(not(target_arch = "x86_64"))]
fn stay_in_own_segment() {}

/// Does something with the descriptors that only this process has; below 0 where the kernel has no
/// such call.
#[cfg(target_arch = "x86_64")]
pub(super) fn modify_ldt(what: i64, descriptor: &mut [u32]) -> i64 {
    let length = i64::try_from(size_of_val(descriptor)).unwrap();
    syscall(libc::SYS_modify_ldt, [what, descriptor.as_mut_ptr() as i64, length, 0, 0])
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn modify_ldt(_: i64, _: &mut [u32]) -> i64 {
    -1
}

fn perf_event() -> OwnedFd {
    // PERF_TYPE_SOFTWARE, 128 bytes long, PERF_COUNT_SW_TASK_CLOCK
    let mut event = [0_u64; 16];
    (event[0], event[1]) = (1 | 128 << 32, 1);
    let pointer = event.as_mut_ptr() as i64;
    descriptor(libc::SYS_perf_event_open, [pointer, 0, -1, -1, 0])
}

fn io_uring() -> OwnedFd {
    let mut parameters = [0_u64; 15];
    let pointer = parameters.as_mut_ptr() as i64;
    descriptor(libc::SYS_io_uring_setup, [4, pointer, 0, 0, 0])
}

/// Maps so many bytes of the file until the process ends.
fn map(length: i64, file: &OwnedFd) {
    let (protection, flags, file) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd());
    // SAFETY: the kernel chooses a place that is free, and no other code touches it.
    let place = unsafe { libc::syscall(libc::SYS_mmap, 0_i64, length, protection, flags, file, 0_i64) };
    assert!(place > 0, "{}", io::Error::last_os_error());
}

/// A probe at the end of [`probed`], in one process, for as long as the file is open; None where
/// there are no probes.
pub(super) fn probe(pid: i32) -> Option<OwnedFd> {
    let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").ok()?;
    let kind: u64 = kind.trim().parse().unwrap();
    let program = CString::new(fs::read_link("/proc/self/exe").unwrap().into_os_string().into_encoded_bytes());
    let program = program.unwrap();
    // The type, the length; that it is for the function's return; and where.
    let mut event = [0_u64; 16];
    (event[0], event[1]) = (kind | 128 << 32, 1);
    (event[7], event[8]) = (program.as_ptr() as u64, place_in_program(probed as *const () as u64));
    let pointer = event.as_mut_ptr() as i64;
    Some(descriptor(libc::SYS_perf_event_open, [pointer, pid.into(), -1, -1, 0]))
}

/// Returns the place of this address in the file of our program.
fn place_in_program(address: u64) -> u64 {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let place = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let place = address.checked_sub(number(start))? + number(rest.split(' ').nth(1).unwrap());
        (address < number(end)).then_some(place)
    });
    place.unwrap()
}

fn mount(what: &str, place: &str, kind: &str, flags: u64) {
    let [what, place, kind] = [what, place, kind].map(|text| CString::new(text).unwrap());
    let [what, place, kind] = [&what, &place, &kind].map(|text| text.as_ptr() as i64);
    let flags = i64::try_from(flags).unwrap();
    assert_eq!(syscall(libc::SYS_mount, [what, place, kind, flags, 0]), 0, "{}", io::Error::last_os_error());
}

fn descriptor(number: libc::c_long, arguments: [i64; 5]) -> OwnedFd {
    let file = syscall(number, arguments);
    assert!(file >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just given us this descriptor, and no other code knows of it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(file).unwrap()) }
}

/// A system call that no safe crate offers.
pub(crate) fn syscall(number: libc::c_long, [a, b, c, d, e]: [i64; 5]) -> i64 {
    // SAFETY: the callers pass numbers, and pointers to what lives past the call and is as large as
    // the call wants.
    unsafe { libc::syscall(number, a, b, c, d, e) }
}
