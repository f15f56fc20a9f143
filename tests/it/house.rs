//! The rules of the house, checked in the sources: which module uses which, and where things are
//! kept.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The floors from the bottom up. A module uses modules of lower floors. Those of the lowest floor,
/// the words, may also use each other.
const FLOORS: [(&str, &[&str]); 11] = [
    (
        "words",
        &[
            "digest",
            "error",
            "file_lock",
            "foresight",
            "isolation",
            "lock",
            "pages",
            "pid",
            "plain",
            "private_files",
            "proto",
            "recent",
            "request",
            "stream",
            "threads",
            "took",
            "unique",
            "until",
            "version",
            "warning",
            "wiped",
        ],
    ),
    ("formats", &["archive", "diagnose", "image", "manifest", "options"]),
    ("stores", &["store"]),
    ("captures", &["stored"]),
    ("kernel", &["procfs", "sys"]),
    ("foresight", &["preflight"]),
    ("talk", &["rpc", "serve"]),
    ("choice", &["platform"]),
    ("work", &["capture", "restore"]),
    ("steps", &["branch"]),
    ("fuzzers", &["fuzz"]),
];

/// The modules that may use one that is not below, each with the reason.
const EXCEPTIONS: [(&str, &str, &str); 2] = [
    ("error", "diagnose", "a failure says of itself what it means; the table of meanings is a format"),
    ("private_files", "sys", "there is no safe form of the call that begins to write a file back"),
];

/// The modules that may name an operating system. `lib.rs` may do so in attributes of modules and
/// of their re-exports.
const KNOW_THE_SYSTEM: [&str; 9] =
    ["fuzz", "platform", "preflight", "private_files", "procfs", "rpc", "serve", "stream", "sys"];

/// The names of operating systems in attributes.
const SYSTEM: [&str; 4] = ["target_os", "target_family", "unix", "windows"];

const LONGEST_FILE: usize = 600;

#[test]
fn a_module_uses_floors_below_its_own() {
    let sources = Source::all();
    let root = sources.iter().find(|source| source.module == "lib").unwrap();
    let names = root.root_names();
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| source.module != "lib") {
        for used in source.used() {
            let module = names.get(&used).cloned().unwrap_or_else(|| used.clone());
            if !may_use(&source.module, &module) {
                faults.push(format!("{}: {used}, of {module}", source.path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "modules that use what is not below them:\n{}", faults.join("\n"));
}

#[test]
fn every_module_has_a_floor_and_every_floor_its_modules() {
    let mut found: Vec<_> = Source::all().into_iter().map(|source| source.module).collect();
    found.retain(|module| module != "lib");
    found.sort();
    found.dedup();
    let mut listed: Vec<_> = FLOORS.iter().flat_map(|(_, modules)| modules.iter().copied()).collect();
    listed.sort_unstable();
    assert_eq!(found, listed);
}

#[test]
fn unsafe_code_lives_in_sys() {
    none_has(&["unsafe"], |source| source.module != "sys");
    none_has(&["unsafe_code"], |source| source.module != "sys");
}

#[test]
fn the_system_is_named_where_it_is_known() {
    let blind =
        |source: &Source| source.module != "lib" && !KNOW_THE_SYSTEM.contains(&source.module.as_str());
    none_has(&["os::unix", "os::linux", "os::windows", "os::fd", "libc", "nix"], blind);
    // Slices and maps of memory also have windows.
    for source in Source::all().iter().filter(|source| blind(source)) {
        for line in source.code.lines().filter(|line| has_word(line, "cfg")) {
            assert!(!SYSTEM.iter().any(|name| has_word(line, name)), "{}: {line}", source.path.display());
        }
    }
}

#[test]
fn the_door_names_the_system_for_whole_modules_only() {
    let sources = Source::all();
    let door = sources.iter().find(|source| source.module == "lib").unwrap();
    let mut lines = door.code.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
    while let Some(line) = lines.next() {
        if SYSTEM.iter().any(|name| has_word(line, name)) {
            let next = *lines.peek().unwrap();
            let whole = ["#[cfg", "mod ", "pub mod ", "pub use "].iter().any(|start| next.starts_with(start));
            assert!(whole, "{line} is about {next}");
        }
    }
}

#[test]
fn no_file_is_longer_than_one_can_read() {
    for source in Source::all() {
        let lines = source.code.lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines before its tests", source.path.display());
    }
}

#[test]
fn nothing_unfinished_is_left() {
    // Joined from pieces, or this file would match first.
    let leftovers =
        [concat!("to", "do!"), concat!("un", "implemented!"), concat!("db", "g!"), concat!("#[ign", "ore")];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in ["src", "tests", "examples"].iter().flat_map(|folder| rust_files(&root.join(folder))) {
        let text = fs::read_to_string(&path).unwrap();
        for leftover in leftovers {
            assert!(!text.contains(leftover), "{} has {leftover}", path.display());
        }
    }
}

/// The tests in a package lack the suite for stores unless its feature is asked for.
#[test]
fn the_repository_tests_its_stores_with_the_suite() {
    let is_repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/criu").exists();
    assert!(cfg!(feature = "conformance") || !is_repository);
}

#[test]
fn the_reader_of_sources_sees_what_is_there() {
    let code = code_of(
        "//! crate::doc\nuse crate::{\n    \
         Error, // crate::comment\n    archive::{Limits, unpack},\n    store,\n};\n\
         use crate::pid::Pid;\nfn f() { crate::rpc::g(\"crate::text\", '\"', b'\\'') }\n\
         #[cfg(test)]\nmod tests { use crate::Cause; }\n",
    );
    let source = Source { path: PathBuf::new(), module: "x".to_owned(), depth: 1, code };
    assert_eq!(source.used(), ["Error", "archive", "store", "pid", "rpc"]);
    let deep =
        Source { path: PathBuf::new(), module: "x".to_owned(), depth: 2, code: "super::super::y::z".into() };
    assert_eq!(deep.used(), ["y"]);
    assert!(has_word("use nix::x", "nix") && !has_word("private/unix.rs", "nix"));
}

fn may_use(user: &str, used: &str) -> bool {
    let (Some(above), Some(below)) = (floor(user), floor(used)) else { return false };
    user == used
        || below < above
        || (above == 0 && below == 0)
        || EXCEPTIONS.iter().any(|(from, to, _)| (*from, *to) == (user, used))
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|(_, modules)| modules.contains(&module))
}

/// Fails if a source that counts has one of the words.
#[track_caller]
fn none_has(words: &[&str], counts: impl Fn(&Source) -> bool) {
    for source in Source::all().iter().filter(|source| counts(source)) {
        for line in source.code.lines() {
            for word in words {
                assert!(!has_word(line, word), "{}: {word} in: {}", source.path.display(), line.trim());
            }
        }
    }
}

/// Returns true if the text has the word, not as a part of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let part = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    text.match_indices(word).any(|(start, _)| {
        !part(text[..start].chars().next_back()) && !part(text[start + word.len()..].chars().next())
    })
}

