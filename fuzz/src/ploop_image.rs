//! ploop images: header, BAT and format extension as anybody may have written them; and message lines.
//!
//! An image in which the check finds nothing is as good as an undamaged one: then it can be read, copied,
//! and closed, and is as before. Any other is refused, with a reason.

use crate::sectors::Sectors;
use arbitrary::{Arbitrary, Unstructured};
use bdev::device::SECTOR_BYTES;
use bdev::ploop::image::Header;
use bdev::ploop::image::header::HEADER_BYTES;
use bdev::ploop::image::survey::Survey;
use bdev::ploop::messages::{Message, PloopTable};
use bdev::ploop::offline::{ChainReader, copy, mark_closed};
use bdev::ploop::{Lower, Source, create};
use bdev::target::BaseId;
use futures::executor::block_on;
use md5::{Digest, Md5};
use std::rc::Rc;

/// Sectors of the device, beside one without room for some clusters.
const NR_SECTORS: usize = 128;

/// Changes of one input that are made.
const MAX_CHANGES: usize = 32;

/// Sectors of a disk that is copied.
const MAX_COPY_SECTORS: u64 = 1 << 12;

const CLUSTER_SECTORS: u32 = 8;

/// The clusters of the extension and of its bitmap.
const EXTENSION: usize = 3;
const BITMAP: u64 = 4;

#[derive(Debug, Arbitrary)]
enum Change {
    Header(u8, u32),
    Entry(u16, u32),
    Extension(u16, u32),
    Byte(u16, u8),
    Bit(u16),
}

#[derive(Debug, Arbitrary)]
struct Case<'a> {
    v1: bool,
    with_extension: bool,
    /// The extension's checksum is made to fit.
    sealed: bool,
    over: bool,
    changes: Vec<Change>,
    line: &'a str,
}

fn source(device: &Rc<Sectors>, base: u8) -> Source {
    Source {
        name: base.to_string(),
        device: device.clone(),
        base: BaseId(base),
        flushes: true,
    }
}

fn put(bytes: &mut [u8], at: usize, word: u32) {
    if let Some(to) = bytes.get_mut(at..at + 4) {
        to.copy_from_slice(&word.to_le_bytes());
    }
}

/// A sound image with three clusters in use, and one behind the end of a short device.
fn base(case: &Case) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..NR_SECTORS * 512).map(|at| (at / 512) as u8).collect();
    bytes[..4096].fill(0);
    let mut header = Header::new(160, CLUSTER_SECTORS).unwrap();
    if case.with_extension {
        header.extension_sectors = EXTENSION as u64 * u64::from(CLUSTER_SECTORS);
        let extension = &mut bytes[EXTENSION * 4096..(EXTENSION + 1) * 4096];
        extension.fill(0);
        extension[..8].copy_from_slice(&0xAB23_4CEF_23DC_EA87u64.to_le_bytes());
        extension[24..32].copy_from_slice(&0x2038_5FAE_252C_B34Au64.to_le_bytes());
        put(extension, 40, 40);
        put(extension, 48, 160);
        put(extension, 72, 8);
        put(extension, 76, 1);
        put(extension, 80, BITMAP as u32 * CLUSTER_SECTORS);
    }
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    let unit = if case.v1 { CLUSTER_SECTORS } else { 1 };
    if case.v1 {
        bytes[..16].copy_from_slice(b"WithoutFreeSpace");
    }
    for (cluster, place) in [(0, 1), (2, 2), (19, 7)] {
        put(&mut bytes, HEADER_BYTES + cluster * 4, place * unit);
    }
    bytes
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    if let Err(reason) = case.line.parse::<Message>() {
        assert!(!reason.is_empty());
    }
    let _ = case.line.parse::<PloopTable>();
    let mut bytes = base(&case);
    for change in case.changes.iter().take(MAX_CHANGES) {
        match change {
            Change::Header(at, word) => put(&mut bytes, usize::from(at % 16) * 4, *word),
            Change::Entry(at, word) => {
                put(&mut bytes, HEADER_BYTES + usize::from(at % 1008) * 4, *word);
            }
            Change::Extension(at, word) => {
                put(
                    &mut bytes,
                    EXTENSION * 4096 + usize::from(at % 1024) * 4,
                    *word,
                );
            }
            Change::Byte(at, byte) => bytes[usize::from(*at) % 8192] = *byte,
            Change::Bit(at) => bytes[usize::from(*at) / 8] ^= 1 << (at % 8),
        }
    }
    if case.sealed {
        let extension = &mut bytes[EXTENSION * 4096..(EXTENSION + 1) * 4096];
        let digest = Md5::digest(&extension[24..]);
        extension[8..24].copy_from_slice(&digest);
    }
    block_on(look_at(Sectors::new(bytes), case.over));
}

async fn look_at(image: Rc<Sectors>, over: bool) {
    let lower = match over {
        false => Vec::new(),
        true => vec![Lower {
            source: source(&Sectors::zeroes(NR_SECTORS as u64), 1),
            raw: true,
        }],
    };
    let survey = match Survey::of(&*image).await {
        Ok(survey) => survey,
        Err(problem) => {
            assert!(!problem.to_string().is_empty());
            assert!(ChainReader::open(source(&image, 0), lower).await.is_err());
            return;
        }
    };
    assert!(survey.problems.len() as u64 <= survey.nr_problems);
    let opened = ChainReader::open(source(&image, 0), lower).await;
    if survey.nr_problems > 0 {
        let error = opened.err().expect("a damaged image is refused");
        assert!(error.to_string().contains("damaged"), "{error}");
        return;
    }
    let reader = match opened {
        Ok(reader) => reader,
        // Only the raw delta below can be in the way.
        Err(error) => return assert!(over, "{error}"),
    };
    let before = contents(&reader).await;
    if reader.nr_sectors() <= MAX_COPY_SECTORS {
        let room = reader.nr_sectors() * 3 + 4096 + 2 * reader.cluster_sectors();
        let other = Sectors::zeroes(room);
        let cluster = reader.cluster_sectors() as u32;
        create::create(&*other, reader.nr_sectors(), cluster)
            .await
            .unwrap();
        copy(&reader, source(&other, 2), |_| ()).await.unwrap();
        let again = ChainReader::open(source(&other, 2), Vec::new())
            .await
            .unwrap();
        let mut wanted = before.clone();
        wanted.retain(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
        assert_eq!(contents(&again).await, wanted);
    }
    if over {
        return;
    }
    let closed = mark_closed(source(&image, 0)).await;
    assert_eq!(closed.is_ok(), survey.extension_problem.is_none());
    let after = Survey::of(&*image).await.unwrap();
    assert_eq!((after.nr_problems, after.nr_mapped), (0, survey.nr_mapped));
    assert_eq!(after.extension, survey.extension);
    let again = ChainReader::open(source(&image, 0), Vec::new())
        .await
        .unwrap();
    assert_eq!(contents(&again).await, before);
}

async fn contents(reader: &ChainReader) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    for group in 0..reader.nr_groups() {
        for (cluster, found) in reader.group(group).await.unwrap() {
            let mut bytes = vec![0; (reader.cluster_sectors() * SECTOR_BYTES) as usize];
            reader.read(found, &mut bytes).await.unwrap();
            all.push((cluster, bytes));
        }
    }
    all
}
