//! Pipes inside a tree are restored as they were, those too of which one side has ended; pipes that lead out get a new
//! other side.

use std::fs::File;

use crate::{
    harness::tests,
    places::{Home, children, wait_until},
    program::{Program, in_each_way},
};

tests![
    a_reader_whose_writer_has_ended_reads_to_the_end_and_nothing_else,
    a_writer_whose_reader_has_ended_writes_to_nobody,
    a_here_document_is_read_to_its_end,
];

/// A file that the program waits for, before which it does not go on.
fn gate(home: &Home) -> (String, impl FnOnce()) {
    let path = home.path("gate");
    let wait = format!("until [ -e {} ]; do sleep 0.02; done", path.display());
    (wait, move || drop(File::create(path).unwrap()))
}

fn a_reader_whose_writer_has_ended_reads_to_the_end_and_nothing_else() {
    in_each_way(|way, home| {
        let (wait, open) = gate(home);
        let script = format!("seq 1 200 | {{ read x; echo first $x; {wait}; while read x; do echo got $x; done; }}; echo END; read x; echo $x");
        let mut program = Program::bash(&script);
        assert_eq!(program.talk.hear(), "first 1");
        wait_for_children(&program, 1);
        let mut revived = way.go_back(home, program);
        revived.talk.tell("mine");
        open();
        for number in 2..=200 {
            assert_eq!(revived.talk.hear(), format!("got {number}"));
        }
        assert_eq!(revived.talk.hear(), "END");
        assert_eq!(revived.talk.hear(), "mine");
    });
}

fn a_writer_whose_reader_has_ended_writes_to_nobody() {
    in_each_way(|way, home| {
        let (wait, open) = gate(home);
        let script = format!("trap '' PIPE; echo ready; {{ {wait}; echo GARBAGE; }} | true; echo END; read x; echo $x");
        let mut program = Program::bash(&script);
        assert_eq!(program.talk.hear(), "ready");
        wait_for_children(&program, 1);
        let mut revived = way.go_back(home, program);
        open();
        revived.talk.tell("mine");
        assert_eq!(revived.talk.hear(), "END");
        assert_eq!(revived.talk.hear(), "mine");
    });
}

fn a_here_document_is_read_to_its_end() {
    in_each_way(|way, home| {
        let (wait, open) = gate(home);
        let script = format!("{{ read x; echo $x; {wait}; cat; }} <<-end\n\tone\n\ttwo\n\tthree\n\tend\necho END");
        let mut program = Program::bash(&script);
        assert_eq!(program.talk.hear(), "one");
        let mut revived = way.go_back(home, program);
        open();
        assert_eq!([(); 3].map(|()| revived.talk.hear()), ["two", "three", "END"]);
    });
}

/// Waits until only so many processes of the pipeline are left.
#[track_caller]
fn wait_for_children(program: &Program, count: usize) {
    wait_until("a side of the pipe has ended", || children(program.pid()).len() == count);
}
