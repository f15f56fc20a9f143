//! The first process of a copy: the init of its namespaces. `build.rs` compiles it on its own, and
//! `sys/init.rs` starts it from memory.
//!
//! It sets up the namespace as its arguments say, starts criu, reaps all processes, and tells how
//! the root ended. When its owner is gone, it kills all processes and waits for their end. An init
//! that only exits leaves them running for a moment, and a lazily revived tree would read zeros.
//!
//! It has no allocator, no libc and no panics, so that it costs only a few pages.
//!
//! # Arguments
//!
//! The first one is a name. Each further one is a step:
//!
//! | step | |
//! |---|---|
//! | `p` | mounts a new `/proc` |
//! | `t` | mounts a new `/dev/pts` and uses its `ptmx` |
//! | `l` | brings the loopback interface up |
//! | `n NUMBER` | the next process gets the number after this |
//! | `o NUMBER PATH` | opens a folder, as a descriptor of this number |
//! | `u FD` | moves the mount of a descriptor to `/run`, until criu makes the tree, if it can |
//! | `R NUMBER` | names the pid of the root, whose end is told |
//! | `O FD` | names the pidfd of the owner |
//! | `r PROGRAM ARGUMENT…` | the last one: starts criu, which gets its socket as descriptor 3 |
//!
//! # Descriptors
//!
//! 0, 1 and 2 are criu's standard streams, 3 is the control socket, and criu inherits all from 4
//! on, except for those that the steps name.
#![no_std]
#![no_main]
#![no_builtins]

use core::{arch::asm, ptr};

/// The numbers of the system calls of this processor.
#[cfg(target_arch = "x86_64")]
mod number {
    pub const CLOSE: usize = 3;
    pub const FCNTL: usize = 72;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const SOCKET: usize = 41;
    pub const SENDMSG: usize = 46;
    pub const RECVFROM: usize = 45;
    pub const SOCKETPAIR: usize = 53;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const SETSID: usize = 112;
    pub const PRCTL: usize = 157;
    pub const MOUNT: usize = 165;
    pub const UMOUNT2: usize = 166;
    pub const EXIT_GROUP: usize = 231;
    pub const OPENAT: usize = 257;
    pub const PPOLL: usize = 271;
    pub const SIGNALFD4: usize = 289;
    pub const DUP3: usize = 292;
    pub const WRITE: usize = 1;
    pub const READ: usize = 0;
    pub const GETPID: usize = 39;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const FCNTL: usize = 25;
    pub const IOCTL: usize = 29;
    pub const UMOUNT2: usize = 39;
    pub const MOUNT: usize = 40;
    pub const OPENAT: usize = 56;
    pub const CLOSE: usize = 57;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PPOLL: usize = 73;
    pub const SIGNALFD4: usize = 74;
    pub const DUP3: usize = 24;
    pub const EXIT_GROUP: usize = 94;
    pub const KILL: usize = 129;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const SETSID: usize = 157;
    pub const PRCTL: usize = 167;
    pub const GETPID: usize = 172;
    pub const SOCKET: usize = 198;
    pub const SOCKETPAIR: usize = 199;
    pub const RECVFROM: usize = 207;
    pub const SENDMSG: usize = 211;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
}

/// O_DIRECTORY and O_NOFOLLOW.
#[cfg(target_arch = "x86_64")]
const FOLDER: usize = 0x10000 | 0x20000;
#[cfg(target_arch = "aarch64")]
const FOLDER: usize = 0x4000 | 0x8000;

// These numbers are the same on both processors.
const MOVE_MOUNT: usize = 429;
const PIDFD_OPEN: usize = 434;
const CLOSE_RANGE: usize = 436;

const ECHILD: isize = -10;
const EINTR: isize = -4;

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {begin}", "ud2", begin = sym begin);

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(".globl _start", "_start:", "mov x29, #0", "mov x30, #0", "mov x0, sp", "bl {begin}", "brk #1", begin = sym begin);

