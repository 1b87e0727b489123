//! Linear bdevs: parts of other bdevs one after the other, as dm-linear and LVM's linear volumes have them.
//!
//! SPDK divides reads and writes where segments can begin (all begin at multiples of one length); what has
//! no data is divided here. Bdevs are shared: the first linear bdev claims one, the last lets it go. When one
//! goes its linear bdevs go, too, and come back with it.

use crate::bases;
use crate::registry::{Registry, call, registry};
use bdev::errno::Errno;
use futures::future::join_all;
use rpc::RpcError;
use rpc::params::{LinearCreate, LinearSegment};
use spdk::base::{self, BaseChannel, Descriptor, Event, IoKind};
use spdk::vbdev::{BdevIo, Destructed, Driver, Params, Vbdev};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

/// A declared linear bdev.
pub struct LinearEntry {
    params: LinearCreate,
    segments: Vec<LinearSegment>,
    /// While it is registered; taken by who unregisters it.
    vbdev: Option<Vbdev>,
    registered: bool,
    /// Comes back when its bdevs do.
    keep: bool,
}

/// A segment in logical blocks.
struct Segment {
    /// Where it begins in the linear bdev.
    begin: u64,
    nr_blocks: u64,
    /// Which of the bdevs, and where there.
    base: usize,
    first: u64,
}

type Segments = Arc<[Segment]>;

impl Registry {
    /// Makes a linear bdev, or declares it until its bdevs are there.
    pub fn create_linear(self: &Rc<Self>, params: LinearCreate) -> Result<(), RpcError> {
        self.check_free(&params.name)?;
        if self.linears.borrow().contains_key(&params.name) {
            return Err(refuse(&params.name, Errno::EEXIST, "is declared already"));
        }
        let segments = params.parsed()?;
        let (name, wait) = (params.name.clone(), params.wait);
        let ready = segments.iter().all(|segment| base::exists(&segment.bdev));
        let entry = LinearEntry {
            params,
            segments,
            vbdev: None,
            registered: false,
            keep: true,
        };
        self.linears.borrow_mut().insert(name.clone(), entry);
        if wait && !ready {
            return Ok(());
        }
        self.register_linear(&name).inspect_err(|_| {
            self.linears.borrow_mut().remove(&name);
            self.let_linear_bases_go();
        })
    }

