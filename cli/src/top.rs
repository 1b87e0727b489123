//! `spdk-dm top`: what a running target does, live.
//!
//! Rates are differences of what the target counts, as `spdk-dm metrics` has it, over the time between two looks.

mod tables;

use crate::dm::Server;
use crate::error::CliError;
use crate::metrics::collect::Found;
use crate::rpc_client::RpcClient;
use clap::Args;
use console::Term;
use std::path::Path;
use std::time::{Duration, Instant};

/// Arguments.
#[derive(Args)]
pub struct TopArgs {
    #[command(flatten)]
    server: Server,
    /// Time between two looks, in seconds
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
    /// End after so many looks (default: go on)
    #[arg(short, long, value_name = "NUMBER")]
    count: Option<u64>,
}

/// To the upper left corner; what stands there is written over, without flicker.
const HOME: &str = "\x1b[H";
/// Clears to the end of a line.
const END_OF_LINE: &str = "\x1b[K";
/// Clears to the end of the screen.
const END_OF_SCREEN: &str = "\x1b[J";

/// A look at the target.
struct Look {
    at: Instant,
    found: Found,
}

impl Look {
    fn take(client: &mut RpcClient) -> Result<Self, CliError> {
        let found = Found::ask(client)?;
        Ok(Look {
            at: Instant::now(),
            found,
        })
    }
}

impl TopArgs {
    /// Shows what the target does, again and again.
    pub fn run(self) -> Result<bool, CliError> {
        let term = Term::stdout();
        let mut client = self.server.connect()?;
        let mut before = Look::take(&mut client)?;
        let mut shown = 0;
        while self.count.is_none_or(|count| shown < count) {
            std::thread::sleep(Duration::from_secs(self.interval));
            let now = Look::take(&mut client)?;
            let seconds = now.at.duration_since(before.at).as_secs_f64();
            let text = tables::text(&before.found, &now.found, seconds);
            self.show(&term, &text)
                .map_err(CliError::io(Path::new("standard output")))?;
            before = now;
            shown += 1;
        }
        Ok(true)
    }

    /// On a terminal as much as fits, in place of what was there; else all.
    fn show(&self, term: &Term, text: &str) -> std::io::Result<()> {
        if !term.is_term() {
            return term.write_str(text);
        }
        let (height, width) = term.size();
        let mut screen = HOME.to_owned();
        for line in text.lines().take(usize::from(height).saturating_sub(1)) {
            let fitting: String = line.chars().take(width.into()).collect();
            screen += &format!("{fitting}{END_OF_LINE}\n");
        }
        term.write_str(&(screen + END_OF_SCREEN))
    }
}
