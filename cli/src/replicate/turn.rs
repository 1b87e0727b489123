//! `replicate promote`, `demote` and `forget`: who is the source.

use super::head::Head;
use super::report::{self, Report, Reporter};
use super::state::{Purpose, Role, Snapshot, State};
use crate::Global;
use crate::backup::source::{BLOCK_BYTES, Pool};
use crate::dm::Server;
use crate::error::CliError;
use clap::Args;

/// Which replication.
#[derive(Args)]
pub struct Which {
    /// The pool
    pool: String,
    /// The replication, as spdk-dm replicate status shows it or the beginning of that (default: the pool's only one)
    #[arg(long)]
    chain: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `replicate promote`.
#[derive(Args)]
pub struct PromoteArgs {
    #[command(flatten)]
    which: Which,
    /// Id of the new thin device (default: a free one)
    #[arg(long)]
    id: Option<u32>,
    /// Activate it as this bdev, with the size it had at the source
    #[arg(long, value_name = "NAME")]
    bdev_name: Option<String>,
}

/// Arguments of `replicate demote`.
#[derive(Args)]
pub struct DemoteArgs {
    #[command(flatten)]
    which: Which,
    /// Throw away what was written since the last snapshot that both sides have
    #[arg(long)]
    discard_diverged: bool,
}

/// Arguments of `replicate forget`.
#[derive(Args)]
pub struct ForgetArgs {
    #[command(flatten)]
    which: Which,
    /// Also if this side has replicas, which go
    #[arg(long)]
    delete_replicas: bool,
}

impl Which {
    /// Finds it, and does something with it.
    fn with(
        &self,
        role: Option<Role>,
        work: impl FnOnce(Head, &mut Pool<'_>) -> Result<(), CliError>,
    ) -> Result<bool, CliError> {
        let mut client = self.server.connect()?;
        let mut pool = Pool::new(&mut client, &self.pool);
        let socket = self.server.socket();
        let fits = |state: &State| {
            let begin = self.chain.as_deref().unwrap_or("");
            state.chain.starts_with(begin) && role.is_none_or(|role| state.role == role)
        };
        let seen = super::head::look(&mut pool, socket)?;
        let mut found: Vec<&State> = seen.states.iter().chain(&seen.busy).collect();
        found.retain(|state| fits(state));
        let role = role.map_or_else(|| "replication".to_owned(), |role| role.to_string());
        let chain = match found[..] {
            [one] => one.chain.clone(),
            [] => {
                return Err(CliError::Usage(format!(
                    "pool '{}' has no such {role}; see spdk-dm replicate status",
                    self.pool
                )));
            }
            _ => {
                return Err(CliError::Usage(format!(
                    "pool '{}' has more than one such {role}; choose one by --chain, see spdk-dm replicate status",
                    self.pool
                )));
            }
        };
        let wanted = |state: &State| state.chain == chain && fits(state);
        let head = Head::find(&mut pool, socket, wanted)?.ok_or_else(|| {
            CliError::Usage(format!("replication {chain} has changed; try again"))
        })?;
        work(head, &mut pool)?;
        Ok(true)
    }

    fn report(&self, state: &State) {
        Reporter::new(self.server.socket(), Report::of(&self.pool, state)).write();
    }
}

impl PromoteArgs {
    /// Prints what it has made.
    pub fn run(self, _: Global) -> Result<bool, CliError> {
        self.which.with(Some(Role::Replica), |mut head, pool| {
            let done = promote(&mut head, pool, self.id.map(u64::from));
            self.which.report(&head.state);
            let closed = head.close(pool);
            let made = done?;
            closed?;
            if let Some(bdev) = &self.bdev_name {
                pool.activate(made.id, bdev, made.size_bytes / 512)?;
            }
            println!(
                "thin device {} of pool '{}' with {} sectors is snapshot {}",
                made.id,
                self.which.pool,
                made.size_bytes / 512,
                made.number
            );
            Ok(())
        })
    }
}

fn promote(head: &mut Head, pool: &mut Pool<'_>, id: Option<u64>) -> Result<Snapshot, CliError> {
    let newest = head.state.snapshots.last().cloned().ok_or_else(|| {
        CliError::Usage(format!(
            "replication {} has no replica yet",
            head.state.chain
        ))
    })?;
    let devices = pool.devices()?;
    if devices.iter().any(|device| Some(device.id) == id) {
        return Err(CliError::Usage(format!(
            "pool '{}' has a thin device {} already; choose another id",
            pool.name,
            id.unwrap_or_default()
        )));
    }
    let origin = newest.id;
    let taking = Head::taking(pool, Purpose::Promote, id, newest)?;
    let made = head.take(pool, origin, taking)?;
    if let Some(work) = head.state.work.take() {
        head.delete_device(pool, work.id)?;
        head.save()?;
    }
    Ok(made)
}

impl DemoteArgs {
    /// Prints nothing.
    pub fn run(self, _: Global) -> Result<bool, CliError> {
        self.which.with(Some(Role::Source), |mut head, pool| {
            let done = demote(&mut head, pool, self.discard_diverged);
            self.which.report(&head.state);
            let closed = head.close(pool);
            done.and(closed)
        })
    }
}

fn demote(head: &mut Head, pool: &mut Pool<'_>, discard: bool) -> Result<(), CliError> {
    let common = head.state.newest_common().cloned().ok_or_else(|| {
        CliError::Usage(format!(
            "replication {} has no snapshot that both sides have, so this side cannot follow the other; to end it: \
             spdk-dm replicate forget",
            head.state.chain
        ))
    })?;
    let device = head.state.device.map(|id| pool.device(id)).transpose()?;
    if let Some(device) = &device {
        if let Some(bdev) = &device.bdev {
            return Err(CliError::Usage(format!(
                "thin device {} of pool '{}' is in use as bdev '{bdev}'; thin_deactivate it first",
                device.id, pool.name
            )));
        }
        let changed = pool.extents(device.id, Some(common.id), u64::MAX)?;
        let blocks: u64 = changed.iter().map(|extent| extent.count).sum();
        if blocks > 0 && !discard {
            return Err(CliError::Usage(format!(
                "thin device {} of pool '{}' has up to {} KiB that the other side has never got (since snapshot {}); \
                 --discard-diverged throws them away",
                device.id,
                pool.name,
                blocks * BLOCK_BYTES / 1024,
                common.number
            )));
        }
    }
    // Before this side is a replica: one that the other side never had must not be taken for one of it.
    head.delete_snapshots(pool, |snapshot| snapshot.common)?;
    if let Some(left) = head.state.snapshots.iter().find(|left| !left.common) {
        return Err(CliError::Usage(format!(
            "snapshot {} is thin device {} of pool '{}', which cannot be deleted now; is it active?",
            left.number, left.id, pool.name
        )));
    }
    head.state.role = Role::Replica;
    head.state.device = None;
    head.state.discard = device.map(|device| device.id);
    head.save()?;
    if let Some(id) = head.state.discard {
        head.delete_device(pool, id)?;
        head.state.discard = None;
        head.save()?;
    }
    Ok(())
}

impl ForgetArgs {
    /// Prints nothing.
    pub fn run(self, _: Global) -> Result<bool, CliError> {
        self.which.with(None, |mut head, pool| {
            let state = head.state.clone();
            let has_replicas = state.role == Role::Replica && !state.snapshots.is_empty();
            if has_replicas && !self.delete_replicas {
                let refused = CliError::Usage(format!(
                    "replication {} has {} replicas here; --delete-replicas deletes them, too",
                    state.chain,
                    state.snapshots.len()
                ));
                head.close(pool)?;
                return Err(refused);
            }
            let deleted = forget(&mut head, pool);
            match deleted {
                Ok(()) => head.delete(pool)?,
                Err(error) => {
                    head.close(pool)?;
                    return Err(error);
                }
            }
            report::remove(self.which.server.socket(), &state.chain);
            Ok(())
        })
    }
}

fn forget(head: &mut Head, pool: &mut Pool<'_>) -> Result<(), CliError> {
    if let Some(work) = head.state.work.clone() {
        head.delete_device(pool, work.id)?;
    }
    head.delete_snapshots(pool, |_| false)?;
    match head.state.snapshots.first() {
        None => Ok(()),
        Some(left) => Err(CliError::Usage(format!(
            "snapshot {} is thin device {} of pool '{}', which cannot be deleted now; is it active?",
            left.number, left.id, pool.name
        ))),
    }
}
