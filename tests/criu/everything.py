# Takes on as much state as a process can have, and tells of it: one line of `name=value`, separated by tabs.
import ctypes, errno, fcntl, mmap, os, resource, select, signal, socket, struct, subprocess, sys, tempfile, threading, time

os.setsid()
folder = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def call(number, *words):
    words = [ctypes.c_long(w) if isinstance(w, int) else w for w in words]
    result = libc.syscall(ctypes.c_long(number), *words)
    return result if result >= 0 else -ctypes.get_errno()


def prctl(option, *words):
    return call(157, option, *(list(words) + [0] * (4 - len(words))))


def asked(option):  # what prctl puts into an int
    value = ctypes.c_int(-99)
    return value.value if prctl(option, ctypes.byref(value)) == 0 else 'error'


def text(path):
    try:
        with open(path) as file: return file.read().strip()
    except OSError as error:
        return errno.errorcode[error.errno]


def attempt(work):
    try: return work()
    except OSError as error: return errno.errorcode.get(error.errno, str(error))


state, threads, keep = {}, {}, []
handled = {}


def count(number, frame): handled[number] = handled.get(number, 0) + 1


# Signals, first: what comes later uses them.
for number in (signal.SIGIO, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH): signal.signal(number, count)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.siginterrupt(signal.SIGUSR1, False)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG, signal.SIGRTMIN + 3])
libc.sigqueue(os.getpid(), signal.SIGRTMIN + 3, ctypes.c_void_p(4711))  # stays pending
stack = ctypes.create_string_buffer(1 << 16)
keep.append(stack)
class Stack(ctypes.Structure):
    _fields_ = [('sp', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t)]
libc.sigaltstack(ctypes.byref(Stack(ctypes.addressof(stack), 0, 1 << 16)), None)


def altstack():
    now = Stack()
    libc.sigaltstack(None, ctypes.byref(now))
    return '%x %x %x' % (now.sp or 0, now.flags, now.size)


class Attributes(ctypes.Structure):
    _fields_ = [('size', ctypes.c_uint32), ('policy', ctypes.c_uint32), ('flags', ctypes.c_uint64),
                ('nice', ctypes.c_int32), ('priority', ctypes.c_uint32), ('runtime', ctypes.c_uint64),
                ('deadline', ctypes.c_uint64), ('period', ctypes.c_uint64), ('min', ctypes.c_uint32), ('max', ctypes.c_uint32)]


def scheduling():
    now = Attributes()
    call(315, 0, ctypes.byref(now), ctypes.sizeof(now), 0)
    return '%d %#x %d %d %d %d %d' % (now.policy, now.flags, now.nice, now.priority, now.runtime, now.deadline, now.period)


def schedule(policy, flags=0, nice=0, priority=0, runtime=0, deadline=0, period=0):
    return call(314, 0, ctypes.byref(Attributes(48, policy, flags, nice, priority, runtime, deadline, period)), 0)


def of_thread():
    comm = ctypes.create_string_buffer(16)
    prctl(16, comm)
    mask = ctypes.c_uint64()
    call(204, 0, 8, ctypes.byref(mask))
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    call(274, 0, ctypes.byref(head), ctypes.byref(size))
    status = dict(line.split(':', 1) for line in text('/proc/thread-self/status').split('\n') if ':' in line)
    told = {'name': comm.value.decode(), 'affinity': mask.value, 'ioprio': call(252, 1, 0), 'slack': prctl(30),
            'scheduling': scheduling(), 'pdeathsig': asked(2), 'altstack': altstack(), 'robust': head.value,
            'blocked': sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), 'speculation-store': prctl(52, 0),
            'speculation-branch': prctl(52, 1), 'speculation-flush': prctl(52, 2), 'no_new_privs': prctl(39),
            'securebits': prctl(27), 'keepcaps': prctl(7), 'dumpable': prctl(3), 'machine-check': prctl(34),
            'tagged': prctl(56), 'timing': prctl(13), 'endian': 0, 'seccomp-errno': call(134, 0),
            'children': 0}
    for name in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'Seccomp', 'Seccomp_filters', 'Groups', 'Uid', 'Gid', 'SigPnd',
                 'ShdPnd', 'SigIgn', 'SigCgt', 'x86_Thread_features', 'Umask', 'THP_enabled', 'Cpus_allowed_list'):
        told[name] = ' '.join(status.get(name, '').split())
    return told


