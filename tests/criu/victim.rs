//! The victim: a program to be captured. It counts, and answers commands from its standard input on
//! its standard output, a line each. This is the program; [`Victim`](crate::tree::Victim) is the
//! test's handle on it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::parent_id,
        },
    },
    process::{Child, Command, Stdio, exit},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use criu_rpc::{
    DumpOptions, Error, SelfCapture, Tree,
    rpc::{Lend, NoHooks},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use crate::{
    harness::criu,
    places::Home,
    talk::{Talk, pipe},
    tree::explain,
};

/// A pair of sockets for packets; these wait in the first.
fn packets(words: &str) -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (reader, writer) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    for word in words.split(',') {
        let to = std::os::fd::AsRawFd::as_raw_fd(&writer);
        send(to, word.as_bytes(), MsgFlags::empty()).unwrap();
    }
    (reader, writer)
}

/// The size of a page, in words.
const PAGE: usize = 512;

#[derive(Debug, Default)]
struct State {
    count: u64,
    threads: Vec<Arc<AtomicU64>>,
    memory: Vec<u64>,
    file: Option<File>,
    lock: Option<nix::fcntl::Flock<File>>,
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
    /// The socket that commands come from, if not from standard input.
    serves: Option<UnixListener>,
    connections: Vec<OwnedFd>,
    /// A pair of sockets, in which packets wait.
    packets: Option<(OwnedFd, OwnedFd)>,
    children: Vec<(Child, Talk)>,
    /// A child that the victim does not wait for.
    zombie: Option<Child>,
    /// A tree that this victim revived.
    revived: Option<Tree>,
}

pub(crate) fn main(flags: &[String]) {
    let mut state = State::default();
    for flag in flags {
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        state.take(name, value);
    }
    println!("ready {}", std::process::id());
    match state.serves.take() {
        Some(listener) => state.serve(&listener),
        None => state.converse(io::stdin().lock(), io::stdout()),
    }
}

impl State {
    fn converse(&mut self, from: impl BufRead, mut to: impl Write) {
        for line in from.lines().map_while(Result::ok) {
            let answer = self.obey(line.trim_end());
            writeln!(to, "{answer}").unwrap();
        }
    }

