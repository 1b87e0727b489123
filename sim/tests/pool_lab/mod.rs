//! Two simulated disks, and a pool with one active device on them.

#![allow(dead_code, reason = "not every test program uses all of it")]

use bdev::errno::Errno;
use bdev::target::{IoKind, Request};
use bdev::thin::metadata::check::clear_needs_check;
use bdev::thin::metadata::{OpenOptions, ThinMetadata};
use bdev::thin::{Pool, PoolConfig, PoolEvent, PoolMode, Thin, ThinDev};
use sim::cores::Cores;
use sim::disk::{Disk, Geometry};
use sim::executor::Executor;
use sim::faults::FaultRates;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Logical blocks of 4096 bytes per data block of 64 KiB.
pub const PER: u64 = 16;
pub const POLLS: u64 = 5_000_000;
pub const SEEDS: u64 = 12;

pub const READ_ERRORS: FaultRates = FaultRates {
    read_error: 1,
    ..NO_FAULTS
};
pub const WRITE_ERRORS: FaultRates = FaultRates {
    write_error: 1,
    ..NO_FAULTS
};
pub const FLUSH_ERRORS: FaultRates = FaultRates {
    flush_error: 1,
    ..NO_FAULTS
};
pub const NO_FAULTS: FaultRates = FaultRates {
    read_error: 0,
    write_error: 0,
    flush_error: 0,
    latent: 0,
    slow: 0,
    stuck: 0,
    lost_flush: 0,
};

/// Two disks, that outlive the pools on them.
#[derive(Clone)]
pub struct Disks {
    pub executor: Rc<Executor>,
    pub metadata: Rc<Disk>,
    pub data: Rc<Disk>,
}

impl Disks {
    pub fn new(executor: &Rc<Executor>, metadata_blocks: u64, data_blocks: u64) -> Self {
        let geometry = Geometry {
            block_bytes: 4096,
            physical_bytes: 4096,
        };
        let zeroes = (0..metadata_blocks).map(|_| 0);
        let stale = (0..data_blocks * PER).map(|block| (1 << 60) + block);
        Disks {
            executor: executor.clone(),
            metadata: Disk::new("metadata", executor, geometry, zeroes),
            data: Disk::new("data", executor, geometry, stale),
        }
    }

    /// Opens a pool, and its device 1, which is made if need be.
    pub async fn open(&self, config: PoolConfig) -> Lab {
        self.metadata.set_faults(NO_FAULTS);
        self.data.set_faults(NO_FAULTS);
        let (metadata, data) = (self.metadata.clone(), self.data.clone());
        let pool = Pool::open(config, self.executor.clone(), metadata, data, true)
            .await
            .unwrap();
        let events = Rc::new(RefCell::new(Vec::new()));
        let log = events.clone();
        pool.watch(move |event| log.borrow_mut().push(*event));
        let cores = Cores::new(
            &self.executor,
            2,
            std::slice::from_ref(&self.data),
            &pool.owner_queue(),
        );
        if !pool.list().await.unwrap().iter().any(|(id, _)| *id == 1) {
            pool.create_thin(1).await.unwrap();
        }
        let dev = pool.activate(1, 1024 * 128, None).await.unwrap();
        Lab {
            disks: self.clone(),
            pool,
            cores,
            dev,
            events,
        }
    }

    /// Power fails; afterwards the strict check of the metadata finds nothing, and a mark that it is needed
    /// is taken away, as an operator would. Whether there was one.
    pub async fn check_after_power_cut(&self) -> bool {
        self.executor.forget_tasks();
        self.metadata.crash();
        self.data.crash();
        let options = OpenOptions {
            data_block_size_sectors: 128,
            cache_bytes: 0,
            may_format: false,
            read_only: true,
        };
        let metadata = ThinMetadata::open(self.metadata.clone(), options)
            .await
            .unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
        if metadata.needs_check() {
            clear_needs_check(self.metadata.clone()).await.unwrap();
        }
        metadata.needs_check()
    }
}

/// An open pool with one active device.
pub struct Lab {
    pub disks: Disks,
    pub pool: Rc<Pool>,
    pub cores: Rc<Cores<Thin>>,
    pub dev: Arc<ThinDev>,
    pub events: Rc<RefCell<Vec<PoolEvent>>>,
}

pub type Outcome = Result<(), Errno>;

impl Lab {
    pub async fn io(
        &self,
        kind: IoKind,
        block: u64,
        nr: u64,
        data: Vec<u64>,
    ) -> (Outcome, Vec<u64>) {
        let request = Request {
            kind,
            offset_blocks: block,
            nr_blocks: nr,
        };
        let core = self.disks.executor.below(self.cores.len());
        self.cores.io(core, &self.dev, request, data).await
    }

    /// Writes one logical block of a data block.
    pub async fn write(&self, block: u64, value: u64) -> Outcome {
        self.io(IoKind::Write, block * PER, 1, vec![value]).await.0
    }

    pub async fn read(&self, block: u64) -> Result<u64, Errno> {
        let (result, values) = self.io(IoKind::Read, block * PER, 1, Vec::new()).await;
        result.map(|()| values[0])
    }

    pub async fn discard(&self, block: u64, nr: u64) -> Outcome {
        let (offset, length) = (block * PER, nr * PER);
        self.io(IoKind::Discard, offset, length, Vec::new()).await.0
    }

    pub async fn flush(&self) -> Outcome {
        self.io(IoKind::Flush, 0, 0, Vec::new()).await.0
    }

    pub fn mode(&self) -> PoolMode {
        self.pool.shared().mode()
    }

    /// What the status line says of the mode, and whether a check is needed.
    pub async fn status(&self) -> (PoolMode, bool, u64) {
        let status = self.pool.status().await.unwrap();
        (status.mode, status.needs_check, status.used_data_blocks)
    }

    pub async fn message_errno(&self) -> Option<Errno> {
        self.pool
            .create_thin(77)
            .await
            .err()
            .map(|error| error.errno())
    }

    /// The first event is the change of mode, which comes before the rollback touches the disk.
    pub fn heal_metadata_at_the_next_event(&self) {
        let (log, disk) = (self.events.clone(), self.disks.metadata.clone());
        self.pool.watch(move |event| {
            log.borrow_mut().push(*event);
            disk.set_faults(NO_FAULTS);
        });
    }

    pub async fn until(&self, mode: PoolMode) {
        for _ in 0..1000 {
            if self.mode() == mode {
                return;
            }
            self.disks.executor.pass(Duration::from_millis(10)).await;
        }
        panic!("the mode is {:?}, not {mode:?}", self.mode());
    }

    /// Ends the pool without closing it in order.
    pub async fn drop_pool(self) -> Disks {
        let disks = self.disks.clone();
        // In a failed mode, an error is the answer to be expected.
        let _ = self.pool.deactivate(1).await;
        let _ = self.pool.close().await;
        self.cores.leave();
        disks
    }
}

pub fn config() -> PoolConfig {
    let mut config = PoolConfig::new("pool");
    config.metadata_cache_bytes = 0;
    config
}

/// Runs a story on several seeds.
pub fn on_seeds<F: Future<Output = ()> + 'static>(story: impl Fn(Rc<Executor>) -> F) {
    for seed in 1..=SEEDS {
        let executor = Executor::new(seed);
        let ended = executor.run(story(executor.clone()), POLLS);
        assert!(ended.is_some(), "seed {seed}: deadlock, or no end");
        executor.forget_tasks();
    }
}