#[cfg(target_arch = "x86_64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    let result;
    // SAFETY: each caller passes what the call of this number takes; the kernel changes only the
    // registers that are named.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    let result;
    // SAFETY: as for x86-64.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
            in("x4") e, in("x5") f, options(nostack));
    }
    result
}

fn call3(number: usize, a: usize, b: usize, c: usize) -> isize {
    call(number, a, b, c, 0, 0, 0)
}

/// The arguments of the program, of which the first ones were read.
#[derive(Clone, Copy)]
struct Words {
    next: *const *const u8,
}

impl Words {
    /// The next argument; null after the last.
    fn next(&mut self) -> *const u8 {
        // SAFETY: the list ends with a null pointer, behind which nothing moves it.
        let word = unsafe { *self.next };
        if !word.is_null() {
            // SAFETY: as above.
            self.next = unsafe { self.next.add(1) };
        }
        word
    }

    fn number(&mut self) -> usize {
        let (mut word, mut number) = (self.next(), 0_usize);
        while !word.is_null() {
            // SAFETY: the text ends with a zero, behind which nothing moves the pointer.
            let digit = unsafe { *word };
            if !digit.is_ascii_digit() {
                break;
            }
            number = number.wrapping_mul(10).wrapping_add((digit - b'0') as usize);
            // SAFETY: as above.
            word = unsafe { word.add(1) };
        }
        number
    }
}

fn length(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: each caller passes a text that ends with a zero.
    while !text.is_null() && unsafe { ptr::read_volatile(text.add(length)) } != 0 {
        length += 1;
    }
    length
}

/// A packet of the control socket.
#[repr(C)]
#[derive(Clone, Copy)]
struct Packet {
    kind: i32,
    one: i32,
    other: i32,
    unused: i32,
}

// To the owner.
const READY: i32 = 1;
const CRIU_ENDED: i32 = 2;
const ROOT_ENDED: i32 = 3;
const ROOT_OPENED: i32 = 4;
const FAILED: i32 = 9;
// From the owner.
const OPEN_ROOT: i32 = 1;
const CLOSE: i32 = 3;
const UNMOUNT_RUN: i32 = 7;
const END: i32 = 8;
const DETACH: i32 = 10;

const CONTROL: usize = 3;
const DONTWAIT: usize = 0x40;
const NOSIGNAL: usize = 0x4000;

#[repr(C)]
struct Part {
    start: *const Packet,
    length: usize,
}

#[repr(C)]
struct Header {
    length: usize,
    level: i32,
    kind: i32,
    descriptors: [i32; 2],
}

#[repr(C)]
struct Message {
    name: usize,
    name_length: u32,
    parts: *const Part,
    part_count: usize,
    control: *const Header,
    control_length: usize,
    flags: i32,
}

/// Sends the owner a packet. Does not wait: an owner that does not read must not stop the reaping.
fn tell(kind: i32, one: i32, other: i32, descriptors: [i32; 2]) {
    let packet = Packet { kind, one, other, unused: 0 };
    let part = Part { start: &packet, length: size_of::<Packet>() };
    let count = descriptors.iter().filter(|descriptor| **descriptor >= 0).count();
    // SCM_RIGHTS of SOL_SOCKET.
    let header = Header { length: 16 + 4 * count, level: 1, kind: 1, descriptors };
    let message = Message {
        name: 0,
        name_length: 0,
        parts: &part,
        part_count: 1,
        control: if count > 0 { &header } else { ptr::null() },
        control_length: if count > 0 { size_of::<Header>() } else { 0 },
        flags: 0,
    };
    call3(number::SENDMSG, CONTROL, &raw const message as usize, DONTWAIT | NOSIGNAL);
}

const NOTHING: [i32; 2] = [-1; 2];

/// The state of the loop.
struct Init {
    root: i32,
    criu: i32,
    /// A pidfd; negative without one.
    owner: i32,
    /// True while a mount of ours is on `/run`.
    has_run: bool,
    /// The control socket; negative once the owner has closed it.
    control: i32,
}