    /// Answers clients, one after the other, until standard input ends.
    fn serve(&mut self, listener: &UnixListener) {
        thread::spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink()); // an error is an end as well
            exit(0);
        });
        for connection in listener.incoming().map_while(Result::ok) {
            self.converse(BufReader::new(connection.try_clone().unwrap()), connection);
        }
    }

    /// Takes one of the features on.
    fn take(&mut self, name: &str, value: &str) {
        let number = || value.parse::<usize>().unwrap();
        match name {
            "session" => drop(nix::unistd::setsid().unwrap()),
            "terminal" => own_terminal(),
            "children" => self.start_children(number()),
            "threads" => self.threads = (0..number()).map(|_| counting()).collect(),
            "memory" => self.memory = (0..number() << 17).map(pattern).collect(),
            "file" => self.file = Some(File::options().read(true).write(true).open(value).unwrap()),
            "thread-file" => {
                let own = std::process::id().to_string();
                let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
                let thread = threads.map(|entry| entry.path()).find(|path| !path.ends_with(&own)).unwrap();
                self.file = Some(File::open(thread.join(value)).unwrap());
            }
            "lock" => {
                let file = File::options().read(true).write(true).open(value).unwrap();
                let exclusive = nix::fcntl::FlockArg::LockExclusiveNonblock;
                self.lock = Some(nix::fcntl::Flock::lock(file, exclusive).unwrap());
            }
            "listen" if value == "tcp" => self.tcp = Some(TcpListener::bind("127.0.0.1:0").unwrap()),
            "serve" => self.serves = Some(UnixListener::bind(value).unwrap()),
            "packets" => self.packets = Some(packets(value)),
            "parent-death" => nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap(),
            "subreaper" => nix::sys::prctl::set_child_subreaper(true).unwrap(),
            "listen" => self.unix = Some(UnixListener::bind(value).unwrap()),
            _ => panic!("unknown flag {name}"),
        }
    }

    fn obey(&mut self, line: &str) -> String {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "tick" => {
                self.count += 1;
                format!("count {}", self.count)
            }
            "threads" => {
                let counts: Vec<_> =
                    self.threads.iter().map(|count| count.load(Ordering::Relaxed).to_string()).collect();
                counts.join(" ")
            }
            "check" => self.check(),
            "children" => {
                self.children.iter().map(|(child, _)| child.id().to_string()).collect::<Vec<_>>().join(" ")
            }
            "child" => {
                let (number, command) = rest.split_once(' ').unwrap();
                self.children[number.parse::<usize>().unwrap()].1.ask(command)
            }
            "file" => {
                let mut line = [0; 8];
                self.file.as_mut().unwrap().read_exact(&mut line).unwrap();
                String::from_utf8_lossy(&line).trim_end().to_owned()
            }
            "port" => self.tcp.as_ref().unwrap().local_addr().unwrap().port().to_string(),
            "accept" => self.accept(),
            "connect" => {
                self.connections.push(match rest.parse::<u16>() {
                    Ok(port) => TcpStream::connect(("127.0.0.1", port)).unwrap().into(),
                    Err(_) => UnixStream::connect(rest).unwrap().into(),
                });
                "connected".to_owned()
            }
            "say" => {
                let connection = self.connections.last().unwrap().try_clone().unwrap();
                match File::from(connection).write_all(format!("{rest}\n").as_bytes()) {
                    Ok(()) => "said".to_owned(),
                    Err(error) => error.to_string(),
                }
            }
            // The standard error streams of the first two children are the ends of one pipe.
            "pass" => {
                io::stderr().write_all(format!("{rest}\n").as_bytes()).unwrap();
                "passed".to_owned()
            }
            "take" => {
                let end = io::stderr().as_fd().try_clone_to_owned().unwrap();
                let mut word = [0; 64];
                let count = File::from(end).read(&mut word).unwrap();
                String::from_utf8_lossy(&word[..count]).trim_end().to_owned()
            }
            "hear" => {
                let connection = File::from(self.connections.last().unwrap().try_clone().unwrap());
                let mut line = String::new();
                BufReader::new(connection).read_line(&mut line).unwrap();
                line.trim_end().to_owned()
            }
            "packets" => {
                let socket = std::os::fd::AsRawFd::as_raw_fd(&self.packets.as_ref().unwrap().0);
                let mut words = Vec::new();
                let mut bytes = [0; 64];
                while let Ok(count) = recv(socket, &mut bytes, MsgFlags::MSG_DONTWAIT) {
                    words.push(format!("({})", String::from_utf8_lossy(&bytes[..count])));
                }
                words.concat()
            }
            "zombie" => {
                let child = self.zombie.insert(Command::new("/bin/true").spawn().unwrap());
                child.id().to_string()
            }
            "capture" => capture(rest),
            "dump" => dump_around_criu(rest),
            "revive" => self.revive(rest),
            "wait" => match self.revived.as_mut().unwrap().wait() {
                Ok(status) => status.to_string(),
                Err(Error::Io { source, .. }) => format!("error {}", source.raw_os_error().unwrap_or(0)),
                Err(error) => format!("other error: {error:?}"),
            },
            "exit" => {
                self.end_children();
                exit(rest.parse().unwrap());
            }
            _ => panic!("unknown command {command}"),
        }
    }

    /// `DIGEST HOME`: revives that tree, with nothing as its standard streams.
    fn revive(&mut self, words: &str) -> String {
        let (digest, home) = words.split_once(' ').unwrap();
        let home = Home::of_another(home);
        // Its input does not end before we do.
        let (input, end) = pipe();
        self.connections.push(end.into());
        let nothing = || File::create("/dev/null").unwrap();
        let restore = home.restore().stdin(input).stdout(nothing()).stderr(nothing());
        match restore.restore(&home.store(), &digest.parse().unwrap()) {
            Ok(mut restored) => {
                let warnings: Vec<_> = restored.warnings.iter().map(ToString::to_string).collect();
                self.revived = restored.trees.pop();
                let pid = self.revived.as_ref().map_or(0, |tree| tree.pid().as_raw());
                format!("revived {pid} {}", warnings.join(", "))
            }
            Err(error) => format!("error {}", explain(&error).replace('\n', "; ")),
        }
    }

    fn accept(&self) -> String {
        let mut connection: Box<dyn Write> = match (&self.tcp, &self.unix) {
            (Some(listener), _) => Box::new(listener.accept().unwrap().0),
            (None, Some(listener)) => Box::new(listener.accept().unwrap().0),
            (None, None) => panic!("there is no listener"),
        };
        connection.write_all(b"hello\n").unwrap();
        "accepted".to_owned()
    }

    fn check(&self) -> String {
        match self.memory.iter().enumerate().position(|(index, word)| *word != pattern(index)) {
            Some(index) => format!("memory damaged at page {}", index / PAGE),
            None => format!("memory ok {} pages", self.memory.len() / PAGE),
        }
    }

    fn start_children(&mut self, count: usize) {
        let (read, write) = pipe();
        for number in 0..count {
            let errors = match number {
                0 => write.try_clone().unwrap().into(),
                1 => read.try_clone().unwrap().into(),
                _ => Stdio::null(),
            };
            let mut child = Command::new("/proc/self/exe")
                .args(["--victim", "threads=1", "memory=1"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(errors)
                .spawn()
                .unwrap();
            let mut talk = Talk::new(child.stdin.take().unwrap(), child.stdout.take().unwrap());
            assert_eq!(talk.hear(), format!("ready {}", child.id()));
            self.children.push((child, talk));
        }
    }

    fn end_children(&mut self) {
        for (child, talk) in &mut self.children {
            talk.hang_up();
            child.wait().unwrap();
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.end_children();
    }
}

/// Has its own child, a criu, dump it into this folder, and tells why that was refused.
fn dump_around_criu(images: &str) -> String {
    let (images, options) = (File::open(images).unwrap(), DumpOptions::default().leave_running(true));
    let result = criu().dump(std::process::id(), &options, Lend::images(&images), &mut NoHooks);
    match result {
        Ok(dumped) => format!("{dumped:?}"),
        Err(error) => error.failure().map_or(error.to_string(), |failure| format!("{:?}", failure.cause)),
    }
}

/// `HOW WHOM HOME`: captures its `own` process, the `parent`, the process of a number, or several,
/// with plus signs.
fn capture(words: &str) -> String {
    let [how, whom, home] = words.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{words}") };
    let pids = whom.split('+').map(|whom| match whom {
        "own" => i32::try_from(std::process::id()).unwrap(),
        "parent" => i32::try_from(parent_id()).unwrap(),
        number => number.parse().unwrap(),
    });
    let home = Home::of_another(home);
    let capture = home.capture(pids);
    let told = match how {
        "ending" => capture.leave_running(false).capture(&home.store()).map(Some),
        "strict" => capture.run(&home.store()).map(|stored| Some(stored.digest)),
        "run" => capture.placeholder(true).run_self(&home.store()).map(|capture| match capture {
            SelfCapture::Stored(stored) => Some(stored.digest),
            _ => None,
        }),
        _ => capture.capture(&home.store()).map(Some),
    };
    match told {
        Ok(Some(digest)) => format!("stored {digest}"),
        Ok(None) => "revived".to_owned(),
        Err(Error::Revived) => "revived by error".to_owned(),
        Err(error) => format!("error {}", explain(&error).replace('\n', "; ")),
    }
}

/// Makes the terminal on standard input the controlling one of a session of our own.
fn own_terminal() {
    nix::unistd::setsid().unwrap();
    // The first terminal that a session's leader opens becomes the session's.
    let name = nix::unistd::ttyname(io::stdin()).unwrap();
    drop(File::options().read(true).write(true).open(name).unwrap());
}

/// A thread that counts.
fn counting() -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        loop {
            counted.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
    });
    count
}

/// Returns the word that belongs at this place of the memory.
fn pattern(index: usize) -> u64 {
    ((index / PAGE) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index % PAGE) as u64
}
