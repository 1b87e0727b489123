//! Every committed input passes: the seeds, and what fuzzing has found, which must stay fixed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::Path;

fn replay(folder: &str) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut count = 0;
    for (name, run) in fuzz::TARGETS {
        let Ok(inputs) = fs::read_dir(folder.join(name)) else {
            continue;
        };
        for input in inputs {
            let path = input.unwrap().path();
            // Shown when the test fails.
            println!("{}", path.display());
            run(&fs::read(&path).unwrap());
            count += 1;
        }
    }
    count
}

#[test]
fn seeds() {
    assert!(replay("seeds") >= fuzz::TARGETS.len());
}

#[test]
fn findings_stay_fixed() {
    assert!(replay("regressions") > 0);
}
