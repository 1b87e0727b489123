//! Opening a pool: its base bdevs are checked and claimed, its metadata is opened, its channels come up.

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

/// Caches of more MiB than this are surely a mistake.
const MAX_CACHE_MIB: u64 = 1 << 20;

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

    /// Opens, checks and claims a base bdev.
    fn take_base(
        self: &Rc<Self>,
        params: &ThinPoolCreate,
        bdev: &str,
    ) -> Result<(Descriptor, BaseChannel), RpcError> {
        let refuse = |errno: i32, why: &str| {
            RpcError::new(
                Errno(errno),
                format!("pool '{}': bdev '{bdev}' {why}", params.name),
            )
        };
        let registry = Rc::downgrade(self);
        let (pool, removed) = (params.name.clone(), bdev.to_owned());
        let desc = Descriptor::open(bdev, true, move |event| {
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
        })
        .map_err(|errno| match errno {
            19 => refuse(
                19,
                "does not exist; create it first, or declare the pool with 'wait'",
            ),
            1 | 16 => refuse(1, "is claimed by another module or pool; use another bdev"),
            errno => refuse(errno, "cannot be opened for writing"),
        })?;
        let info = desc.info();
        if info.dif_type != 0 {
            return Err(refuse(
                22,
                "has protection information (DIF), which is not supported; create it without",
            ));
        }
        if info.metadata_bytes != 0 {
            return Err(refuse(
                22,
                "has metadata beside or in its blocks, which is not supported; create it without",
            ));
        }
        if !info.supports(IoKind::Write) {
            return Err(refuse(1, "takes no writes; use another bdev"));
        }
        if !matches!(info.block_bytes, 512 | 4096) {
            return Err(refuse(
                22,
                &format!(
                    "has blocks of {} bytes; 512 and 4096 are supported",
                    info.block_bytes
                ),
            ));
        }
        let bytes = info.nr_blocks * u64::from(info.block_bytes);
        let needed = match bdev == params.metadata_bdev {
            true => 16 * 4096,
            false => u64::from(params.data_block_size_sectors) * 512,
        };
        if bytes < needed {
            return Err(refuse(
                22,
                &format!("is too small: {bytes} bytes, at least {needed} are needed"),
            ));
        }
        if info.stacked_on_nvme {
            log::warn!(
                "pool '{}': bdev '{bdev}' lies on an NVMe bdev, which may not pass flushes on to the \
                 drive; if its write cache is volatile, use the NVMe bdev itself, or SPDK's \
                 bdev_nvme_set_options --enable-flush where it has that",
                params.name
            );
        }
        desc.claim().map_err(|errno| {
            refuse(
                errno,
                "is claimed by another module or pool; use another bdev",
            )
        })?;
        let channel = desc
            .channel()
            .ok_or_else(|| refuse(12, "has no I/O channel: out of memory"))?;
        Ok((desc, channel))
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
