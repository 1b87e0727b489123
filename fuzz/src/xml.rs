//! XML for `spdk-dm thin restore` and `spdk-dm era restore`: the first byte chooses which.
//!
//! What is restored is sound, and its dump restores to the same.

use bdev::era::EraError;
use bdev::era::metadata::xml::{Layout as EraLayout, XmlWriter as EraXmlWriter};
use bdev::era::metadata::{EraMetadata, View};
use bdev::thin::metadata::restore::{Restore, RestoreError, RestoreOptions};
use bdev::thin::metadata::{OpenOptions, ThinMetadata};
use futures::executor::block_on;
use persistent_data::memory::MemoryDevice;
use spdk_dm_cli::xml::thin::Overrides;
use spdk_dm_cli::xml::{self, ReadError, What};
use std::rc::Rc;

/// Metadata blocks of the output.
const NR_BLOCKS: u64 = 64;

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((which, xml)) = data.split_first() else {
        return;
    };
    match which % 2 {
        0 => block_on(thin(xml)),
        _ => block_on(era(xml)),
    }
}

/// An error says where it is, and why.
fn look_at<E: std::fmt::Display>(xml: &[u8], error: &ReadError<E>) {
    assert!(error.at <= xml.len() as u64, "at byte {}", error.at);
    let text = match &error.what {
        What::Read(error) => panic!("reading failed: {error}"),
        What::Xml(text) => text.clone(),
        What::Sink(error) => error.to_string(),
    };
    assert!(!text.is_empty());
}

async fn restored_thin(xml: &[u8]) -> Result<ThinMetadata, ReadError<RestoreError>> {
    let device = Rc::new(MemoryDevice::new(NR_BLOCKS));
    let mut restore = Restore::new(device.clone(), RestoreOptions::default())
        .await
        .unwrap();
    xml::thin::read(xml, &Overrides::default(), &mut restore).await?;
    let mut bytes = [0; 4096];
    bytes.copy_from_slice(&device.blocks()[0]);
    let options = OpenOptions {
        data_block_size_sectors: persistent_data::block::get_u32(&bytes, 336),
        cache_bytes: 0,
        may_format: false,
        read_only: true,
    };
    Ok(ThinMetadata::open(device, options).await.unwrap())
}

async fn thin(xml: &[u8]) {
    let mut metadata = match restored_thin(xml).await {
        Ok(metadata) => metadata,
        Err(error) => return look_at(xml, &error),
    };
    assert_eq!(metadata.check().await, Ok(Vec::new()));
    let dump = metadata.dump_xml().await.unwrap();
    let mut again = restored_thin(dump.as_bytes()).await.unwrap();
    assert_eq!(again.dump_xml().await.unwrap(), dump);
}

async fn restored_era(xml: &[u8]) -> Result<EraMetadata, ReadError<EraError>> {
    let device = Rc::new(MemoryDevice::new(NR_BLOCKS));
    let restored = xml::era::restore(xml, device.clone(), 0).await;
    let opened = EraMetadata::open_any(device, 0).await;
    match restored {
        Ok(()) => Ok(opened.unwrap()),
        Err(error) => {
            assert!(opened.is_err(), "half a restore can be opened");
            Err(error)
        }
    }
}

async fn dump_era(metadata: &EraMetadata) -> String {
    let mut xml = EraXmlWriter::new(Vec::new(), EraLayout::V0);
    metadata.dump(View::Live, true, &mut xml).await.unwrap();
    String::from_utf8(xml.into_inner()).unwrap()
}

async fn era(xml: &[u8]) {
    let metadata = match restored_era(xml).await {
        Ok(metadata) => metadata,
        Err(error) => return look_at(xml, &error),
    };
    let report = metadata.survey().await;
    assert_eq!(
        (report.damages, report.counts, report.unreadable),
        (vec![], vec![], vec![])
    );
    let dump = dump_era(&metadata).await;
    let again = restored_era(dump.as_bytes()).await.unwrap();
    assert_eq!(dump_era(&again).await, dump);
}
