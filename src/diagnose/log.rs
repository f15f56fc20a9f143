//! Parses criu's output, line by line.
//!
//! criu writes names of the tree into its log unescaped, and a name can have line breaks. The text
//! after a line break can look like a line of criu's. So a log line must begin like criu's lines,
//! fit into the log, and not be a known part of a name. Only such lines tell causes.

use std::collections::HashMap;

use super::rules;
use crate::plain::plain;

/// The output of criu, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    /// Lines of errors, and others that may be the reason of a failure. Time, pid, source position
    /// and noise are removed.
    pub(crate) errors: Vec<String>,
    /// Lines outside the log: messages for people, and output of the programs that criu runs.
    pub(crate) other: String,
    /// The number of lines of `other` before the first log line that can contain a name.
    early: usize,
}

/// Facts about an output that its text does not show.
#[derive(Debug, Default)]
pub(crate) struct OutputContext {
    /// True if criu was told to write the time before each line; `None` if only the log itself
    /// shows it.
    stamped: Option<bool>,
    /// Texts that look like log lines but are not: they follow a line break in a name of the tree,
    /// or in the message of criu's answer.
    pieces: Vec<String>,
}

impl OutputContext {
    pub(crate) fn new(stamped: Option<bool>) -> OutputContext {
        OutputContext { stamped, ..OutputContext::default() }
    }

    /// Adds a name of the tree, or a message. The text after its line breaks is not a line of
    /// criu's.
    pub(crate) fn name(&mut self, name: &str) {
        let pieces = name.trim_end_matches('\n').split('\n').skip(1);
        let pieces = pieces.map(|piece| piece.trim_end_matches(" (deleted)"));
        // Other pieces would hide lines of criu's.
        let lines = pieces.filter(|piece| begins(piece).is_some_and(|begun| !begun.text.is_empty()));
        self.pieces.extend(lines.take(CEILING).map(str::to_owned));
    }

    /// Adds the start of a line that is known to be part of a name.
    pub(crate) fn start(&mut self, start: &str) {
        self.pieces.push(start.to_owned());
    }
}

/// Returns the start of each log line, up to the first word of its message.
pub(crate) fn starts(text: &str) -> Vec<&str> {
    let start = |line| {
        let begun: Begun<'_> = begins(line)?;
        let word = begun.text.find(' ').unwrap_or(begun.text.len());
        Some(&line[..line.len() - begun.text.len() + word]).filter(|_| word > 0)
    };
    text.split('\n').filter_map(start).take(10 * CEILING).collect()
}

impl Output {
    /// Sorts criu's output.
    #[cfg(test)]
    pub(crate) fn parse(text: &str) -> Output {
        Output::parse_with(text, &OutputContext::default())
    }

    /// Sorts criu's output, and removes control characters.
    pub(crate) fn parse_with(text: &str, known: &OutputContext) -> Output {
        let mut output = Output::default();
        let mut clock = Clock::of(text, known);
        let (mut in_usage, mut has_names, mut open) = (false, false, None);
        let mut said = HashMap::new();
        for line in text.split('\n').map(str::trim_end).filter(|line| !line.is_empty()) {
            if known.pieces.iter().any(|piece| line.starts_with(&**piece)) {
                output.go_on(open.as_ref(), &plain(line));
                continue;
            }
            let line = Line::parse(line, &mut clock);
            has_names |= matches!(line, Line::Error(text) | Line::Log(text) if !is_noise(text));
            match line {
                Line::Error(text) if is_noise(text) || output.errors.len() >= CEILING => open = None,
                Line::Log(text) if !is_hint(text, &mut said) || output.errors.len() >= CEILING => open = None,
                Line::Error(text) | Line::Log(text) => {
                    open = Some(Open { index: output.errors.len(), other: output.other.len() });
                    output.errors.push(plain(text));
                }
                Line::Other(text) if in_usage || text == USAGE => in_usage = !text.starts_with(END_OF_USAGE),
                Line::Other(text) => {
                    output.early += usize::from(!has_names);
                    output.other.push_str(&plain(text));
                    output.other.push('\n');
                    output.complete(open.as_ref());
                }
            }
        }
        let lines = output.other.lines().count();
        keep_the_end(&mut output.other);
        output.early = output.early.saturating_sub(lines - output.other.lines().count());
        output
    }

