//! Reads the XML of `thin_dump` (thin.md 12) as a stream.

use super::restore::Overrides;
use bdev::thin::metadata::Details;
use bdev::thin::metadata::runs::Run;
use bdev::thin::metadata::sink::{PoolInfo, Sink};
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Error as XmlError, Reader};
use std::io::{self, BufRead};

/// Where and why reading ended.
#[derive(Debug)]
pub struct ReadError<E> {
    /// Byte of the XML.
    pub at: u64,
    /// Why.
    pub what: What<E>,
}

/// Why reading ended.
#[derive(Debug)]
pub enum What<E> {
    /// The file.
    Read(io::Error),
    /// Its contents.
    Xml(String),
    /// Whoever takes the contents does not.
    Sink(E),
}

type Result<T, E> = std::result::Result<T, What<E>>;

fn wrong<T, E>(what: String) -> Result<T, E> {
    Err(What::Xml(what))
}

/// Streams a pool's contents from XML.
pub async fn read<S: Sink>(
    xml: impl BufRead,
    overrides: &Overrides,
    sink: &mut S,
) -> std::result::Result<(), ReadError<S::Error>> {
    let mut reader = Reader::from_reader(xml);
    let result = events(&mut reader, overrides, sink).await;
    let at = reader.buffer_position();
    result.map_err(|what| ReadError { at, what })
}

async fn events<R: BufRead, S: Sink>(
    reader: &mut Reader<R>,
    overrides: &Overrides,
    sink: &mut S,
) -> Result<(), S::Error> {
    let mut buffer = Vec::new();
    let mut open = 0usize;
    let mut finished = false;
    loop {
        buffer.clear();
        let event = match reader.read_event_into(&mut buffer) {
            Ok(event) => event,
            Err(XmlError::Io(error)) => {
                return Err(What::Read(io::Error::new(error.kind(), error.to_string())));
            }
            Err(error) => return wrong(error.to_string()),
        };
        match event {
            Event::Start(tag) => {
                if finished || (open == 0) != (tag.name().as_ref() == b"superblock") {
                    return wrong("everything must be in one <superblock>".to_owned());
                }
                open += 1;
                begin(&tag, overrides, sink).await?;
            }
            Event::Empty(tag) => {
                if open == 0 || tag.name().as_ref() == b"superblock" {
                    return wrong("everything must be in one <superblock>".to_owned());
                }
                begin(&tag, overrides, sink).await?;
                end(tag.name().as_ref(), sink).await?;
            }
            Event::End(tag) => {
                // The reader has seen to it that it is the right one.
                open = open.saturating_sub(1);
                finished = open == 0;
                end(tag.name().as_ref(), sink).await?;
            }
            // Only now: what follows the superblock may still show that this is no pool.
            Event::Eof if finished => return sink.end().await.map_err(What::Sink),
            Event::Eof => return wrong("the end is missing".to_owned()),
            Event::Text(text) if !text.trim_ascii().is_empty() => {
                return wrong("text between the tags".to_owned());
            }
            _ => {}
        }
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
        other => wrong(format!("unknown tag <{}>", String::from_utf8_lossy(other))),
    }
}

async fn end<S: Sink>(name: &[u8], sink: &mut S) -> Result<(), S::Error> {
    match name {
        b"device" => sink.device_end().await,
        b"def" => sink.shared_end().await,
        _ => Ok(()),
    }
    .map_err(What::Sink)
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

/// The values of these attributes; others are of no interest.
fn numbers<const N: usize, E>(
    tag: &BytesStart<'_>,
    names: [&[u8]; N],
) -> Result<[Option<u64>; N], E> {
    let mut found = [None; N];
    for attribute in tag.attributes().with_checks(false) {
        let attribute = attribute.map_err(|error| What::Xml(error.to_string()))?;
        let name = attribute.key.as_ref();
        let slot = names.iter().zip(&mut found).find(|(n, _)| **n == name);
        let Some((_, slot)) = slot else {
            continue;
        };
        let digits = attribute.value.as_ref();
        let number = std::str::from_utf8(digits)
            .ok()
            .and_then(|s| s.parse().ok());
        match number {
            Some(number) => *slot = Some(number),
            None => {
                return wrong(format!(
                    "{}=\"{}\" is no number",
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(digits)
                ));
            }
        }
    }
    Ok(found)
}

fn need<E>(value: Option<u64>, name: &str) -> Result<u64, E> {
    value.ok_or_else(|| What::Xml(format!("{name} is missing")))
}

fn small<E>(value: Option<u64>, name: &str) -> Result<u32, E> {
    let value = need(value, name)?;
    u32::try_from(value).map_err(|_| What::Xml(format!("{name}=\"{value}\" is too large")))
}

fn text<E>(tag: &BytesStart<'_>, name: &str) -> Result<String, E> {
    match tag.try_get_attribute(name) {
        Ok(Some(value)) => Ok(String::from_utf8_lossy(&value.value).into_owned()),
        Ok(None) => wrong(format!("{name} is missing")),
        Err(error) => wrong(error.to_string()),
    }
}
