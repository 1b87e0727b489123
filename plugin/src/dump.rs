//! What a metadata snapshot contains, as pages of JSON and as the tools' XML in a file, read while the
//! pool is in use.
//!
//! A page or a file is read block by block, with the thread free in between.

use crate::new_file::{NewFile, PIECE_BYTES};
use crate::readers::Snapshot;
use bdev::thin::metadata::delta::{Difference, Differences};
use bdev::thin::metadata::dump::{DumpError, DumpOptions, dump, pool_info};
use bdev::thin::metadata::image::{Device, Lost, View};
use bdev::thin::metadata::runs::{Run, Runs};
use bdev::thin::metadata::sink::{PoolInfo, Sink};
use bdev::thin::metadata::xml::{DeltaXmlWriter, Layout, XmlWriter};
use bdev::thin::metadata::{Details, Superblock, ThinError};
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::{DumpFormat, ThinDelta, ThinDump, page_entries};
use serde_json::{Value, json};
use std::io;
use std::time::{Duration, Instant};

/// A page ends at the latest after looking at about so many mappings, so that it is not long in coming
/// however well they join.
const PAGE_MAPPINGS: u64 = 1 << 20;

/// Time between two lines in the log.
const PROGRESS: Duration = Duration::from_secs(10);

fn refuse(pool: &str, error: impl Into<ThinError>) -> RpcError {
    let error = error.into();
    let text = match &error {
        ThinError::NoDevice(id) => format!("there is no thin device {id}"),
        error => error.to_string(),
    };
    RpcError::new(
        error.errno(),
        format!("pool '{pool}': in its metadata snapshot: {text}"),
    )
}

fn damaged(pool: &str, device: u64, lost: Lost) -> RpcError {
    let mut error = refuse(pool, lost.error);
    error.message += &format!(
        " (thin device {device}, from block {} on); run 'spdk-dm thin check' on the metadata",
        lost.begin
    );
    error
}

impl Snapshot {
    async fn superblock(&self, pool: &str) -> Result<Superblock, RpcError> {
        let view = View::SnapshotAt(self.block);
        let sb = self.image.superblock(view).await;
        sb.map_err(|error| refuse(pool, error))
    }

    async fn device(&self, pool: &str, sb: &Superblock, id: u32) -> Result<Device, RpcError> {
        let found = self.image.device_from(sb, u64::from(id)).await;
        found
            .map_err(|error| refuse(pool, error))?
            .filter(|device| device.id == u64::from(id))
            .ok_or_else(|| refuse(pool, ThinError::NoDevice(id)))
    }

    fn check_serial(&self, pool: &str, wanted: Option<u64>) -> Result<(), RpcError> {
        const ESTALE: bdev::errno::Errno = bdev::errno::Errno(116);
        match wanted {
            Some(wanted) if wanted != self.serial => Err(RpcError::new(
                ESTALE,
                format!(
                    "pool '{pool}' has another metadata snapshot ({}) than {wanted}; begin with the first page again",
                    self.serial
                ),
            )),
            _ => Ok(()),
        }
    }
}

fn device_json(device: &Device) -> Value {
    json!({
        "id": device.id,
        "mapped_blocks": device.details.mapped_blocks,
        "transaction_id": device.details.transaction_id,
        "creation_time": device.details.creation_time,
        "snapshotted_time": device.details.snapshotted_time,
    })
}

/// `thin_dump`.
pub async fn thin_dump(snapshot: Snapshot, params: &ThinDump) -> Answer {
    snapshot.check_serial(&params.pool, params.snapshot)?;
    let sb = snapshot.superblock(&params.pool).await?;
    match (&params.file, params.id) {
        (Some(file), _) => dump_file(&snapshot, &sb, params, file).await,
        (None, Some(id)) => mappings_page(&snapshot, &sb, params, id).await,
        (None, None) => devices_page(&snapshot, &sb, params).await,
    }
}

async fn devices_page(snapshot: &Snapshot, sb: &Superblock, params: &ThinDump) -> Answer {
    let limit = page_entries(params.limit);
    let mut devices = Vec::new();
    let mut next_id = None;
    let mut begin = u64::from(params.begin_id.unwrap_or(0));
    loop {
        let found = snapshot.image.device_from(sb, begin).await;
        let Some(device) = found.map_err(|error| refuse(&params.pool, error))? else {
            break;
        };
        if devices.len() == limit {
            next_id = Some(device.id);
            break;
        }
        devices.push(device_json(&device));
        let Some(next) = device.id.checked_add(1) else {
            break;
        };
        begin = next;
    }
    Ok(json!({
        "pool": params.pool,
        "snapshot": snapshot.serial,
        "time": sb.time,
        "transaction_id": sb.transaction_id,
        "data_block_size_sectors": sb.data_block_size_sectors,
        "needs_check": sb.needs_check,
        "devices": devices,
        "next_id": next_id,
    }))
}

