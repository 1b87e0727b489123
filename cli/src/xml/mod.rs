//! Readers of the XML of `thin_dump` and `era_dump`, as streams.

pub mod era;
pub(crate) mod input;
pub mod thin;

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

/// What the elements of a document mean, all of which are in one `superblock`.
trait Elements {
    /// Why whoever takes the contents does not.
    type Error;

    /// An element begins.
    async fn begin(&mut self, tag: &BytesStart<'_>) -> Result<(), Self::Error>;
    /// The element of this name ends.
    async fn end(&mut self, name: &[u8]) -> Result<(), Self::Error>;
    /// All is through.
    async fn finish(&mut self) -> Result<(), Self::Error>;
}

async fn read<E: Elements>(
    xml: impl BufRead,
    elements: &mut E,
) -> std::result::Result<(), ReadError<E::Error>> {
    let mut reader = Reader::from_reader(xml);
    let result = events(&mut reader, elements).await;
    let at = reader.buffer_position();
    result.map_err(|what| ReadError { at, what })
}

async fn events<R: BufRead, E: Elements>(
    reader: &mut Reader<R>,
    elements: &mut E,
) -> Result<(), E::Error> {
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
                elements.begin(&tag).await?;
            }
            Event::Empty(tag) => {
                if open == 0 || tag.name().as_ref() == b"superblock" {
                    return wrong("everything must be in one <superblock>".to_owned());
                }
                elements.begin(&tag).await?;
                elements.end(tag.name().as_ref()).await?;
            }
            Event::End(tag) => {
                // The reader has seen to it that it is the right one.
                open = open.saturating_sub(1);
                finished = open == 0;
                elements.end(tag.name().as_ref()).await?;
            }
            // Only now: what follows the superblock may still show that this is no dump.
            Event::Eof if finished => return elements.finish().await,
            Event::Eof => return wrong("the end is missing".to_owned()),
            Event::Text(text) if !text.trim_ascii().is_empty() => {
                return wrong("text between the tags".to_owned());
            }
            _ => {}
        }
    }
}

fn unknown<T, E>(tag: &BytesStart<'_>) -> Result<T, E> {
    let name = tag.name();
    wrong(format!(
        "unknown tag <{}>",
        String::from_utf8_lossy(name.as_ref())
    ))
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