def thread(name, work):
    ready, asked, told = threading.Event(), threading.Semaphore(0), {}
    def run():
        prctl(15, name.encode())
        told['setup'] = work()
        ready.set()
        while True:
            asked.acquire()
            told['told'] = of_thread()
            ready.set()
    threading.Thread(target=run, daemon=True).start()
    ready.wait()
    ready.clear()
    def ask():
        asked.release()
        ready.wait()
        ready.clear()
        return told['told']
    threads[name] = ask


def set_affinity(mask): call(203, 0, 8, ctypes.byref(ctypes.c_uint64(mask)))


class Code(ctypes.Structure): _fields_ = [('code', ctypes.c_uint16), ('jt', ctypes.c_uint8), ('jf', ctypes.c_uint8), ('k', ctypes.c_uint32)]
class Program(ctypes.Structure): _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.POINTER(Code))]


def filter_uselib(number, flags=0):  # uselib answers this error number
    code = (Code * 4)(Code(0x20, 0, 0, 0), Code(0x15, 0, 1, 134), Code(6, 0, 0, 0x50000 | number), Code(6, 0, 0, 0x7fff0000))
    return call(317, 1, flags, ctypes.byref(Program(4, code)))


thread('batch', lambda: (schedule(3, nice=7), set_affinity(2), prctl(29, 70000), call(251, 1, 0, 3 << 13)))
thread('idle', lambda: (schedule(5), prctl(1, 10), call(251, 1, 0, (2 << 13) | 2)))
thread('fifo', lambda: schedule(1, flags=1, priority=3))
thread('round', lambda: schedule(2, priority=4))
thread('slice', lambda: schedule(0, nice=2, runtime=3000000))
if 'deadline' in sys.argv: thread('deadline', lambda: schedule(6, runtime=1000000, deadline=10000000, period=10000000))
thread('quiet', lambda: (prctl(38, 1), filter_uselib(77), prctl(53, 0, 8), prctl(53, 1, 4), prctl(28, 0x10 | 0x20), prctl(8, 1)))
thread('caps', lambda: (prctl(24, 12), [call(126, ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)),
                                            ctypes.byref((ctypes.c_uint32 * 6)(0x3ff, 0x3ff, 0x1ff, 0, 0, 0)))], prctl(47, 2, 5)))

# The process.
os.umask(0o27)
os.setgroups([7, 11, 4711])
os.setpriority(os.PRIO_PROCESS, 0, 3)
prctl(41, 1), prctl(67, 1)
set_ksm = prctl(68)
libc.personality(0x0040000)
prctl(36, 1), prctl(1, 12)
prctl(29, 60000)
for name, value in (('oom_score_adj', '77'), ('coredump_filter', '0x13'), ('autogroup', '5')):
    try:
        with open('/proc/self/' + name, 'w') as file: file.write(value)
    except OSError: pass
LIMITS = [name for name in dir(resource) if name.startswith('RLIMIT_')]
for name in LIMITS:
    soft, hard = resource.getrlimit(getattr(resource, name))
    lower = lambda limit, by: limit - by if limit > by else (1 << 40) - by if limit < 0 else limit
    if name not in ('RLIMIT_CPU', 'RLIMIT_STACK', 'RLIMIT_AS', 'RLIMIT_DATA'):
        resource.setrlimit(getattr(resource, name), (lower(hard, 9), lower(hard, 5)))
