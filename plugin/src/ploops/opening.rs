//! Opening a ploop target: the bdevs of its deltas are checked and claimed, a new image is made if that is
//! wanted, the chain is opened, the bdev is registered.

use super::chain::DeltaBdev;
use super::{OpenPloop, PloopBdev, no_ploop, refuse, whose};
use crate::bases::MAX_CACHE_MIB;
use crate::devices::Buffers;
use crate::host::SpdkRuntime;
use crate::life;
use crate::moving_bases::MovingBases;
use crate::registry::Registry;
use crate::volume::VolumeDriver;
use bdev::device::{ByteDevice, DataDevice};
use bdev::errno::Errno;
use bdev::ploop::create::create;
use bdev::ploop::image::{Header, Problem, read_header};
use bdev::ploop::{Lower, Ploop, PloopConfig, PloopError, PloopEvent};
use bdev::target::BaseId;
use futures::lock::Mutex;
use rpc::RpcError;
use rpc::params::PloopCreate;
use spdk::base::IoKind;
use spdk::vbdev::{Params, Vbdev};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Sectors of a cluster of a new image, unless told.
const DEFAULT_CLUSTER_SECTORS: u32 = 2048;

/// What begins with so many zeroes holds nothing.
const BLANK_BYTES: usize = 4096;

impl Registry {
    /// Opens a declared target that is waiting; any other is left alone.
    pub async fn open_ploop(self: &Rc<Self>, name: &str) -> Result<(), RpcError> {
        let params = {
            let mut ploops = self.ploops.borrow_mut();
            let entry = ploops.get_mut(name).ok_or_else(|| no_ploop(name))?;
            if !entry.life.begin_opening() {
                return Ok(());
            }
            entry.params.clone()
        };
        let result = self.open_and_register_ploop(&params).await;
        if let Err(error) = &result
            && let Some(entry) = self.ploops.borrow_mut().get_mut(name)
        {
            drop(entry.life.not_opened(&error.message));
        }
        self.finish_if_closed();
        result
    }

    /// Opens a declared target whose bdevs have come.
    pub async fn open_ploop_and_log(self: &Rc<Self>, name: &str) {
        if let Err(error) = self.open_ploop(name).await {
            log::error!("{} cannot open: {}", whose(name), error.message);
        }
    }

    /// Opens targets whose bdevs are all there, or waits until they have opened: SPDK tells of a new bdev
    /// before that is done.
    pub async fn open_ready_ploops(self: &Rc<Self>) {
        let names: Vec<String> = self.ploops.borrow().keys().cloned().collect();
        for name in names {
            let opening = {
                let mut ploops = self.ploops.borrow_mut();
                let entry = ploops.get_mut(&name);
                entry.and_then(|entry| entry.life.wait_opening())
            };
            if let Some(opening) = opening {
                // Ends when the sender is dropped.
                let _ = opening.await;
            }
            if self.ploops_ready().contains(&name) {
                self.open_ploop_and_log(&name).await;
            }
        }
    }

    async fn open_and_register_ploop(
        self: &Rc<Self>,
        params: &PloopCreate,
    ) -> Result<(), RpcError> {
        let name = &params.name;
        let open = Rc::new(self.try_open_ploop(params).await?);
        let wanted = {
            let ploops = self.ploops.borrow();
            let entry = ploops.get(name);
            entry.is_some_and(|entry| !entry.life.is_to_close()) && !self.is_stopping()
        };
        let registered = match wanted {
            true => register(name, &open),
            false => Err(life::removed_meanwhile(&whose(name))),
        };
        let vbdev = match registered {
            Ok(vbdev) => vbdev,
            Err(error) => {
                // Logged there.
                let _ = open.close(name).await;
                return Err(error);
            }
        };
        let mut ploops = self.ploops.borrow_mut();
        let entry = ploops.get_mut(name).ok_or_else(|| no_ploop(name))?;
        // It is made. A bdev that came back with zeroes would not be the same.
        entry.params.size_mib = None;
        entry.params.size_sectors = None;
        entry.params.cluster_size_sectors = None;
        entry.params.overwrite = false;
        drop(entry.life.opened(open, Vec::new()));
        entry.vbdev = Some(vbdev);
        log::info!("{} is open", whose(name));
        Ok(())
    }

    async fn try_open_ploop(self: &Rc<Self>, params: &PloopCreate) -> Result<OpenPloop, RpcError> {
        let name = &params.name;
        if params.bat_cache_mib > MAX_CACHE_MIB {
            return Err(RpcError::invalid(format!(
                "{}: a cache of more than {MAX_CACHE_MIB} MiB",
                whose(name)
            )));
        }
        let buffers = Rc::<Buffers>::default();
        let mut deltas = BTreeMap::new();
        let mut lower = Vec::new();
        for (number, delta) in (1..).zip(params.lower()?) {
            let bdev = self.take_delta(name, &delta.bdev, &buffers)?;
            lower.push(Lower {
                source: bdev.source(BaseId(number)),
                raw: delta.raw,
            });
            deltas.insert(number, bdev);
        }
        let top = self.take_delta(name, &params.top_bdev, &buffers)?;
        make_image(params, &top, &lower).await?;
        let source = top.source(BaseId(0));
        deltas.insert(0, top);
        let config = PloopConfig {
            bat_cache_bytes: params.bat_cache_mib << 20,
            may_be_in_use: params.force,
            ..PloopConfig::new(name)
        };
        let ploop = Ploop::open(config, SpdkRuntime::new(), source, lower).await;
        let ploop = ploop.map_err(|error| {
            let is_blank = matches!(
                &error,
                PloopError::Image { problem: Problem::Signature, image } if *image == params.top_bdev
            );
            let mut error = refuse(name)(error);
            if is_blank {
                error.message += "; give a size to make a new one";
            }
            error
        })?;
        let target = name.clone();
        ploop.watch(move |event| {
            spdk::logging::notify(event.name(), &notification(&target, event));
        });
        let descs = deltas
            .iter()
            .map(|(number, delta)| (BaseId(*number), delta.desc.clone()));
        let Some(bases) = MovingBases::new(name, ploop.owner_queue(), descs) else {
            let _ = ploop.close().await;
            return Err(RpcError::new(Errno::ENOMEM, "out of memory"));
        };
        Ok(OpenPloop {
            ploop,
            bases,
            deltas: RefCell::new(deltas),
            buffers,
            alone: Mutex::new(()),
        })
    }
}

