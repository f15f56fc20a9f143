//! The programs. Each file has those of one kind. A function is one program, from its start to its
//! answers.

mod builds;
mod editors;
mod languages;
mod python;
mod servers;
mod shells;
mod terminals;
mod tools;

use std::{env, fs, os::unix::fs::PermissionsExt as _};

use crate::{failure::Result, stage::Stage};

/// A program and its test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// The commands that must be installed; a name after `python3 ` is that of a module.
    pub(crate) needs: &'static [&'static str],
    /// Starts the program, and checks it from its [`moment`](Stage::moment) on.
    pub(crate) play: fn(&mut Stage) -> Result,
    /// The reason why the program is known to fail. The table shows it, and it counts as no
    /// failure.
    pub(crate) limit: Option<&'static str>,
}

impl Program {
    const fn new(
        name: &'static str,
        needs: &'static [&'static str],
        play: fn(&mut Stage) -> Result,
    ) -> Program {
        Program { name, needs, play, limit: None }
    }

    const fn limit(self, reason: &'static str) -> Program {
        Program { limit: Some(reason), ..self }
    }
}

/// All programs, in the order of the table.
pub(crate) fn all() -> Vec<Program> {
    [
        shells::PROGRAMS,
        terminals::PROGRAMS,
        python::PROGRAMS,
        languages::PROGRAMS,
        servers::PROGRAMS,
        editors::PROGRAMS,
        builds::PROGRAMS,
        tools::PROGRAMS,
    ]
    .concat()
}

/// True if the command is in `PATH`, or Python has the module.
pub(crate) fn is_installed(need: &str) -> bool {
    if let Some(module) = need.strip_prefix("python3 ") {
        let mut python = std::process::Command::new(PYTHON);
        let import = python.args(["-c", &format!("import {module}")]).stderr(std::process::Stdio::null());
        return import.status().is_ok_and(|status| status.success());
    }
    if need == "python3" {
        return std::path::Path::new(PYTHON).exists();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| {
        fs::metadata(folder.join(need))
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// Debian's own Python, for which Debian's modules are built.
pub(crate) const PYTHON: &str = "/usr/bin/python3";
