//! Opening a pool: its base bdevs are checked and claimed, its metadata is opened, its channels come up.

use crate::bases::{self, Base, BaseClosed, MAX_CACHE_MIB, MIN_METADATA_BYTES};
use crate::devices::{DataBdev, MetadataBdev};
use crate::host::{PoolChannel, SpdkHost, SpdkRuntime};
use crate::life;
use crate::readers::Readers;
use crate::registry::{OpenPool, Registry, no_pool};
use bdev::errno::Errno;
use bdev::thin::{Pool, PoolConfig, PoolEvent};
use rpc::RpcError;
use rpc::params::{ThinActivate, ThinPoolCreate};
use spdk::base::IoKind;
use spdk::io_device::IoDevice;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

impl Registry {
    /// Opens a declared pool that is waiting, and activates what was declared for it; any other is left
    /// alone.
    pub async fn open_pool(self: &Rc<Self>, name: &str) -> Result<(), RpcError> {
        let params = {
            let mut pools = self.pools.borrow_mut();
            let entry = pools.get_mut(name).ok_or_else(|| no_pool(name))?;
            if !entry.life.begin_opening() {
                return Ok(());
            }
            entry.params.clone()
        };
        let opened = self.try_open(&params).await;
        let (waiters, unwanted) = {
            let mut pools = self.pools.borrow_mut();
            let entry = pools.get_mut(name).ok_or_else(|| no_pool(name))?;
            match opened {
                Ok((open, bases)) => {
                    let unwanted = entry.life.is_to_close() || self.is_stopping();
                    (entry.life.opened(open, bases), unwanted)
                }
                Err(error) => {
                    drop(entry.life.not_opened(&error.message));
                    drop(pools);
                    self.finish_if_closed();
                    return Err(error);
                }
            }
        };
        if unwanted {
            self.close_pool(name).await?;
            return Err(life::removed_meanwhile(&format!("pool '{name}'")));
        }
        log::info!("pool '{name}' is open");
        let declared: Vec<ThinActivate> = self
            .thins
            .borrow()
            .values()
            .filter(|thin| thin.params.pool == name && !thin.registered)
            .map(|thin| thin.params.clone())
            .collect();
        for thin in declared {
            if let Err(error) = self.activate(&thin).await {
                log::error!("{}", error.message);
            }
        }
        drop(waiters);
        Ok(())
    }

    /// Closes a pool without active devices, and forgets it and the thin bdevs declared with it.
    pub async fn delete_pool(self: &Rc<Self>, name: &str) -> Result<(), RpcError> {
        let busy = |why: String| RpcError::new(Errno::EBUSY, format!("pool '{name}' {why}"));
        if let Ok(open) = self.open_entry(name) {
            let count = open.pool.active_ids().len();
            if count > 0 {
                return Err(busy(format!(
                    "has {count} active thin bdevs; thin_deactivate them first"
                )));
            }
            drop(open);
            self.close_pool(name).await?;
        }
        let waiting = match self.pools.borrow().get(name) {
            None => return Err(no_pool(name)),
            Some(entry) => entry.life.is_waiting(),
        };
        if !waiting {
            return Err(busy("is being opened or closed; try again".to_owned()));
        }
        self.pools.borrow_mut().remove(name);
        let mut thins = self.thins.borrow_mut();
        thins.retain(|_, thin| thin.params.pool != name);
        Ok(())
    }

    /// Opens a declared pool whose bdevs have come.
    pub async fn open_and_log(self: &Rc<Self>, name: &str) {
        if let Err(error) = self.open_pool(name).await {
            log::error!("pool '{name}' cannot open: {}", error.message);
        }
    }

    /// Waits while a pool is being opened.
    pub async fn wait_opening(&self, name: &str) {
        let opening = {
            let mut pools = self.pools.borrow_mut();
            pools
                .get_mut(name)
                .and_then(|entry| entry.life.wait_opening())
        };
        let Some(opening) = opening else { return };
        // Ends when the sender is dropped.
        let _ = opening.await;
    }

    /// A base bdev has another size.
    pub async fn base_resized(self: Rc<Self>, pool: &str) {
        // A pool that is not open looks at the sizes when it opens.
        if let Ok(open) = self.open_entry(pool)
            && let Err(error) = open.pool.grow().await
        {
            log::error!("pool '{pool}' does not follow the size of its bdevs: {error}");
        }
    }

    async fn try_open(
        self: &Rc<Self>,
        params: &ThinPoolCreate,
    ) -> Result<(Rc<OpenPool>, Vec<BaseClosed>), RpcError> {
        if params.metadata_cache_mib > MAX_CACHE_MIB || params.mapping_cache_mib > MAX_CACHE_MIB {
            return Err(RpcError::invalid(format!(
                "pool '{}': a cache of more than {MAX_CACHE_MIB} MiB",
                params.name
            )));
        }
        let metadata = self.take_base(params, &params.metadata_bdev)?;
        let data = self.take_base(params, &params.data_bdev)?;
        let data_flushes = data.desc.info().supports(IoKind::Flush);
        let device = Rc::new(MetadataBdev::new(metadata.channel));
        let pool = Pool::open(
            pool_config(params),
            SpdkRuntime::new(),
            device.clone(),
            Rc::new(DataBdev::new(data.channel)),
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
        let (channel_data, owner) = (data.desc.clone(), pool.owner_queue());
        let channels = IoDevice::register(&params.name, move || {
            PoolChannel::new(SpdkHost::new(&channel_data)?, owner.clone())
        })
        .ok_or_else(|| RpcError::new(Errno::ENOMEM, "out of memory"))?;
        let name = params.name.clone();
        pool.watch(move |event| spdk::logging::notify(event.name(), &notification(&name, event)));
        let open = OpenPool {
            readers: Readers::new(&params.name, pool.clone(), device),
            pool,
            channels: Arc::new(channels),
            data: data.desc,
            metadata: metadata.desc,
        };
        Ok((Rc::new(open), vec![metadata.closed, data.closed]))
    }

    /// Takes a base bdev of a pool, which follows what happens to it.
    fn take_base(self: &Rc<Self>, params: &ThinPoolCreate, bdev: &str) -> Result<Base, RpcError> {
        let name = params.name.clone();
        let (pool, removed) = (name.clone(), bdev.to_owned());
        let events = life::follow(
            self,
            move |registry| {
                let (pool, bdev) = (pool.clone(), removed.clone());
                async move { registry.base_removed(&pool, &bdev).await }
            },
            move |registry| {
                let pool = name.clone();
                async move { registry.base_resized(&pool).await }
            },
        );
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
        PoolEvent::ExternalMergeFinished { id } | PoolEvent::ExternalMergeFailed { id } => {
            format!("{pool} {id}")
        }
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
        no_space_timeout: Duration::from_secs(params.no_space_timeout_s.into()),
        metadata_cache_bytes: params.metadata_cache_mib << 20,
        mapping_cache_bytes: params.mapping_cache_mib << 20,
        ..PoolConfig::new(&params.name)
    }
}