fn run_json(run: &Run) -> Value {
    json!({
        "begin": run.virtual_begin,
        "data_begin": run.data_begin,
        "length": run.length,
        "time": run.time,
    })
}

async fn mappings_page(snapshot: &Snapshot, sb: &Superblock, params: &ThinDump, id: u32) -> Answer {
    let device = snapshot.device(&params.pool, sb, id).await?;
    let limit = page_entries(params.limit);
    let begin = params.begin_block.unwrap_or(0);
    let mut mappings = snapshot.image.mappings_from(device.root, begin);
    let mut runs = Runs::default();
    let mut page = Vec::new();
    let mut next_block = None;
    let mut looked_at = 0;
    while let Some(mapping) = mappings.next().await {
        let mapping = mapping.map_err(|lost| damaged(&params.pool, device.id, lost))?;
        if looked_at >= PAGE_MAPPINGS {
            next_block = Some(mapping.virtual_block);
            break;
        }
        looked_at += 1;
        if let Some(run) = runs.push(mapping) {
            page.push(run_json(&run));
            if page.len() == limit {
                // It has begun a run of the next page.
                next_block = Some(mapping.virtual_block);
                runs = Runs::default();
                break;
            }
        }
    }
    page.extend(runs.finish().as_ref().map(run_json));
    let mut answer = device_json(&device);
    answer["pool"] = json!(params.pool);
    answer["snapshot"] = json!(snapshot.serial);
    answer["runs"] = Value::Array(page);
    answer["next_block"] = json!(next_block);
    Ok(answer)
}

/// `thin_delta`.
pub async fn thin_delta(snapshot: Snapshot, params: &ThinDelta) -> Answer {
    snapshot.check_serial(&params.pool, params.snapshot)?;
    let pool = &params.pool;
    let sb = snapshot.superblock(pool).await?;
    let left = snapshot.device(pool, &sb, params.left_id).await?;
    let right = snapshot.device(pool, &sb, params.right_id).await?;
    match &params.file {
        Some(file) => delta_file(&snapshot, &sb, params, [left, right], file).await,
        None => delta_page(&snapshot, params, [left, right]).await,
    }
}

async fn next_difference(
    differences: &mut Differences<'_>,
    pool: &str,
    devices: &[Device; 2],
) -> Result<Option<Difference>, RpcError> {
    let next = differences.next().await;
    next.map_err(|(side, lost)| {
        let device = devices.get(side).map_or(0, |device| device.id);
        damaged(pool, device, lost)
    })
}

async fn delta_page(snapshot: &Snapshot, params: &ThinDelta, devices: [Device; 2]) -> Answer {
    let limit = page_entries(params.limit);
    let roots = devices.map(|device| device.root);
    let begin = params.begin_block.unwrap_or(0);
    let mut differences = Differences::new(&snapshot.image, roots, begin, PAGE_MAPPINGS);
    let mut page = Vec::new();
    let mut next_block = None;
    let mut looked_at: u64 = 0;
    while let Some(d) = next_difference(&mut differences, &params.pool, &devices).await? {
        if page.len() == limit || looked_at >= PAGE_MAPPINGS {
            next_block = Some(d.begin);
            break;
        }
        looked_at = looked_at.saturating_add(d.length);
        page.push(json!({
            "relation": d.relation.name(),
            "begin": d.begin,
            "length": d.length,
            "left_data_begin": d.left_data,
            "right_data_begin": d.right_data,
        }));
    }
    Ok(json!({
        "pool": params.pool,
        "snapshot": snapshot.serial,
        "left_id": params.left_id,
        "right_id": params.right_id,
        "differences": page,
        "next_block": next_block,
    }))
}

/// Says in the log now and then how far a file has come.
struct Progress<'a> {
    pool: &'a str,
    file: &'a str,
    done: u64,
    all: u64,
    said: Instant,
}

impl<'a> Progress<'a> {
    fn begin(pool: &'a str, file: &'a str, all: u64) -> Self {
        log::info!("pool '{pool}': writing file '{file}', {all} mappings");
        Progress {
            pool,
            file,
            done: 0,
            all,
            said: Instant::now(),
        }
    }

    fn say(&mut self) {
        if self.said.elapsed() >= PROGRESS {
            let Progress {
                pool,
                file,
                done,
                all,
                ..
            } = self;
            log::info!("pool '{pool}': file '{file}': {done} of {all} mappings");
            self.said = Instant::now();
        }
    }

    fn end(self, bytes: u64) -> Value {
        let Progress { pool, file, .. } = self;
        log::info!("pool '{pool}': file '{file}' is complete: {bytes} bytes");
        json!({ "file": file, "bytes": bytes })
    }
}

/// XML on its way to a file: collected in memory until there is enough for a piece.
struct ToFile<'a> {
    xml: XmlWriter<Vec<u8>>,
    file: NewFile,
    progress: Progress<'a>,
}

