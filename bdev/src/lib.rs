//! The device-mapper targets as polled-mode virtual bdevs.
//!
//! Each target has a folder (`thin/`, `era/`, `snapshot/`, `ploop/`); what they share lies
//! beside them: the [`target`] trait, the per-core [`channel`] engine and the [`owner`]'s side of
//! it, block [`locks`], and the [`runtime`] and [`device`] traits through which the host (SPDK or
//! the simulator) is reached. Knows no SPDK.
#![forbid(unsafe_code)]

pub mod channel;
pub mod device;
mod epochs;
pub mod era;
pub mod errno;
mod flushes;
pub mod locks;
pub mod owner;
mod parked;
pub mod ploop;
mod queues;
pub mod runtime;
pub mod snapshot;
mod stage;
pub mod target;
pub mod thin;
mod waits;
