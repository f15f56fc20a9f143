//! Timers that are files (`timerfd`) expire when they did, and no other time.

use std::process::Command;

use crate::{
    harness::tests,
    ways::{Script, comes_back_times},
};

tests![timers_expire_again_and_again, a_timer_that_is_not_armed_does_not_expire, no_timer_is_early];

/// The start of a program in python that has timers: the clock, whether the time is absolute, the
/// nanoseconds until it expires, and the interval.
const TIMERS: &str = "
import ctypes, os, select, struct, sys, time
lib = ctypes.CDLL(None)
os.setsid()
REAL, MONO, BOOT = 0, 1, 7
MS = 1000000
def arm(timer, clock, absolute, value, interval):
    value += time.clock_gettime_ns(clock) if absolute and value else 0
    times = [part for time in (interval, value) for part in divmod(time, 1000 * MS)]
    assert lib.timerfd_settime(timer, absolute, struct.pack('4q', *times), None) == 0
    return value
def timer(*words):
    made = lib.timerfd_create(words[0], os.O_NONBLOCK)
    arm(made, *words)
    return made
def expires(timer, limit): return bool(select.select([timer], [], [], limit)[0])
def ticks(timer): return struct.unpack('Q', os.read(timer, 8))[0]
";

/// The end of that program.
const CONVERSE: &str = "
print('ready', os.getpid(), flush=True)
for line in sys.stdin:
    if line == 'exit 0\\n': break
    print(answer(), flush=True)
";

/// A victim with timers, and with `answer`.
fn with_timers(program: &str) -> Script {
    let mut command = Command::new("python3");
    command.args(["-c", &format!("{TIMERS}{program}{CONVERSE}")]);
    Script::by(command)
}

/// They expire before the capture, and are not read until after it.
fn timers_expire_again_and_again() {
    let program = "
timers = [timer(clock, absolute, 1, 10 * MS) for clock in (REAL, MONO, BOOT) for absolute in (0, 1)]
for each in timers: expires(each, None)
def answer():
    for each in timers * 3:
        expires(each, None)
        assert ticks(each) > 0
    return 'each expired'
";
    comes_back_times(2, |_| with_timers(program), |talk| assert_eq!(talk.ask("?"), "each expired"));
}

fn a_timer_that_is_not_armed_does_not_expire() {
    let program = "
stopped = [timer(clock, 1, 0, interval) for clock in (REAL, MONO, BOOT) for interval in (0, 10 * MS)]
for clock in (REAL, MONO, BOOT):
    once = timer(clock, 1, 1, 0)
    expires(once, None)
    ticks(once)
    disarmed = timer(clock, 1, 1000 * MS, 10 * MS)
    arm(disarmed, clock, 1, 0, 0)
    stopped += [once, disarmed]
unread = [timer(clock, absolute, 1, 0) for clock in (REAL, MONO) for absolute in (0, 1)]
for each in unread: expires(each, None)
told = []
def answer():
    if not told: told.extend([ticks(each) for each in unread])
    time.sleep(0.05)
    return str([told, [expires(each, 0) for each in stopped + unread].count(True)])
";
    comes_back_times(
        2,
        |_| with_timers(program),
        |talk| {
            assert_eq!(talk.ask("?"), "[[1, 1, 1, 1], 0]");
        },
    );
}

/// Their clocks tell the time that they were to expire at, or a later one.
fn no_timer_is_early() {
    let program = "
due = []
for clock in (REAL, MONO, BOOT):
    made = lib.timerfd_create(clock, os.O_NONBLOCK)
    due.append((made, clock, arm(made, clock, 1, 700 * MS, 0)))
def answer():
    early = []
    for made, clock, at in due:
        expires(made, None)
        early.append(time.clock_gettime_ns(clock) < at)
    return str(early)
";
    comes_back_times(1, |_| with_timers(program), |talk| assert_eq!(talk.ask("?"), "[False, False, False]"));
}
