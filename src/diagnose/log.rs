//! criu's output, line by line.

use super::rules;

/// What criu printed, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    /// The lines of errors, and others that may be the reason of a failure, without time, pid and place in criu's
    /// source; noise left out.
    pub(crate) errors: Vec<String>,
    /// Lines that are no log: messages for people, and what the programs printed that criu runs.
    pub(crate) other: String,
}

impl Output {
    /// Sorts what criu printed.
    pub(crate) fn parse(text: &str) -> Output {
        let mut output = Output::default();
        let mut in_usage = false;
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            match Line::parse(line) {
                Line::Error(text) if is_noise(text) || output.errors.len() >= CEILING => {}
                Line::Error(text) => output.errors.push(text.to_owned()),
                Line::Log(text) if rules::hints(text) && output.errors.len() < CEILING => {
                    output.errors.push(text.to_owned());
                }
                Line::Log(_) => {}
                Line::Other(text) if in_usage || text == USAGE => in_usage = !text.starts_with(END_OF_USAGE),
                Line::Other(text) => {
                    output.other.push_str(text);
                    output.other.push('\n');
                }
            }
        }
        keep_the_end(&mut output.other);
        output
    }
}

/// What criu prints after it has refused an argument, twenty lines that nobody asked for.
const USAGE: &str = "Usage:";
const END_OF_USAGE: &str = "Try -h";

/// How many lines of errors are kept. The first tell the most.
const CEILING: usize = 100;

/// Cuts off what is too long, by whole lines if there is more than one.
fn keep_the_end(text: &mut String) {
    let Some(surplus) = text.len().checked_sub(CEILING_OTHER).filter(|surplus| *surplus > 0) else { return };
    let start = (surplus..).find(|start| text.is_char_boundary(*start)).unwrap_or(text.len());
    let line = text[start..text.len() - 1].find('\n').map_or(start, |end| start + end + 1);
    text.drain(..line);
}

/// How many bytes of other output are kept. Its end tells how the program ended.
const CEILING_OTHER: usize = 16 << 10;

enum Line<'a> {
    /// The text of an error.
    Error(&'a str),
    /// The text of any other line of the log.
    Log(&'a str),
    /// Not of the log.
    Other(&'a str),
}

impl Line<'_> {
    fn parse(line: &str) -> Line<'_> {
        let (stamped, rest) = match strip_time(line) {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let rest = strip_pid(rest);
        match (without_place(rest, "Error"), without_place(rest, "Warn")) {
            (Some(text), _) => Line::Error(text),
            (None, Some(text)) => Line::Log(text),
            (None, None) if stamped => Line::Log(rest),
            (None, None) => Line::Other(line),
        }
    }
}

/// The text after a time like `(00.012345) `.
fn strip_time(line: &str) -> Option<&str> {
    let (time, rest) = line.strip_prefix('(')?.split_once(") ")?;
    time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.').then_some(rest)
}

/// The text after a pid like `  1234: `, and after `pie: ` where injected code speaks.
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

/// The text after `Error (criu/files.c:12): `.
fn without_place<'a>(line: &'a str, level: &str) -> Option<&'a str> {
    let (place, text) = line.strip_prefix(level)?.trim_start().strip_prefix('(')?.split_once("): ")?;
    place.contains(':').then_some(text)
}

/// The message of an answer, without its place in criu's source.
pub(crate) fn message(text: &str) -> &str {
    without_place(text.trim(), "Error").unwrap_or(text.trim())
}

/// Whether the line says nothing about the failure: it is in every answer of a criu without a privilege that it can
/// do without, or it only says that there was a failure.
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
