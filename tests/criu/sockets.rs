//! A tree whose standard streams are unix sockets, as Node gives its children, is captured and
//! revived without a word. Empty packets that wait in unix sockets come back.

use std::{
    io::Write,
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    process::Command,
};

use criu_rpc::{Cause, Digest256, Warning};

use crate::{
    harness::tests,
    outside::{is_lost, is_told},
    places::Home,
    talk::Talk,
    tree::{OrExplain, Revived, Victim, explain},
    ways::{Script, WAYS, comes_back as comes_back_each_way},
    warned::{assert_warned, warning},
};

tests![
    a_tree_on_sockets_is_revived_on_pipes,
    a_tree_with_one_socket_as_all_its_streams_is_revived_on_pipes,
    a_tree_whose_log_is_a_socket_of_datagrams_is_revived,
    a_process_on_sockets_captures_itself,
    a_socket_that_is_no_standard_stream_still_needs_a_word,
    empty_packets_come_back_with_all_others_in_order,
    an_empty_packet_comes_back_at_the_second_capture,
    empty_packets_that_a_second_capture_cannot_see_are_told,
    descriptors_that_an_empty_packet_carries_are_told,
    the_sender_of_datagrams_is_known_or_it_is_told,
    a_socket_whose_file_was_renamed_comes_back_under_its_present_name,
    messages_come_back_without_their_senders_and_that_is_told,
];

/// A server that binds a socket to one name and renames it, as many do.
fn a_socket_whose_file_was_renamed_comes_back_under_its_present_name() {
    let long = "long".repeat(30);
    for (folder, rename, now) in [
        ("", "rename('new', 'srv')", "srv"),
        ("a", "rename('a', 'b')", "b/new"),
        ("", &*format!("mkdir('{long}'); rename('new', '{long}/srv')"), &*format!("{long}/srv")),
    ] {
        comes_back_each_way(
            |home| {
                Script::perl(&format!(
                    "use Socket; my $h = '{}'; chdir $h; mkdir 'a'; my $n = join('/', grep {{ $_ }} $h, '{folder}', 'new'); \
                     socket(S, 1, 1, 0); bind(S, pack_sockaddr_un($n)) or die; listen(S, 9); {rename} or die; \
                     sub answer {{ chdir $h; my $at = '{now}'; chdir $1 if $at =~ s|(.*)/||; socket(C, 1, 1, 0); \
                     connect(C, pack_sockaddr_un($at)) or return \"no: $!\"; accept(D, S); syswrite(C, 'hello'); \
                     sysread(D, my $t, 9); return $t . (-e $n ? ' old' : '') }}",
                    home.path("").display()
                ))
            },
            |talk| assert_eq!(talk.ask("?"), "hello"),
        );
    }
}

fn messages_come_back_without_their_senders_and_that_is_told() {
    const PROGRAM: &str = "import os, socket, struct, sys
os.setsid()
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_KIND)
for end in a, b: end.setsockopt(1, 16, 1)
b.send(b'one'); b.send(b'two')
print('ready', os.getpid(), flush=True)
for line in sys.stdin:
    if line == 'exit 0\\n': break
    if line == 'send\\n': b.send(b'new')
    text, more, _, _ = a.recvmsg(3, 99)
    pid, uid, gid = struct.unpack('3i', more[0][2])
    print(text.decode(), 'own' if pid == os.getpid() else pid, uid, gid, flush=True)";
    for (kind, way) in ["DGRAM", "STREAM", "SEQPACKET"].into_iter().flat_map(|kind| WAYS.map(|way| (kind, way))) {
        eprintln!("{kind} {way:?}");
        let home = Home::new();
        let mut command = Command::new("python3");
        command.args(["-c", &PROGRAM.replace("KIND", kind)]);
        let mut victim = Script::by(command);
        let members = victim.members();
        let capture = || way.capture(&home, victim.pid());
        let foresight = capture().preflight().or_explain();
        assert_eq!(foresight.blocks, []);
        let [risk] = &foresight.risks[..] else { panic!("{:?}", foresight.risks) };
        assert!(risk.to_string().contains("senders of messages"), "{risk}");
        let stored = capture().run(&home.store()).or_explain();
        let senders = |warning: &Warning| is_lost(warning, "senders of messages that wait in a unix socket (SO_PASSCRED)");
        assert!(stored.warnings.iter().all(senders) && stored.warnings.len() == 1, "{:?}", stored.warnings);
        if !way.ends {
            assert_eq!(["", "", "send"].map(|line| victim.ask(line)), ["one own 0 0", "two own 0 0", "new own 0 0"]);
        }
        victim.end(&members, way);
        let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
        let nobody = ["one 0 65534 65534", "two 0 65534 65534", "new own 0 0"];
        assert_eq!(["", "", "send"].map(|line| revived.ask(line)), nobody);
    }
}

