//! Base bdevs: opened, checked and claimed for a target.

use bdev::errno::Errno;
use futures::channel::oneshot;
use futures::future::{Either, select};
use rpc::RpcError;
use spdk::base::{BaseChannel, Descriptor, Event, IoKind};
use spdk::executor::sleep;
use std::time::Duration;

/// Caches of more MiB than this are surely a mistake.
pub const MAX_CACHE_MIB: u64 = 1 << 20;

/// No metadata fit into less.
pub const MIN_METADATA_BYTES: u64 = 16 * 4096;

/// An operator should hear of it when a bdev is not let go for so long.
const LONG: Duration = Duration::from_secs(10);

/// A base bdev that was taken.
pub struct Base {
    /// Open and claimed.
    pub desc: Descriptor,
    /// The running thread's channel.
    pub channel: BaseChannel,
    /// Resolves when it is closed.
    pub closed: BaseClosed,
}

/// Resolves when a base bdev is closed.
pub struct BaseClosed {
    bdev: String,
    closed: oneshot::Receiver<()>,
}

/// Waits until base bdevs are closed: until then nobody can take them again.
pub async fn wait_closed(owner: &str, bases: Vec<BaseClosed>) {
    for BaseClosed { bdev, mut closed } in bases {
        // Ends when the sender is dropped.
        while let Either::Right(_) = select(&mut closed, sleep(LONG)).await {
            log::warn!("{owner} is closed, but bdev '{bdev}' is still being used for it");
        }
    }
}

/// Opens, checks and claims a base bdev for `owner`, which is how messages to the user call it.
pub fn take(
    owner: &str,
    bdev: &str,
    needed_bytes: u64,
    events: impl Fn(Event) + 'static,
) -> Result<Base, RpcError> {
    let refuse = |errno: i32, why: &str| {
        RpcError::new(Errno(errno), format!("{owner}: bdev '{bdev}' {why}"))
    };
    let (open, closed) = oneshot::channel();
    let events = move |event| {
        // Dropped with this when the bdev is closed.
        let _open: &oneshot::Sender<()> = &open;
        events(event);
    };
    let desc = Descriptor::open(bdev, true, events).map_err(|errno| match errno {
        19 => refuse(
            19,
            "does not exist; create it first, or have it waited for with 'wait'",
        ),
        1 | 16 => refuse(
            1,
            "is claimed by another module or target; use another bdev",
        ),
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
    if bytes < needed_bytes {
        return Err(refuse(
            22,
            &format!("is too small: {bytes} bytes, at least {needed_bytes} are needed"),
        ));
    }
    if info.stacked_on_nvme {
        log::warn!(
            "{owner}: bdev '{bdev}' lies on an NVMe bdev, which may not pass flushes on to the drive; if \
             its write cache is volatile, use the NVMe bdev itself, or SPDK's bdev_nvme_set_options \
             --enable-flush where it has that"
        );
    }
    desc.claim().map_err(|errno| {
        refuse(
            errno,
            "is claimed by another module or target; use another bdev",
        )
    })?;
    let channel = desc
        .channel()
        .ok_or_else(|| refuse(12, "has no I/O channel: out of memory"))?;
    Ok(Base {
        desc,
        channel,
        closed: BaseClosed {
            bdev: bdev.to_owned(),
            closed,
        },
    })
}