    fn register_linear(self: &Rc<Self>, name: &str) -> Result<(), RpcError> {
        let (params, wanted) = {
            let linears = self.linears.borrow();
            let Some(entry) = linears.get(name).filter(|entry| !entry.registered) else {
                return Ok(());
            };
            (entry.params.clone(), entry.segments.clone())
        };
        self.check_overlaps(name, &wanted)?;
        let mut names: Vec<&str> = Vec::new();
        for segment in &wanted {
            if !names.contains(&segment.bdev.as_str()) {
                names.push(&segment.bdev);
            }
        }
        let bases = names.iter().map(|bdev| self.linear_base(name, bdev));
        let bases: Vec<Descriptor> = bases.collect::<Result<_, _>>()?;
        let infos: Vec<_> = bases.iter().map(Descriptor::info).collect();
        let block_bytes = infos.first().map_or(512, |info| info.block_bytes);
        let per_block = u64::from(block_bytes) / 512;
        let mut segments = Vec::with_capacity(wanted.len());
        let mut begin = 0;
        for (segment, base) in wanted
            .iter()
            .filter_map(|segment| Some((segment, names.iter().position(|n| *n == segment.bdev)?)))
        {
            let odd = |why: &str| {
                let text = format!(
                    "{}:{}:{}",
                    segment.bdev, segment.first_sector, segment.nr_sectors
                );
                refuse(
                    name,
                    Errno::EINVAL,
                    &format!("cannot have segment {text}: {why}"),
                )
            };
            let Some(info) = infos
                .get(base)
                .filter(|info| info.block_bytes == block_bytes)
            else {
                return Err(odd("the bdevs must have blocks of the same size"));
            };
            let (first, nr_blocks) = (segment.first_sector, segment.nr_sectors);
            if !first.is_multiple_of(per_block) || !nr_blocks.is_multiple_of(per_block) {
                return Err(odd(&format!(
                    "it is not made of whole blocks of {block_bytes} bytes"
                )));
            }
            let (first, nr_blocks) = (first / per_block, nr_blocks / per_block);
            if first + nr_blocks > info.nr_blocks {
                return Err(odd(&format!(
                    "the bdev ends at sector {}",
                    info.nr_blocks * per_block
                )));
            }
            segments.push(Segment {
                begin,
                nr_blocks,
                base,
                first,
            });
            begin += nr_blocks;
        }
        // What only some know is not offered: SPDK makes writes of zeroings, and unmaps are advice. A bdev without
        // flush has no volatile cache.
        let all = |kind| infos.iter().all(|info| info.supports(kind));
        let any_flushes = infos.iter().any(|info| info.supports(IoKind::Flush));
        let offered = [
            (true, IoKind::Read),
            (true, IoKind::Write),
            (all(IoKind::Unmap), IoKind::Unmap),
            (all(IoKind::WriteZeroes), IoKind::WriteZeroes),
            (any_flushes, IoKind::Flush),
        ];
        let io_kinds = offered
            .into_iter()
            .filter(|(is_offered, _)| *is_offered)
            .fold(0, |kinds, (_, kind)| kinds | kind.bit());
        let boundary = segments.iter().map(|segment| segment.begin).fold(0, gcd);
        let registered = Vbdev::register(
            &Params {
                name: name.to_owned(),
                product_name: "spdk-dm linear".to_owned(),
                block_bytes,
                nr_blocks: begin,
                optimal_boundary_blocks: u32::try_from(boundary).unwrap_or(1 << 16),
                write_cache: true,
                uuid: [0; 16],
                divides_at_blocks: 0,
            },
            LinearDriver {
                bases: Mutex::new(bases),
                segments: segments.into(),
                io_kinds,
                params: LinearCreate {
                    wait: true,
                    ..params
                },
            },
        );
        let vbdev =
            registered.map_err(|errno| refuse(name, Errno(errno), "cannot be registered"))?;
        if let Some(entry) = self.linears.borrow_mut().get_mut(name) {
            entry.vbdev = Some(vbdev);
            entry.registered = true;
            entry.keep = true;
        }
        Ok(())
    }

    /// A bdev that segments are on: the one that is open, or it is opened and claimed.
    fn linear_base(self: &Rc<Self>, name: &str, bdev: &str) -> Result<Descriptor, RpcError> {
        if let Some(there) = self.linear_bases.borrow().get(bdev) {
            return Ok(there.clone());
        }
        let (registry, removed) = (Rc::downgrade(self), bdev.to_owned());
        let events = move |event| {
            if event == Event::Remove
                && let Some(registry) = registry.upgrade()
            {
                let bdev = removed.clone();
                spdk::executor::spawn(async move { registry.linear_base_removed(&bdev).await });
            }
        };
        let base = bases::take(&format!("linear bdev '{name}'"), bdev, 0, events)?;
        let mut all = self.linear_bases.borrow_mut();
        all.insert(bdev.to_owned(), base.desc.clone());
        Ok(base.desc)
    }