/// Whether a device holds nothing.
pub(super) async fn is_blank<D: ByteDevice + DataDevice>(device: &D) -> Result<bool, Errno> {
    let len = device.nr_sectors().saturating_mul(512);
    let len = usize::try_from(len).map_or(BLANK_BYTES, |len| len.min(BLANK_BYTES));
    let mut bytes = vec![0; len];
    device.read_bytes(0, &mut bytes).await?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

/// Makes a new image if that is wanted; one that is there must be what is wanted.
async fn make_image(
    params: &PloopCreate,
    top: &DeltaBdev,
    lower: &[Lower],
) -> Result<(), RpcError> {
    let Some(nr_sectors) = params.new_sectors()? else {
        return Ok(());
    };
    let bdev = &params.top_bdev;
    let invalid =
        |why: String| RpcError::invalid(format!("{}: bdev '{bdev}' {why}", whose(&params.name)));
    let blank = is_blank(&*top.device).await.map_err(|errno| {
        RpcError::new(
            errno,
            format!(
                "{}: bdev '{bdev}' cannot be read: {errno}",
                whose(&params.name)
            ),
        )
    })?;
    if !blank && !params.overwrite {
        let header = read_header(&*top.device).await.map_err(|problem| {
            invalid(format!(
                "holds something, and no image ({problem}); overwrite has it lost"
            ))
        })?;
        return check_same(params, &header, nr_sectors).map_err(invalid);
    }
    let mut cluster = params.cluster_size_sectors;
    for delta in lower.iter().rev().filter(|delta| !delta.raw) {
        if cluster.is_none()
            && let Ok(header) = read_header(&*delta.source.device).await
        {
            cluster = Some(header.cluster_sectors);
        }
    }
    let cluster = cluster.unwrap_or(DEFAULT_CLUSTER_SECTORS);
    let made = create(&*top.device, nr_sectors, cluster).await;
    made.map_err(|problem| {
        let why = format!("cannot have an image of {nr_sectors} sectors: {problem}");
        match problem {
            Problem::Unreadable { errno, .. } => RpcError::new(errno, invalid(why).message),
            _ => invalid(why),
        }
    })?;
    log::info!("image '{bdev}' of {nr_sectors} sectors has been made");
    Ok(())
}

/// Why an image is not what is wanted.
fn check_same(params: &PloopCreate, header: &Header, nr_sectors: u64) -> Result<(), String> {
    let cluster = params.cluster_size_sectors;
    match header.nr_sectors == nr_sectors
        && cluster.is_none_or(|cluster| cluster == header.cluster_sectors)
    {
        true => Ok(()),
        false => Err(format!(
            "holds an image of {} sectors in clusters of {} already; give its sizes, or none",
            header.nr_sectors, header.cluster_sectors
        )),
    }
}

fn register(name: &str, open: &OpenPloop) -> Result<Vbdev, RpcError> {
    let dev = open.ploop.dev();
    let block_bytes = open
        .deltas
        .borrow()
        .get(&0)
        .map_or(512, |top| top.device.block_bytes());
    Vbdev::register(
        &Params {
            name: name.to_owned(),
            product_name: "spdk-dm ploop".to_owned(),
            block_bytes,
            nr_blocks: dev.nr_logical_blocks(),
            optimal_boundary_blocks: u32::try_from(dev.logical_per_cluster()).unwrap_or(0),
            write_cache: true,
            uuid: [0; 16],
            divides_at_blocks: 0,
        },
        VolumeDriver::new(
            dev.clone(),
            open.bases.channels(),
            IoKind::Unmap.bit() | IoKind::WriteZeroes.bit(),
            PloopBdev {
                name: name.to_owned(),
            },
        ),
    )
    .map_err(|errno| RpcError::new(Errno(errno), format!("bdev '{name}' cannot be registered")))
}

/// A notification's context: the target, and what there is to say.
fn notification(target: &str, event: &PloopEvent) -> String {
    match event {
        PloopEvent::MergeFinished { level } => format!("{target} {level}"),
        PloopEvent::MergeFailed { level, reason } => format!("{target} {level} {reason}"),
        PloopEvent::BackupExpired { uuid } => format!("{target} {uuid}"),
        PloopEvent::Resized { nr_sectors } => format!("{target} {nr_sectors}"),
    }
}
