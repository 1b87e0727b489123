//! What goes wrong with simulated disks, and in a life of a world.

use crate::course::Course;
use crate::disk::Disk;
use bdev::runtime::Runtime;
use std::rc::Rc;

/// How often which fault happens: once in so many I/Os, 0 for never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// A read fails.
    pub read_error: u64,
    /// A write fails, perhaps after part of it has been written.
    pub write_error: u64,
    /// A flush fails; nothing becomes durable by it, and what it was to make durable may be lost.
    pub flush_error: u64,
    /// A write leaves a physical sector that cannot be read until it is written again.
    pub latent: u64,
    /// An I/O takes a thousand times as long.
    pub slow: u64,
    /// An I/O never ends.
    pub stuck: u64,
    /// A flush is acknowledged and not carried out. Only for showing that this is found.
    pub lost_flush: u64,
}

impl FaultRates {
    /// Reads, writes and flushes fail.
    pub fn errors(often: u64) -> Self {
        FaultRates {
            read_error: often,
            write_error: often,
            ..Self::flush_errors(often)
        }
    }

    /// Flushes fail.
    pub fn flush_errors(often: u64) -> Self {
        FaultRates {
            flush_error: often,
            ..Self::default()
        }
    }

    /// Writes fail.
    pub fn write_errors(often: u64) -> Self {
        FaultRates {
            write_error: often,
            ..Self::default()
        }
    }

    /// I/Os are slow, and fewer of them never end.
    pub fn stalls(often: u64) -> Self {
        FaultRates {
            slow: often,
            stuck: often * 4,
            ..Self::default()
        }
    }

    /// Sectors become unreadable.
    pub fn latent_errors(often: u64) -> Self {
        FaultRates {
            latent: often,
            ..Self::default()
        }
    }

    /// Flushes are acknowledged and not carried out.
    pub fn lies(often: u64) -> Self {
        FaultRates {
            lost_flush: often,
            ..Self::default()
        }
    }
}

/// What goes wrong in a life.
pub enum Fault {
    /// Nothing.
    None,
    /// These disks fail at these rates.
    Rates(Vec<Rc<Disk>>, FaultRates),
    /// A disk is removed.
    Removal(Rc<Disk>),
}

/// A disk that will be removed, after so many delays.
pub struct Removal {
    delays: u64,
    disk: Rc<Disk>,
}

impl Course {
    /// A disk of a target that is about to be opened fails now and then. Whatever comes of it, the next opening
    /// finds everything.
    pub fn opening_fails(&self, disk: &Disk) {
        self.executor.count("openings on failing disks");
        disk.set_faults(FaultRates::errors(1 + self.executor.below(40)));
    }

    /// How often what goes wrong in this life does.
    pub fn roll_often(&self) -> u64 {
        5 + self.executor.below(80)
    }

    /// Lets something go wrong in this life. Returns what is left to do.
    pub fn go_wrong(&self, fault: Fault) -> Option<Removal> {
        self.faulty.set(!matches!(fault, Fault::None));
        match fault {
            Fault::None => None,
            Fault::Rates(disks, rates) => {
                disks.iter().for_each(|disk| disk.set_faults(rates));
                None
            }
            Fault::Removal(disk) => Some(Removal {
                delays: self.executor.below(100),
                disk,
            }),
        }
    }

    /// Takes a disk away later, if that is what was rolled.
    pub fn remove_later(&self, removal: Option<Removal>) {
        let Some(Removal { delays, disk }) = removal else {
            return;
        };
        self.faulty.set(true);
        let dice = self.executor.clone();
        self.executor.spawn(Box::pin(async move {
            for _ in 0..delays {
                dice.delay().await;
            }
            disk.remove();
        }));
    }
}