impl ToFile<'_> {
    async fn after(&mut self, written: io::Result<()>) -> Result<(), RpcError> {
        // Writing to memory does not fail.
        written.map_err(|error| RpcError::new(bdev::errno::Errno::EIO, error.to_string()))?;
        hand_over(self.xml.get_mut(), &mut self.file, PIECE_BYTES).await?;
        self.progress.say();
        Ok(())
    }
}

async fn hand_over(buffer: &mut Vec<u8>, file: &mut NewFile, at: usize) -> Result<(), RpcError> {
    match buffer.len() >= at {
        true => file.write(std::mem::take(buffer)).await,
        false => Ok(()),
    }
}

impl Sink for ToFile<'_> {
    type Error = RpcError;

    async fn begin(&mut self, pool: &PoolInfo) -> Result<(), RpcError> {
        let written = self.xml.begin(pool).await;
        self.after(written).await
    }

    async fn shared_begin(&mut self, name: &str) -> Result<(), RpcError> {
        let written = self.xml.shared_begin(name).await;
        self.after(written).await
    }

    async fn shared_end(&mut self) -> Result<(), RpcError> {
        let written = self.xml.shared_end().await;
        self.after(written).await
    }

    async fn device_begin(&mut self, id: u32, details: &Details) -> Result<(), RpcError> {
        let written = self.xml.device_begin(id, details).await;
        self.after(written).await
    }

    async fn run(&mut self, run: &Run) -> Result<(), RpcError> {
        self.progress.done += run.length;
        let written = self.xml.run(run).await;
        self.after(written).await
    }

    async fn shared(&mut self, name: &str) -> Result<(), RpcError> {
        let written = self.xml.shared(name).await;
        self.after(written).await
    }

    async fn device_end(&mut self) -> Result<(), RpcError> {
        let written = self.xml.device_end().await;
        self.after(written).await
    }

    async fn end(&mut self) -> Result<(), RpcError> {
        let written = self.xml.end().await;
        self.after(written).await
    }
}

async fn dump_file(snapshot: &Snapshot, sb: &Superblock, params: &ThinDump, file: &str) -> Answer {
    let pool = &params.pool;
    let mut all: u64 = 0;
    {
        let devices = snapshot.image.devices(sb).await;
        let devices = devices.map_err(|error| refuse(pool, error))?;
        for device in devices {
            if params.ids.is_empty() || params.ids.iter().any(|id| u64::from(*id) == device.id) {
                all = all.saturating_add(device.details.mapped_blocks);
            }
        }
    }
    let shared_once = params.format == Some(DumpFormat::XmlShared);
    let layout = if shared_once { Layout::V1 } else { Layout::V0 };
    let mut sink = ToFile {
        xml: XmlWriter::new(Vec::new(), layout),
        file: NewFile::create(file)?,
        progress: Progress::begin(pool, file, all),
    };
    let options = DumpOptions {
        view: View::SnapshotAt(snapshot.block),
        devices: params.ids.clone(),
        skip_mappings: false,
        shared_once,
    };
    let dumped = dump(&snapshot.image, &options, &mut sink).await;
    dumped.map_err(|error| match error {
        DumpError::Metadata(error) => refuse(pool, error),
        DumpError::Damaged { device, lost } => damaged(pool, device, lost),
        DumpError::Sink(error) => error,
    })?;
    let ToFile {
        mut xml,
        mut file,
        progress,
    } = sink;
    hand_over(xml.get_mut(), &mut file, 1).await?;
    Ok(progress.end(file.end().await?))
}

async fn delta_file(
    snapshot: &Snapshot,
    sb: &Superblock,
    params: &ThinDelta,
    devices: [Device; 2],
    path: &str,
) -> Answer {
    let in_memory = |error: io::Error| RpcError::new(bdev::errno::Errno::EIO, error.to_string());
    let roots = devices.map(|device| device.root);
    let mut differences = Differences::new(&snapshot.image, roots, 0, u64::MAX);
    let mut xml = DeltaXmlWriter::new(Vec::new(), params.verbose);
    let mut file = NewFile::create(path)?;
    let mut progress = Progress::begin(
        &params.pool,
        path,
        devices
            .iter()
            .fold(0, |all: u64, device| all.max(device.details.mapped_blocks)),
    );
    xml.begin(&pool_info(sb), params.left_id, params.right_id)
        .map_err(in_memory)?;
    while let Some(d) = next_difference(&mut differences, &params.pool, &devices).await? {
        xml.difference(&d).map_err(in_memory)?;
        hand_over(xml.get_mut(), &mut file, PIECE_BYTES).await?;
        progress.done = progress.done.saturating_add(d.length);
        progress.say();
    }
    xml.end().map_err(in_memory)?;
    hand_over(xml.get_mut(), &mut file, 1).await?;
    Ok(progress.end(file.end().await?))
}