    /// Two volumes on the same place would destroy each other.
    fn check_overlaps(&self, name: &str, wanted: &[LinearSegment]) -> Result<(), RpcError> {
        let linears = self.linears.borrow();
        for (index, new) in wanted.iter().enumerate() {
            let own = wanted.iter().take(index).map(|segment| (name, segment));
            let others = linears
                .iter()
                .filter(|(other, entry)| *other != name && entry.registered)
                .flat_map(|(other, entry)| entry.segments.iter().map(move |s| (other.as_str(), s)));
            let overlaps = |there: &LinearSegment| {
                there.bdev == new.bdev
                    && there.first_sector < new.first_sector + new.nr_sectors
                    && new.first_sector < there.first_sector + there.nr_sectors
            };
            if let Some((other, _)) = own.chain(others).find(|(_, there)| overlaps(there)) {
                let text = format!(
                    "cannot have sectors {} to {} of bdev '{}': linear bdev '{other}' has some of them",
                    new.first_sector,
                    new.first_sector + new.nr_sectors - 1,
                    new.bdev
                );
                return Err(refuse(name, Errno::EBUSY, &text));
            }
        }
        Ok(())
    }

    async fn linear_base_removed(self: Rc<Self>, bdev: &str) {
        let on_it: Vec<String> = self
            .linears
            .borrow()
            .iter()
            .filter(|(_, entry)| entry.segments.iter().any(|segment| segment.bdev == bdev))
            .map(|(name, _)| name.clone())
            .collect();
        let gone = on_it.iter().map(|name| self.remove_linear(name, true));
        join_all(gone).await;
        self.let_linear_bases_go();
    }

    /// Unregisters a linear bdev and waits until it is gone.
    pub async fn remove_linear(&self, name: &str, keep: bool) -> Result<(), RpcError> {
        let vbdev = {
            let mut linears = self.linears.borrow_mut();
            let entry = linears
                .get_mut(name)
                .ok_or_else(|| refuse(name, Errno::ENODEV, "does not exist; see bdev_get_bdevs"))?;
            entry.keep = keep;
            if !entry.registered {
                if !keep {
                    linears.remove(name);
                }
                return Ok(());
            }
            let vbdev = entry.vbdev.take();
            vbdev.ok_or_else(|| refuse(name, Errno::EBUSY, "is being removed"))?
        };
        vbdev.unregister().await;
        Ok(())
    }

    /// Called when all channels of a linear bdev are gone, whoever unregistered it.
    fn linear_destructed(&self, name: &str) {
        {
            let mut linears = self.linears.borrow_mut();
            if let Some(entry) = linears.get_mut(name) {
                entry.registered = false;
                entry.vbdev = None;
                if !entry.keep {
                    linears.remove(name);
                }
            }
        }
        self.let_linear_bases_go();
    }

    /// Lets bdevs go that no linear bdev is on.
    fn let_linear_bases_go(&self) {
        let linears = self.linears.borrow();
        let used: BTreeSet<&str> = linears
            .values()
            .filter(|entry| entry.registered)
            .flat_map(|entry| entry.segments.iter().map(|segment| segment.bdev.as_str()))
            .collect();
        let mut bases = self.linear_bases.borrow_mut();
        bases.retain(|bdev, _| used.contains(bdev.as_str()));
    }

    /// Linear bdevs that wait, and whose bdevs are there.
    pub fn linears_ready(&self) -> Vec<String> {
        let linears = self.linears.borrow();
        let ready = linears.iter().filter(|(_, entry)| {
            !entry.registered
                && entry
                    .segments
                    .iter()
                    .all(|segment| base::exists(&segment.bdev))
        });
        ready.map(|(name, _)| name.clone()).collect()
    }

    /// Makes a linear bdev whose bdevs have come.
    pub fn register_linear_and_log(self: &Rc<Self>, name: &str) {
        if let Err(error) = self.register_linear(name) {
            log::error!("{}", error.message);
        }
    }

    /// The calls for those that are not there.
    pub fn waiting_linears_config(&self) -> Vec<String> {
        let linears = self.linears.borrow();
        let waiting = linears.values().filter(|entry| !entry.registered);
        waiting
            .map(|entry| {
                call(
                    "linear_create",
                    &LinearCreate {
                        wait: true,
                        ..entry.params.clone()
                    },
                )
            })
            .collect()
    }
}

fn refuse(name: &str, errno: Errno, why: &str) -> RpcError {
    RpcError::new(errno, format!("linear bdev '{name}' {why}"))
}

