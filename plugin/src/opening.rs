//! Opening a pool: its base bdevs are checked and claimed, its metadata is opened, its channels come up.

use crate::bases::{self, MAX_CACHE_MIB, MIN_METADATA_BYTES};
use crate::devices::{DataBdev, MetadataBdev};
use crate::host::{PoolChannel, SpdkRuntime};
use crate::readers::Readers;
use crate::registry::{OpenPool, Registry};
use bdev::errno::Errno;
use bdev::thin::{Pool, PoolConfig, PoolEvent};
use rpc::RpcError;
use rpc::params::ThinPoolCreate;
use spdk::base::{BaseChannel, Descriptor, Event, IoKind};
use spdk::io_device::IoDevice;
use std::rc::Rc;
use std::sync::Arc;

impl Registry {
    /// Opens a declared pool.
    pub async fn try_open(
        self: &Rc<Self>,
        params: &ThinPoolCreate,
    ) -> Result<Rc<OpenPool>, RpcError> {
        if params.metadata_cache_mib > MAX_CACHE_MIB || params.mapping_cache_mib > MAX_CACHE_MIB {
            return Err(RpcError::invalid(format!(
                "pool '{}': a cache of more than {MAX_CACHE_MIB} MiB",
                params.name
            )));
        }
        let (metadata, metadata_channel) = self.take_base(params, &params.metadata_bdev)?;
        let (data, data_channel) = self.take_base(params, &params.data_bdev)?;
        let data_flushes = data.info().supports(IoKind::Flush);
        let device = Rc::new(MetadataBdev::new(metadata_channel));
        let pool = Pool::open(
            pool_config(params),
            SpdkRuntime::new(),
            device.clone(),
            Rc::new(DataBdev::new(data_channel)),
            data_flushes,
        )
        .await
        .map_err(|error| {
            RpcError::new(
                error.errno(),
                format!(
                    "pool '{}' on metadata bdev '{}': {error}",
                    params.name, params.metadata_bdev
                ),
            )
        })?;
        let (channel_data, owner) = (data.clone(), pool.owner_queue());
        let channels = IoDevice::register(&params.name, move || {
            PoolChannel::new(&channel_data, owner.clone())
        })
        .ok_or_else(|| RpcError::new(Errno::ENOMEM, "out of memory"))?;
        let name = params.name.clone();
        pool.watch(move |event| spdk::logging::notify(event.name(), &notification(&name, event)));
        log::info!("pool '{}' is open", params.name);
        Ok(Rc::new(OpenPool {
            readers: Readers::new(&params.name, pool.clone(), device),
            pool,
            channels: Arc::new(channels),
            data,
            metadata,
        }))
    }

    /// Takes a base bdev of a pool, which follows what happens to it.
    fn take_base(
        self: &Rc<Self>,
        params: &ThinPoolCreate,
        bdev: &str,
    ) -> Result<(Descriptor, BaseChannel), RpcError> {
        let registry = Rc::downgrade(self);
        let (pool, removed) = (params.name.clone(), bdev.to_owned());
        let events = move |event| {
            let Some(registry) = registry.upgrade() else {
                return;
            };
            let (pool, bdev) = (pool.clone(), removed.clone());
            match event {
                Event::Remove => {
                    spdk::executor::spawn(async move { registry.base_removed(&pool, &bdev).await });
                }
                Event::Resize => {
                    spdk::executor::spawn(async move { registry.base_resized(&pool).await });
                }
                Event::Other => {}
            }
        };
        let needed = match bdev == params.metadata_bdev {
            true => MIN_METADATA_BYTES,
            false => u64::from(params.data_block_size_sectors) * 512,
        };
        bases::take(&format!("pool '{}'", params.name), bdev, needed, events)
    }
}

/// A notification's context: the pool, and what there is to say.
fn notification(pool: &str, event: &PoolEvent) -> String {
    match event {
        PoolEvent::Mode(mode) => format!("{pool} {}", rpc::status::mode_word(*mode)),
        PoolEvent::LowData { free_blocks } | PoolEvent::LowMetadata { free_blocks } => {
            format!("{pool} {free_blocks}")
        }
        PoolEvent::NoSpaceTimeout => pool.to_owned(),
        PoolEvent::Grown {
            data_blocks,
            metadata_blocks,
        } => format!("{pool} {data_blocks} {metadata_blocks}"),
    }
}

fn pool_config(params: &ThinPoolCreate) -> PoolConfig {
    PoolConfig {
        data_block_size_sectors: params.data_block_size_sectors,
        low_water_mark_blocks: params.low_water_mark_blocks,
        skip_block_zeroing: params.has("skip_block_zeroing"),
        ignore_discard: params.has("ignore_discard"),
        no_discard_passdown: params.has("no_discard_passdown"),
        read_only: params.has("read_only"),
        error_if_no_space: params.has("error_if_no_space"),
        metadata_cache_bytes: params.metadata_cache_mib << 20,
        mapping_cache_bytes: params.mapping_cache_mib << 20,
        ..PoolConfig::new(&params.name)
    }
}