extern "C" fn begin(stack: *const usize) -> ! {
    // As root, `kill(-1)` outside a namespace of its own would end the machine.
    if call3(number::GETPID, 0, 0, 0) != 1 {
        exit(1);
    }
    // SAFETY: the kernel puts the count of arguments there, then the arguments, a null pointer, and
    // the environment.
    let (words, environment) = unsafe {
        let first = stack.add(1).cast::<*const u8>();
        (Words { next: first.add(1) }, first.add(*stack + 1))
    };
    call(number::PRCTL, 15, c"criu-rpc init".as_ptr() as usize, 0, 0, 0, 0); // PR_SET_NAME
    let signals = block_sigchld();
    // A tree without a session of its own would be in session 0, and could not be dumped again.
    call3(number::SETSID, 0, 0, 0);
    const MS_REC_SLAVE: usize = 0x4000 | 0x80000;
    // File systems that are unmounted outside must not live on in the copy.
    step(0, call(number::MOUNT, c"none".as_ptr() as usize, c"/".as_ptr() as usize, 0, MS_REC_SLAVE, 0, 0));
    let mut init = Init { root: -1, criu: -1, owner: -1, has_run: false, control: CONTROL as i32 };
    set_up(&mut init, words, environment);
    init.run(signals)
}

fn set_up(init: &mut Init, mut words: Words, environment: *const *const u8) {
    let mut place = 0;
    loop {
        let word = words.next();
        if word.is_null() {
            return;
        }
        place += 1;
        // SAFETY: the text has a letter, or the zero at its end.
        match unsafe { *word } {
            b'p' => step(place, mount(c"proc", c"/proc", c"proc", NOSUID_NODEV_NOEXEC, c"")),
            b't' => {
                let options = c"newinstance,ptmxmode=0666,mode=0620";
                step(place, mount(c"devpts", c"/dev/pts", c"devpts", NOSUID_NOEXEC, options));
                const MS_BIND: usize = 0x1000;
                step(place, mount(c"/dev/pts/ptmx", c"/dev/ptmx", c"", MS_BIND, c""));
            }
            b'l' => step(place, loopback()),
            // Older kernels refuse a number above their limit, and criu is process 2 then.
            b'n' => drop(write_number(words.next())),
            // Without it criu takes longer.
            b'u' => {
                let mount = words.number();
                init.has_run = move_to_run(mount) >= 0;
                call3(number::CLOSE, mount, 0, 0);
            }
            b'o' => {
                let (number, path) = (words.number(), words.next() as usize);
                const FOLDER_NOFOLLOW_CLOEXEC: usize = FOLDER | 0x80000;
                let opened = call(number::OPENAT, 0, path, FOLDER_NOFOLLOW_CLOEXEC, 0, 0, 0);
                step(place, opened);
                step(place, call3(number::DUP3, opened as usize, number, 0));
                call3(number::CLOSE, opened as usize, 0, 0);
            }
            b'R' => init.root = words.number() as i32,
            b'O' => {
                const SET_FLAGS: usize = 2;
                const CLOEXEC: usize = 1;
                init.owner = words.number() as i32;
                call3(number::FCNTL, init.owner as usize, SET_FLAGS, CLOEXEC);
            }
            b'r' => return init.start(place, words, environment),
            _ => step(place, -22), // EINVAL
        }
    }
}

const NOSUID_NODEV_NOEXEC: usize = 2 | 4 | 8;
const NOSUID_NOEXEC: usize = 2 | 8;

fn mount(
    source: &core::ffi::CStr,
    target: &core::ffi::CStr,
    kind: &core::ffi::CStr,
    flags: usize,
    data: &core::ffi::CStr,
) -> isize {
    let (source, target, kind) = (source.as_ptr() as usize, target.as_ptr() as usize, kind.as_ptr() as usize);
    call(number::MOUNT, source, target, kind, flags, data.as_ptr() as usize, 0)
}

fn move_to_run(mount: usize) -> isize {
    const EMPTY_PATH: usize = 4;
    const CURRENT: usize = -100_isize as usize;
    let (nothing, run) = (c"".as_ptr() as usize, c"/run".as_ptr() as usize);
    call(MOVE_MOUNT, mount, nothing, CURRENT, run, EMPTY_PATH, 0)
}