call(250, 1, b'everything')  # a session keyring
where = os.path.join(folder, 'gone')
os.mkdir(where), os.chdir(where), os.rmdir(where)

# Timers.
signal.setitimer(signal.ITIMER_REAL, 5000, 700)
signal.setitimer(signal.ITIMER_VIRTUAL, 6000, 800)
signal.setitimer(signal.ITIMER_PROF, 7000, 900)
class Event(ctypes.Structure):
    _fields_ = [('value', ctypes.c_void_p), ('signo', ctypes.c_int), ('notify', ctypes.c_int), ('tid', ctypes.c_int), ('pad', ctypes.c_int * 12)]
timers = {}
for name, clock, event in (('none', 1, Event(0, 0, 1)), ('signal', 0, Event(77, signal.SIGUSR2, 0)),
                           ('thread', 1, Event(78, signal.SIGUSR2, 4, os.getpid())), ('cpu', 2, Event(79, signal.SIGUSR2, 0)),
                           ('boot', 7, Event(80, signal.SIGUSR2, 0)), ('tai', 11, Event(80, signal.SIGUSR2, 0))):
    number = ctypes.c_int()
    if call(222, clock, ctypes.byref(event), ctypes.byref(number)) == 0:
        timers[name] = number.value
        call(223, number.value, 0, ctypes.byref((ctypes.c_long * 4)(300, 5, 4000, 0)), None)


def about(seconds, full): return 'running' if full - 2000 < seconds <= full + 1 else 'stopped' if not seconds else 'wrong %s' % seconds


# Memory.
PAGE = mmap.PAGESIZE
areas = {}
def area(name, size=16 * PAGE, protection=3, flags=0x22, descriptor=-1):
    # Between gaps, so that it is not merged with its neighbours.
    room = libc.mmap(None, size + 2 * PAGE, 0, 0x22, -1, 0)
    libc.munmap(ctypes.c_void_p(room + PAGE), size)
    address = libc.mmap(room + PAGE, size, protection, flags | 0x100000, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value): return None
    areas[name] = address
    return address
for name, advice in (('dontfork', 10), ('mergeable', 12), ('hugepage', 14), ('nohugepage', 15), ('dontdump', 16), ('wipeonfork', 18),
                     ('random', 1), ('sequential', 2), ('free', 8), ('cold', 20), ('guard', 102)):
    place = area(name)
    ctypes.memset(place, 7, 16 * PAGE)
    if name == 'guard' and 'guard' not in sys.argv: continue  # criu before 4.2 does not know it
    if name == 'guard': libc.madvise(place + 4 * PAGE, 2 * PAGE, advice)
    else: libc.madvise(place, 16 * PAGE, advice)
place = area('named'); prctl(0x53564d41, 0, place, 16 * PAGE, b'a name')
place = area('locked'); libc.mlock(place, 16 * PAGE)
place = area('onfault'); call(325, place, 16 * PAGE, 1)
place = area('norserve', flags=0x4022)
place = area('down', flags=0x122)
place = area('stack', flags=0x20022)
place = area('policy'); call(237, place, 16 * PAGE, 1, ctypes.byref(ctypes.c_ulong(1)), 64, 0)
place = area('none', protection=0)
place = area('readonly'); ctypes.memset(place, 9, PAGE); libc.mprotect(ctypes.c_void_p(place), PAGE, 1)
place = area('shared', flags=0x21); ctypes.memset(place, 5, PAGE)
place = area('droppable', flags=0x28)
key = call(330, 0, 1)
place = area('keyed')
if key >= 0: call(329, place, 16 * PAGE, 3, key)
libc.mlockall(2 | 4)  # what comes later


