//! Which blocks were written since an era, as pages of JSON and as `era_invalidate`'s XML in a file, read
//! from the metadata snapshot while writes go on.

use super::{OpenEra, refuse};
use crate::new_file::{NewFile, PIECE_BYTES};
use crate::registry::Registry;
use bdev::era::View;
use bdev::era::metadata::xml::BlocksWriter;
use bdev::errno::Errno;
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::{EraWrittenSince, page_entries};
use serde_json::json;
use std::ops::Range;
use std::rc::Rc;

/// Blocks asked for at a time.
const STEP_BLOCKS: u64 = 1 << 16;

/// A page ends after looking at so many blocks, so that it is not long in coming however few there are.
const PAGE_BLOCKS: u64 = 1 << 22;

const ESTALE: Errno = Errno(116);

/// The ranges from a block on, joined where they touch.
struct Ranges {
    open: Rc<OpenEra>,
    era: u32,
    next: u64,
    end: u64,
    found: std::vec::IntoIter<Range<u64>>,
    joined: Option<Range<u64>>,
}

impl Ranges {
    async fn next(&mut self) -> Result<Option<Range<u64>>, RpcError> {
        loop {
            for range in self.found.by_ref() {
                match &mut self.joined {
                    Some(joined) if joined.end == range.start => joined.end = range.end,
                    joined => {
                        if let Some(done) = joined.replace(range) {
                            return Ok(Some(done));
                        }
                    }
                }
            }
            if self.next >= self.end {
                return Ok(self.joined.take());
            }
            let until = self.end.min(self.next.saturating_add(STEP_BLOCKS));
            let era = &self.open.era;
            let found = era.written_since(View::Snapshot, self.era, self.next..until);
            self.found = found.await.map_err(|error| refuse(&error))?.into_iter();
            self.next = until;
        }
    }
}

impl Registry {
    /// `era_written_since`.
    pub async fn written_since(&self, params: &EraWrittenSince) -> Answer {
        let open = self.use_era(&params.name)?;
        let (_reading, nr_blocks, held_era) = open.read_snap().await?;
        if let Some(wanted) = params.snapshot
            && wanted != held_era
        {
            return Err(RpcError::new(
                ESTALE,
                format!(
                    "era '{}' has another metadata snapshot ({held_era}) than {wanted}; begin with the first page again",
                    params.name
                ),
            ));
        }
        let begin = params.begin_block.unwrap_or(0);
        let ranges = |end| Ranges {
            open: open.clone(),
            era: params.era,
            next: begin,
            end,
            found: Vec::new().into_iter(),
            joined: None,
        };
        let Some(file) = &params.file else {
            let end = nr_blocks.min(begin.saturating_add(PAGE_BLOCKS));
            let (page, next_block) = page(ranges(end), page_entries(params.limit)).await?;
            return Ok(json!({
                "name": params.name,
                "snapshot": held_era,
                "era": params.era,
                "block_size_sectors": open.era.config().block_size_sectors,
                "nr_blocks": nr_blocks,
                "ranges": page
                    .iter()
                    .map(|range| json!({ "begin": range.start, "length": range.end - range.start }))
                    .collect::<serde_json::Value>(),
                "next_block": next_block.or((end < nr_blocks).then_some(end)),
            }));
        };
        let bytes = write_file(ranges(nr_blocks), file).await?;
        Ok(json!({ "file": file, "bytes": bytes, "snapshot": held_era }))
    }
}

/// Up to `limit` ranges, and where the next one begins.
async fn page(
    mut ranges: Ranges,
    limit: usize,
) -> Result<(Vec<Range<u64>>, Option<u64>), RpcError> {
    let mut page = Vec::new();
    while let Some(range) = ranges.next().await? {
        if page.len() == limit {
            return Ok((page, Some(range.start)));
        }
        page.push(range);
    }
    Ok((page, None))
}

async fn write_file(mut ranges: Ranges, path: &str) -> Result<u64, RpcError> {
    // Writing to memory does not fail.
    let in_memory = |error: std::io::Error| RpcError::new(Errno::EIO, error.to_string());
    let mut file = NewFile::create(path)?;
    let mut xml = BlocksWriter::begin(Vec::new()).map_err(in_memory)?;
    while let Some(range) = ranges.next().await? {
        xml.range(range).map_err(in_memory)?;
        if xml.get_mut().len() >= PIECE_BYTES {
            file.write(std::mem::take(xml.get_mut())).await?;
        }
    }
    file.write(xml.end().map_err(in_memory)?).await?;
    file.end().await
}
