//! Opening an era target: its base bdevs are checked and claimed, its metadata is opened, its bdev is
//! registered.

use super::vbdev::EraDriver;
use super::{OpenEra, close, no_era, nr_sectors, refuse, whose};
use crate::bases::{self, Base, BaseClosed, MAX_CACHE_MIB, MIN_METADATA_BYTES};
use crate::devices::{DataBdev, MetadataBdev};
use crate::host::SpdkRuntime;
use crate::life;
use crate::registry::Registry;
use bdev::era::{Era, EraConfig};
use bdev::errno::Errno;
use rpc::RpcError;
use rpc::params::EraCreate;
use spdk::base::IoKind;
use spdk::vbdev::{Params, Vbdev};
use std::cell::Cell;
use std::rc::Rc;

impl Registry {
    /// Opens a declared target that is waiting; any other is left alone.
    pub async fn open_era(self: &Rc<Self>, name: &str) -> Result<(), RpcError> {
        let params = {
            let mut eras = self.eras.borrow_mut();
            let entry = eras.get_mut(name).ok_or_else(|| no_era(name))?;
            if !entry.life.begin_opening() {
                return Ok(());
            }
            entry.params.clone()
        };
        let result = self.open_and_register(&params).await;
        if let Err(error) = &result
            && let Some(entry) = self.eras.borrow_mut().get_mut(name)
        {
            drop(entry.life.not_opened(&error.message));
        }
        self.finish_if_closed();
        result
    }

    async fn open_and_register(self: &Rc<Self>, params: &EraCreate) -> Result<(), RpcError> {
        let name = &params.name;
        let (open, bases) = self.try_open_era(params).await?;
        let wanted = {
            let eras = self.eras.borrow();
            eras.get(name)
                .is_some_and(|entry| !entry.life.is_to_close())
        };
        let registered = match wanted && !self.is_stopping() {
            true => register(params, &open),
            false => Err(life::removed_meanwhile(&whose(name))),
        };
        let vbdev = match registered {
            Ok(vbdev) => vbdev,
            Err(error) => {
                // Logged there.
                let _ = close(name, open, bases).await;
                return Err(error);
            }
        };
        let mut eras = self.eras.borrow_mut();
        let entry = eras.get_mut(name).ok_or_else(|| no_era(name))?;
        drop(entry.life.opened(open, bases));
        entry.vbdev = Some(vbdev);
        log::info!("era '{name}' is open");
        Ok(())
    }

    async fn try_open_era(
        self: &Rc<Self>,
        params: &EraCreate,
    ) -> Result<(Rc<OpenEra>, Vec<BaseClosed>), RpcError> {
        let name = &params.name;
        if params.metadata_cache_mib > MAX_CACHE_MIB {
            return Err(RpcError::invalid(format!(
                "era '{name}': a cache of more than {MAX_CACHE_MIB} MiB"
            )));
        }
        let metadata = self.take_era_base(params, &params.metadata_bdev, MIN_METADATA_BYTES)?;
        let origin = self.take_era_base(params, &params.origin_bdev, 512)?;
        let info = origin.desc.info();
        if let Some(sectors) = params.size_sectors
            && !(sectors * 512).is_multiple_of(u64::from(info.block_bytes))
        {
            return Err(RpcError::invalid(format!(
                "era '{name}': a size of {sectors} sectors is not a whole number of blocks of bdev '{}'",
                params.origin_bdev
            )));
        }
        let config = EraConfig {
            block_size_sectors: params.block_size_sectors,
            nr_sectors: params.size_sectors,
            metadata_cache_bytes: params.metadata_cache_mib << 20,
            ..EraConfig::new(name)
        };
        let era = Era::open(
            config,
            SpdkRuntime::new(),
            Rc::new(MetadataBdev::new(metadata.channel)),
            Rc::new(DataBdev::new(origin.channel)),
            info.supports(IoKind::Flush),
        )
        .await
        .map_err(|error| {
            let mut error = refuse(&error);
            error.message += &format!(" (metadata bdev '{}')", params.metadata_bdev);
            error
        })?;
        let open = OpenEra {
            era,
            origin: origin.desc,
            metadata: metadata.desc,
            readers: Cell::new(0),
            dropping: Cell::new(false),
        };
        Ok((Rc::new(open), vec![metadata.closed, origin.closed]))
    }

    /// Takes a base bdev, and follows what happens to it.
    fn take_era_base(
        self: &Rc<Self>,
        params: &EraCreate,
        bdev: &str,
        needed_bytes: u64,
    ) -> Result<Base, RpcError> {
        let name = params.name.clone();
        let (era, removed) = (name.clone(), bdev.to_owned());
        let events = life::follow(
            self,
            move |registry| {
                let (era, bdev) = (era.clone(), removed.clone());
                async move { registry.era_base_removed(&era, &bdev).await }
            },
            move |registry| {
                let era = name.clone();
                async move { registry.era_base_resized(&era).await }
            },
        );
        bases::take(&whose(&params.name), bdev, needed_bytes, events)
    }

    /// Waits while a target is being opened.
    pub async fn wait_era_opening(&self, name: &str) {
        let opening = {
            let mut eras = self.eras.borrow_mut();
            eras.get_mut(name)
                .and_then(|entry| entry.life.wait_opening())
        };
        let Some(opening) = opening else { return };
        // Ends when the sender is dropped.
        let _ = opening.await;
    }
}

fn register(params: &EraCreate, open: &OpenEra) -> Result<Vbdev, RpcError> {
    let info = open.origin.info();
    let sectors = params
        .size_sectors
        .unwrap_or_else(|| nr_sectors(&open.origin));
    let vbdev = Vbdev::register(
        &Params {
            name: params.name.clone(),
            product_name: "spdk-dm era".to_owned(),
            block_bytes: info.block_bytes,
            nr_blocks: sectors * 512 / u64::from(info.block_bytes),
            // A write over several blocks is let through when all are marked.
            optimal_boundary_blocks: 0,
            write_cache: info.supports(IoKind::Flush),
            uuid: [0; 16],
            divides_at_blocks: 0,
        },
        EraDriver::new(params, &open.era, open.origin.clone()),
    );
    vbdev.map_err(|errno| {
        RpcError::new(
            Errno(errno),
            format!("bdev '{}' cannot be registered", params.name),
        )
    })
}
