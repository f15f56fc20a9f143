//! Tests against a real criu, as root. Each module is about one promise.
//!
//! Where criu cannot work the tests are skipped, and say why; with `CRIU_TESTS=must` that is a
//! failure. `CRIU` names another criu to test with.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

/// The modules, which are for Linux alone.
macro_rules! modules {
    ($($module:ident)*) => { $(#[cfg(target_os = "linux")] mod $module;)* };
}

// What the tests share.
modules! { apart churn harness places program stores talk tree victim warned }
// The tests.
modules! {
    capture causes chunked client damage deadline deleted embed ending faults foreseen grown holders iterative leaked leaks locked missing pids pipes preflight provoked remnants replaced requests revived selfdump
    served service sockets stress terminal terminals told took unread
}

// Those of time.
modules! { many overdue soak }

// Those of signals, of the ends of processes, and of what listens.
modules! { signals }
// Copies of one capture, side by side.
modules! { branches copies }
// Options that a tree needs and the crate adds.
modules! { beyond enclosed inet jobs late links order outside settings shared ways }

// What criu loses by itself.
modules! { crossing everything mapped timers wakeups }

#[cfg(target_os = "linux")]
fn main() {
    let parts: &[harness::Part] = &[
        ("--victim", victim::main),
        ("--copies", copies::main),
        ("--leaks", leaks::main),
        ("--look", preflight::privileges::main),
        ("--odd", provoked::odd::main),
        ("--remnants", remnants::main),
        ("--refusing", provoked::refusing::main),
        ("--apart", apart::main),
        ("--churn", churn::main),
        ("--served", served::main),
        ("--session", program::main),
        ("--shares", shared::main),
        ("--dumps-itself", service::dumps_itself),
        ("--waits-in-hook", faults::waits_in_hook),
    ];
    let tests = [
        beyond::TESTS,
        capture::TESTS,
        causes::TESTS,
        chunked::TESTS,
        client::TESTS,
        branches::TESTS,
        copies::TESTS,
        crossing::TESTS,
        everything::TESTS,
        timers::TESTS,
        wakeups::TESTS,
        mapped::TESTS,
        damage::TESTS,
        deadline::TESTS,
        deleted::TESTS,
        embed::TESTS,
        enclosed::TESTS,
        shared::TESTS,
        ending::TESTS,
        faults::TESTS,
        foreseen::TESTS,
        grown::TESTS,
        holders::TESTS,
        inet::TESTS,
        iterative::TESTS,
        jobs::TESTS,
        leaked::TESTS,
        late::TESTS,
        leaks::TESTS,
        locked::TESTS,
        many::TESTS,
        missing::TESTS,
        links::TESTS,
        order::TESTS,
        outside::TESTS,
        overdue::TESTS,
        pids::TESTS,
        pipes::TESTS,
        preflight::files::TESTS,
        preflight::general::TESTS,
        preflight::hostile::TESTS,
        preflight::namespaces::TESTS,
        preflight::privileges::TESTS,
        preflight::processes::TESTS,
        preflight::sockets::TESTS,
        provoked::TESTS,
        provoked::dumps::TESTS,
        provoked::forged::TESTS,
        provoked::kinds::TESTS,
        provoked::processes::TESTS,
        provoked::machine::TESTS,
        provoked::restores::TESTS,
        remnants::TESTS,
        replaced::TESTS,
        requests::TESTS,
        revived::TESTS,
        selfdump::TESTS,
        served::TESTS,
        service::TESTS,
        settings::TESTS,
        signals::TESTS,
        soak::TESTS,
        sockets::TESTS,
        stress::TESTS,
        terminal::TESTS,
        terminals::TESTS,
        told::TESTS,
        unread::TESTS,
        took::TESTS,
    ];
    harness::main(parts, &tests);
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("no test was run: criu is for Linux");
}