/// Tells the owner of a failed step, and ends.
fn step(place: i32, result: isize) {
    if result < 0 {
        tell(FAILED, place, -result as i32, NOTHING);
        kill_all();
        exit(1);
    }
}

fn block_sigchld() -> i32 {
    let mask: u64 = 1 << (17 - 1); // SIGCHLD
    call(number::RT_SIGPROCMASK, 2, &raw const mask as usize, 0, 8, 0, 0); // SIG_SETMASK
    const NONBLOCK_CLOEXEC: usize = 0x800 | 0x80000;
    call(number::SIGNALFD4, usize::MAX, &raw const mask as usize, 8, NONBLOCK_CLOEXEC, 0, 0) as i32
}

fn loopback() -> isize {
    #[repr(C)]
    struct Interface {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let mut interface = Interface { name: [0; 16], flags: 0, rest: [0; 22] };
    interface.name[0] = b'l';
    interface.name[1] = b'o';
    const INET: usize = 2;
    const DGRAM_CLOEXEC: usize = 2 | 0x80000;
    const GET: usize = 0x8913;
    const SET: usize = 0x8914;
    const UP: i16 = 1;
    let socket = call3(number::SOCKET, INET, DGRAM_CLOEXEC, 0);
    if socket < 0 {
        return socket;
    }
    let asked = call3(number::IOCTL, socket as usize, GET, &raw mut interface as usize);
    if asked < 0 {
        return asked;
    }
    interface.flags |= UP;
    let set = call3(number::IOCTL, socket as usize, SET, &raw mut interface as usize);
    call3(number::CLOSE, socket as usize, 0, 0);
    set
}

/// Makes the kernel give the next process the pid after this number.
fn write_number(text: *const u8) -> isize {
    const WRITE_CLOEXEC: usize = 1 | 0x80000;
    let path = c"/proc/sys/kernel/ns_last_pid".as_ptr() as usize;
    let file = call(number::OPENAT, 0, path, WRITE_CLOEXEC, 0, 0, 0);
    if file < 0 {
        return file;
    }
    let written = call3(number::WRITE, file as usize, text as usize, length(text));
    call3(number::CLOSE, file as usize, 0, 0);
    written
}

impl Init {
    /// Starts criu, and sends the owner's end of its socket. The socket is made here, so that criu
    /// looks up descriptors of process 1.
    fn start(&mut self, place: i32, mut words: Words, environment: *const *const u8) {
        const UNIX: usize = 1;
        const SEQPACKET_CLOEXEC: usize = 5 | 0x80000;
        let mut ends = [-1_i32; 2];
        step(place, call(number::SOCKETPAIR, UNIX, SEQPACKET_CLOEXEC, 0, ends.as_mut_ptr() as usize, 0, 0));
        let arguments = words.next;
        let program = words.next();
        const SIGCHLD: usize = 17;
        let child = call(number::CLONE, SIGCHLD, 0, 0, 0, 0, 0);
        if child == 0 {
            call3(number::DUP3, ends[1] as usize, CONTROL, 0);
            let none = 0_u64;
            call(number::RT_SIGPROCMASK, 2, &raw const none as usize, 0, 8, 0, 0);
            let failed = call3(number::EXECVE, program as usize, arguments as usize, environment as usize);
            // Descriptor 3 is criu's socket here, so only the exit code can tell.
            exit(if failed == -2 { 127 } else { 126 });
        }
        step(place, child);
        self.criu = child as i32;
        // It is not reaped yet, so it has this pid even if it has ended.
        let pidfd = call3(PIDFD_OPEN, child as usize, 0, 0);
        step(place, pidfd);
        tell(READY, self.criu, 0, [ends[0], pidfd as i32]);
        for descriptor in [ends[0], ends[1], pidfd as i32] {
            call3(number::CLOSE, descriptor as usize, 0, 0);
        }
    }

    fn run(&mut self, signals: i32) -> ! {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Polled {
            descriptor: i32,
            events: i16,
            happened: i16,
        }
        const IN: i16 = 1;
        loop {
            self.reap();
            let of = |descriptor| Polled { descriptor, events: IN, happened: 0 };
            let mut polled = [of(signals), of(self.control), of(self.owner)];
            let count = call(number::PPOLL, polled.as_mut_ptr() as usize, polled.len(), 0, 0, 8, 0);
            if count < 0 {
                continue; // EINTR, or no memory for a moment
            }
            let [children, control, owner] = polled;
            if children.happened != 0 {
                let mut told = [0_u8; 128];
                call3(number::READ, signals as usize, told.as_mut_ptr() as usize, told.len());
            }
            if owner.happened & IN != 0 {
                self.end();
            }
            if control.happened != 0 {
                self.hear();
            }
        }
    }

    fn hear(&mut self) {
        let mut packet = Packet { kind: 0, one: 0, other: 0, unused: 0 };
        let place = &raw mut packet as usize;
        let size = call(number::RECVFROM, CONTROL, place, size_of::<Packet>(), DONTWAIT, 0, 0);
        match (size, packet.kind) {
            (16, OPEN_ROOT) => {
                let pidfd = call3(PIDFD_OPEN, self.root as usize, 0, 0);
                tell(ROOT_OPENED, if pidfd < 0 { -pidfd as i32 } else { 0 }, 0, [pidfd as i32, -1]);
                if pidfd >= 0 {
                    call3(number::CLOSE, pidfd as usize, 0, 0);
                }
            }
            (16, CLOSE) => drop(call3(CLOSE_RANGE, packet.one as usize, packet.other as usize, 0)),
            (16, UNMOUNT_RUN) => {
                const DETACHED: usize = 2;
                let done = match self.has_run {
                    true => call3(number::UMOUNT2, c"/run".as_ptr() as usize, DETACHED, 0),
                    false => 0,
                };
                self.has_run = false;
                tell(UNMOUNT_RUN, -done as i32, 0, NOTHING);
            }
            (16, END) => self.end(),
            (16, DETACH) => self.owner = -1,
            (-11 | EINTR, _) => {} // nothing was there
            // The owner has closed its end, but may live on. Its pidfd tells.
            _ => self.control = -1,
        }
    }

    /// Reaps all that have ended. Ends after the last process.
    fn reap(&mut self) {
        const NOHANG: usize = 1;
        while self.reap_one(NOHANG) {}
    }

    /// Reaps a process. Returns false if none has ended.
    fn reap_one(&mut self, flags: usize) -> bool {
        const ALL: usize = 0x4000_0000;
        let mut status = 0_i32;
        match call(number::WAIT4, usize::MAX, &raw mut status as usize, flags | ALL, 0, 0, 0) {
            ECHILD => exit(0),
            EINTR => {}
            ..=0 => return false,
            pid if pid as i32 == self.criu => {
                self.criu = -1;
                tell(CRIU_ENDED, status, 0, NOTHING);
            }
            pid if pid as i32 == self.root => {
                self.root = -1;
                tell(ROOT_ENDED, status, 0, NOTHING);
            }
            _ => {}
        }
        true
    }

    /// Kills all processes of the namespace, waits for their end, and exits.
    fn end(&mut self) -> ! {
        kill_all();
        loop {
            self.reap_one(0);
        }
    }
}

fn kill_all() {
    const SIGKILL: usize = 9;
    call3(number::KILL, usize::MAX, SIGKILL, 0);
}

fn exit(code: usize) -> ! {
    loop {
        call3(number::EXIT_GROUP, code, 0, 0);
    }
}

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(101)
}

// The compiler makes calls of these. Volatile, so that they do not call themselves.
#[unsafe(no_mangle)]
extern "C" fn memset(start: *mut u8, byte: i32, count: usize) -> *mut u8 {
    for place in 0..count {
        // SAFETY: the compiler passes memory of that length.
        unsafe { ptr::write_volatile(start.add(place), byte as u8) };
    }
    start
}

#[unsafe(no_mangle)]
extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    for place in 0..count {
        // SAFETY: as in `memset`, twice.
        unsafe { ptr::write_volatile(to.add(place), ptr::read_volatile(from.add(place))) };
    }
    to
}
