//! Mappings joined to runs, as the tools print them: consecutive virtual and data blocks of one time.

use super::image::Mapping;

/// Consecutive mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First block of the thin device.
    pub virtual_begin: u64,
    /// First block of the data device.
    pub data_begin: u64,
    /// Blocks; at least 1.
    pub length: u64,
    /// When they were made.
    pub time: u32,
}

/// Joins mappings that come in order.
#[derive(Debug, Default)]
pub struct Runs {
    current: Option<Run>,
}

impl Runs {
    /// Adds a mapping; returns the run before, if this one does not continue it.
    pub fn push(&mut self, mapping: Mapping) -> Option<Run> {
        if let Some(run) = &mut self.current
            && run.virtual_begin.checked_add(run.length) == Some(mapping.virtual_block)
            && run.data_begin.checked_add(run.length) == Some(mapping.data_block)
            && run.time == mapping.time
        {
            run.length += 1;
            return None;
        }
        self.current.replace(Run {
            virtual_begin: mapping.virtual_block,
            data_begin: mapping.data_block,
            length: 1,
            time: mapping.time,
        })
    }

    /// The last run.
    pub fn finish(&mut self) -> Option<Run> {
        self.current.take()
    }
}
