//! Files that a tree has mapped shared and writable are no part of a capture: a restore tells of
//! those that have changed.

use std::{fs::File, os::unix::fs::FileExt, path::Path, process::Command};

use crate::{
    harness::tests,
    program::{Program, in_each_way, on_pipes_warned},
    tree::OrExplain,
    warned::{assert_warned, warning},
};

tests![a_mapped_file_that_was_changed_is_told];

/// Maps files, and answers with their first bytes.
const MAPS: &str = r"
import mmap, os, sys
files = [os.open(name, os.O_RDWR | os.O_CREAT, 0o600) for name in sys.argv[1:]]
for file in files: os.ftruncate(file, 100)
maps = [mmap.mmap(file, 100) for file in files]
for memory in maps: memory[:4] = b'then'
print('mapped', flush=True)
for line in sys.stdin: print(' '.join(memory[:4].decode() for memory in maps), flush=True)
";

/// One of the files is where named semaphores are: a file system in memory, which notes no time
/// when mapped memory is written.
fn a_mapped_file_that_was_changed_is_told() {
    in_each_way(|way, home| {
        let name = home.path("kept").parent().unwrap().file_name().unwrap().to_owned();
        let in_memory = Path::new("/dev/shm").join(name);
        let paths = [home.path("kept"), home.path("changed"), in_memory];
        let mut command = Command::new("python3");
        command.args(["-u", "-c", MAPS]).args(&paths);
        let mut program = Program::on_pipes(&command);
        assert_eq!(program.talk.hear(), "mapped");
        let digest = way.capture(home, [program.pid()]).capture(&home.store()).or_explain();
        program.end();
        let (mut revived, warnings) = on_pipes_warned(home.restore(), &home.store(), &digest);
        assert_eq!((revived.ask("?").as_str(), warnings), ("then then then", vec![]));
        revived.tree().kill().or_explain();
        revived.tree().wait().unwrap();
        for path in &paths[1..] {
            File::options().write(true).open(path).unwrap().write_all_at(b"now!", 0).unwrap();
        }
        let (mut revived, mut warnings) = on_pipes_warned(home.restore(), &home.store(), &digest);
        warnings.sort_by_key(ToString::to_string);
        let mut changed: Vec<_> = paths[1..].iter().map(|path| warning!(FileChanged { path })).collect();
        changed.sort_by_key(ToString::to_string);
        assert_eq!(revived.ask("?"), "then now! now!");
        assert_warned(&warnings, &changed, way);
        revived.tree().kill().or_explain();
        std::fs::remove_file(&paths[2]).unwrap();
    });
}
