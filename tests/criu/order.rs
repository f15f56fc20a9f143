//! Trees whose processes have numbers in any order, as after pids wrapped around, come back; and unix sockets in any
//! order.

use std::{fs, process::Command};

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
];

/// `lower()` forks a child in perl, as `fork` does, that has a lower pid than its parent.
const LOWER: &str = "sub lower { \
    for my $pid (reverse 2 .. $$ - 1) { \
        my $wanted = pack('l', $pid); \
        my $how = pack('Q11', (0) x 4, 17, (0) x 3, unpack('J', pack('P', $wanted)), 1, 0); \
        my $child = syscall(435, $how, 88); \
        return $child if $child >= 0; \
    } \
    die \"no lower pid is free: $!\"; }";

/// Each pair of sockets is held by the parent and by two children in one of all the ways that there are; each process
/// has one end, both, or none.
fn pairs_of_sockets_that_children_with_lower_pids_share() {
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

/// Shares pairs of sockets with a child, sends pipes through them, and counts the pairs through which they all come out.
/// The words are, for each pair, who holds which end, who sends into which end, and whether the sender keeps the pipe.
const IN_FLIGHT: &str = r#"
import ctypes, os, socket, sys
def lower():
    for pid in reversed(range(2, os.getpid())):
        wanted = ctypes.c_int(pid)
        how = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
        child = ctypes.CDLL(None).syscall(435, how, 88)
        if child >= 0: return child
    raise OSError('no lower pid is free')
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
    let program = home.path("in_flight.py");
    fs::write(&program, IN_FLIGHT).unwrap();
    let mut command = Command::new("setsid");
    command.arg("python3").arg(program).arg(child).args(words);
    Script::by(command)
}

/// Each way for a parent and a child to hold a pair, and for one of them to send, in words for [`IN_FLIGHT`].
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

/// Whether criu cannot restore it: the process with the lower pid has the receiver alone, and the other has both.
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
    let fine = ways_to_send().into_iter().filter(|way| !is_beyond(*way)).flat_map(words);
    arrive("lower", &fine.collect::<Vec<_>>());
}

fn descriptors_that_no_order_brings_to_their_receiver() {
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

/// The kernel lets a datagram socket connect to a peer that has none, or that one. It had none at the time.
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

fn need_python() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        skip("there is no python3 here");
    }
}
