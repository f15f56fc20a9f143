//! Nothing of criu stays behind.

use super::*;

#[test]
fn no_zombie_and_no_descriptor_stays_behind() {
    Apart::new(module_path!(), "no_zombie_and_no_descriptor_stays_behind").run(|| {
        let scripts = [
            StandIn::saying("#!/bin/sh\nexit 1\n"),
            StandIn::saying("#!/nowhere\n"),
            StandIn::saying("#!/bin/sh\nexec sleep 60\n"),
        ];
        let folder = Folder::new();
        let fail = |script: &StandIn| {
            let criu = script.criu().deadline(Duration::from_millis(3));
            criu.version().unwrap_err();
        };
        let fail_apart = |script: &StandIn| {
            script.criu().dump_self(&DumpOptions::default(), &folder).unwrap_err();
        };
        scripts.iter().for_each(fail); // what is made once is made now
        scripts[..2].iter().for_each(fail_apart);
        let before = open_descriptors();
        for _ in 0..50 {
            scripts.iter().for_each(fail);
            scripts[..1].iter().for_each(fail_apart);
        }
        assert_eq!(open_descriptors(), before);
        assert_eq!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD), "a child is left");
        scripts[1..2].iter().for_each(fail_apart);
        assert_eq!(open_descriptors(), before);
        assert_eq!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD), "a child is left");
    });
}

#[test]
fn a_program_that_ignores_its_children_learns_of_a_failure_all_the_same() {
    Apart::new(module_path!(), "a_program_that_ignores_its_children_learns_of_a_failure_all_the_same").run(
        || {
            let script = StandIn::doing("echo it hurts >&2; exit 3");
            ignore(Signal::SIGCHLD);
            let error = script.criu().version().unwrap_err();
            let failure = gone(&error);
            assert_eq!((failure.exit, failure.stderr.as_str()), (None, "it hurts\n"));
        },
    );
}

#[test]
fn starting_criu_costs_the_same_however_large_we_are() {
    Apart::new(module_path!(), "starting_criu_costs_the_same_however_large_we_are").run(|| {
        let Some(memory) = spare_memory().filter(|bytes| *bytes >= 3 * SIZE) else {
            return; // too little to tell
        };
        let script = StandIn::saying("#!/bin/sh\nexit 1\n");
        let small = best_of_twenty(&script);
        let mut large = vec![0_u8; SIZE];
        large.iter_mut().step_by(4096).for_each(|page| *page = 1);
        let then = best_of_twenty(&script);
        assert_eq!(large[SIZE - 4096], 1);
        assert!(then < small * 3, "{small:?} became {then:?}, with {memory} bytes to spare");
    });
}

/// One and a half gibibytes; a fork takes some ten milliseconds to copy their page tables.
const SIZE: usize = 3 << 29;

fn best_of_twenty(script: &StandIn) -> Duration {
    let once = |_| {
        let begin = Instant::now();
        script.criu().version().unwrap_err();
        begin.elapsed()
    };
    (0..20).map(once).min().unwrap()
}

fn spare_memory() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
