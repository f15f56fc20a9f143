//! TCP data within a tree that the kernel sends by itself while criu dumps: Nagle's algorithm and
//! TCP_CORK hold it back until an acknowledgement or a timer comes, and neither waits for a frozen
//! process.

use std::process::Command;

use crate::{
    harness::{dumps_tcp, skip, tests},
    talk::Talk,
    ways::{Script, comes_back},
};

tests![
    data_that_nagle_holds_back_arrives_once,
    data_that_a_cork_holds_back_arrives_once,
    data_that_nagle_holds_back_arrives_once_by_ipv6,
];

/// A parent and its child at the ends of a connection. Both write a small number each millisecond,
/// and check that what they read counts on. The parent has memory that keeps criu busy after its
/// socket, before that of its child.
const COUNTING: &str = r"
import os, socket, struct, sys, threading, time
os.setsid()
corked, address = sys.argv[1] == 'cork', sys.argv[2]
family = socket.AF_INET6 if ':' in address else socket.AF_INET
server = socket.socket(family)
server.bind((address, 0))
server.listen(1)
(asked, ask), (heard, answer) = os.pipe(), os.pipe()
child = os.fork()
if child:
    end = server.accept()[0]
    os.close(asked), os.close(answer)
    memory = bytearray(os.urandom(4096) * (25 << 8))
else:
    end = socket.socket(family)
    end.connect(server.getsockname())
    os.close(ask), os.close(heard), os.close(0), os.close(1)
server.close()
if corked: end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
state = {'count': 0, 'wrong': None}
def write():
    count = 0
    while True:
        end.sendall(struct.pack('>I', count))
        count += 1
        time.sleep(0.001)
def read():
    stream = end.makefile('rb')
    while True:
        # The acknowledgement is to come late.
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        got = stream.read(4)
        if len(got) < 4 or struct.unpack('>I', got)[0] != state['count']:
            state['wrong'] = '%r instead of %d' % (got, state['count'])
            return
        state['count'] += 1
for work in (write, read): threading.Thread(target=work, daemon=True).start()
def check():
    goal, until = state['count'] + 100, time.monotonic() + 20
    while state['count'] < goal and not state['wrong'] and time.monotonic() < until: time.sleep(0.01)
    return state['wrong'] or ('it counts on' if state['count'] >= goal else 'stuck at %d' % state['count'])
if child:
    check()
    print('ready', os.getpid(), flush=True)
    for line in sys.stdin:
        os.write(ask, b'?')
        print(check(), '/', os.read(heard, 99).decode(), flush=True)
else:
    while os.read(asked, 1): os.write(answer, check().encode())
";

fn counting(how: &str, address: &str) -> Script {
    let mut command = Command::new("python3");
    command.args(["-c", COUNTING, how, address]);
    Script::by(command)
}

fn counts_on(how: &str, address: &str) {
    comes_back(
        |_| counting(how, address),
        |talk: &mut Talk| assert_eq!(talk.ask("?"), "it counts on / it counts on"),
    );
}

fn data_that_nagle_holds_back_arrives_once() {
    needs_tcp();
    counts_on("nagle", "127.0.0.1");
}

fn data_that_a_cork_holds_back_arrives_once() {
    needs_tcp();
    counts_on("cork", "127.0.0.1");
}

fn data_that_nagle_holds_back_arrives_once_by_ipv6() {
    needs_tcp();
    counts_on("nagle", "::1");
}

fn needs_tcp() {
    if !dumps_tcp() {
        skip("it cannot dump TCP sockets on this kernel");
    }
}
