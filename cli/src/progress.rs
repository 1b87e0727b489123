//! Progress bars, on a terminal only.

use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::rc::Rc;

/// Steps between looks at the clock.
const PERIOD: u64 = 256;

/// How far a command has come. Clones move the same bar.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
    steps: Rc<Cell<u64>>,
}

impl Progress {
    /// No bar.
    pub fn hidden() -> Self {
        Progress {
            bar: ProgressBar::hidden(),
            steps: Rc::default(),
        }
    }

    /// A bar on standard error, if that is a terminal. `what` is what is being done.
    pub fn new(quiet: bool, what: &'static str) -> Self {
        if quiet {
            return Progress::hidden();
        }
        let bar = ProgressBar::no_length().with_message(what);
        // The templates are constants; were one wrong, there would be the default.
        if let Ok(style) = ProgressStyle::with_template(
            "{msg} {bar:40} {percent:>3}% {human_pos}/{human_len} {elapsed}<{eta}",
        ) {
            bar.set_style(style);
        }
        Progress {
            bar,
            steps: Rc::default(),
        }
    }

    /// Says how many steps there will be.
    pub fn expect(&self, steps: u64) {
        self.bar.set_length(steps);
    }

    /// So many steps further.
    pub fn advance(&self, steps: u64) {
        let steps = self.steps.get() + steps;
        if steps >= PERIOD {
            self.bar.inc(steps);
            self.steps.set(0);
        } else {
            self.steps.set(steps);
        }
    }

    /// Where it is, for what is told by others.
    pub fn at(&self, steps: u64) {
        self.bar.set_position(steps);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
