//! Deleted folders and files whose names lead elsewhere at the restore. What is there now stays.

use std::{fs, os::unix::fs::MetadataExt};

use crate::{
    harness::tests,
    places::Home,
    program::{Program, in_each_way, on_pipes},
    ways::{Script, comes_back},
};

tests![
    a_folder_that_was_made_anew,
    a_folder_that_is_made_anew_before_the_restore,
    a_folder_whose_name_is_that_of_a_file,
    folders_in_one_another,
    folders_of_the_same_name,
    a_file_whose_folder_is_gone,
];

/// A program in a folder `$top`, which takes these steps. It answers with the links of what is in
/// `@held`, with the contents of what is in `@open`, and with what is in `$top`, and whether those
/// are the files of the beginning.
fn after(home: &Home, steps: &str) -> Script {
    Script::perl(&format!(
        "my $top = '{}'; chdir $top; my (@held, @open); \
         sub hold {{ opendir(my $folder, $_[0]) or die; push @held, $folder }} \
         sub put {{ open(my $file, '>', $_[0]) or die; print $file 'new'; close $file }} \
         sub found {{ opendir(my $all, $top); \
         return map {{ $_ => (lstat \"$top/$_\")[1] }} sort grep {{ !/^\\.+$/ }} readdir $all }} \
         {steps}; my %then = found(); \
         sub answer {{ my %now = found(); my @links = map {{ (stat $_)[3] }} @held; \
         my @texts = map {{ sysseek($_, 0, 0); sysread($_, my $text, 9); $text }} @open; \
         return join(' ', @links, @texts, map {{ $now{{$_}} == $then{{$_}} ? $_ : \"another $_\" }} sort keys %now) }}",
        home.folder("top").display()
    ))
}

#[track_caller]
fn is_left_alone(steps: &str, answer: &str) {
    println!("{steps}"); // shown if the test fails
    comes_back(|home| after(home, steps), |talk| assert_eq!(talk.ask("?"), answer));
}

const IN_DELETED: &str = "mkdir 'build'; chdir 'build'; rmdir \"$top/build\"; push @held, '.'";

/// As of `rm -rf build; mkdir build` while a shell is in it.
fn a_folder_that_was_made_anew() {
    is_left_alone(&format!("{IN_DELETED}; mkdir \"$top/build\""), "0 build");
    let full = "mkdir \"$top/build\"; put(\"$top/build/file\")";
    is_left_alone(&format!("{IN_DELETED}; {full}"), "0 build");
    is_left_alone(&format!("mkdir 'build'; hold('build'); rmdir 'build'; {full}"), "0 build");
}

fn a_folder_that_is_made_anew_before_the_restore() {
    in_each_way(|way, home| {
        let build = home.path("build");
        let script = format!(
            "mkdir {0}; cd {0}; rmdir {0}; while read line; do stat -c %h .; done",
            build.display()
        );
        let (store, digest) = way.captured(home, Program::bash(&script));
        let mut revived = on_pipes(home.restore(), &store, &digest);
        assert_eq!(revived.ask("?"), "0");
        drop(revived);
        assert!(!build.exists(), "it was left behind");
        fs::create_dir(&build).unwrap();
        let inode = fs::metadata(&build).unwrap().ino();
        let mut revived = on_pipes(home.restore(), &store, &digest);
        assert_eq!(revived.ask("?"), "0");
        assert_eq!(fs::metadata(&build).unwrap().ino(), inode, "it was replaced");
    });
}

fn a_folder_whose_name_is_that_of_a_file() {
    is_left_alone(&format!("{IN_DELETED}; put(\"$top/build\")"), "0 build");
}

fn folders_in_one_another() {
    let both = "mkdir 'a'; mkdir 'a/b'; hold('a'); chdir 'a/b'; rmdir \"$top/a/b\"; rmdir \"$top/a\"";
    let both = format!("{both}; push @held, '.'");
    is_left_alone(&both, "0 0");
    is_left_alone(&format!("{both}; mkdir \"$top/a\"; mkdir \"$top/a/b\""), "0 0 a");
    // The program has only the inner one.
    is_left_alone(&format!("{both}; @held = ('.')"), "0");
}

fn folders_of_the_same_name() {
    let steps = format!("{IN_DELETED}; mkdir \"$top/build\"; hold(\"$top/build\"); rmdir \"$top/build\"");
    is_left_alone(&steps, "0 0");
}

/// The folder's name is that of a file, or free.
fn a_file_whose_folder_is_gone() {
    let steps = "mkdir 'a'; open($open[0], '+>', 'a/file') or die; syswrite($open[0], 'old'); unlink 'a/file'; \
                 rmdir 'a'; push @held, $open[0]";
    is_left_alone(steps, "0 old");
    is_left_alone(&format!("{steps}; put('a')"), "0 old a");
}
