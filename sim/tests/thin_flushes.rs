//! A flush of the data disk that fails says so once. Whoever has written something that it has lost hears of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::errno::Errno;
use futures::channel::oneshot;
use futures::future::{Either, join, select};
use sim::executor::Executor;
use sim::faults::FaultRates;
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;

mod pool_lab;
use pool_lab::{Disks, NO_FAULTS, config, on_seeds};

/// A flush of the pool's own loses what a guest has written in place. The device says so to nobody else, so the
/// guest's flush that begins at that very moment fails, also while the pool cannot draw its conclusions because
/// somebody else has the metadata.
#[test]
fn a_guest_hears_of_a_failed_flush_of_the_pools_own() {
    let nr_lost = Rc::new(Cell::new(0));
    let counted = nr_lost.clone();
    on_seeds(move |executor| {
        let nr_lost = counted.clone();
        async move {
            for _ in 0..20 {
                if let Some(flushed) = flush_at_a_loss(&executor).await {
                    nr_lost.set(nr_lost.get() + 1);
                    assert_eq!(flushed, Err(Errno::EIO));
                }
            }
        }
    });
    assert!(nr_lost.get() > 20);
}

/// How a guest's flush ends that begins when one of the pool's own has lost something, if one has.
async fn flush_at_a_loss(executor: &Rc<Executor>) -> Option<Result<(), Errno>> {
    let lab = Disks::new(executor, 256, 32).open(config()).await;
    assert_eq!(lab.write(0, 10).await, Ok(()));
    assert_eq!(lab.flush().await, Ok(()));
    assert!(lab.pool.create_thin(2).await.is_ok());
    let (begin, began) = oneshot::channel();
    let (disk, begin) = (lab.disks.data.clone(), RefCell::new(Some(begin)));
    lab.disks.data.watch_losses(move || {
        disk.set_faults(NO_FAULTS);
        let _ = begin.take().map(|begin| begin.send(()));
    });
    lab.disks.data.set_faults(FaultRates::flush_errors(8));
    let guest = async {
        let mut began = began;
        for value in 20.. {
            match select(began, pin!(lab.write(0, value))).await {
                Either::Left((Ok(()), _)) => return Some(lab.flush().await),
                Either::Left((Err(_), _)) => break,
                Either::Right((written, still)) => {
                    assert_eq!(written, Ok(()));
                    began = still;
                }
            }
        }
        None
    };
    // One flushes while it has the metadata, the other before it waits for that.
    let create = async {
        for id in 3..9 {
            let _ = lab.pool.create_thin(id).await;
        }
    };
    let snapshot = async {
        for id in 9..15 {
            let _ = lab.pool.create_snap(id, 2).await;
        }
    };
    let changes = async {
        join(create, snapshot).await;
        lab.disks.data.watch_losses(|| {});
    };
    join(changes, guest).await.1
}
