//! Parameters of the methods of ploop targets.

use super::{Validate, check_name};
use crate::RpcError;
use bdev::ploop::Direction;
use bdev::ploop::image::header::MAX_CLUSTER_SECTORS;
use bdev::ploop::messages::{DeltaName, Message, index};
use serde::{Deserialize, Serialize};

fn default_cache() -> u64 {
    64
}

pub(super) fn is_false(flag: &bool) -> bool {
    !flag
}

pub(super) fn refuse(name: &str) -> impl Fn(String) -> RpcError {
    move |why| RpcError::invalid(format!("ploop '{name}': {why}"))
}

/// `ploop_create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopCreate {
    /// Name of the target and of its bdev.
    pub name: String,
    /// Bdev with the image that is written.
    pub top_bdev: String,
    /// Bdevs with the lower deltas, the oldest first; that can be raw, with `raw@` before its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lower_bdevs: Vec<String>,
    /// Size of the disk of a new image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// The same in sectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_sectors: Option<u64>,
    /// Cluster size of a new image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_size_sectors: Option<u32>,
    /// Make a new image also where something else is.
    #[serde(default, skip_serializing_if = "is_false")]
    pub overwrite: bool,
    /// Use an image that was not closed, if nothing is wrong with it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub force: bool,
    /// Limit of what is kept of the BATs.
    #[serde(default = "default_cache")]
    pub bat_cache_mib: u64,
    /// The bdevs may appear later.
    #[serde(default)]
    pub wait: bool,
}

impl PloopCreate {
    /// Of an image that is there, with the defaults.
    pub fn new(name: &str, top_bdev: &str) -> Self {
        PloopCreate {
            name: name.to_owned(),
            top_bdev: top_bdev.to_owned(),
            lower_bdevs: Vec::new(),
            size_mib: None,
            size_sectors: None,
            cluster_size_sectors: None,
            overwrite: false,
            force: false,
            bat_cache_mib: default_cache(),
            wait: false,
        }
    }

    /// The size of a new image.
    pub fn new_sectors(&self) -> Result<Option<u64>, RpcError> {
        let invalid = refuse(&self.name);
        let sectors = match (self.size_mib, self.size_sectors) {
            (Some(_), Some(_)) => {
                return Err(invalid("give size_mib or size_sectors, not both".into()));
            }
            (Some(mib), None) => Some(mib.saturating_mul(2048)),
            (None, sectors) => sectors,
        };
        match sectors {
            Some(0) => Err(invalid("the size must be above 0".into())),
            sectors => Ok(sectors),
        }
    }

    /// The lower deltas, the oldest first.
    pub fn lower(&self) -> Result<Vec<DeltaName>, RpcError> {
        let names = self.lower_bdevs.iter().map(|name| name.parse());
        names.collect::<Result<_, _>>().map_err(refuse(&self.name))
    }
}

impl Validate for PloopCreate {
    fn validate(&self) -> Result<(), RpcError> {
        check_name("ploop", &self.name)?;
        let invalid = refuse(&self.name);
        let is_new = self.new_sectors()?.is_some();
        if !is_new && (self.cluster_size_sectors.is_some() || self.overwrite) {
            return Err(invalid(
                "cluster_size_sectors and overwrite are for a new image: give its size, too".into(),
            ));
        }
        if let Some(cluster) = self.cluster_size_sectors
            && !(1..=MAX_CLUSTER_SECTORS).contains(&cluster)
        {
            return Err(invalid(format!(
                "cluster_size_sectors {cluster} is not possible: 1 to {MAX_CLUSTER_SECTORS} are"
            )));
        }
        let lower = self.lower()?;
        if lower.iter().skip(1).any(|delta| delta.raw) {
            return Err(invalid("only the oldest lower delta can be raw".into()));
        }
        let mut bdevs: Vec<&str> = lower.iter().map(|delta| delta.bdev.as_str()).collect();
        bdevs.extend([self.top_bdev.as_str(), self.name.as_str()]);
        bdevs.sort_unstable();
        let twice = bdevs.windows(2).find(|pair| pair.first() == pair.last());
        match twice.and_then(|pair| pair.first()) {
            None => Ok(()),
            Some(bdev) => Err(invalid(format!(
                "'{bdev}' is named twice; the target and each delta need bdevs of their own"
            ))),
        }
    }
}

/// `ploop_status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopStatusOf {
    /// Name of a target; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// If a target's bdevs are there, wait until it is open: for configurations.
    #[serde(default, skip_serializing_if = "is_false")]
    pub wait: bool,
}

impl Validate for PloopStatusOf {
    fn validate(&self) -> Result<(), RpcError> {
        Ok(())
    }
}

/// `ploop_check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopCheck {
    /// Bdev with an image that nothing uses.
    pub bdev: String,
    /// Mark an image as closed that was not, if nothing else is wrong with it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub repair: bool,
}

impl Validate for PloopCheck {
    fn validate(&self) -> Result<(), RpcError> {
        Ok(())
    }
}

