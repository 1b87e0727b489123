//! The table line and the messages of device-mapper as text (ploop.md, Table line, Messages). Where they
//! name devices or files, ours name bdevs.

use super::backup::Uuid;
use super::merge::Direction;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

/// `ploop <cluster_log> <top> [<delta> …]`, without the word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PloopTable {
    /// log2 of the cluster size in sectors.
    pub cluster_log: u32,
    /// The image that is written.
    pub top: String,
    /// Lower deltas, oldest first; with `raw@` before it the first can be raw.
    pub lower: Vec<DeltaName>,
}

/// A delta as a message names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaName {
    /// The bdev.
    pub bdev: String,
    /// It has no format.
    pub raw: bool,
}

impl FromStr for DeltaName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (bdev, raw) = match text.strip_prefix("raw@") {
            Some(bdev) => (bdev, true),
            None => (text, false),
        };
        match bdev.is_empty() {
            true => Err("a delta needs a name".to_owned()),
            false => Ok(DeltaName {
                bdev: bdev.to_owned(),
                raw,
            }),
        }
    }
}

impl fmt::Display for DeltaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.raw { "raw@" } else { "" }, self.bdev)
    }
}

impl FromStr for PloopTable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let log = words.next().ok_or("the cluster size is missing")?;
        let cluster_log = log.parse().ok().filter(|log| *log <= 18);
        let cluster_log = cluster_log
            .ok_or_else(|| format!("cluster size 2^{log} is not possible: 0 to 18 are"))?;
        let top = words.next().ok_or("the top delta is missing")?.to_owned();
        let lower = words.map(str::parse).collect::<Result<_, _>>()?;
        Ok(PloopTable {
            cluster_log,
            top,
            lower,
        })
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// `add_delta [raw@]<bdev>`
    AddDelta(DeltaName),
    /// `resize <sectors>`
    Resize(u64),
    /// `merge`
    Merge,
    /// `notify_merged_forward <level>`, `notify_merged_backward <level>`
    NotifyMerged(usize, Direction),
    /// `snapshot <new top bdev>`
    Snapshot(String),
    /// `tracking_start`
    TrackingStart,
    /// `tracking_get_next`
    TrackingGetNext,
    /// `tracking_stop`
    TrackingStop,
    /// `update_delta_index <level> <c:d;c:d;…>`
    UpdateDeltaIndex(usize, Vec<(u64, u32)>),
    /// `set_noresume 0` or `1`
    SetNoresume(bool),
    /// `flip_upper_deltas`
    FlipUpperDeltas,
    /// `get_delta_name <level>`
    GetDeltaName(usize),
    /// `push_backup_start <uuid> [<first>-<last>,… | 0] [<timeout in seconds>]`; 0: all clusters
    PushBackupStart(Uuid, Option<Vec<Range<u64>>>, Option<Duration>),
    /// `push_backup_read <uuid>`
    PushBackupRead(Uuid),
    /// `push_backup_write <uuid> <cluster>`
    PushBackupWrite(Uuid, u64),
    /// `push_backup_get_uuid`
    PushBackupGetUuid,
    /// `push_backup_stop <uuid>`
    PushBackupStop(Uuid),
}

/// The arguments of a message, one after the other.
struct Words<'a> {
    of: &'a str,
    words: std::str::SplitAsciiWhitespace<'a>,
}

impl Words<'_> {
    fn text(&mut self, what: &str) -> Result<&str, String> {
        let of = self.of;
        self.words
            .next()
            .ok_or_else(|| format!("{of}: {what} is missing"))
    }

    fn parse<T: FromStr>(&mut self, what: &str) -> Result<T, String> {
        let of = self.of.to_owned();
        let text = self.text(what)?;
        text.parse()
            .map_err(|_| format!("{of}: '{text}' is no {what}"))
    }
}

/// Pairs of a guest cluster and a BAT entry: `c:d;c:d`.
pub fn index(text: &str) -> Result<Vec<(u64, u32)>, String> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    let parse = |pair: &str| {
        let (cluster, place) = pair.split_once(':')?;
        Some((cluster.parse().ok()?, place.parse().ok()?))
    };
    let wrong = |pair: &str| format!("'{pair}' is not <cluster>:<cluster of the file>");
    pairs
        .map(|pair| parse(pair).ok_or_else(|| wrong(pair)))
        .collect()
}

/// Clusters and ranges of them: `0-99,200`.
pub fn clusters(text: &str) -> Result<Vec<Range<u64>>, String> {
    let parse = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(first..last.checked_add(1)?)
    };
    let wrong = |part: &str| format!("'{part}' is not <cluster> or <first>-<last>");
    text.split(',')
        .map(|part| parse(part).ok_or_else(|| wrong(part)))
        .collect()
}

impl FromStr for Message {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let name = words.next().unwrap_or_default();
        let mut rest = Words { of: name, words };
        let message = match name {
            "add_delta" => Message::AddDelta(rest.text("delta")?.parse()?),
            "resize" => Message::Resize(rest.parse("number of sectors")?),
            "merge" => Message::Merge,
            "notify_merged_forward" => {
                Message::NotifyMerged(rest.parse("level")?, Direction::Forward)
            }
            "notify_merged_backward" => {
                Message::NotifyMerged(rest.parse("level")?, Direction::Backward)
            }
            "snapshot" => Message::Snapshot(rest.text("new top bdev")?.to_owned()),
            "tracking_start" => Message::TrackingStart,
            "tracking_get_next" => Message::TrackingGetNext,
            "tracking_stop" => Message::TrackingStop,
            "update_delta_index" => {
                Message::UpdateDeltaIndex(rest.parse("level")?, index(rest.text("index")?)?)
            }
            "set_noresume" => Message::SetNoresume(match rest.text("value")? {
                "0" => false,
                "1" => true,
                other => return Err(format!("set_noresume: '{other}' is not 0 or 1")),
            }),
            "flip_upper_deltas" => Message::FlipUpperDeltas,
            "get_delta_name" => Message::GetDeltaName(rest.parse("level")?),
            "push_backup_start" => {
                let uuid = rest.text("uuid")?.parse()?;
                let of = match rest.words.next() {
                    None | Some("0") => None,
                    Some(text) => Some(clusters(text)?),
                };
                let timeout = match rest.words.clone().next() {
                    None => None,
                    Some(_) => Some(Duration::from_secs(rest.parse("timeout in seconds")?)),
                };
                Message::PushBackupStart(uuid, of, timeout)
            }
            "push_backup_read" => Message::PushBackupRead(rest.text("uuid")?.parse()?),
            "push_backup_write" => {
                Message::PushBackupWrite(rest.text("uuid")?.parse()?, rest.parse("cluster")?)
            }
            "push_backup_get_uuid" => Message::PushBackupGetUuid,
            "push_backup_stop" => Message::PushBackupStop(rest.text("uuid")?.parse()?),
            _ => return Err(format!("unknown message '{name}'")),
        };
        match rest.words.next() {
            None => Ok(message),
            Some(word) => Err(format!("{name}: '{word}' is one argument too many")),
        }
    }
}
