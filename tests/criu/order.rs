//! Trees whose processes have numbers in any order, as after pids wrapped around, come back; and
//! unix sockets in any order.

use std::{
    fs,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    beyond::is_never_revived,
    harness::{skip, tests},
    places::Home,
    ways::{Script, comes_back},
};

tests![
    pairs_of_sockets_that_children_with_lower_pids_share,
    a_connection_that_was_not_accepted_yet,
    descriptors_on_their_way_between_parent_and_child,
    descriptors_on_their_way_to_and_from_a_child_with_a_lower_pid,
    descriptors_that_no_order_brings_to_their_receiver,
    a_socket_whose_peer_has_another_peer,
    all_that_children_with_lower_pids_share,
];

/// Lets one test at a time take lower pids: free ones below 300. The kernel gives these by itself
/// to no process, so none has them before a restore.
fn take_lower_pids() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `lower()` forks a child in perl, as `fork` does, that has a lower pid than its parent.
const LOWER: &str = "sub lower { \
    for my $pid (reverse 2 .. ($$ < 300 ? $$ - 1 : 299)) { \
        my $wanted = pack('l', $pid); \
        my $how = pack('Q11', (0) x 4, 17, (0) x 3, unpack('J', pack('P', $wanted)), 1, 0); \
        my $child = syscall(435, $how, 88); \
        return $child if $child >= 0; \
    } \
    die \"no lower pid is free: $!\"; }";