def mappings():
    told, name = {}, None
    for line in text('/proc/self/smaps').split('\n'):
        words = line.split()
        if '-' in words[0] and not words[0].endswith(':'):
            start, end = (int(word, 16) for word in words[0].split('-'))
            name = next((n for n, at in areas.items() if start <= at < end), None)
            if name: told['map ' + name] = '%s %s %s' % (words[1], areas[name] - start, ' '.join(words[5:]))
        elif name and words[0] == 'VmFlags:': told['map ' + name] += ' ' + ' '.join(sorted(words[1:]))
        elif name and words[0] == 'ProtectionKey:': told['map ' + name] += ' key ' + words[1]
    return told


# Files.
files = {}
def opened(name, flags, mode=0o600):
    files[name] = os.open(os.path.join(folder, name), flags, mode)
    return files[name]
for name, flags in (('plain', 0), ('append', os.O_APPEND), ('nonblock', os.O_NONBLOCK), ('async', os.O_ASYNC), ('direct', os.O_DIRECT),
                    ('noatime', os.O_NOATIME), ('sync', os.O_SYNC), ('dsync', os.O_DSYNC), ('largefile', os.O_LARGEFILE)):
    attempt(lambda: opened(name, flags | os.O_RDWR | os.O_CREAT))
os.write(files['plain'], b'0123456789'), os.lseek(files['plain'], 4, 0)
fcntl.fcntl(files['plain'], fcntl.F_SETOWN, os.getpid()), fcntl.fcntl(files['plain'], fcntl.F_SETSIG, signal.SIGUSR1)
files['path'] = os.open(folder, os.O_PATH)
files['folder'] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
files['hint'] = opened('hint', os.O_RDWR | os.O_CREAT)
attempt(lambda: fcntl.fcntl(files['hint'], 1036, struct.pack('Q', 3)))
attempt(lambda: fcntl.fcntl(files['hint'], 1038, struct.pack('Q', 4)))
files['leased'] = opened('leased', os.O_RDONLY | os.O_CREAT)
attempt(lambda: fcntl.fcntl(files['leased'], fcntl.F_SETLEASE, fcntl.F_RDLCK))
for name, flags in (('flocked', fcntl.LOCK_SH), ('flocked-x', fcntl.LOCK_EX)):
    fcntl.flock(opened(name, os.O_RDWR | os.O_CREAT), flags)
