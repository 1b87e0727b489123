//! Messages to a thin pool (thin.md 11.3).

use crate::RpcError;
use crate::params::check_id;

/// A message, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMessage {
    /// `create_thin <dev>`.
    CreateThin(u32),
    /// `create_snap <dev> <origin>`.
    CreateSnap(u32, u32),
    /// `delete <dev>`.
    Delete(u32),
    /// `set_transaction_id <current> <new>`.
    SetTransactionId(u64, u64),
    /// `reserve_metadata_snap`.
    ReserveMetadataSnap,
    /// `release_metadata_snap`.
    ReleaseMetadataSnap,
}

fn id(word: &str) -> Result<u32, RpcError> {
    let id = word.parse().map_err(|_| {
        RpcError::invalid(format!("Message received with invalid device id: '{word}'"))
    })?;
    check_id(id)?;
    Ok(id)
}

fn transaction_id(word: &str) -> Result<u64, RpcError> {
    word.parse()
        .map_err(|_| RpcError::invalid(format!("'{word}' is not a transaction id")))
}

impl PoolMessage {
    /// Reads a message. Names are case-insensitive.
    pub fn parse(text: &str) -> Result<Self, RpcError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let Some((name, arguments)) = words.split_first() else {
            return Err(RpcError::invalid("the message is empty"));
        };
        let count = |wanted: usize| match arguments.len() == wanted {
            true => Ok(()),
            false => Err(RpcError::invalid(format!(
                "Message '{name}' received with {} arguments instead of {wanted}",
                arguments.len()
            ))),
        };
        let parsed: Result<Self, Option<RpcError>> =
            match (name.to_ascii_lowercase().as_str(), arguments) {
                ("create_thin", [dev]) => Ok(PoolMessage::CreateThin(id(dev)?)),
                ("create_snap", [dev, origin]) => {
                    Ok(PoolMessage::CreateSnap(id(dev)?, id(origin)?))
                }
                ("delete", [dev]) => Ok(PoolMessage::Delete(id(dev)?)),
                ("set_transaction_id", [current, new]) => Ok(PoolMessage::SetTransactionId(
                    transaction_id(current)?,
                    transaction_id(new)?,
                )),
                ("reserve_metadata_snap", []) => Ok(PoolMessage::ReserveMetadataSnap),
                ("release_metadata_snap", []) => Ok(PoolMessage::ReleaseMetadataSnap),
                ("create_thin" | "delete", _) => Err(count(1).err()),
                ("create_snap" | "set_transaction_id", _) => Err(count(2).err()),
                ("reserve_metadata_snap" | "release_metadata_snap", _) => Err(count(0).err()),
                _ => Err(Some(RpcError::invalid(format!(
                    "Unrecognised thin pool target message received: '{text}'"
                )))),
            };
        parsed.map_err(|error| error.unwrap_or_else(|| RpcError::invalid(text)))
    }
}