/// The same in python.
const LOWER_IN_PYTHON: &str = "
import ctypes, os, socket, sys
def lower(flags = 0):
    for pid in reversed(range(2, min(os.getpid(), 300))):
        wanted = ctypes.c_int(pid)
        how = (ctypes.c_uint64 * 11)(flags, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
        child = ctypes.CDLL(None).syscall(435, how, 88)
        if child >= 0: return child
    raise OSError('no lower pid is free')
";

/// Each pair of sockets is held by the parent and by two children in one of all the ways that there
/// are; each process has one end, both, or none.
fn pairs_of_sockets_that_children_with_lower_pids_share() {
    let _turn = take_lower_pids();
    let script = format!(
        "{LOWER} use Socket; use IO::Handle; my (@pairs, @children); \
         for my $held (0 .. 63) {{ \
             my @held = ($held & 3, $held >> 2 & 3, $held >> 4); \
             next if ($held[0] | $held[1] | $held[2]) != 3; \
             for my $swap (0, 1) {{ for my $type (SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET) {{ \
                 socketpair(my $one, my $other, AF_UNIX, $type, 0) or die; \
                 ($one, $other) = ($other, $one) if $swap; \
                 syswrite($one, 'to the other'); syswrite($other, 'to the one'); \
                 push @pairs, [[@held], $one, $other]; \
             }} }} \
         }} \
         sub keep {{ for my $pair (@pairs) {{ for my $end (1, 2) {{ \
             close $pair->[$end] unless $pair->[0][$_[0]] & $end; }} }} }} \
         sub act {{ my ($pair, $end, $text) = @_; my $socket = $pairs[$pair][$end]; \
             return syswrite($socket, $text) if length $text; \
             sysread($socket, my $got, 100); return $got; }} \
         for my $child (1, 2) {{ \
             socketpair(my $here, my $there, AF_UNIX, SOCK_SEQPACKET, 0) or die; \
             my $pid = lower(); \
             if (!$pid) {{ \
                 keep($child); close $here; \
                 while (sysread($there, my $asked, 100)) {{ syswrite($there, act(split(/,/, $asked, 3))); }} \
                 exit 0; \
             }} \
             die if $pid >= $$; close $there; push @children, $here; \
         }} \
         keep(0); \
         sub by_holder {{ my ($pair, $end, $text) = @_; my @held = @{{$pairs[$pair][0]}}; \
             return act(@_) if $held[0] & $end; \
             my $child = $children[$held[1] & $end ? 0 : 1]; \
             syswrite($child, join(',', @_)); sysread($child, my $got, 100); return $got; }} \
         sub answer {{ for my $pair (0 .. $#pairs) {{ \
             my @got = map {{ by_holder($pair, $_, '') }} (1, 2); \
             by_holder($pair, 1, 'there'); push @got, by_holder($pair, 2, ''); \
             by_holder($pair, 2, 'back'); push @got, by_holder($pair, 1, ''); \
             my $got = join(', ', @got); \
             return \"$pair: $got\" if $got ne 'to the one, to the other, there, back'; }} \
             return scalar(@pairs); }}"
    );
    comes_back(|_| Script::perl(&script), |talk| assert_eq!(talk.ask("?"), "294"));
}

/// criu dumps the client first if it has the lower descriptor.
fn a_connection_that_was_not_accepted_yet() {
    comes_back(
        |home| {
            Script::perl(&format!(
                "use Socket; my $name = pack_sockaddr_un('{}'); \
                 socket(my $client, AF_UNIX, SOCK_STREAM, 0) or die; socket(my $server, AF_UNIX, SOCK_STREAM, 0) or die; \
                 bind($server, $name) or die; listen($server, 5) or die; connect($client, $name) or die; \
                 sub answer {{ accept(my $accepted, $server) or return \"$!\"; syswrite($client, $_[0]); \
                 sysread($accepted, my $got, 100); return $got; }}",
                home.path("socket").display()
            ))
        },
        |talk| assert_eq!(talk.ask("hello"), "hello"),
    );
}

/// Shares pairs of sockets with a child, sends pipes through them, and counts the pairs through
/// which they all come out. The words are, for each pair, who holds which end, who sends into which
/// end, and whether the sender keeps the pipe.
const IN_FLIGHT: &str = r#"
class Pair:
    def __init__(self, word):
        self.parent, self.child, self.senders, self.keeps = word.split(',')
        self.ends = dict(zip('ab', socket.socketpair()))
    def belongs(self, process):
        for end in 'ab':
            if end not in (self.parent if process == 'parent' else self.child): self.ends.pop(end).close()
        for sender in self.senders.split('+'):
            if sender[:-1] != process: continue
            end = sender[-1]
            for number in range(2):
                reader, writer = os.pipe()
                os.write(writer, b'%s%d' % (end.encode(), number)); os.close(writer)
                socket.send_fds(self.ends[end], [b'%d' % number], [reader])
                if self.keeps != 'keeps': os.close(reader)
    def received(self, process):
        got = ''
        for sender in self.senders.split('+'):
            end = 'b' if sender[-1] == 'a' else 'a'
            if process != ('parent' if end in self.parent else 'child'): continue
            for number in range(2):
                said, files, _, _ = socket.recv_fds(self.ends[end], 1, 4)
                right = b'%s%d' % (sender[-1].encode(), number)
                got += 'y' if said == b'%d' % number and os.read(files[0], 9) == right else 'n'
        return got
pairs = [Pair(word) for word in sys.argv[2:]]
# So that the same number is another file in the child.
padding = [os.open('/dev/null', os.O_RDONLY) for _ in range(20)]
ask, asked = os.pipe()
told, tell = os.pipe()
child = lower() if sys.argv[1] == 'lower' else os.fork()
if not child:
    for file in padding: os.close(file)
    for pair in pairs: pair.belongs('child')
    os.write(tell, b'sent')
    while os.read(ask, 1): os.write(tell, ','.join(pair.received('child') for pair in pairs).encode())
    os._exit(0)
assert sys.argv[1] != 'lower' or child < os.getpid()
for pair in pairs: pair.belongs('parent')
assert os.read(told, 9) == b'sent'
print('ready', os.getpid(), flush=True)
for line in iter(sys.stdin.readline, ''):
    if line == 'exit 0\n': os._exit(0)
    ours = [pair.received('parent') for pair in pairs]
    os.write(asked, b'?')
    theirs = os.read(told, 10000).decode().split(',')
    wrong = [(word, our + their) for word, our, their in zip(sys.argv[2:], ours, theirs) if our + their != 'yy']
    print(len(pairs) - len(wrong), *wrong, flush=True)
"#;

/// Runs [`IN_FLIGHT`] with a child by `fork`, or by `lower`.
fn in_flight(home: &Home, child: &str, words: &[String]) -> Script {
    python(home, IN_FLIGHT, &[&[child.to_owned()], words].concat())
}

/// Runs a program in python, with [`LOWER_IN_PYTHON`] before it.
fn python(home: &Home, program: &str, words: &[String]) -> Script {
    let path = home.path("program.py");
    fs::write(&path, [LOWER_IN_PYTHON, program].concat()).unwrap();
    let mut command = Command::new("setsid");
    command.arg("python3").arg(path).args(words);
    Script::by(command)
}

/// Each way for a parent and a child to hold a pair, and for one of them to send, in words for
/// [`IN_FLIGHT`].
fn ways_to_send() -> Vec<[&'static str; 4]> {
    let mut ways = Vec::new();
    for [parent, child] in [["a", "b"], ["b", "a"], ["a", "ab"], ["b", "ab"], ["ab", "a"], ["ab", "b"], ["ab", "ab"]] {
        for (sender, ends) in [("parent", parent), ("child", child)] {
            let ends = ["a", "b"].into_iter().filter(|end| ends.contains(*end));
            ways.extend(ends.map(|end| [parent, child, sender, end]));
        }
    }
    ways
}

/// Returns true if criu cannot restore it: the process with the lower pid has the receiver alone,
/// and the other has both.
fn is_beyond([parent, child, sender, end]: [&str; 4]) -> bool {
    let [lower, higher] = [child, parent];
    sender == "parent" && higher == "ab" && lower.len() == 1 && lower != end
}

fn words([parent, child, sender, end]: [&str; 4]) -> [String; 2] {
    ["keeps", "closes"].map(|keeps| format!("{parent},{child},{sender}{end},{keeps}"))
}

#[track_caller]
fn arrive(child: &str, words: &[String]) {
    need_python();
    comes_back(|home| in_flight(home, child, words), |talk| assert_eq!(talk.ask("?"), words.len().to_string()));
}

/// Whichever of the two has the lower pid.
fn descriptors_on_their_way_between_parent_and_child() {
    let is_fine = |[parent, child, ..]: &[&str; 4]| parent.len() == child.len();
    arrive("fork", &ways_to_send().into_iter().filter(is_fine).flat_map(words).collect::<Vec<_>>());
}

fn descriptors_on_their_way_to_and_from_a_child_with_a_lower_pid() {
    let _turn = take_lower_pids();
    let fine = ways_to_send().into_iter().filter(|way| !is_beyond(*way)).flat_map(words);
    arrive("lower", &fine.collect::<Vec<_>>());
}

fn descriptors_that_no_order_brings_to_their_receiver() {
    let _turn = take_lower_pids();
    need_python();
    let mut beyond: Vec<_> = ways_to_send().into_iter().filter(|way| is_beyond(*way)).flat_map(words).collect();
    assert_eq!(beyond.len(), 4, "{beyond:?}");
    beyond.push("a,b,parenta+childb,keeps".to_owned());
    for word in beyond {
        let home = Home::new();
        let victim = in_flight(&home, "lower", &[word]);
        is_never_revived(victim.pid(), "descriptors are on their way");
    }
}

/// The kernel lets a datagram socket connect to a peer that has none, or that one. It had none at
/// the time.
fn a_socket_whose_peer_has_another_peer() {
    let home = Home::new();
    let victim = Script::perl(&format!(
        "use Socket; my ($one, $other) = map {{ pack_sockaddr_un($_) }} ('{}', '{}'); \
         my ($left, $first, $second) = map {{ socket(my $s, AF_UNIX, SOCK_DGRAM, 0) or die; $s }} (1, 2, 3); \
         bind($first, $one) or die; bind($second, $other) or die; connect($left, $one) or die; \
         connect($second, $one) or die; connect($first, $other) or die; sub answer {{ return 'yes'; }}",
        home.path("one").display(),
        home.path("other").display()
    ));
    is_never_revived(victim.pid(), "is connected to the unix socket");
}

/// A process, five children, and a grandchild, each with a lower pid than its parent: one leads a
/// process group, one is in that group, one leads a session and has a child there, one has the
/// table of descriptors of its parent, and one has ended. They share memory, files, and what they
/// wait for.
const SHARE: &str = r#"
import fcntl, mmap, pty, select, signal, struct, termios
memory = mmap.mmap(-1, 1 << 16); memory[:5] = b'begun'
memfd = os.memfd_create('shared'); os.write(memfd, b'0123456789'); os.lseek(memfd, 3, os.SEEK_SET)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); os.write(file, b'0123456789'); os.lseek(file, 4, os.SEEK_SET)
event = ctypes.CDLL(None).eventfd(7, 0)
read, write = os.pipe(); os.write(write, b'in the pipe')
inner = select.epoll(); inner.register(read, select.EPOLLIN); inner.register(event, select.EPOLLIN)
outer = select.epoll(); outer.register(inner.fileno(), select.EPOLLIN)
told, tell = os.pipe()
asks = {}
def serve(ask):
    for asked in iter(lambda: os.read(ask, 1000), b''): os.write(tell, repr(eval(asked)).encode())
    os._exit(0)
