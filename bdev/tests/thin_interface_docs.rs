//! docs/thin-interface.md names functions and tests that exist.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What is between backticks, with the column of the table it is in.
fn quoted(page: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        for (column, cell) in line.trim_matches('|').split('|').enumerate() {
            let words = cell.split('`').skip(1).step_by(2);
            found.extend(words.map(|word| (column, word.to_owned())));
        }
    }
    found
}

fn has_word(text: &str, word: &str) -> bool {
    let part_of_one = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(part_of_one) && !after.is_some_and(part_of_one)
    })
}

fn sources(folder: &Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// Each `file::test` is a function in that file, and each name in the column of ours occurs in the code.
#[test]
fn the_tables_name_what_exists() {
    let page = std::fs::read_to_string(root().join("docs/thin-interface.md")).unwrap();
    let mut code = String::new();
    for folder in ["bdev/src", "rpc/src"] {
        sources(&root().join(folder), &mut code);
    }
    let (mut tests, mut names) = (0, 0);
    for (column, word) in quoted(&page) {
        if let Some((file, test)) = word.split_once(".rs::").or(word.split_once(".py::")) {
            let extension = if word.contains(".rs::") { "rs" } else { "py" };
            let path = root().join(format!("{file}.{extension}"));
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let defined = ["fn", "def"].map(|keyword| format!("{keyword} {test}"));
            assert!(defined.iter().any(|name| has_word(&text, name)), "{word}");
            tests += 1;
        } else if column == 1 {
            let name = word.rsplit("::").next().unwrap();
            assert!(has_word(&code, name), "{word}");
            names += 1;
        }
    }
    assert!(tests > 100 && names > 80, "{tests} tests, {names} names");
}
