//! The stream, of which nothing is trusted.

use super::*;
use crate::backup::header::{Ploop, Source, Thin};
use proptest::prelude::*;

const BLOCK: u64 = 512;
const BLOCKS: u64 = 100;

fn header() -> Header {
    Header {
        uuid: "0".repeat(32),
        parent: None,
        source: Source::Thin(Thin {
            pool: "pool".into(),
            device_id: 1,
            snapshot_id: 2,
            snapshot_time: 3,
        }),
        size_bytes: BLOCKS * BLOCK,
        block_bytes: BLOCK,
        began_unix_s: 4,
    }
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = (0..5u64, 1..5u64, any::<Option<u8>>());
    prop::collection::vec(piece, 0..12).prop_map(|parts| {
        let mut at = 0;
        let piece = |(gap, count, value): (u64, u64, Option<u8>)| {
            let first = at + gap;
            at = first + count;
            match value {
                Some(value) => {
                    let contents = vec![value; (count * BLOCK) as usize];
                    Piece::Data { first, contents }
                }
                None => Piece::Unmapped { first, count },
            }
        };
        parts.into_iter().map(piece).collect()
    })
}

fn written(pieces: &[Piece]) -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), &header()).unwrap();
    for piece in pieces {
        writer.piece(piece).unwrap();
    }
    writer.end().unwrap().0
}

fn read(stream: &[u8]) -> Result<Vec<Piece>, StreamError> {
    let mut reader = Reader::begin(stream)?;
    let mut pieces = Vec::new();
    while let Some(piece) = reader.piece()? {
        pieces.push(piece);
    }
    Ok(pieces)
}

proptest! {
    /// What is written is read.
    #[test]
    fn round_trip(pieces in pieces()) {
        prop_assert_eq!(read(&written(&pieces)).unwrap(), pieces);
    }

    /// A stream that is cut anywhere says so, and one that goes on there is the same as one in a go.
    #[test]
    fn cut_and_resumed(pieces in pieces(), cut in 0..10_000usize) {
        let whole = written(&pieces);
        let cut = cut % whole.len();
        match Reader::begin(&whole[..cut]) {
            Err(StreamError::Incomplete { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
            Ok(mut reader) => {
                let error = loop {
                    match reader.piece() {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("a cut stream seems complete"),
                        Err(error) => break error,
                    }
                };
                let incomplete = matches!(error, StreamError::Incomplete { .. });
                prop_assert!(incomplete, "{}", error);
                let (good, next) = (reader.good_bytes() as usize, reader.next_block());
                let mut writer = Writer::resume(whole[..good].to_vec(), reader);
                for piece in &pieces {
                    let (Piece::Data { first, .. } | Piece::Unmapped { first, .. }) = piece;
                    if *first >= next {
                        writer.piece(piece).unwrap();
                    }
                }
                prop_assert_eq!(writer.end().unwrap().0, whole);
            }
        }
    }

    /// No changed byte goes unnoticed.
    #[test]
    fn damage(pieces in pieces(), at in 0..10_000usize, change in 1..=255u8) {
        let mut stream = written(&pieces);
        let at = at % stream.len();
        stream[at] ^= change;
        prop_assert!(read(&stream).is_err());
    }

    /// Records with good checksums and any contents neither panic nor take much memory.
    #[test]
    fn nonsense(records in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..64)), 0..5)) {
        let mut writer = Writer::begin(Vec::new(), &header()).unwrap();
        for (kind, payload) in &records {
            let kind = [b'D', b'U', b'E', *kind][*kind as usize % 4];
            writer.record(kind, payload).unwrap();
        }
        prop_assert!(read(&writer.out).is_err());
    }
}

/// The first version had no word for what it is of; what is of something else says that it is of the second.
#[test]
fn versions() {
    let stream = written(&[]);
    assert!(stream.starts_with(b"spdk-dm backup 1"));
    let mut old: serde_json::Value = serde_json::from_slice(&header().encode().unwrap()).unwrap();
    old.as_object_mut().unwrap().remove("source").unwrap();
    assert_eq!(
        Header::decode(old.to_string().as_bytes()).unwrap(),
        header()
    );
    let new = ploop();
    let stream = Writer::begin(Vec::new(), &new).unwrap().end().unwrap().0;
    assert!(stream.starts_with(b"spdk-dm backup 2"));
    assert_eq!(Reader::begin(&stream[..]).unwrap().header(), &new);
    for version in [b'0', b'1', b'3', b'9', b'/'] {
        let mut other = stream.clone();
        other[15] = version;
        assert!(
            matches!(Reader::begin(&other[..]), Err(StreamError::Damaged { .. })),
            "{version}"
        );
    }
}

fn ploop() -> Header {
    Header {
        source: Source::Ploop(Ploop {
            target: "p".into(),
            cluster_bytes: BLOCK,
        }),
        ..header()
    }
}

proptest! {
    /// Where no order is needed, pieces come in any, but no block twice.
    #[test]
    fn unordered(pieces in pieces().prop_shuffle(), again in any::<Option<prop::sample::Index>>()) {
        let mut pieces = pieces;
        if let (Some(again), false) = (again, pieces.is_empty()) {
            pieces.push(again.get(&pieces).clone());
        }
        let mut writer = Writer::begin(Vec::new(), &ploop()).unwrap();
        for piece in &pieces {
            writer.piece(piece).unwrap();
        }
        let stream = writer.end().unwrap().0;
        match again.is_some() && !pieces.is_empty() {
            true => prop_assert!(read(&stream).is_err()),
            false => prop_assert_eq!(read(&stream).unwrap(), pieces),
        }
    }
}
