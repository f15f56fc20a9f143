//! [`Runs`] to medians, medians to [`Line`]s, and those to the table.

/// A measurement, repeated.
#[derive(Debug)]
pub(crate) struct Runs {
    what: String,
    unit: Unit,
    values: Vec<f64>,
}

impl Runs {
    pub(crate) fn of(what: impl Into<String>, unit: Unit) -> Runs {
        Runs { what: what.into(), unit, values: Vec::new() }
    }

    /// Adds a value and prints it, because a run takes long.
    pub(crate) fn push(&mut self, value: f64) {
        eprintln!("{}: {}", self.what, self.unit.show(value));
        self.values.push(value);
    }

    pub(crate) fn median(&self) -> f64 {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
    MiB,
}

impl Unit {
    /// Formats a value, which is always in seconds or in bytes.
    fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds => format!("{value:.3} s"),
            Unit::Milliseconds => format!("{:.1} ms", value * 1e3),
            Unit::MiB => format!("{:.1} MiB", value / f64::from(1 << 20)),
        }
    }
}

/// The goal of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// At most so many times their value.
    Times(f64),
    /// At most so much above their value.
    More(f64),
    /// Less than their value.
    Less,
}

#[derive(Debug)]
pub(crate) enum Line {
    Row { what: String, against: String, unit: Unit, theirs: f64, ours: f64, goal: Goal },
    LeftOut { what: String, why: String },
}

impl Line {
    pub(crate) fn new(
        (what, against): (impl Into<String>, impl Into<String>),
        unit: Unit,
        (theirs, ours): (f64, f64),
        goal: Goal,
    ) -> Line {
        Line::Row { what: what.into(), against: against.into(), unit, theirs, ours, goal }
    }

    /// Builds the row for these two measurements.
    pub(crate) fn compare(what: impl Into<String>, theirs: &Runs, ours: &Runs, goal: Goal) -> Line {
        Line::new((what, &theirs.what), ours.unit, (theirs.median(), ours.median()), goal)
    }

    pub(crate) fn left_out(what: impl Into<String>, why: impl Into<String>) -> Line {
        Line::LeftOut { what: what.into(), why: why.into() }
    }

    fn cells(&self) -> Vec<String> {
        match self {
            Line::LeftOut { what, why } => vec![what.clone(), why.clone()],
            Line::Row { what, against, unit, theirs, ours, goal } => {
                let ratio = ours / theirs;
                let (ratio, wanted, reached) = match *goal {
                    Goal::Times(most) => (format!("{ratio:.2}"), format!("at most {most}"), ratio <= most),
                    Goal::Less => (format!("{ratio:.2}"), "below 1".to_owned(), ratio < 1.0),
                    Goal::More(most) => {
                        let more = ours - theirs;
                        let sign = if more < 0.0 { "" } else { "+" };
                        (
                            format!("{sign}{}", unit.show(more)),
                            format!("at most +{}", unit.show(most)),
                            more <= most,
                        )
                    }
                };
                let reached = if reached { "yes" } else { "NO" }.to_owned();
                vec![what.clone(), against.clone(), unit.show(*theirs), unit.show(*ours), ratio, wanted, reached]
            }
        }
    }
}

/// Renders the table, readable as text and as Markdown.
pub(crate) fn render(lines: &[Line]) -> String {
    let heads = ["what", "against", "theirs", "ours", "ratio", "to reach", "reached"];
    let rows: Vec<Vec<String>> = lines.iter().map(Line::cells).collect();
    // A reason for a row left out would make its column wide.
    let whole = || rows.iter().filter(|row| row.len() == heads.len());
    let width = |column: usize| {
        let cells = whole().map(|row| row[column].chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..heads.len()).map(width).collect();
    widths[0] = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or(0).max(widths[0]);
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            2..=4 => format!(" {cell:>width$} |"),
            _ => format!(" {cell:<width$} |"),
        });
        format!("|{}\n", padded.collect::<String>())
    };
    let rule = widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>();
    let head = line(&heads.map(str::to_owned)) + &line(&rule);
    head + &rows.iter().map(|row| line(row)).collect::<String>()
}
