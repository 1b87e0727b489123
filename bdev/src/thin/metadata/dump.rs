//! The mappings of a pool as `thin_dump`'s XML (thin.md 12).

use super::refs::TIME_BITS;
use super::{Details, ThinError, ThinMetadata};
use persistent_data::btree;
use std::collections::BTreeMap;
use std::fmt::Write;

/// A device with its mappings: virtual block to data block and time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpedDevice {
    /// Its details.
    pub details: Details,
    /// Its mappings.
    pub mappings: BTreeMap<u64, (u64, u32)>,
}

impl ThinMetadata {
    /// Everything that is mapped, by device id. Keeps all of it in memory: for tools and tests.
    pub async fn dump(&mut self) -> Result<BTreeMap<u32, DumpedDevice>, ThinError> {
        let mut dumped = BTreeMap::new();
        for (id, details) in self.devices().await? {
            let root = self.device_root(id).await?;
            let mut mappings = BTreeMap::new();
            btree::walk(&self.tm, root, 0, u64::MAX, |block, value: u64| {
                let time = (value & ((1 << TIME_BITS) - 1)) as u32;
                mappings.insert(block, (value >> TIME_BITS, time));
            })
            .await?;
            dumped.insert(id, DumpedDevice { details, mappings });
        }
        Ok(dumped)
    }

    /// [`ThinMetadata::dump`] as XML that `thin_restore` reads, laid out as `thin_dump` 0.9 does.
    pub async fn dump_xml(&mut self) -> Result<String, ThinError> {
        let mut xml = String::new();
        let sb = self.sb;
        // Writing to a string does not fail.
        let _ = writeln!(
            xml,
            "<superblock uuid=\"\" time=\"{}\" transaction=\"{}\" flags=\"{}\" version=\"2\" data_block_size=\"{}\" nr_data_blocks=\"{}\">",
            sb.time,
            sb.transaction_id,
            u32::from(sb.needs_check),
            sb.data_block_size_sectors,
            self.nr_data_blocks()
        );
        for (id, dev) in self.dump().await? {
            let d = dev.details;
            let _ = writeln!(
                xml,
                "  <device dev_id=\"{id}\" mapped_blocks=\"{}\" transaction=\"{}\" creation_time=\"{}\" snap_time=\"{}\">",
                d.mapped_blocks, d.transaction_id, d.creation_time, d.snapshotted_time
            );
            let mappings: Vec<_> = dev.mappings.into_iter().collect();
            for run in mappings.chunk_by(|(v0, (d0, t0)), (v1, (d1, t1))| {
                v0 + 1 == *v1 && d0 + 1 == *d1 && t0 == t1
            }) {
                let Some((virtual_block, (data_block, time))) = run.first() else {
                    continue;
                };
                let _ = match run.len() {
                    1 => writeln!(
                        xml,
                        "    <single_mapping origin_block=\"{virtual_block}\" data_block=\"{data_block}\" time=\"{time}\"/>"
                    ),
                    length => writeln!(
                        xml,
                        "    <range_mapping origin_begin=\"{virtual_block}\" data_begin=\"{data_block}\" length=\"{length}\" time=\"{time}\"/>"
                    ),
                };
            }
            xml.push_str("  </device>\n");
        }
        xml.push_str("</superblock>\n");
        Ok(xml)
    }
}