fn victim(streams: [OwnedFd; 3], talk: Talk) -> Victim {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--victim", "session", "children=1", "memory=1"]);
    let [stdin, stdout, stderr] = streams;
    let root = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap();
    drop(command); // it holds the tree's ends
    let mut victim = Victim::ready(root, talk);
    victim.assert_counts_on(0);
    victim
}

/// With a socket for each stream. What is to be kept open beside it is the end of the errors.
fn on_three() -> (Victim, UnixStream) {
    let [(to, stdin), (from, stdout), (errors, stderr)] = [(); 3].map(|()| UnixStream::pair().unwrap());
    (victim([stdin.into(), stdout.into(), stderr.into()], Talk::new(to, from)), errors)
}

/// Captured, gone on with, ended and revived.
#[track_caller]
fn comes_back(mut victim: Victim) {
    let home = Home::new();
    let digest: Digest256 = home.capture([victim.pid()]).capture(&home.store()).or_explain();
    home.assert_staging_empty();
    victim.assert_counts_on(1);
    victim.end();
    let mut revived = Revived::from(home.restore(), &home.store(), &digest);
    revived.assert_counts_on(1);
    assert_eq!(revived.ask("child 0 tick"), "count 1");
    assert_eq!(revived.ask("check"), "memory ok 256 pages");
}

fn a_tree_on_sockets_is_revived_on_pipes() {
    let (victim, mut errors) = on_three();
    errors.write_all(b"nobody has read this").unwrap();
    comes_back(victim);
}

fn a_tree_with_one_socket_as_all_its_streams_is_revived_on_pipes() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = || theirs.try_clone().unwrap().into();
    let streams = [stream(), stream(), stream()];
    drop(theirs);
    comes_back(victim(streams, Talk::new(ours.try_clone().unwrap(), ours)));
}

fn a_tree_whose_log_is_a_socket_of_datagrams_is_revived() {
    let [(to, stdin), (from, stdout)] = [(); 2].map(|()| UnixStream::pair().unwrap());
    let (_log, stderr) = UnixDatagram::pair().unwrap();
    comes_back(victim([stdin.into(), stdout.into(), stderr.into()], Talk::new(to, from)));
}

fn a_process_on_sockets_captures_itself() {
    let home = Home::new();
    let (mut victim, _errors) = on_three();
    let stored = victim.ask(&format!("capture run own {}", home.word()));
    let digest = stored.strip_prefix("stored ").unwrap_or_else(|| panic!("{stored}")).parse().unwrap();
    victim.assert_counts_on(1);
    victim.end();
    let mut revived = Revived::from(home.restore(), &home.store(), &digest);
    assert_eq!(revived.talk.hear(), "revived");
    revived.assert_counts_on(1);
}

