//! ploop images: header, BAT and format extension as anybody may have written them; and message lines.
//!
//! An image in which the check finds nothing is as good as an undamaged one: then it can be read, copied,
//! and closed, and is as before. Any other is refused, with a reason.

use arbitrary::{Arbitrary, Unstructured};
use async_trait::async_trait;
use bdev::device::{ByteDevice, Contents, DataDevice, SECTOR_BYTES};
use bdev::errno::Errno;
use bdev::ploop::image::Header;
use bdev::ploop::image::header::HEADER_BYTES;
use bdev::ploop::image::survey::Survey;
use bdev::ploop::messages::{Message, PloopTable};
use bdev::ploop::offline::{ChainReader, copy, mark_closed};
use bdev::ploop::{Lower, Source, create};
use bdev::target::BaseId;
use futures::executor::block_on;
use md5::{Digest, Md5};
use std::cell::RefCell;
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

struct Memory(RefCell<Vec<u8>>);

impl Memory {
    fn part(&self, first: u64, len: usize) -> Result<std::ops::Range<usize>, Errno> {
        let first = first as usize * SECTOR_BYTES as usize;
        let end = first + len;
        (end <= self.0.borrow().len())
            .then_some(first..end)
            .ok_or(Errno::EIO)
    }
}

#[async_trait(?Send)]
impl DataDevice for Memory {
    fn nr_sectors(&self) -> u64 {
        self.0.borrow().len() as u64 / SECTOR_BYTES
    }

    fn block_bytes(&self) -> u32 {
        SECTOR_BYTES as u32
    }

    fn supports_discard(&self) -> bool {
        false
    }

    async fn zero(&self, first: u64, len: u64) -> Result<(), Errno> {
        let part = self.part(first, (len * SECTOR_BYTES) as usize)?;
        self.0.borrow_mut()[part].fill(0);
        Ok(())
    }

    async fn read(&self, _: u64, _: u64) -> Result<Contents, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    async fn write(&self, _: u64, _: Contents) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    async fn discard(&self, _: u64, _: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    async fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
}

#[async_trait(?Send)]
impl ByteDevice for Memory {
    async fn read_bytes(&self, first: u64, buf: &mut [u8]) -> Result<(), Errno> {
        buf.copy_from_slice(&self.0.borrow()[self.part(first, buf.len())?]);
        Ok(())
    }

    async fn write_bytes(&self, first: u64, buf: &[u8]) -> Result<(), Errno> {
        let part = self.part(first, buf.len())?;
        self.0.borrow_mut()[part].copy_from_slice(buf);
        Ok(())
    }
}

fn source(device: &Rc<Memory>, base: u8) -> Source {
    Source {
        name: base.to_string(),
        device: device.clone(),
        base: BaseId(base),
        flushes: true,
    }
}

fn memory(nr_sectors: usize) -> Rc<Memory> {
    Rc::new(Memory(RefCell::new(vec![
        0;
        nr_sectors * SECTOR_BYTES as usize
    ])))
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
    block_on(look_at(Rc::new(Memory(RefCell::new(bytes))), case.over));
}

async fn look_at(image: Rc<Memory>, over: bool) {
    let lower = match over {
        false => Vec::new(),
        true => vec![Lower {
            source: source(&memory(NR_SECTORS), 1),
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
        let room = reader.nr_sectors() as usize * 3 + 4096 + 2 * reader.cluster_sectors() as usize;
        let other = memory(room);
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
