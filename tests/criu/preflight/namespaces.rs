//! Namespaces of a tree's own.

use std::{fs, process::Command};

use criu_rpc::{
    options::External,
    preflight::{Finding, Obstacle, Place, Severity},
};

use super::{At, Perl, blocks, defaults, descriptor, dump, lines, look, passes, perl, perl_by};
use crate::{harness::tests, places::children};

tests![
    namespaces_of_children,
    files_of_another_mount_namespace_of_the_tree,
    pid_namespaces_without_init,
    mount_namespaces_of_their_own,
];

/// In a tree, a child in a namespace of its own.
#[track_caller]
fn child_in(flag: &str) -> Perl {
    let victim = perl(&format!(
        "unless (fork) {{ open(STDIN, '<', '/dev/null'); \
         exec('unshare', '{flag}', 'sleep', '1000') }}"
    ));
    let child = children(victim.pid())[0];
    let started =
        || fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "sleep");
    crate::places::wait_until("the child is in its namespace", started);
    victim
}

fn namespaces_of_children() {
    for (flag, kind) in [("--uts", "uts"), ("--ipc", "ipc"), ("--cgroup", "cgroup"), ("--time", "time")] {
        let victim = child_in(flag);
        let child = children(victim.pid())[0];
        let nested = |obstacle: &Obstacle| matches!(obstacle, Obstacle::NestedNamespace { kind: found, .. } if *found == kind);
        blocks(victim.pid(), &defaults(), child, Some(At::Process), nested);
    }
    // criu dumps it, and cannot restore what it dumped.
    for (flag, kind) in [("--net", "net"), ("--mount", "mnt")] {
        let victim = child_in(flag);
        let findings = look(victim.pid(), &defaults());
        let nested = |obstacle: &Obstacle| matches!(obstacle, Obstacle::NestedNamespace { kind: found, .. } if *found == kind);
        let is_nested = |finding: &Finding| nested(&finding.obstacle) && finding.severity == Severity::Blocks;
        assert!(findings.iter().any(is_nested), "{}", lines(&findings));
    }
}

/// criu takes files of all mount namespaces of the tree.
fn files_of_another_mount_namespace_of_the_tree() {
    let mut command = Command::new("unshare");
    command.args(["--mount", "perl"]);
    let victim = perl_by(
        command,
        "POSIX::close($_) for 3 .. 20; open(STDERR, '>', '/dev/null'); \
         system('mount', '-t', 'tmpfs', 'x', '/mnt') == 0 or die; open(F, '+>', '/mnt/f') or die; \
         unless (fork) { open(STDIN, '<', '/dev/null'); open(STDOUT, '>', '/dev/null'); \
         syscall(272, 0x20000) == 0 or die; sleep 1000 while 1 }",
    );
    let child = children(victim.pid())[0];
    let own = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    crate::places::wait_until("the child is in its namespace", || own(child) != own(victim.pid()));
    let options = defaults().root("/mnt");
    passes(victim.pid(), &options);
}

fn pid_namespaces_without_init() {
    let victim = perl(
        "unless (fork) { exec('unshare', '--pid', '--fork', 'perl', '-e', \
         'unless (fork) { use POSIX; POSIX::setsid(); sleep 1000 } sleep 1000') }",
    );
    let inner = || Some(*children(*children(*children(victim.pid()).first()?).first()?).first()?);
    crate::places::wait_until("the namespace has a second process", || {
        inner().is_some_and(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.split(' ').nth(5) == Some(&pid.to_string())
        })
    });
    let inner = inner().unwrap();
    let no_init = |obstacle: &Obstacle| matches!(obstacle, Obstacle::NoInit { .. });
    let Obstacle::NoInit { namespace, .. } = blocks(inner, &defaults(), inner, Some(At::Process), no_init)
    else {
        unreachable!("because that was asked for")
    };
    let external = External::Pid { inode: namespace, label: "there".to_owned() };
    passes(inner, &defaults().external(external));
}

fn mount_namespaces_of_their_own() {
    let in_own = |before: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "perl"]);
        perl_by(command, &format!("POSIX::close($_) for 3 .. 20; {before}"))
    };
    let needs_root = |finding: &Finding| {
        finding.obstacle == Obstacle::MountNamespace && finding.severity == Severity::Risk
    };
    // Its standard error is open since before it had its namespace.
    let victim = in_own("1");
    let findings = look(victim.pid(), &defaults());
    let [root, unseen] = &findings[..] else { panic!("{}", lines(&findings)) };
    assert!(needs_root(root), "{root}");
    assert!(matches!(unseen.obstacle, Obstacle::UnseenMount { .. }), "{unseen}");
    assert_eq!(unseen.place, descriptor(victim.pid(), "/dev/null").unwrap());
    dump(victim.pid(), &defaults()).unwrap_err();

    let victim = in_own("open(STDERR, '>', '/dev/null')");
    let findings = look(victim.pid(), &defaults());
    let [root] = &findings[..] else { panic!("{}", lines(&findings)) };
    assert!(needs_root(root), "{root}");
    assert_eq!(look(victim.pid(), &defaults().root("/mnt")), []);

    // The program itself is from the namespace that it left.
    let left = perl("POSIX::close($_) for 3 .. 20; syscall(272, 0x20000) == 0 or die");
    let findings = look(left.pid(), &defaults());
    let path = fs::read_link(format!("/proc/{}/exe", left.pid())).unwrap();
    let program = |finding: &&Finding| matches!(&finding.place, Place::Program { path: told, .. } if *told == path);
    let finding = findings.iter().find(program).unwrap_or_else(|| panic!("{}", lines(&findings)));
    assert!(matches!(finding.obstacle, Obstacle::UnseenMount { .. }), "{finding}");
    assert!(finding.to_string().contains(&format!("its program ({})", path.display())), "{finding}");
    dump(left.pid(), &defaults()).unwrap_err();
}