fn a_socket_that_is_no_standard_stream_still_needs_a_word() {
    let home = Home::new();
    let path = home.path("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (mut victim, _errors) = on_three();
    victim.ask(&format!("connect {}", path.display()));
    let _accepted = listener.accept().unwrap();
    let error = home.capture([victim.pid()]).capture(&home.store()).unwrap_err();
    assert_eq!(
        error.failure().map(|failure| failure.cause),
        Some(Cause::ExternalUnixSocket),
        "{}",
        explain(&error)
    );
    victim.assert_counts_on(1);
}

/// Sends packets through pairs of sockets, and tells what waits in each: packets have credentials,
/// an end has none.
const PACKETS: &str = r"
import array, os, socket, sys
os.setsid()
pairs = []
def pair(kind, *packets, ends=False):
    sender, receiver = socket.socketpair(socket.AF_UNIX, kind)
    for packet in packets:
        data, rights = packet if isinstance(packet, tuple) else (packet, [])
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', rights))] if rights else []
        assert sender.sendmsg([data], control) == len(data)
    if ends: sender.shutdown(socket.SHUT_WR)
    pairs.append((sender, receiver))
    return receiver
def packets(receiver):
    found = ['offset %d' % receiver.getsockopt(socket.SOL_SOCKET, 42)]
    receiver.setsockopt(socket.SOL_SOCKET, 42, -1)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    while True:
        try: data, control, flags, _ = receiver.recvmsg(1 << 20, 999, socket.MSG_DONTWAIT)
        except BlockingIOError: return ' '.join(found + ['more'])
        if not control: return ' '.join(found + ['end'])
        text = data.decode() if len(data) < 99 else str(len(data))
        for level, kind, value in control:
            if kind == socket.SCM_RIGHTS:
                file = array.array('i', value)[0]
                text += '+' + os.readlink('/proc/self/fd/%d' % file)
        found.append('<%s>' % text)
SEQ, DGRAM = socket.SOCK_SEQPACKET, socket.SOCK_DGRAM
null = os.open('/dev/null', os.O_RDONLY)
def serve():
    print('ready', os.getpid(), flush=True)
    for line in sys.stdin:
        if line == 'send\n':
            pairs[0][0].send(b''), pairs[0][0].send(b'last')
            print('sent', flush=True)
        else: print(' / '.join(packets(receiver) for _, receiver in pairs), flush=True)
";

fn packets(pairs: &str) -> Script {
    let mut command = Command::new("python3");
    command.args(["-c", &format!("{PACKETS}\n{pairs}\nserve()\n")]);
    Script::by(command)
}

#[track_caller]
fn wait_in_each_copy(pairs: &str, expected: &str) {
    comes_back_each_way(|_| packets(pairs), |talk| assert_eq!(talk.ask("?"), expected));
}

fn empty_packets_come_back_with_all_others_in_order() {
    let kinds = "
for kind in (SEQ, DGRAM):
    pair(kind, b'')
    pair(kind, b'', b'one', b'')
    pair(kind, b'one', b'', b'', b'two', b'', b'three').setsockopt(socket.SOL_SOCKET, 42, 2)
    pair(kind, b'one', b'two')
    most = socket.socketpair(socket.AF_UNIX, kind)[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32
    pair(kind, b'', b'x' * most)
pair(SEQ, b'', (b'right', [null]), b'', b'plain')
pair(DGRAM, b'plain', b'', (b'right', [null]))
pair(SEQ, b'', b'one', b'', ends=True)
pair(SEQ, b'one', ends=True)
";
    let most = "/proc/sys/net/core/wmem_default";
    let most: u32 = std::fs::read_to_string(most).unwrap().trim().parse().unwrap();
    let each = format!(
        "offset -1 <> more / offset -1 <> <one> <> more / offset 2 <one> <> <> <two> <> <three> more / \
         offset -1 <one> <two> more / offset -1 <> <{}> more",
        most - 32
    );
    let right = "<right+/dev/null>";
    let rest = format!(
        "offset -1 <> {right} <> <plain> more / offset -1 <plain> <> {right} more / offset -1 <> <one> <> end / \
         offset -1 <one> end"
    );
    wait_in_each_copy(kinds, &format!("{each} / {each} / {rest}"));
}

/// Captures twice. The second capture finds the packets that the first has looked at, or warns: the
/// kernel no longer shows them, except for the first packet.
#[track_caller]
fn is_captured_again(pairs: &str, revived_with: &str, lost: bool) {
    for way in WAYS {
        let home = Home::new();
        let mut victim = packets(pairs);
        let members = victim.members();
        let first = home.capture([victim.pid()]).leave_running(true).run(&home.store()).or_explain();
        assert_eq!(first.warnings, [], "{way:?}");
        assert_eq!(victim.ask("send"), "sent");
        let second = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        let what = "empty packets that wait in a unix socket and were looked at before";
        let expected = lost.then(|| warning!(Lost { pid: victim.pid(), what }));
        assert_warned(&second.warnings, expected.as_slice(), way);
        victim.end(&members, way);
        let mut revived = Revived::from(home.restore(), &home.store(), &second.digest);
        assert_eq!(revived.ask("?"), format!("offset -1 {revived_with} more"));
    }
}

fn an_empty_packet_comes_back_at_the_second_capture() {
    is_captured_again("pair(SEQ, b'')", "<> <> <last>", false);
    is_captured_again("pair(SEQ, b'', b'x' * 70000)", "<> <70000> <> <last>", false);
}

fn empty_packets_that_a_second_capture_cannot_see_are_told() {
    is_captured_again("pair(SEQ, b'one', b'', b'two')", "<one> <two> <> <last>", true);
    is_captured_again("pair(DGRAM, b'one', b'', b'two')", "<one> <two> <> <last>", true);
}

fn descriptors_that_an_empty_packet_carries_are_told() {
    for way in WAYS {
        let home = Home::new();
        let mut victim = packets("pair(SEQ, b'one', (b'', [null]), b'two')");
        let members = victim.members();
        let stored = way.capture(&home, victim.pid()).run(&home.store()).or_explain();
        let what = "descriptors and credentials that wait in a unix socket with an empty packet";
        assert_warned(&stored.warnings, &[warning!(Lost { pid: victim.pid(), what })], way);
        victim.end(&members, way);
        let mut revived = Revived::from(home.restore(), &home.store(), &stored.digest);
        assert_eq!(revived.ask("?"), "offset -1 <one> <> <two> more");
    }
}

/// Datagrams of two clients wait in a server; `connected` of those are connected to it.
fn from_clients(connected: usize, clients: usize) -> Script {
    packets(&format!(
        "
name = lambda what: '\\0criu-rpc-%s-%d' % (what, os.getpid())
names = {{}}
def client(what):
    made = socket.socket(socket.AF_UNIX, DGRAM)
    made.bind(name(what))
    names[made.getsockname()] = what
    return made
server = client('server')
clients = [client(what) for what in ('first', 'second')[:{clients}]]
for number, one in enumerate(clients):
    if number < {connected}: one.connect(name('server'))
    one.sendto(b'', name('server')), one.sendto(b'x', name('server'))
pairs.append((clients[0], server))
def packets(server):
    found = []
    while select.select([server], [], [], 0)[0]:
        data, sender = server.recvfrom(99)
        found.append('<%s> of %s' % (data.decode(), names.get(sender)))
    return ' '.join(found)
import select
"
    ))
}

fn the_sender_of_datagrams_is_known_or_it_is_told() {
    comes_back_each_way(|_| from_clients(1, 1), |talk| assert_eq!(talk.ask("?"), "<> of first <x> of first"));
    for (connected, clients) in [(1, 2), (2, 2), (0, 1)] {
        let what = "addresses of the senders of datagrams that wait in a unix socket";
        is_told(
            || from_clients(connected, clients),
            |warning| is_lost(warning, what),
            |talk| assert_eq!(talk.ask("?").matches("<x>").count(), clients),
        );
    }
}
