//! Table lines: start, length, target, arguments.

use serde::Serialize;
use std::fmt;

/// A table line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableLine {
    /// First sector of the device it is for.
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// Type of target.
    pub target: String,
    /// What follows, as the target says it, perhaps with a space at its end.
    #[serde(rename = "table")]
    pub arguments: String,
}

impl TableLine {
    /// Reads one. None: it has no start, length and target.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        Some(TableLine {
            start: words.next()?.parse().ok()?,
            length: words.next()?.parse().ok()?,
            target: words.next().filter(|word| !word.is_empty())?.to_owned(),
            arguments: words.next().unwrap_or_default().to_owned(),
        })
    }
}

impl fmt::Display for TableLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TableLine {
            start,
            length,
            target,
            arguments,
        } = self;
        write!(f, "{start} {length} {target} {arguments}")
    }
}

/// Why a text is no table of a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Nothing in it.
    #[error("the table is empty; a line is e.g. '0 2097152 thin-pool META DATA 128 0'")]
    Empty,
    /// More than one line.
    #[error("the table has {0} lines; a device here has one target from sector 0")]
    Several(usize),
}

/// The line of a table as people write it: empty lines and those that begin with # do not count, devices may be
/// given as /dev/mapper/NAME.
pub fn table_line(text: &str) -> Result<String, TableError> {
    let lines = text.lines().map(str::trim);
    let lines: Vec<&str> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    match lines.as_slice() {
        [] => Err(TableError::Empty),
        [line] => {
            let words = line.split_whitespace();
            let words = words.map(|word| word.strip_prefix("/dev/mapper/").unwrap_or(word));
            Ok(words.collect::<Vec<_>>().join(" "))
        }
        more => Err(TableError::Several(more.len())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What is printed is what was read, with every space of the arguments.
        #[test]
        fn lines_are_read_as_printed(start: u64, length: u64, target in "[a-z-]{1,12}", arguments in "[a-z0-9 -]{0,30}") {
            let line = TableLine { start, length, target, arguments };
            prop_assert_eq!(TableLine::parse(&line.to_string()), Some(line));
        }

        /// Any text is read, or not, without a panic.
        #[test]
        fn any_text(text in ".{0,60}") {
            let _ = TableLine::parse(&text);
            if let Ok(line) = table_line(&text) {
                prop_assert!(!line.is_empty());
                prop_assert_eq!(table_line(&line), Ok(line.clone()));
            }
        }

        /// Comments, empty lines and spaces around change nothing.
        #[test]
        fn comments_do_not_count(before in "(#[a-z ]{0,9}\n|[ ]{0,3}\n){0,4}", words in "[a-z0-9]{1,5}( [a-z0-9]{1,5}){0,5}", indent in " {0,3}") {
            prop_assert_eq!(table_line(&format!("{before}{indent}{words} \n\n# end")), Ok(words));
        }
    }

    /// Paths of the kernel are names here; several targets are refused.
    #[test]
    fn as_people_write_it() {
        assert_eq!(
            table_line("0 8 thin /dev/mapper/pool 1").unwrap(),
            "0 8 thin pool 1"
        );
        assert_eq!(table_line("\n# x\n"), Err(TableError::Empty));
        let two = "0 8 linear a 0\n8 8 linear b 0";
        assert_eq!(table_line(two), Err(TableError::Several(2)));
    }
}
