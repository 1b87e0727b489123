//! The metadata snapshot of an era target: taken, let go, exported; messages.
//!
//! Who reads it is counted, and it is let go only when nobody does.

use super::{OpenEra, refuse};
use crate::export::{ERA, Export, exported_or_warned};
use crate::registry::{Registry, call};
use bdev::era::{Message, View};
use bdev::errno::Errno;
use rpc::RpcError;
use rpc::params::EraMetadataSnapExport;
use std::rc::Rc;

/// One reader's presence.
pub struct Reading(Rc<OpenEra>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.readers.set(self.0.readers.get() - 1);
    }
}

/// A snapshot being let go.
struct Dropping<'a>(&'a OpenEra);

impl Drop for Dropping<'_> {
    fn drop(&mut self) {
        self.0.dropping.set(false);
    }
}

impl OpenEra {
    fn name(&self) -> &str {
        &self.era.config().name
    }

    fn busy(&self, why: &str) -> RpcError {
        RpcError::new(Errno::EBUSY, format!("era '{}' {why}", self.name()))
    }

    /// Keeps the metadata snapshot. Returns the data blocks it covers and its current era.
    pub async fn read_snap(self: &Rc<Self>) -> Result<(Reading, u64, u32), RpcError> {
        if self.dropping.get() {
            return Err(self.busy("is dropping its metadata snapshot; take another one"));
        }
        self.readers.set(self.readers.get() + 1);
        let reading = Reading(self.clone());
        let (nr_blocks, era) = self.era.extent(View::Snapshot).await.map_err(|error| {
            let mut error = refuse(&error);
            if error.errno == Errno::EINVAL {
                error.message += " by era_take_metadata_snap (or dm_message take_metadata_snap)";
            }
            error
        })?;
        Ok((reading, nr_blocks, era))
    }
}

impl Registry {
    /// Takes a metadata snapshot. Returns its block, and the era that has begun with it.
    pub async fn take_metadata_snap(&self, name: &str) -> Result<(u64, u32), RpcError> {
        let open = self.use_era(name)?;
        let taken = open.era.take_metadata_snap().await;
        let block = taken.map_err(|error| refuse(&error))?;
        let (_reading, _, era) = open.read_snap().await?;
        Ok((block, era))
    }

    /// Lets the metadata snapshot go, unless somebody may be reading it.
    pub async fn drop_metadata_snap(&self, name: &str) -> Result<(), RpcError> {
        let open = self.use_era(name)?;
        self.check_not_exported(&ERA, name)?;
        if open.readers.get() > 0 {
            return Err(open.busy(
                "cannot drop its metadata snapshot while that is being read; wait until that has ended",
            ));
        }
        if open.dropping.replace(true) {
            return Err(open.busy("is dropping its metadata snapshot already"));
        }
        let _dropping = Dropping(&open);
        let dropped = open.era.drop_metadata_snap().await;
        dropped.map_err(|error| refuse(&error))
    }

    /// Carries out a message of device-mapper.
    pub async fn era_message(&self, name: &str, text: &str) -> Result<(), RpcError> {
        let message: Message = text
            .parse()
            .map_err(|why| RpcError::invalid(format!("era '{name}': {why}")))?;
        match message {
            Message::Checkpoint => self.checkpoint(name).await.map(drop),
            Message::TakeMetadataSnap => self.take_metadata_snap(name).await.map(drop),
            Message::DropMetadataSnap => self.drop_metadata_snap(name).await,
        }
    }

    /// Registers the bdev with the metadata. Returns its name.
    pub async fn export_era(&self, params: &EraMetadataSnapExport) -> Result<String, RpcError> {
        if params.wait {
            self.wait_era_opening(&params.name).await;
        }
        let result = self.try_export_era(params).await;
        exported_or_warned(params.wait, params.bdev_name(), result)
    }

    async fn try_export_era(&self, params: &EraMetadataSnapExport) -> Result<(), RpcError> {
        let open = self.use_era(&params.name)?;
        let _reading = open.read_snap().await?;
        let saved = EraMetadataSnapExport {
            bdev_name: Some(params.bdev_name()),
            wait: true,
            ..params.clone()
        };
        self.register_export(Export {
            kind: &ERA,
            target: &params.name,
            bdev_name: params.bdev_name(),
            metadata: open.metadata.clone(),
            config: call("era_metadata_snap_export", &saved),
        })
    }
}
