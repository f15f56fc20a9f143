//! A tree in a terminal from outside is captured, and revived on whatever there is then.

use std::{fs::File, os::unix::fs::OpenOptionsExt, process::Command};

use criu_rpc::{
    Digest256, DumpOptions, RestoreOptions,
    rpc::{Event, Lend, NoHooks},
};
use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
};

use crate::{
    harness::{criu, tests},
    places::Home,
    talk::Talk,
    tree::{OrExplain, Revived, Victim},
};

tests![
    a_tree_in_a_terminal_is_revived_on_pipes,
    a_tree_in_a_terminal_is_revived_in_another_terminal,
    a_tree_in_the_background_of_a_terminal_is_revived_on_pipes,
    a_file_with_the_name_of_a_terminals_other_side_is_none,
    a_process_in_a_terminal_captures_itself,
    the_master_of_an_orphaned_terminal_is_handed_over,
];

/// Both sides of a new terminal that passes bytes on as they are.
fn terminal() -> (File, File) {
    let (master, side) = pty();
    let mut settings = tcgetattr(&side).unwrap();
    cfmakeraw(&mut settings);
    tcsetattr(&side, SetArg::TCSANOW, &settings).unwrap();
    (master, side)
}

/// Both sides of a new terminal.
pub(crate) fn pty() -> (File, File) {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let no_control = OFlag::O_NOCTTY.bits();
    let name = ptsname_r(&master).unwrap();
    let side = File::options().read(true).write(true).custom_flags(no_control).open(name).unwrap();
    let master = std::os::fd::AsFd::as_fd(&master).try_clone_to_owned().unwrap();
    (master.into(), side)
}

/// A victim with a terminal as its standard streams, and flags.
#[track_caller]
fn victim(flags: &[&str]) -> Victim {
    victim_with(flags, None)
}

/// A victim with a terminal as its standard streams, but for its standard error, maybe.
#[track_caller]
fn victim_with(flags: &[&str], errors: Option<File>) -> Victim {
    let (master, side) = terminal();
    let stream = || side.try_clone().unwrap();
    let mut command = Command::new("/proc/self/exe");
    command.arg("--victim").args(flags).args(["children=1", "memory=1"]);
    let errors = errors.unwrap_or_else(stream);
    let root = command.stdin(stream()).stdout(stream()).stderr(errors).spawn().unwrap();
    let mut victim = Victim::ready(root, Talk::new(master.try_clone().unwrap(), master));
    victim.assert_counts_on(0);
    victim
}

/// Captured, gone on with, and ended.
#[track_caller]
fn captured(home: &Home, mut victim: Victim) -> Digest256 {
    let digest = home.capture([victim.pid()]).capture(&home.store()).or_explain();
    home.assert_staging_empty();
    victim.assert_counts_on(1);
    assert_eq!(victim.ask("child 0 tick"), "count 1");
    victim.end();
    digest
}

#[track_caller]
fn assert_goes_on(mut revived: Revived) {
    revived.assert_counts_on(1);
    assert_eq!(revived.ask("check"), "memory ok 256 pages");
    assert_eq!(revived.ask("child 0 tick"), "count 1");
}

fn a_tree_in_a_terminal_is_revived_on_pipes() {
    let home = Home::new();
    let digest = captured(&home, victim(&["terminal"]));
    assert_goes_on(Revived::from(home.restore(), &home.store(), &digest));
}

fn a_tree_in_a_terminal_is_revived_in_another_terminal() {
    let home = Home::new();
    let digest = captured(&home, victim(&["terminal"]));
    let (master, side) = terminal();
    let stream = || side.try_clone().unwrap();
    let restore = home.restore().stdin(stream()).stdout(stream()).stderr(stream());
    let mut restored = restore.restore(&home.store(), &digest).or_explain();
    let talk = Talk::new(master.try_clone().unwrap(), master);
    assert_goes_on(Revived::new(restored.trees.remove(0), talk));
}

fn a_tree_in_the_background_of_a_terminal_is_revived_on_pipes() {
    let home = Home::new();
    let digest = captured(&home, victim(&["session"]));
    assert_goes_on(Revived::from(home.restore(), &home.store(), &digest));
}

fn a_file_with_the_name_of_a_terminals_other_side_is_none() {
    let home = Home::new();
    let file = File::create(home.path("ptmx")).unwrap();
    captured(&home, victim_with(&["session"], Some(file)));
}

fn a_process_in_a_terminal_captures_itself() {
    let home = Home::new();
    let mut victim = victim(&["terminal"]);
    let stored = victim.ask(&format!("capture run own {}", home.word()));
    let digest = stored.strip_prefix("stored ").unwrap_or_else(|| panic!("{stored}")).parse().unwrap();
    victim.assert_counts_on(1);
    victim.end();
    let mut revived = Revived::from(home.restore(), &home.store(), &digest);
    assert_eq!(revived.talk.hear(), "revived");
    assert_goes_on(revived);
}

fn the_master_of_an_orphaned_terminal_is_handed_over() {
    let home = Home::new();
    let victim = victim(&["terminal"]);
    let images = File::open(home.folder("images")).unwrap();
    let options = DumpOptions::default().orphan_pts_master(true).leave_running(true);
    criu().dump(victim.pid(), &options, Lend::images(&images), &mut NoHooks).or_explain();
    victim.end(); // and with it its terminal, whose number criu needs

    let mut master = None;
    let mut hooks = |event: Event<'_>| {
        if let Event::OrphanPtsMaster(descriptor) = event {
            master = Some(File::from(descriptor));
        }
        Ok(())
    };
    let options = RestoreOptions::default().orphan_pts_master(true).rst_sibling(true);
    let tree = criu().restore(&options, Lend::images(&images), &mut hooks).or_explain();
    let master = master.expect("criu handed nothing over");
    let mut settings = tcgetattr(&master).unwrap();
    cfmakeraw(&mut settings);
    tcsetattr(&master, SetArg::TCSANOW, &settings).unwrap();
    assert_goes_on(Revived::new(tree, Talk::new(master.try_clone().unwrap(), master)));
}