/// `ploop_merge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopMerge {
    /// Name of the target.
    pub name: String,
    /// The lower delta that goes; the newest, into the top one, without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<usize>,
    /// Where a lower delta goes: forward or backward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// Answer when it has ended.
    #[serde(default, skip_serializing_if = "is_false")]
    pub wait: bool,
}

impl PloopMerge {
    /// The lower delta that goes into a neighbour; none: the newest into the top one.
    pub fn of_lower(&self) -> Result<Option<(usize, Direction)>, RpcError> {
        match (self.level, &self.direction) {
            (None, None) => Ok(None),
            (Some(level), Some(word)) => Ok(Some((level, direction(&self.name, word)?))),
            _ => Err(refuse(&self.name)(
                "give both level and direction to merge a lower delta into a neighbour, or neither to merge the newest into the top one".into(),
            )),
        }
    }
}

impl Validate for PloopMerge {
    fn validate(&self) -> Result<(), RpcError> {
        self.of_lower().map(drop)
    }
}

fn direction(name: &str, word: &str) -> Result<Direction, RpcError> {
    match word {
        "forward" => Ok(Direction::Forward),
        "backward" => Ok(Direction::Backward),
        other => Err(refuse(name)(format!(
            "direction '{other}' is not forward or backward"
        ))),
    }
}

/// A method that is a message of device-mapper.
pub trait AsMessage {
    /// The target, and the message.
    fn message(&self) -> Result<(&str, Message), RpcError>;
}

/// Structs of parameters that are messages.
macro_rules! messages {
    ($($(#[$doc:meta])* $type:ident { $($(#[$of_field:meta])* $field:ident: $field_type:ty,)* } => |$params:ident| $message:expr;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $type {
                /// Name of the target.
                pub name: String,
                $(
                    $(#[$of_field])*
                    pub $field: $field_type,
                )*
            }

            impl AsMessage for $type {
                fn message(&self) -> Result<(&str, Message), RpcError> {
                    let make = |$params: &Self| -> Result<Message, String> { $message };
                    Ok((&self.name, make(self).map_err(refuse(&self.name))?))
                }
            }

            impl Validate for $type {
                fn validate(&self) -> Result<(), RpcError> {
                    self.message().map(drop)
                }
            }
        )*
    };
}

messages! {
    /// `ploop_add_delta`.
    PloopAddDelta {
        /// Bdev with the delta.
        bdev: String,
        /// It has no format.
        #[serde(default, skip_serializing_if = "is_false")]
        raw: bool,
    } => |params| Ok(Message::AddDelta(DeltaName {
        bdev: params.bdev.clone(),
        raw: params.raw,
    }));

    /// `ploop_resize`.
    PloopResize {
        /// The new size.
        size_sectors: u64,
    } => |params| Ok(Message::Resize(params.size_sectors));

    /// `ploop_notify_merged`.
    PloopNotifyMerged {
        /// The lower delta that has been merged.
        level: usize,
        /// Where it has gone: forward or backward.
        direction: String,
    } => |params| {
        let direction = direction(&params.name, &params.direction).map_err(|error| error.message)?;
        Ok(Message::NotifyMerged(params.level, direction))
    };

    /// `ploop_snapshot`.
    PloopSnapshot {
        /// Bdev with an empty image, or of zeroes.
        new_top_bdev: String,
    } => |params| Ok(Message::Snapshot(params.new_top_bdev.clone()));

    /// `ploop_update_delta_index`.
    PloopUpdateDeltaIndex {
        /// The lower delta.
        level: usize,
        /// `c:d;c:d`: guest clusters and where they are now.
        map: String,
    } => |params| Ok(Message::UpdateDeltaIndex(params.level, index(&params.map)?));

    /// `ploop_set_noresume`.
    PloopSetNoresume {
        /// 0 or 1.
        value: u64,
    } => |params| match params.value {
        0 => Ok(Message::SetNoresume(false)),
        1 => Ok(Message::SetNoresume(true)),
        other => Err(format!("noresume is 0 or 1, not {other}")),
    };
}

/// Most that a method which may return many returns, unless told.
const DEFAULT_MAX: u64 = 1024;

/// Most that it can be told.
const MAX_MAX: u64 = 65536;

pub(super) fn many(name: &str, max: Option<u64>) -> Result<usize, RpcError> {
    let max = max.unwrap_or(DEFAULT_MAX);
    match (1..=MAX_MAX).contains(&max) {
        true => Ok(usize::try_from(max).unwrap_or(usize::MAX)),
        false => Err(refuse(name)(format!("max must be 1 to {MAX_MAX}"))),
    }
}

/// `ploop_tracking_get_next`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopTrackingGetNext {
    /// Name of the target.
    pub name: String,
    /// Most clusters to return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
}

impl PloopTrackingGetNext {
    /// Most clusters to return.
    pub fn max(&self) -> Result<usize, RpcError> {
        many(&self.name, self.max)
    }
}

impl Validate for PloopTrackingGetNext {
    fn validate(&self) -> Result<(), RpcError> {
        self.max().map(drop)
    }
}
