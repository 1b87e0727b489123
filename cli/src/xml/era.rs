//! Reads the XML of `era_dump` (era.md 10), also with the `marked` runs that only 1.x knows.

use super::{Elements, ReadError, Result, What, need, numbers, small, text, unknown, wrong};
use bdev::era::EraError;
use bdev::era::metadata::dump::EraInfo;
use bdev::era::metadata::restore::Restore;
use persistent_data::device::BlockDevice;
use quick_xml::events::BytesStart;
use std::io::BufRead;
use std::ops::Range;
use std::rc::Rc;

/// Runs of marked blocks collected before they go to the writeset.
const PORTION: usize = 4096;

/// Makes the metadata of an era target from XML. Nothing on the device is valid before the end.
pub async fn restore(
    xml: impl BufRead,
    device: Rc<dyn BlockDevice>,
    cache_bytes: usize,
) -> std::result::Result<(), ReadError<EraError>> {
    let mut elements = EraElements {
        device,
        cache_bytes,
        restore: None,
        inside: Inside::Superblock,
        marked: Vec::new(),
    };
    super::read(xml, &mut elements).await
}

/// Whose elements follow.
#[derive(PartialEq, Eq)]
enum Inside {
    Superblock,
    Writeset,
    Array,
    /// One that has none.
    Leaf,
}

struct EraElements {
    device: Rc<dyn BlockDevice>,
    cache_bytes: usize,
    /// From the superblock on.
    restore: Option<Restore>,
    inside: Inside,
    /// Of the writeset, in any order.
    marked: Vec<Range<u64>>,
}

impl EraElements {
    fn restore(&mut self) -> Result<&mut Restore, EraError> {
        match &mut self.restore {
            Some(restore) => Ok(restore),
            None => wrong("everything must be in one <superblock>".to_owned()),
        }
    }

    fn enter(&mut self, from: Inside, to: Inside, tag: &BytesStart<'_>) -> Result<(), EraError> {
        if self.inside != from {
            let name = tag.name();
            return wrong(format!(
                "<{}> does not belong here",
                String::from_utf8_lossy(name.as_ref())
            ));
        }
        self.inside = to;
        Ok(())
    }

    async fn mark(&mut self, range: Range<u64>) -> Result<(), EraError> {
        match self.marked.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.marked.push(range),
        }
        match self.marked.len() >= PORTION {
            true => self.put_marked().await,
            false => Ok(()),
        }
    }

    async fn put_marked(&mut self) -> Result<(), EraError> {
        let mut marked = std::mem::take(&mut self.marked);
        marked.sort_unstable_by_key(|range| range.start);
        marked.dedup_by(|next, last| {
            let touch = next.start <= last.end;
            if touch {
                last.end = last.end.max(next.end);
            }
            touch
        });
        self.restore()?.mark(&marked).await.map_err(What::Sink)
    }
}

impl Elements for EraElements {
    type Error = EraError;

    async fn begin(&mut self, tag: &BytesStart<'_>) -> Result<(), EraError> {
        match tag.name().as_ref() {
            b"bit" => {
                self.enter(Inside::Writeset, Inside::Leaf, tag)?;
                let [block] = numbers(tag, [b"block"])?;
                let block = u64::from(small(block, "block")?);
                match text(tag, "value")?.as_str() {
                    "true" => self.mark(block..block + 1).await,
                    "false" => Ok(()),
                    value => wrong(format!("value=\"{value}\" is neither true nor false")),
                }
            }
            b"marked" => {
                self.enter(Inside::Writeset, Inside::Leaf, tag)?;
                let [begin, len] = numbers(tag, [b"block_begin", b"len"])?;
                let begin = u64::from(small(begin, "block_begin")?);
                let len = u64::from(small(len, "len")?);
                match len {
                    0 => Ok(()),
                    _ => self.mark(begin..begin + len).await,
                }
            }
            b"era" => {
                self.enter(Inside::Array, Inside::Leaf, tag)?;
                let [block, era] = numbers(tag, [b"block", b"era"])?;
                let (block, era) = (need(block, "block")?, small(era, "era")?);
                self.restore()?.era(block, era).await.map_err(What::Sink)
            }
            b"writeset" => {
                self.enter(Inside::Superblock, Inside::Writeset, tag)?;
                let [era, nr_bits] = numbers(tag, [b"era", b"nr_bits"])?;
                let (era, nr_bits) = (small(era, "era")?, small(nr_bits, "nr_bits")?);
                let begun = self.restore()?.writeset_begin(era, nr_bits).await;
                begun.map_err(What::Sink)
            }
            b"era_array" => self.enter(Inside::Superblock, Inside::Array, tag),
            b"superblock" => {
                let [size, nr, era] = numbers(tag, [b"block_size", b"nr_blocks", b"current_era"])?;
                let info = EraInfo {
                    block_size_sectors: small(size, "block_size")?,
                    nr_blocks: small(nr, "nr_blocks")?,
                    current_era: small(era, "current_era")?,
                };
                let begun = Restore::begin(self.device.clone(), self.cache_bytes, &info).await;
                self.restore = Some(begun.map_err(What::Sink)?);
                Ok(())
            }
            _ => unknown(tag),
        }
    }

    async fn end(&mut self, name: &[u8]) -> Result<(), EraError> {
        self.inside = match name {
            b"bit" | b"marked" => Inside::Writeset,
            b"era" => Inside::Array,
            _ => Inside::Superblock,
        };
        if name == b"writeset" {
            self.put_marked().await?;
            self.restore()?.writeset_end().await.map_err(What::Sink)?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), EraError> {
        match self.restore.take() {
            Some(restore) => restore.finish().await.map(|_| ()).map_err(What::Sink),
            None => wrong("the end is missing".to_owned()),
        }
    }
}