fcntl.fcntl(opened('ofd', os.O_RDWR | os.O_CREAT), 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 3, 5, 0))
fcntl.lockf(opened('posix', os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX, 3, 7)
if 'dnotify' in sys.argv:
    files['noted'] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.fcntl(files['noted'], fcntl.F_SETSIG, signal.SIGWINCH), fcntl.fcntl(files['noted'], fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_MULTISHOT)
files['pipe-r'], files['pipe-w'] = os.pipe2(os.O_NONBLOCK)
fcntl.fcntl(files['pipe-r'], 1031, 1 << 18), os.write(files['pipe-w'], b'in the pipe')
os.mkfifo(os.path.join(folder, 'fifo'))
files['fifo'] = os.open(os.path.join(folder, 'fifo'), os.O_RDWR | os.O_NONBLOCK)
fcntl.fcntl(files['fifo'], 1031, 1 << 17), os.write(files['fifo'], b'in the fifo')
files['event'], files['semaphore'] = call(290, 5, 0o4000), call(290, 3, 1 | 0o4000)
files['signal'] = call(289, -1, ctypes.byref(ctypes.c_uint64(1 << 22)), 8, 0o4000)
for name, clock in (('timer-mono', 1), ('timer-real', 0), ('timer-boot', 7)):
    files[name] = call(283, clock, 0o4000)
    call(286, files[name], 0, ctypes.byref((ctypes.c_long * 4)(300, 5, 4000, 0)), None)
files['memory'] = os.memfd_create('named', os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
os.write(files['memory'], b'sealed'), fcntl.fcntl(files['memory'], 1033, 2 | 4)  # shrink, grow
files['memory-noexec'] = os.memfd_create('quiet', 0x8)
files['inotify'] = call(294, 0o4000)
for name in ('plain', 'append'): libc.inotify_add_watch(files['inotify'], os.path.join(folder, name).encode(), 0x2)
libc.inotify_add_watch(files['inotify'], folder.encode(), 0x100 | 0x01000000)
if 'events' in sys.argv: os.write(files['append'], b'seen')
files['child'] = os.pidfd_open(os.getpid())
cloexec = os.open('/dev/null', os.O_RDONLY); os.set_inheritable(cloexec, True); files['inheritable'] = cloexec
files['dev-null'] = os.open('/dev/null', os.O_WRONLY)
files['random'] = os.open('/dev/urandom', os.O_RDONLY)
files['proc'] = os.open('/proc/self/status', os.O_RDONLY); os.read(files['proc'], 7)

# Sockets.
sockets = {}
def options(one, level, choices):
    for option, value in choices:
        attempt(lambda: one.setsockopt(level, option, value))
SKIP = {(1, 4), (6, 24), (1, 17), (1, 28), (1, 31), (1, 56), (1, 57), (1, 55), (1, 48), (1, 59), (1, 77), (6, 11), (6, 26), (6, 28), (6, 21), (6, 24 + 1000), (6, 10), (0, 4), (41, 6), (1, 3 + 1000)}
# Options that are only read, and those that nothing reads on such a socket.
SKIP |= {(0, 9), (0, 14), (0, 80), (41, 1), (41, 24), (41, 61), (1, 49), (6, 12), (6, 30)}
GENERAL = [(2, 1), (15, 1), (7, 100000), (8, 120000), (9, 1), (5, 0), (6, 1), (12, 5), (18, 2), (19, 3), (36, 77), (29, 1), (16, 1), (34, 1),
           (40, 1), (41, 1), (43, 1), (46, 50), (47, 1000000), (20, struct.pack('qq', 3, 0)), (21, struct.pack('qq', 4, 0)),
           (13, struct.pack('ii', 1, 9)), (10, 1), (11, 1), (37, 0x18), (69, 1), (74, 1), (75, 1), (70, 2), (24, 0), (25, b'lo')]
IP = [(1, 0x10), (2, 55), (8, 1), (6, 1), (7, 1), (12, 1), (13, 1), (10, 3), (11, 1), (15, 1), (19, 1), (20, 1), (21, 5), (22, 0), (23, 1),
      (24, 1), (33, 9), (34, 0), (49, 1), (50, 1), (51, struct.pack('I', 40000 | 50000 << 16)), (5, 1), (9, 1), (14, 0), (18, 1)]
IP6 = [(16, 66), (67, 0x20), (49, 1), (51, 1), (66, 1), (8, 1), (56, 1), (18, 9), (19, 0), (23, 3), (25, 1), (33, 1), (62, 0), (70, 1), (72, 2), (73, 3), (76, 1), (24, 1500), (29, 0)]
TCP = [(1, 1), (3, 1), (4, 60), (5, 7), (6, 4), (7, 3), (8, 33), (9, 2), (10, 70000), (12, 0), (13, b'reno'), (16, 1), (17, 1), (18, 9000), (23, 5), (24, 9), (25, 8000), (30, 1), (33, 1), (36, 1), (37, 30000), (2, 1000), (39, 1), (44, 100), (45, 5)]
UDP = [(101, 1), (102, 1), (103, 500), (104, 1)]


def everything_of(name, one):
    told = {}
    for level in (1, 0, 41, 6, 17, 270):
        for option in range(1, 110):
            if (level, option) in SKIP: continue
            if (level, option) == (1, 2) and one.family in (socket.AF_UNIX, socket.AF_NETLINK): continue
            if (level, option) in ((0, 33), (41, 18), (6, 23)) and name.startswith('tcp') and 'listener' not in name: continue
            try: told['%d/%d' % (level, option)] = one.getsockopt(level, option, 64).hex()
            except OSError: pass
    return told


def new(name, family, kind):
    one = sockets[name] = socket.socket(family, kind)
    options(one, 1, GENERAL)
    if family in (socket.AF_INET, socket.AF_INET6): options(one, 0, IP)
    if family == socket.AF_INET6: options(one, 41, [(26, 1)] + IP6)
    if kind == socket.SOCK_DGRAM and family != socket.AF_UNIX: options(one, 17, UDP)
    return one


if 'tcp' in sys.argv:
    for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):
        name = 'tcp4' if family == socket.AF_INET else 'tcp6'
        listener = new(name + '-listener', family, socket.SOCK_STREAM)
        options(listener, 6, TCP)
        listener.bind((address, 0)), listener.listen(17)
        one = new(name + '-client', family, socket.SOCK_STREAM)
        options(one, 6, TCP)
        one.setblocking(True), one.connect(listener.getsockname()), one.send(b'on its way')
        sockets[name + '-server'] = listener.accept()[0]
        options(one, 6, TCP)
        new(name + '-idle', family, socket.SOCK_STREAM)
if 'udp' in sys.argv:
    for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):
        name = 'udp4' if family == socket.AF_INET else 'udp6'
        one = new(name, family, socket.SOCK_DGRAM)
        one.bind((address, 0))
        other = new(name + '-connected', family, socket.SOCK_DGRAM)
        other.connect(one.getsockname())
        if 'datagram' in sys.argv: other.send(b'a datagram')
