//! Ctrl-C and SIGTERM: what was begun is ended in order, and only then the process.

use crate::error::CliError;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether somebody wants it to end.
#[derive(Clone)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on signals are noted; a second one ends the process at once.
    pub fn watch() -> Result<Self, CliError> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())
                .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
                .map_err(|error| CliError::Usage(format!("signals: {error}")))?;
        }
        Ok(Stop(stop))
    }

    /// An error if it is to end.
    pub fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(io::Error::other("stopped by a signal")),
            false => Ok(()),
        }
    }
}