    /// Appends the line to the error that was begun.
    fn go_on(&mut self, open: Option<&Open>, line: &str) {
        if let Some(error) = open.and_then(|open| self.errors.get_mut(open.index)) {
            error.push_str("\\n");
            error.push_str(line);
        }
    }

    /// Appends the lines since an error began to it, if a rule knows the whole text but not the
    /// first line.
    fn complete(&mut self, open: Option<&Open>) {
        let Some(open) = open.filter(|open| self.other.len() - open.other < LONGEST) else { return };
        let begun = &self.errors[open.index];
        if rules::begins(begun) {
            return;
        }
        let whole = format!("{begun}\\n{}", self.other[open.other..].trim_end().replace('\n', "\\n"));
        if rules::begins(&whole) {
            self.errors[open.index] = whole;
            self.other.truncate(open.other);
        }
    }

    /// Returns the lines that may tell a cause. Outside the log, only the lines before the first
    /// log line count: a name of the tree may have written later ones.
    pub(crate) fn telling(&self) -> impl Iterator<Item = &str> + Clone {
        let other = self.other.lines().take(self.early);
        self.errors.iter().map(String::as_str).chain(other)
    }
}

/// Returns true if a line that is not an error may tell the reason of a failure. Some lines do so
/// only if criu repeats them: then the second time counts.
fn is_hint<'a>(text: &'a str, said: &mut HashMap<&'a str, usize>) -> bool {
    if !rules::hints_if_repeated(text) {
        return rules::hints(text);
    }
    let times = said.entry(text).or_default();
    *times += 1;
    *times == 2
}

/// The last error, which may continue on the next lines.
struct Open {
    index: usize,
    /// The length of `other` when the error began.
    other: usize,
}

/// The maximum number of bytes after a line break in a name: twice the longest path.
const LONGEST: usize = 8 << 10;

/// The timestamps of a log.
struct Clock {
    stamped: bool,
    latest: f64,
}

impl Clock {
    fn of(text: &str, known: &OutputContext) -> Clock {
        let mut stamps = text.split('\n').filter(|line| begins(line).is_some());
        let first = stamps.next().map(|line| strip_time(line).is_some());
        // Arguments and configuration files can override the request.
        let agrees = |stamped: &bool| {
            text.split('\n').any(|line| begins(line).is_some() && strip_time(line).is_some() == *stamped)
        };
        let stamped = known.stamped.filter(agrees).or(first).unwrap_or(false);
        Clock { stamped, latest: 0.0 }
    }

    /// Returns true if a line with this time, or without a time, can come next in the log.
    fn fits(&mut self, time: Option<f64>, of_task: bool, text: &str) -> bool {
        let Some(time) = time else {
            // Messages from before the log is open have no time, nor do those about a program that
            // cannot be run.
            return !self.stamped || self.latest == 0.0 || text.starts_with("execvp(");
        };
        // Restored processes write concurrently, so their lines can be late.
        let late = if of_task { LATE } else { 0.0 };
        let fits = self.stamped && time + late >= self.latest && time <= self.latest + LONG;
        if fits {
            self.latest = self.latest.max(time);
        }
        fits
    }
}

/// The maximum delay between taking a time and writing the line, in seconds.
const LATE: f64 = 1.0;

/// A day in seconds: longer than the time between two lines of a log.
const LONG: f64 = 86_400.0;