for kind, name in ((socket.SOCK_STREAM, 'stream'), (socket.SOCK_DGRAM, 'dgram'), (socket.SOCK_SEQPACKET, 'packets')):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    options(one, 1, GENERAL)
    sockets['unix-' + name], sockets['unix-%s-other' % name] = one, other
    one.send(b'on its way')
sockets['unix-listener'] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sockets['unix-listener'].bind(os.path.join(folder, 'socket')), sockets['unix-listener'].listen(5)
sockets['netlink'] = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
sockets['netlink'].bind((0, 0x20000))  # a group that is hardly ever told anything
options(sockets['netlink'], 1, GENERAL)
options(sockets['netlink'], 270, [(1, 3), (3, 1), (4, 1), (5, 1), (10, 1), (11, 1), (12, 1)])

poll = select.epoll(); files['epoll'] = poll.fileno()
poll.register(files['pipe-r'], select.EPOLLIN | select.EPOLLONESHOT)
poll.register(files['semaphore'], select.EPOLLIN | select.EPOLLET)
poll.register(files['fifo'], select.EPOLLIN | select.EPOLLEXCLUSIVE)
poll.register(files['timer-mono'], select.EPOLLIN | (1 << 29))
poll.register(sockets['unix-stream'].fileno(), select.EPOLLIN | select.EPOLLRDHUP)
poll.poll(0)  # disarms the first, and tells of the second


def of_file(name, number):
    told = {}
    for line in text('/proc/self/fdinfo/%d' % number).split('\n'):
        words = line.split()
        if not words or words[0] in ('mnt_id:', 'ino:', 'it_value:', 'eventfd-id:', 'Pid:'): continue
        if words[0] == 'lock:': words = words[2:5] + words[7:]
        if words[0] == 'inotify': words = words[:3] + words[4:5]
        if words[0] == 'tfd:': words = [word for word in words if word[:4] not in ('sdev', 'ino:')]
        told['%s %s' % (words[0], words[1] if words[0] in ('tfd:', 'inotify') else len(told))] = ' '.join(words[1:])
    for what, command in (('own', fcntl.F_GETOWN), ('sig', fcntl.F_GETSIG), ('cloexec', fcntl.F_GETFD), ('pipe', 1032), ('seals', 1034), ('lease', fcntl.F_GETLEASE)):
        told[what] = attempt(lambda: fcntl.fcntl(number, command))
    for what, command in (('hint', 1035), ('file hint', 1037)):
        told[what] = attempt(lambda: fcntl.fcntl(number, command, b'\0' * 8).hex())
    told['link'] = os.readlink('/proc/self/fd/%d' % number).split(':')[0]
    told['waiting'] = attempt(lambda: struct.unpack('i', fcntl.ioctl(number, 0x541b, b'\0' * 4))[0])
    stat = os.fstat(number)
    told['mode'] = '%o' % stat.st_mode
    return {'file %s %s' % (name, what): value for what, value in told.items()}


