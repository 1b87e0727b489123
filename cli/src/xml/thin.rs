//! Reads the XML of `thin_dump` (thin.md 12).

use super::{Elements, ReadError, Result, What, need, numbers, small, text, unknown};
use bdev::thin::metadata::Details;
use bdev::thin::metadata::runs::Run;
use bdev::thin::metadata::sink::{PoolInfo, Sink};
use clap::Args;
use quick_xml::events::BytesStart;
use std::io::BufRead;

/// What the input says wrongly or not at all.
#[derive(Args, Clone, Copy, Default)]
pub struct Overrides {
    /// Transaction id of the new metadata
    #[arg(long, value_name = "NUMBER")]
    pub transaction_id: Option<u64>,
    /// Data block size in sectors
    #[arg(long, value_name = "SECTORS")]
    pub data_block_size: Option<u32>,
    /// Size of the data device in data blocks
    #[arg(long, value_name = "BLOCKS")]
    pub nr_data_blocks: Option<u64>,
}

/// Streams a pool's contents from XML.
pub async fn read<S: Sink>(
    xml: impl BufRead,
    overrides: &Overrides,
    sink: &mut S,
) -> std::result::Result<(), ReadError<S::Error>> {
    super::read(xml, &mut ThinElements { overrides, sink }).await
}

struct ThinElements<'a, S> {
    overrides: &'a Overrides,
    sink: &'a mut S,
}

impl<S: Sink> Elements for ThinElements<'_, S> {
    type Error = S::Error;

    async fn begin(&mut self, tag: &BytesStart<'_>) -> Result<(), S::Error> {
        begin(tag, self.overrides, self.sink).await
    }

    async fn end(&mut self, name: &[u8]) -> Result<(), S::Error> {
        match name {
            b"device" => self.sink.device_end().await,
            b"def" => self.sink.shared_end().await,
            _ => Ok(()),
        }
        .map_err(What::Sink)
    }

    async fn finish(&mut self) -> Result<(), S::Error> {
        self.sink.end().await.map_err(What::Sink)
    }
}

async fn begin<S: Sink>(
    tag: &BytesStart<'_>,
    overrides: &Overrides,
    sink: &mut S,
) -> Result<(), S::Error> {
    match tag.name().as_ref() {
        b"single_mapping" => {
            let [virtual_begin, data_begin, time] =
                numbers(tag, [b"origin_block", b"data_block", b"time"])?;
            mapping(sink, virtual_begin, data_begin, Some(1), time).await
        }
        b"range_mapping" => {
            let [virtual_begin, data_begin, length, time] =
                numbers(tag, [b"origin_begin", b"data_begin", b"length", b"time"])?;
            mapping(sink, virtual_begin, data_begin, length, time).await
        }
        b"device" => {
            let [id, mapped, transaction, creation, snap] = numbers(
                tag,
                [
                    b"dev_id",
                    b"mapped_blocks",
                    b"transaction",
                    b"creation_time",
                    b"snap_time",
                ],
            )?;
            let details = Details {
                mapped_blocks: need(mapped, "mapped_blocks")?,
                transaction_id: need(transaction, "transaction")?,
                creation_time: small(creation, "creation_time")?,
                snapshotted_time: small(snap, "snap_time")?,
            };
            let id = small(id, "dev_id")?;
            sink.device_begin(id, &details).await.map_err(What::Sink)
        }
        b"superblock" => {
            let [time, transaction, flags, size, nr] = numbers(
                tag,
                [
                    b"time",
                    b"transaction",
                    b"flags",
                    b"data_block_size",
                    b"nr_data_blocks",
                ],
            )?;
            let transaction = overrides.transaction_id.or(transaction);
            let size = overrides.data_block_size.map(u64::from).or(size);
            let pool = PoolInfo {
                time: small(time, "time")?,
                transaction_id: need(transaction, "transaction")?,
                needs_check: flags.is_some_and(|flags| flags & 1 != 0),
                data_block_size_sectors: small(size, "data_block_size")?,
                nr_data_blocks: need(overrides.nr_data_blocks.or(nr), "nr_data_blocks")?,
            };
            sink.begin(&pool).await.map_err(What::Sink)
        }
        b"def" => {
            let name = text(tag, "name")?;
            sink.shared_begin(&name).await.map_err(What::Sink)
        }
        b"ref" => {
            let name = text(tag, "name")?;
            sink.shared(&name).await.map_err(What::Sink)
        }
        _ => unknown(tag),
    }
}

async fn mapping<S: Sink>(
    sink: &mut S,
    virtual_begin: Option<u64>,
    data_begin: Option<u64>,
    length: Option<u64>,
    time: Option<u64>,
) -> Result<(), S::Error> {
    let run = Run {
        virtual_begin: need(virtual_begin, "origin_begin or origin_block")?,
        data_begin: need(data_begin, "data_begin or data_block")?,
        length: need(length, "length")?,
        time: small(time, "time")?,
    };
    sink.run(&run).await.map_err(What::Sink)
}
