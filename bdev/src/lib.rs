//! The device-mapper targets as polled-mode virtual bdevs.
//!
//! Each target has a folder (`thin/`, later `era/`, `snapshot/`, `ploop/`); what they share lies
//! beside them: the per-core [`channel`] engine, the [`runtime`] and [`device`] traits through
//! which the host (SPDK or the simulator) is reached, block locks. Knows no SPDK.
#![forbid(unsafe_code)]

pub mod device;
pub mod errno;
pub mod runtime;
pub mod thin;