/// Returns the threads whose system calls a dump has interrupted, from criu's warnings.
pub(crate) fn interrupted(text: &str) -> Vec<i32> {
    let mut threads = Vec::new();
    for line in text.lines() {
        let Some(begun) = begins(line).filter(|begun| !begun.is_error) else { continue };
        let thread = begun.text.trim_end().strip_prefix("Will restore ");
        let thread = thread.and_then(|text| text.strip_suffix(" with interrupted system call"));
        if let Some(thread) = thread.and_then(|thread| thread.parse().ok())
            && !threads.contains(&thread)
            && threads.len() < CEILING
        {
            threads.push(thread);
        }
    }
    threads
}

/// The first line of the usage text, twenty lines that criu prints after a rejected argument.
const USAGE: &str = "Usage:";
const END_OF_USAGE: &str = "Try -h";

/// The number of error lines that are kept. The first tell the most.
const CEILING: usize = 100;

/// Cuts a text that is too long, at a line break if there is one.
fn keep_the_end(text: &mut String) {
    let Some(surplus) = text.len().checked_sub(CEILING_OTHER).filter(|surplus| *surplus > 0) else { return };
    let start = (surplus..).find(|start| text.is_char_boundary(*start)).unwrap_or(text.len());
    let line = text[start..text.len() - 1].find('\n').map_or(start, |end| start + end + 1);
    text.drain(..line);
}

/// The number of bytes of other output that are kept. Its end tells how the program ended.
const CEILING_OTHER: usize = 16 << 10;

enum Line<'a> {
    /// The text of an error.
    Error(&'a str),
    /// The text of any other line of the log.
    Log(&'a str),
    /// A line outside the log.
    Other(&'a str),
}

impl Line<'_> {
    fn parse<'a>(line: &'a str, clock: &mut Clock) -> Line<'a> {
        match begins(line) {
            Some(begun) if clock.fits(begun.time, begun.of_task, begun.text) => match begun.is_error {
                true => Line::Error(begun.text),
                false => Line::Log(begun.text),
            },
            _ => Line::Other(line),
        }
    }
}

/// A line that begins like criu's lines.
struct Begun<'a> {
    time: Option<f64>,
    /// True if the line is of a process that is being restored, not of criu itself.
    of_task: bool,
    is_error: bool,
    text: &'a str,
}

fn begins(line: &str) -> Option<Begun<'_>> {
    let (time, rest) = match strip_time(line) {
        Some((time, rest)) => (Some(time), rest),
        None => (None, line),
    };
    let text = strip_pid(rest);
    let of_task = text.len() != rest.len();
    match (without_place(text, "Error"), without_place(text, "Warn")) {
        (Some(text), _) => Some(Begun { time, of_task, is_error: true, text }),
        (None, Some(text)) => Some(Begun { time, of_task, is_error: false, text }),
        (None, None) => time.map(|time| Begun { time: Some(time), of_task, is_error: false, text }),
    }
}

/// Parses a time like `(00.012345) `; returns the seconds, and the text after it.
fn strip_time(line: &str) -> Option<(f64, &str)> {
    let (time, rest) = line.strip_prefix('(')?.split_once(") ")?;
    let plain = time.contains('.') && time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    Some((time.parse().ok().filter(|_| plain)?, rest))
}

/// Returns the text after a pid like `  1234: `, and after `pie: `, the mark of injected code.
fn strip_pid(line: &str) -> &str {
    let text = line.trim_start();
    let text = text.strip_prefix("pie: ").unwrap_or(text);
    match text.split_once(": ") {
        Some((pid, rest)) if !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()) => {
            rest.trim_start()
        }
        _ => text,
    }
}

/// Returns the text after `Error (criu/files.c:12): `.
fn without_place<'a>(line: &'a str, level: &str) -> Option<&'a str> {
    let (place, text) = line.strip_prefix(level)?.trim_start().strip_prefix('(')?.split_once("): ")?;
    let (file, number) = place.split_once(':')?;
    let of_source = file.ends_with(".c") || file.ends_with(".h");
    let is_path = file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    // The path of a plugin's source has no folder.
    let of_criu = file.contains('/') || file.contains("plugin");
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (of_source && is_path && of_criu && is_number).then_some(text)
}