def start(name, prepare):
    ask, asked = os.pipe()
    child = lower()
    if not child:
        os.close(asked)
        prepare(); serve(ask)
    os.close(ask); asks[name] = asked
    return child
def ask(name, expression):
    if name == 'root': return eval(expression)
    os.write(asks[name], expression.encode())
    return eval(os.read(told, 1000))
group = start('group', lambda: os.setpgid(0, 0))
member = start('member', lambda: None); ask('group', '0'); os.setpgid(member, group)
master, side = pty.openpty()
told_below, tell_below = os.pipe()
# The grandchild is asked through its parent.
def session():
    global told, tell
    told, tell = told_below, tell_below
    os.setsid()
    start('below', lambda: None)
    fcntl.ioctl(side, termios.TIOCSCTTY, 0)
    asked = asks['below']
    told, tell = outer_told, outer_tell
    def below(expression):
        os.write(asked, expression.encode()); return eval(os.read(told_below, 1000))
    globals()['below'] = below
outer_told, outer_tell = told, tell
leader = start('leader', session)
ask('leader', '0')
sharer = lower(0x400)
if not sharer:
    while True: signal.pause()
dead = lower()
if not dead: os._exit(3)
os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
added = os.open('/dev/null', os.O_RDONLY)
everyone = ['root', 'group', 'member', 'leader']
def differs():
    def check(what, got, expected):
        if got != expected: raise ValueError(f'{what}: {got!r} and not {expected!r}')
    below = lambda expression: ask('leader', f'below({expression!r})')
    for name in everyone + ['below']:
        get = below if name == 'below' else lambda expression: ask(name, expression)
        check(name, get('memory[:5]'), b'begun')
        check(name, get('os.lseek(memfd, 0, os.SEEK_CUR)'), 3)
        check(name, get('os.lseek(file, 0, os.SEEK_CUR)'), 4)
        check(name, sorted(get('inner.poll(0)')), [(number, 1) for number in sorted([read, event])])
        check(name, get('outer.poll(0)'), [(inner.fileno(), 1)])
    check('groups', [ask('group', 'os.getpgid(0)'), ask('member', 'os.getpgid(0)')], [group, group])
    check('sessions', [ask('leader', 'os.getsid(0)'), below('os.getsid(0)')], [leader, leader])
    check('parents', below('os.getppid()'), leader)
    check('foreground', ask('leader', 'os.tcgetpgrp(side)'), leader)
    check('pipe', below('os.read(read, 100)'), b'in the pipe')
    check('event', ask('member', 'struct.unpack("Q", os.read(event, 8))[0]'), 7)
    check('empty', ask('group', 'outer.poll(0)'), [])
    below('memory.__setitem__(slice(0, 5), b"other")')
    check('memory', [ask(name, 'memory[:5]') for name in everyone], [b'other'] * 4)
    ask('group', 'os.write(memfd, b"abc")'); check('memfd', below('os.read(memfd, 2)'), b'67')
    check('file', [ask('member', 'os.read(file, 2)'), below('os.read(file, 2)')], [b'45', b'67'])
    os.close(added)
    check('table', os.path.exists(f'/proc/{sharer}/fd/{added}'), False)
    check('status', os.waitpid(dead, os.WNOHANG), (dead, 3 << 8))
assert max(group, member, leader, sharer, dead) < os.getpid()
print('ready', os.getpid(), flush=True)
for line in iter(sys.stdin.readline, ''):
    if line == 'exit 0\n': os._exit(0)
    try: differs(); print('all is there', flush=True)
    except Exception as problem: print(problem, flush=True)
"#;

fn all_that_children_with_lower_pids_share() {
    let _turn = take_lower_pids();
    need_python();
    comes_back(
        |home| python(home, SHARE, &[home.path("file").display().to_string()]),
        |talk| assert_eq!(talk.ask("?"), "all is there"),
    );
}

fn need_python() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        skip("there is no python3 here");
    }
}
