//! The table of what works, for people and for docs/platforms.md.

use std::{fs, path::Path, time::Duration};

use crate::{
    failure::{Failure, Result},
    options::Extra,
};

/// The outcome of one way to capture a program: the time that it was frozen.
pub(crate) type Outcome = Result<Option<Duration>>;

/// The results of one program.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// The commands that are not installed.
    pub(crate) missing: Option<String>,
    /// The reason why it is known to fail.
    pub(crate) limit: Option<&'static str>,
    pub(crate) extras: Vec<Extra>,
    pub(crate) running: Option<Outcome>,
    pub(crate) ended: Option<Outcome>,
}

impl Row {
    pub(crate) fn missing(name: &'static str, missing: String) -> Row {
        Row { name, missing: Some(missing), limit: None, extras: Vec::new(), running: None, ended: None }
    }

    pub(crate) fn passed(&self) -> bool {
        [&self.running, &self.ended].iter().all(|outcome| matches!(outcome, Some(Ok(_))))
    }

    /// True if it failed for an unknown reason.
    pub(crate) fn failed(&self) -> bool {
        self.missing.is_none() && !self.passed() && self.limit.is_none()
    }

    /// Returns the first words of each failure, without duplicates.
    fn verdict(&self) -> String {
        if let Some(missing) = &self.missing {
            return format!("not tested: {missing} not installed");
        }
        if let (false, Some(limit)) = (self.passed(), self.limit) {
            return format!("known limit: {limit}");
        }
        let mut problems: Vec<String> = [&self.running, &self.ended]
            .into_iter()
            .filter_map(|outcome| outcome.as_ref()?.as_ref().err())
            .map(|failure| cell(&failure.to_string()))
            .collect();
        problems.dedup();
        if problems.is_empty() { "the program that was captured".to_owned() } else { problems.join("; ") }
    }
}

/// Renders the rows as a Markdown table.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut table = String::from(
        "| Program | Options needed | Left running | Ended | Frozen | What came back |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let extras: Vec<_> = row.extras.iter().map(|extra| extra.name()).collect();
        let extras = if extras.is_empty() { "none".to_owned() } else { extras.join(", ") };
        let word = |outcome: &Option<Outcome>| match outcome {
            None => "",
            Some(Ok(_)) => "yes",
            Some(Err(_)) => "**no**",
        };
        let frozen: Vec<_> = [&row.running, &row.ended]
            .iter()
            .filter_map(|outcome| outcome.as_ref()?.as_ref().ok().copied().flatten())
            .collect();
        let frozen =
            if frozen.is_empty() { String::new() } else { milliseconds(frozen.iter().min().copied()) };
        table += &format!(
            "| {} | {} | {} | {} | {frozen} | {} |\n",
            row.name,
            if row.missing.is_some() { "" } else { &extras },
            word(&row.running),
            word(&row.ended),
            row.verdict()
        );
    }
    table
}

/// Formats a time, rounded for people.
pub(crate) fn milliseconds(time: Option<Duration>) -> String {
    time.map_or_else(String::new, |time| format!("{} ms", time.as_millis().max(1)))
}

/// Formats a text for a cell: one short line, without Markdown's special characters.
fn cell(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    match line.char_indices().nth(160) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// The comments in a document between which the table stands.
const BEGIN: &str = "<!-- scripts/test-programs: begin -->";
const END: &str = "<!-- scripts/test-programs: end -->";

/// Writes the table into the document, between its two comments.
pub(crate) fn write(document: &Path, rows: &[Row]) -> Result {
    let text = fs::read_to_string(document)?;
    let missing = || Failure::wrong(format!("{} lacks the comments {BEGIN} and {END}", document.display()));
    let begin = text.find(BEGIN).ok_or_else(missing)? + BEGIN.len();
    let end = begin + text[begin..].find(END).ok_or_else(missing)?;
    let text = format!("{}\n{}{}", &text[..begin], markdown(rows), &text[end..]);
    fs::write(document, text)?;
    Ok(())
}
