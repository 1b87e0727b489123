//! What a failed commit leaves under way: nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use async_trait::async_trait;
use futures::executor::block_on;
use persistent_data::array;
use persistent_data::device::{BlockBytes, BlockDevice, DeviceError};
use persistent_data::tm::TransactionManager;
use std::cell::Cell;
use std::rc::Rc;
use std::task::Poll;

/// Fails the write of one block at once; the others take a while, and go on if nobody waits for them.
struct Slow {
    failing: u64,
    under_way: Cell<u64>,
    written: Cell<u64>,
}

#[async_trait(?Send)]
impl BlockDevice for Slow {
    fn nr_blocks(&self) -> u64 {
        100
    }

    async fn read(&self, _: u64, _: &mut BlockBytes) -> Result<(), DeviceError> {
        Err(DeviceError { errno: 5 })
    }

    async fn write(&self, block: u64, _: &BlockBytes) -> Result<(), DeviceError> {
        if block == self.failing {
            return Err(DeviceError { errno: 5 });
        }
        self.under_way.set(self.under_way.get() + 1);
        let mut polls = 0;
        futures::future::poll_fn(|context| {
            polls += 1;
            context.waker().wake_by_ref();
            match polls > block {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        self.under_way.set(self.under_way.get() - 1);
        self.written.set(self.written.get() + 1);
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        panic!("a failed commit is not flushed");
    }
}

/// When a commit has failed, no write of it is under way any more: one that landed later could overwrite a
/// block that the next transaction has put to other use.
#[test]
fn a_failed_commit_leaves_no_write_under_way() {
    block_on(async {
        for failing in 1..8 {
            let device = Rc::new(Slow {
                failing,
                under_way: Cell::new(0),
                written: Cell::new(0),
            });
            let tm = TransactionManager::create(device.clone(), 1 << 20)
                .await
                .unwrap();
            array::create(&tm, 5000, 1u32).await.unwrap();
            assert!(tm.pre_commit().await.is_err());
            assert_eq!(device.under_way.get(), 0);
            assert!(device.written.get() > 3);
        }
    });
}
