# Pairs of threads that wake each other. A wake-up that is lost stops a pair. Says `ready PID`, and
# answers each line with the names of the pairs that stand still, or `all go on`. Its arguments are
# names of pairs to leave out.
import os, select, socket, sys, threading, time

PAIRS = {}

def pair(make):
    PAIRS[make.__name__] = make
    return make

def run(*loops):
    threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

def eventfds(count, flags=0):
    return [os.eventfd(0, os.EFD_NONBLOCK | flags) for _ in range(count)]

def ping_pong(tick, wait, wake):
    def first():
        while True:
            wake(0)
            wait(1)
            tick()
    def second():
        while True:
            wait(0)
            wake(1)
    run(first, second)

@pair
def epoll_edge(tick):
    """The counters are never read: each write is an edge."""
    events = eventfds(2)
    polls = [select.epoll(), select.epoll()]
    for poll, event in zip(polls, events): poll.register(event, select.EPOLLIN | select.EPOLLET)
    ping_pong(tick, lambda n: polls[n].poll(), lambda n: os.eventfd_write(events[n], 1))

@pair
def epoll_oneshot(tick):
    events = eventfds(2)
    polls = [select.epoll(), select.epoll()]
    flags = select.EPOLLIN | select.EPOLLONESHOT
    for poll, event in zip(polls, events): poll.register(event, flags)
    def wait(n):
        polls[n].poll()
        os.eventfd_read(events[n])
        polls[n].modify(events[n], flags)
    ping_pong(tick, wait, lambda n: os.eventfd_write(events[n], 1))

@pair
def poll(tick):
    events = eventfds(2)
    def wait(n):
        poll = select.poll()
        poll.register(events[n], select.POLLIN)
        poll.poll()
        os.eventfd_read(events[n])
    ping_pong(tick, wait, lambda n: os.eventfd_write(events[n], 1))

@pair
def mailbox(tick):
    """As ZeroMQ does it: the writer signals only where the reader has said that it sleeps."""
    events, locks = eventfds(2), [threading.Lock(), threading.Lock()]
    boxes, asleep, active = [[], []], [True, True], [False, False]
    def wake(n):
        with locks[n]:
            boxes[n].append(1)
            must, asleep[n] = asleep[n], False
        if must: os.eventfd_write(events[n], 1)
    def wait(n):
        while True:
            if active[n]:
                with locks[n]:
                    if boxes[n]: return boxes[n].pop()
                    asleep[n], active[n] = True, False
            select.select([events[n]], [], [])
            os.eventfd_read(events[n])
            active[n] = True
    ping_pong(tick, wait, wake)

@pair
def futex(tick):
    flags = [threading.Semaphore(0), threading.Semaphore(0)]
    ping_pong(tick, lambda n: flags[n].acquire(), lambda n: flags[n].release())

def connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]

def streams(tick, ends, sizes):
    """Numbered bytes go both ways, by sockets that do not block, in an epoll of edges."""
    def drive(end):
        poll = select.epoll()
        poll.register(end, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        written = read = turn = 0
        end.setblocking(False)
        wave = bytes(range(251)) * 2000
        while True:
            may_write = may_read = True
            turn += 1
            while may_write or may_read:
                ahead = written - read
                if may_write and ahead < 300000:
                    size = sizes[(written + turn) % len(sizes)]
                    try: written += end.send(wave[written % 251:][:size])
                    except BlockingIOError: may_write = False
                try:
                    data = end.recv(65536)
                    if not data: os.abort()
                    if data != wave[read % 251:][:len(data)]: os.abort()
                    read += len(data)
                    tick()
                except BlockingIOError:
                    may_read = False
                    if ahead >= 300000: break
            poll.poll()
    run(*[lambda end=end: drive(end) for end in ends])

@pair
def tcp_edge(tick): streams(tick, connection(), [1, 7, 100, 1500, 70000])

@pair
def tcp_ping_pong(tick):
    ends = connection()
    def wait(n):
        poll = select.poll()
        poll.register(ends[n], select.POLLIN)
        poll.poll()
        if ends[n].recv(100) != b"x": os.abort()
    ping_pong(tick, wait, lambda n: ends[1 - n].send(b"x"))

@pair
def unix_edge(tick): streams(tick, socket.socketpair(), [1, 100, 5000])

counts = {}
def start(make):
    counts[make.__name__] = 0
    def tick(): counts[make.__name__] += 1
    threading.Thread(target=make, args=(tick,), daemon=True).start()

def still(before, limit):
    """The pairs that do not go on."""
    until = time.monotonic() + limit
    while True:
        left = [name for name in counts if counts[name] < before[name] + 20]
        if not left or time.monotonic() > until: return left
        time.sleep(0.002)

os.setsid()
for name, make in PAIRS.items():
    if name not in sys.argv: start(make)
still(counts.copy(), 20)
print("ready", os.getpid(), flush=True)
for line in sys.stdin:
    if line == "exit 0\n": os._exit(0)
    print(" ".join(still(counts.copy(), 20)) or "all go on", flush=True)
os._exit(0)