def tell():
    told = {}
    for name, ask in threads.items(): told.update(('thread %s %s' % (name, what), value) for what, value in ask().items())
    told.update(('thread main %s' % what, value) for what, value in of_thread().items())
    for name in ('oom_score_adj', 'coredump_filter', 'personality', 'timerslack_ns', 'comm', 'cmdline', 'environ', 'loginuid', 'sessionid',
                 'timens_offsets', 'attr/current', 'uid_map', 'setgroups', 'ksm_merging_pages', 'projid_map', 'clear_refs'):
        if name not in ('timens_offsets', 'clear_refs'): told[name] = text('/proc/self/' + name).replace('\0', ' ')
    told['auxv'] = open('/proc/self/auxv', 'rb').read().hex()
    told['autogroup'] = text('/proc/self/autogroup').split('nice')[-1]
    told['cgroup'] = ' '.join(sorted(text('/proc/self/cgroup').split('\n')))
    told.update((name, resource.getrlimit(getattr(resource, name))) for name in LIMITS)
    told.update((what, os.readlink('/proc/self/' + what)) for what in ('cwd', 'exe', 'root'))
    told['ids'] = (os.getpid(), os.getppid() > 0, os.getpgid(0), os.getsid(0), os.getresuid(), os.getresgid(), libc.setfsuid(-1), libc.setfsgid(-1))
    told['subreaper'], told['thp'], told['ksm'], told['flusher'] = asked(37), prctl(42), prctl(68), prctl(58)
    told['mdwe'], told['tsc'], told['memory-policy'] = prctl(66), asked(25), 0
    told['mce'] = prctl(34)
    later = libc.mmap(None, PAGE, 3, 0x22, -1, 0); areas['later'] = later
    told.update(mappings())
    libc.munmap(ctypes.c_void_p(later), PAGE)
    key = ctypes.create_string_buffer(99)
    told['keyring'] = key.value.decode() if call(250, 6, -3, key, 99) > 0 else 'none'
    for name, which, full in (('real', signal.ITIMER_REAL, 5000), ('virtual', signal.ITIMER_VIRTUAL, 6000), ('profiling', signal.ITIMER_PROF, 7000)):
        value, interval = signal.getitimer(which)
        told['itimer ' + name] = '%s %s' % (about(value, full), round(interval))
    for name, number in timers.items():
        now = (ctypes.c_long * 4)()
        done = call(224, number, ctypes.byref(now))
        told['timer ' + name] = '%s %s %s %s %s' % (done, now[0], now[1], about(now[2], 4000), call(225, number))
    told['timers'] = [line for line in text('/proc/self/timers').split('\n')]
    for name, number in files.items(): told.update(of_file(name, number))
    for name, one in sockets.items():
        told.update(of_file(name, one.fileno()))
        told.update(('socket %s %s' % (name, what), value) for what, value in everything_of(name, one).items())
    told['handlers'] = [(number, str(signal.getsignal(number))[:14]) for number in signal.valid_signals()]
    told['read'] = bytes((ctypes.c_char * 4).from_address(areas['readonly'])).hex() + bytes((ctypes.c_char * 4).from_address(areas['shared'])).hex()
    told['handled'] = sorted(handled.items())
    return told


print('ready', os.getpid(), flush=True)
for line in sys.stdin:
    if line.strip() == 'exit 0': break
    print('\t'.join('%s=%s' % (name, str(value).replace('\n', '|').replace('\t', ' ')) for name, value in tell().items()), flush=True)
