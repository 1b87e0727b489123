//! `spdk-dm replicate`: a thin device of a pool here, kept as snapshots in a pool elsewhere.
//!
//! The source takes snapshots and sends what has changed since the last one that both sides have, as a backup stream
//! over TCP. The receiver writes it to a work device and takes a snapshot of that when all of it is on the disk. So
//! each replica is one of the source's snapshots, and nothing in between is ever seen as one. What each side knows
//! stands in its pool ([`state`], [`head`]); no files are needed.

mod accept;
mod apply;
mod head;
mod link;
pub mod report;
mod send;
mod show;
mod state;
mod turn;
mod wire;

use crate::Global;
use crate::error::CliError;
use clap::Subcommand;

/// What can be done with replications.
#[derive(Subcommand)]
pub enum Verb {
    /// Replicate a thin device: take snapshots and send what has changed, now and every interval
    Run(send::RunArgs),
    /// Receive replicas into a pool, from any number of sources
    Receive(accept::ReceiveArgs),
    /// Show replications of a target, and how far the replicas are behind
    Status(show::StatusArgs),
    /// Make a writable thin device of the newest replica, and take no more changes
    Promote(turn::PromoteArgs),
    /// Make a replica of what was the source; the thin device goes
    Demote(turn::DemoteArgs),
    /// End a replication on this side: delete its snapshots. The source's thin device stays
    Forget(turn::ForgetArgs),
}

impl Verb {
    /// Does it.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        match self {
            Verb::Run(args) => args.run(global),
            Verb::Receive(args) => args.run(global),
            Verb::Status(args) => args.run(),
            Verb::Promote(args) => args.run(global),
            Verb::Demote(args) => args.run(global),
            Verb::Forget(args) => args.run(global),
        }
    }
}

/// An attempt has failed.
#[derive(Debug)]
struct Failure {
    error: CliError,
    /// It would fail again.
    is_final: bool,
}

impl Failure {
    fn again(what: String) -> Self {
        CliError::Usage(what).into()
    }

    fn last(what: String) -> Self {
        Failure {
            error: CliError::Usage(what),
            is_final: true,
        }
    }

    fn refused(peer: &str, why: &str, is_final: bool) -> Self {
        // Whoever it is, it does not get to write what it likes on a terminal.
        let why: String = why.chars().filter(|c| !c.is_control()).take(500).collect();
        Failure {
            error: CliError::Usage(format!("{peer}: {why}")),
            is_final,
        }
    }
}

impl From<CliError> for Failure {
    fn from(error: CliError) -> Self {
        Failure {
            error,
            is_final: false,
        }
    }
}