fn gcd(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        b => gcd(b, a % b),
    }
}

/// A linear bdev as SPDK sees it.
struct LinearDriver {
    /// Let go before SPDK hears that the bdev is gone.
    bases: Mutex<Vec<Descriptor>>,
    segments: Segments,
    io_kinds: u32,
    params: LinearCreate,
}

/// Its channel.
struct LinearChannel {
    bases: Vec<BaseChannel>,
    segments: Segments,
}

impl LinearChannel {
    /// The bdev a block is on, where there, and how many blocks follow in the segment.
    #[inline]
    fn find(&self, block: u64) -> Option<(&BaseChannel, u64, u64)> {
        let after = self
            .segments
            .partition_point(|segment| segment.begin <= block);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        let inside = block - segment.begin;
        let left = segment.nr_blocks.checked_sub(inside)?;
        Some((self.bases.get(segment.base)?, segment.first + inside, left))
    }

    /// What has no data goes to all the places it is about.
    fn submit_range(&self, io: BdevIo, kind: IoKind, offset: u64, nr_blocks: u64) {
        let mut parts = Vec::new();
        if kind == IoKind::Flush {
            let whole = self
                .bases
                .iter()
                .map(|base| (base, base.descriptor().info()));
            let flushing = whole.filter(|(_, info)| info.supports(IoKind::Flush));
            parts.extend(flushing.map(|(base, info)| (base.clone(), 0, info.nr_blocks)));
        } else {
            let end = offset.saturating_add(nr_blocks);
            let mut at = offset;
            while at < end {
                let Some((base, first, left)) = self.find(at).filter(|(_, _, left)| *left > 0)
                else {
                    return io.complete(Errno::EINVAL.0);
                };
                let nr = left.min(end - at);
                parts.push((base.clone(), first, nr));
                at += nr;
            }
        }
        spdk::executor::spawn(async move {
            let parts = parts
                .iter()
                .map(|(base, first, nr)| base.range(kind, *first, *nr));
            let results = join_all(parts).await;
            let result: Result<(), i32> = results.into_iter().collect();
            io.complete(result.err().unwrap_or(0));
        });
    }
}

impl Driver for LinearDriver {
    type Channel = LinearChannel;

    fn create_channel(&self) -> Option<LinearChannel> {
        let bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        Some(LinearChannel {
            bases: bases
                .iter()
                .map(Descriptor::channel)
                .collect::<Option<_>>()?,
            segments: self.segments.clone(),
        })
    }

    #[inline]
    fn submit(channel: &LinearChannel, io: BdevIo, kind: IoKind, offset: u64, nr_blocks: u64) {
        match kind {
            IoKind::Read | IoKind::Write => match channel.find(offset) {
                Some((base, first, left)) if nr_blocks <= left => {
                    io.forward(base, first, 0);
                }
                // SPDK divides at the boundaries.
                _ => io.complete(Errno::EINVAL.0),
            },
            IoKind::Unmap | IoKind::WriteZeroes | IoKind::Flush => {
                channel.submit_range(io, kind, offset, nr_blocks);
            }
            _ => io.complete(Errno::EOPNOTSUPP.0),
        }
    }

    #[inline]
    fn forwarded(_: &LinearChannel, io: BdevIo, _: u64, ok: bool) {
        io.complete(if ok { 0 } else { Errno::EIO.0 });
    }

    fn io_kinds(&self) -> u32 {
        self.io_kinds
    }

    fn destruct(&self, done: Destructed) {
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        bases.clear();
        if let Some(registry) = registry() {
            registry.linear_destructed(&self.params.name);
        }
        drop(done);
    }

    fn info(&self) -> (&'static str, String) {
        let info = serde_json::json!({ "segments": self.params.segments });
        ("linear", info.to_string())
    }

    fn config(&self) -> String {
        call("linear_create", &self.params)
    }
}