/// Returns the message of an answer, without its place in criu's source.
pub(crate) fn message(text: &str) -> &str {
    without_place(text.trim(), "Error").unwrap_or(text.trim())
}

/// Returns true if the line says nothing about the failure. Either a criu with fewer privileges
/// always prints it, or it only says that there was a failure.
pub(crate) fn is_noise(line: &str) -> bool {
    let line = message(line);
    const NOISE: [&str; 10] = [
        "rlimit: Can't setup RLIMIT_NOFILE for self",
        "Dumping FAILED.",
        "Pre-dumping FAILED.",
        "Restoring FAILED.",
        "Killing processes because of failure on restore",
        "The Network was unlocked so some data",
        "No parent image found, though parent directory is set",
        "iptables-save -V failed",
        "ip6tables-save -V failed",
        "Dump files (pid:",
    ];
    NOISE.iter().any(|noise| line.starts_with(noise))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
(00.000012) Version: 4.2 (gitid 0)
(00.000040) Error (criu/util.c:1500): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.012000) Warn  (criu/net.c:12): something odd
(00.013000)   1234: Error (criu/files-reg.c:2300): Can't open file tmp/x on restore: No such file or directory
(00.013500) pie: 1234: Error (criu/pie/restorer.c:12): it hurts
Error (criu/util.c:640): execvp(\"iptables-restore\", ...) failed: No such file or directory
iptables: not a log line
(00.014000) Error (criu/cr-restore.c:2500): Restoring FAILED.
";

    #[test]
    fn errors_lose_their_ornaments_and_noise_is_left_out() {
        let output = Output::parse(LOG);
        assert_eq!(
            output.errors,
            [
                "Can't open file tmp/x on restore: No such file or directory",
                "it hurts",
                "execvp(\"iptables-restore\", ...) failed: No such file or directory",
            ]
        );
        assert_eq!(output.other, "iptables: not a log line\n");
    }

    #[test]
    fn of_a_refused_argument_the_line_that_names_it_is_kept() {
        let said = "criu: unrecognized option '--odd'\n";
        let usage = "Usage:\n  criu dump -t PID [<options>]\n\nCommands:\n  dump  dumps\n\nTry -h|--help for more info\n";
        assert_eq!(Output::parse(&format!("{said}\n{usage}and more\n")).other, format!("{said}and more\n"));
    }

    #[test]
    fn interrupted_threads_are_found_once_each() {
        let line =
            "Warn  (compel/arch/x86/src/lib/infect.c:418): Will restore 12 with interrupted system call";
        let other = line.replace("12", "13");
        let text = format!("(00.1) {line}\n(00.2) {other}\n(00.3) {line}\n{}\n", line.replace("12", "x"));
        assert_eq!(interrupted(&text), [12, 13]);
        assert!(interrupted(LOG).is_empty());
    }

    #[test]
    fn a_message_loses_its_place_only() {
        assert_eq!(message("Error (criu/x.c:1): prefix: text\n"), "prefix: text");
        assert_eq!(message("Error (not a place): text"), "Error (not a place): text");
        assert_eq!(message("plain"), "plain");
    }

    #[test]
    fn of_much_other_output_the_end_is_kept() {
        let text = "a line that is no log\n".repeat(2000) + "its end\n";
        let other = Output::parse(&text).other;
        assert!(other.len() <= CEILING_OTHER && other.len() > CEILING_OTHER - 30);
        assert!(other.starts_with("a line") && other.ends_with("its end\n"));

        let other = Output::parse(&"ä".repeat(CEILING_OTHER)).other;
        assert!(other.len() <= CEILING_OTHER && other.ends_with("ä\n"));
    }

    #[test]
    fn odd_lines_are_kept_as_they_are() {
        for line in ["(", "()", "(12", "Error", "Error (", "Error (x:1)", "12:", ": : :", "(1) "] {
            let output = Output::parse(line);
            assert!(output.errors.is_empty(), "{line}");
        }
    }
}
