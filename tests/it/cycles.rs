//! Files of the crate do not use each other in a circle.
//!
//! A file may use what is above it (`super::Item`), and a `mod.rs` may use the files below it. All
//! other paths between files count. A re-exported item counts for the file that defines it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use crate::house::Source;

/// The modules that a file is in, from the root down.
type Module = Vec<String>;

/// The allowed circle: a failure explains itself by the table of meanings.
const ALLOWED: [&str; 2] = ["error", "diagnose"];

#[test]
fn files_do_not_use_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = Source::all().into_iter().filter(|source| source.module != "lib");
    let files = files.map(|source| (module_of(source.path.strip_prefix(&root).unwrap()), source.code));
    let circles = Files(files.collect()).circles();
    let wrong =
        |circle: &&BTreeSet<Module>| circle.iter().any(|module| !ALLOWED.contains(&module[0].as_str()));
    let wrong: Vec<_> = circles.iter().filter(wrong).collect();
    assert!(wrong.is_empty(), "files that use each other: {wrong:#?}");
}

#[test]
fn circles_are_seen() {
    let file = |module: &str, code: &str| (module.split("::").map(str::to_owned).collect(), code.to_owned());
    let circles = |files: &[(Module, String)]| Files(files.iter().cloned().collect()).circles().len();
    let top = file("a", "mod b; mod c; pub use self::b::{B, More}; fn f() { c::g() }");
    let b = file("a::b", "use super::{Top, c::C}; pub struct B;");
    assert_eq!(circles(&[top.clone(), b.clone(), file("a::c", "use super::Top; pub struct C;")]), 0);
    for back in
        ["use super::b::B;", "use crate::a::B;", "use super::{Top, More as Other};", "fn f(_: super::B) {}"]
    {
        assert_eq!(circles(&[top.clone(), b.clone(), file("a::c", back)]), 1, "{back}");
    }
    let other = file("d", "use crate::a::C;");
    assert_eq!(circles(&[file("a", "use crate::d::D;"), other]), 1);
}

fn module_of(path: &Path) -> Module {
    let path: PathBuf = path.with_extension("");
    let mut names: Module = path.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    // Modules whose files are named differently.
    match names[0].as_str() {
        "platform" if names.get(1).is_some_and(|name| name == "linux" || name == "elsewhere") => {
            names[1] = "here".to_owned();
        }
        "private_files" => names.truncate(1),
        _ => {}
    }
    names
}

struct Files(BTreeMap<Module, String>);

impl Files {
    /// Returns sets of files that use each other, directly or through other files.
    fn circles(&self) -> BTreeSet<BTreeSet<Module>> {
        let used: BTreeMap<&Module, BTreeSet<Module>> =
            self.0.keys().map(|module| (module, self.used_by(module))).collect();
        let reached = |from: &Module| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
            while let Some(module) = next.pop() {
                next.extend(used[&module].iter().filter(|other| seen.insert((*other).clone())).cloned());
            }
            seen
        };
        let reached: BTreeMap<&Module, BTreeSet<Module>> =
            self.0.keys().map(|module| (module, reached(module))).collect();
        let circle = |module: &Module| {
            let both = reached[module].iter().filter(|other| reached[other].contains(module));
            both.cloned().collect::<BTreeSet<_>>()
        };
        self.0.keys().map(circle).filter(|circle| circle.len() > 1).collect()
    }

    fn used_by(&self, module: &Module) -> BTreeSet<Module> {
        let paths = paths_of(&self.0[module]).into_iter();
        let files = paths.filter_map(|path| self.file_of(module, &path, 0));
        files.filter(|file| file != module && !module.starts_with(file)).collect()
    }

    /// Returns the file that defines the item at a path in this module.
    fn file_of(&self, module: &Module, path: &[String], follows: usize) -> Option<Module> {
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (Module::new(), &path[1..]),
            "super" | "self" => (module.clone(), path),
            // A path into a file below.
            child => {
                let below = [module.as_slice(), &[child.to_owned()]].concat();
                (self.0.contains_key(&below).then(|| module.clone())?, path)
            }
        };
        while let Some((first, others)) = rest.split_first() {
            match first.as_str() {
                "super" => drop(at.pop()),
                "self" => {}
                _ => {
                    at.push(first.clone());
                    if !self.0.contains_key(&at) {
                        at.pop();
                        break;
                    }
                }
            }
            rest = others;
        }
        let code = self.0.get(&at)?;
        let name = rest.first();
        let re_exports = paths_after(code, &["pub use ", "pub(crate) use ", "pub(super) use "]);
        let other = re_exports.into_iter().find(|path| path.last() == name);
        match other.filter(|_| name.is_some() && follows < 8) {
            Some(other) => self.file_of(&at, &other, follows + 1).or(Some(at)),
            None => Some(at),
        }
    }
}

/// Returns all paths in a text that can lead to another file.
fn paths_of(code: &str) -> Vec<Vec<String>> {
    let mut paths = paths_after(code, &["use "]);
    let words = code.split(|letter: char| !(letter.is_alphanumeric() || letter == '_' || letter == ':'));
    let words = words.filter(|word| word.contains("::") && !word.ends_with("::"));
    paths.extend(words.map(|word| word.split("::").map(str::to_owned).collect()));
    paths
}

/// Returns the paths of the statements that begin so.
fn paths_after(code: &str, starts: &[&str]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let start = starts.iter().find_map(|start| statement.split_once(start));
        start.into_iter().for_each(|(_, tree)| expand(tree.trim(), &[], &mut paths));
    }
    paths
}

/// Expands the paths of a tree such as `a::{b, c::{d, e as f}}`.
fn expand(tree: &str, above: &[String], paths: &mut Vec<Vec<String>>) {
    let (before, group) = tree.split_once('{').map_or((tree, None), |(before, group)| (before, Some(group)));
    let before = before.split_whitespace().next().unwrap_or_default();
    let names = before.split("::").filter(|name| !name.is_empty()).map(str::to_owned);
    let path: Vec<String> = above.iter().cloned().chain(names).collect();
    match group.and_then(|group| group.rsplit_once('}')) {
        None => paths.push(path),
        Some((group, _)) => branches(group).iter().for_each(|branch| expand(branch.trim(), &path, paths)),
    }
}

/// Splits a group at its commas.
fn branches(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}