/// A file below `src`.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// The module below the crate's root; `lib` for the root itself.
    pub(crate) module: String,
    /// The number of modules above it, below the root.
    depth: usize,
    /// Its code, without comments, literals and tests.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn all() -> Vec<Source> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = rust_files(&root).into_iter();
        let is_test = |path: &Path| path.iter().any(|name| name == "tests.rs" || name == "tests");
        let sources: Vec<_> = files
            .filter(|path| !is_test(path.strip_prefix(&root).unwrap()))
            .map(|path| Source::read(&root, path))
            .collect();
        assert!(sources.len() > 20, "the sources are not where they were");
        sources
    }

    fn read(root: &Path, path: PathBuf) -> Source {
        let code = code_of(&fs::read_to_string(&path).unwrap().replace("\r\n", "\n"));
        let relative = path.strip_prefix(root).unwrap().with_extension("");
        let mut names: Vec<_> = relative.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
        if names.len() > 1 && names.last().is_some_and(|name| name == "mod") {
            names.pop();
        }
        Source { module: names[0].clone(), depth: names.len(), path, code }
    }

    /// Returns the names that it uses from the crate's root, in order.
    fn used(&self) -> Vec<String> {
        let above = "super::".repeat(self.depth);
        let mut used = Vec::new();
        for prefix in ["crate::", above.as_str()] {
            for (start, _) in self.code.match_indices(prefix) {
                let before = self.code[..start].trim_end();
                if before.ends_with("::") || before.ends_with("pub(in") {
                    continue; // a part of a longer path
                }
                used.extend(heads(&self.code[start + prefix.len()..]));
            }
        }
        used
    }

    /// Returns the names that the root re-exports, each with its module.
    fn root_names(&self) -> BTreeMap<String, String> {
        let mut names = BTreeMap::new();
        for statement in self.code.split(';') {
            let Some((_, path)) = statement.split_once("pub use ") else { continue };
            let (module, rest) = path.split_once("::").unwrap();
            for name in heads(rest) {
                names.insert(name, module.trim().to_owned());
            }
        }
        names
    }
}

/// Returns the first names of a path, or of each path in a group.
fn heads(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else {
        return vec![path.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()];
    };
    let mut depth = 0;
    let mut heads = vec![String::new()];
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(String::new()),
            letter if depth == 0 => heads.last_mut().unwrap().push(letter),
            _ => {}
        }
    }
    let head = |path: String| path.split("::").next().unwrap().split_whitespace().next().map(str::to_owned);
    heads.into_iter().filter_map(head).collect()
}

/// Returns a text without tests, comments and literals. Lines stay lines.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let skipped = match letter {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => literal(rest, '"').unwrap_or(1),
            '\'' => literal(rest, '\'').unwrap_or(1),
            _ => {
                code.push(letter);
                rest = &rest[letter.len_utf8()..];
                continue;
            }
        };
        code.extend(rest[..skipped].chars().filter(|letter| *letter == '\n'));
        rest = &rest[skipped..];
    }
    let tests = code.find("#[cfg(test)]\nmod tests").unwrap_or(code.len());
    code.truncate(tests);
    code
}

/// Returns the length of a literal between quotes; `None` if the quote begins a lifetime.
fn literal(text: &str, quote: char) -> Option<usize> {
    let mut letters = text.char_indices().skip(1);
    let mut length = 0;
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => drop(letters.next()),
            letter if letter == quote => return Some(at + 1),
            _ => {}
        }
        length += 1;
        if quote == '\'' && length > 10 || quote == '\'' && length > 1 && !text.starts_with("'\\") {
            return None;
        }
    }
    None
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // Build results in neighbouring packages are not ours.
        if path.is_dir() && !path.ends_with("target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
