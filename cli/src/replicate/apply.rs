//! The receiver's work: changes go into the work device, and when all have come a snapshot of it is the replica.

use super::Failure;
use super::head::{Head, bdev_name};
use super::report::{Activity, Report, Reporter};
use super::state::{Purpose, Receiving, Role, Snapshot, State, Work};
use super::wire::{Message, Partly, is_uuid};
use crate::backup::now_unix_s;
use crate::backup::sink::{Sink, apply};
use crate::backup::source::{Access, BLOCK_BYTES, Open, Pool};
use crate::backup::stream::{Header, Reader, StreamError};
use crate::dm::Server;
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// What has come is brought to the disk after so much or so long.
const COMMIT_BYTES: u64 = 32 << 20;
const COMMIT_PERIOD: Duration = Duration::from_secs(1);

/// The largest device there can be a replica of: a bdev of it takes 32 MiB of the target's memory.
const MAX_SIZE_BYTES: u64 = 256 << 40;

/// Every bdev's blocks divide it.
const ALIGNMENT_BYTES: u64 = 4096;

/// What the source is about to send.
pub struct Begin {
    /// The replication.
    pub chain: String,
    /// What is before this block is there.
    pub from_block: u64,
    /// Of the snapshot.
    pub number: u64,
}

/// Receives into a pool.
pub struct Receiver {
    /// Its name.
    pub pool: String,
    /// Its target.
    pub server: Server,
    /// So many snapshots stay.
    pub keep: usize,
}

/// What goes wrong with what comes.
pub fn bad(error: StreamError) -> Failure {
    match error {
        StreamError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Failure::again("nothing has come for too long".into())
        }
        StreamError::Incomplete { .. } => Failure::again("the connection was cut".into()),
        error => Failure::again(error.to_string()),
    }
}

impl Receiver {
    /// What is known of a replication.
    pub fn known(&self, chain: &str) -> Result<Message, Failure> {
        let mut client = self.server.connect()?;
        let mut pool = Pool::new(&mut client, &self.pool);
        let found = Head::find(&mut pool, self.server.socket(), |state| {
            state.chain == chain
        })?;
        let Some(head) = found else {
            return Ok(Message::Known {
                role: None,
                snapshots: Vec::new(),
                receiving: None,
            });
        };
        let state = head.state.clone();
        head.close(&mut pool)?;
        let snapshots = state.snapshots.into_iter();
        Ok(Message::Known {
            role: Some(state.role),
            snapshots: snapshots.map(|snapshot| snapshot.uuid).collect(),
            receiving: state.receiving.map(|part| Partly {
                uuid: part.uuid,
                parent: part.parent,
                next_block: part.next_block,
            }),
        })
    }

    /// Receives changes and makes the replica of them. `reached` and `finished` tell the source.
    pub fn receive(
        &self,
        begin: &Begin,
        input: &mut impl Read,
        peer: &str,
        reached: &dyn Fn(u64) -> Result<(), Failure>,
        finished: &dyn Fn(String) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let reader = Reader::begin(input).map_err(bad)?;
        let header = reader.header().clone();
        let names = header.parent.iter().chain([&header.uuid]);
        let sane = header.block_bytes == BLOCK_BYTES
            && header.size_bytes.is_multiple_of(512)
            && (512..=MAX_SIZE_BYTES).contains(&header.size_bytes)
            && names.into_iter().all(|uuid| is_uuid(uuid));
        if !sane {
            return Err(Failure::last("changes of an impossible device".into()));
        }
        let mut client = self.server.connect()?;
        let mut pool = Pool::new(&mut client, &self.pool);
        let socket = self.server.socket();
        let wanted = |state: &State| state.chain == begin.chain;
        let mut head = match Head::find(&mut pool, socket, wanted)? {
            Some(head) => head,
            None if header.parent.is_none() => {
                let chain = Some(begin.chain.clone());
                Head::create(&mut pool, socket, chain, Role::Replica, None)?
            }
            None => {
                return Err(Failure::again(
                    "nothing is known of that replication".into(),
                ));
            }
        };
        let mut reporter = Reporter::new(socket, Report::of(&self.pool, &head.state));
        reporter.report.peer = Some(peer.to_owned());
        reporter.report.activity = Activity::Receiving;
        reporter.write();
        let come = self.fill(&mut head, &mut pool, begin, reader, reached);
        let done = come.and_then(|()| {
            self.publish(&mut head, &mut pool, begin, &header)?;
            finished(header.uuid.clone())?;
            let newest = head.state.snapshots.len().saturating_sub(self.keep);
            let old: Vec<String> = head.state.snapshots[..newest]
                .iter()
                .map(|snapshot| snapshot.uuid.clone())
                .collect();
            head.delete_snapshots(&mut pool, |snapshot| !old.contains(&snapshot.uuid))?;
            Ok(())
        });
        reporter.report.know(&head.state);
        reporter.report.activity = Activity::Idle;
        match &done {
            Ok(()) => reporter.report.transfers += 1,
            Err(failure) => {
                reporter.report.activity = Activity::Retrying;
                reporter.report.failures += 1;
                reporter.report.last_error = Some(failure.error.to_string());
            }
        }
        reporter.write();
        let closed = head.close(&mut pool);
        done?;
        Ok(closed?)
    }

    /// Has the work device hold what the source has.
    fn fill(
        &self,
        head: &mut Head,
        pool: &mut Pool<'_>,
        begin: &Begin,
        mut reader: Reader<impl Read>,
        reached: &dyn Fn(u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let header = reader.header().clone();
        let work = prepare(head, pool, begin, &header)?;
        let size_bytes = header.size_bytes.next_multiple_of(ALIGNMENT_BYTES);
        let open = Open {
            id: work.id,
            size_sectors: size_bytes.max(work.size_bytes) / 512,
            writable: true,
            ..Open::default()
        };
        let bdev = bdev_name(&self.pool, work.id);
        let mut access = pool.open(open, &bdev, self.server.socket())?;
        let written = (|| {
            if work.size_bytes > size_bytes {
                // The device has become smaller.
                let beyond = access.data.zero(size_bytes, work.size_bytes - size_bytes);
                beyond.map_err(|source| access.failed(source))?;
            }
            write(head, &mut access, &mut reader, size_bytes, reached)
        })();
        let closed = pool.close(access);
        written?;
        Ok(closed?)
    }

    /// Makes the work device's contents the replica, in one step.
    fn publish(
        &self,
        head: &mut Head,
        pool: &mut Pool<'_>,
        begin: &Begin,
        header: &Header,
    ) -> Result<(), Failure> {
        let Some(work) = head.state.work.clone() else {
            return Err(Failure::again("the work device has gone".into()));
        };
        let like = Snapshot {
            uuid: header.uuid.clone(),
            number: begin.number,
            taken_unix_s: header.began_unix_s,
            size_bytes: header.size_bytes,
            id: 0,
            creation_time: 0,
            common: true,
        };
        let taking = Head::taking(pool, Purpose::Replicate, None, like)?;
        head.state.last_success_unix_s = Some(now_unix_s());
        head.take(pool, work.id, taking)?;
        Ok(())
    }
}

/// Sees to it that the work device is what the changes are to be applied to.
fn prepare(
    head: &mut Head,
    pool: &mut Pool<'_>,
    begin: &Begin,
    header: &Header,
) -> Result<Work, Failure> {
    if head.state.role != Role::Replica {
        return Err(Failure::last(
            "the replica was promoted, so it takes no changes".into(),
        ));
    }
    if head.state.snapshot(&header.uuid).is_some() {
        return Err(Failure::again("that snapshot is here already".into()));
    }
    let parent = match &header.parent {
        None => None,
        Some(uuid) => match head.state.snapshot(uuid) {
            Some(snapshot) => Some(snapshot.clone()),
            None => {
                let why = "the snapshot that the changes are counted from is not here";
                return Err(Failure::again(why.into()));
            }
        },
    };
    if begin.from_block > 0 {
        let part = head.state.receiving.as_ref();
        let same = part.is_some_and(|part| {
            (&part.uuid, &part.parent, part.next_block)
                == (&header.uuid, &header.parent, begin.from_block)
        });
        return match (same, head.state.work.clone()) {
            (true, Some(work)) => Ok(work),
            _ => Err(Failure::again("what came before is not here".into())),
        };
    }
    let holds = head
        .state
        .work
        .as_ref()
        .and_then(|work| work.holds.as_ref());
    if holds.is_none() || holds != header.parent.as_ref() {
        renew(head, pool, parent.as_ref())?;
    }
    let state = &mut head.state;
    let Some(work) = &mut state.work else {
        return Err(Failure::again("there is no work device".into()));
    };
    // From now on it is nothing anybody else could begin with.
    work.holds = None;
    let before = work.clone();
    work.size_bytes = work
        .size_bytes
        .max(header.size_bytes.next_multiple_of(ALIGNMENT_BYTES));
    state.receiving = Some(Receiving {
        uuid: header.uuid.clone(),
        parent: header.parent.clone(),
        next_block: 0,
    });
    head.save()?;
    Ok(before)
}

/// Makes the work device anew: as this replica, or empty.
fn renew(head: &mut Head, pool: &mut Pool<'_>, parent: Option<&Snapshot>) -> Result<(), Failure> {
    head.state.receiving = None;
    if let Some(old) = head.state.work.clone() {
        head.delete_device(pool, old.id)?;
    }
    let id = pool.free_id()?;
    head.state.work = Some(Work {
        id,
        creation_time: None,
        holds: None,
        size_bytes: parent.map_or(0, |parent| {
            parent.size_bytes.next_multiple_of(ALIGNMENT_BYTES)
        }),
    });
    head.save()?;
    let device = match parent {
        Some(parent) => pool.snapshot_as(id, parent.id)?,
        None => pool.create(id)?,
    };
    if let Some(work) = &mut head.state.work {
        work.creation_time = Some(device.creation_time);
    }
    Ok(())
}

/// Writes what comes, and notes how far it is on the disk.
fn write(
    head: &mut Head,
    access: &mut Access,
    reader: &mut Reader<impl Read>,
    size_bytes: u64,
    reached: &dyn Fn(u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut bytes, mut since) = (0, Instant::now());
    loop {
        let piece = reader.piece();
        let is_over = !matches!(piece, Ok(Some(_)));
        if let Ok(Some(piece)) = &piece {
            let written = apply(&mut access.data, piece, BLOCK_BYTES, size_bytes);
            written.map_err(|source| access.failed(source))?;
        }
        let good_bytes = reader.good_bytes();
        if is_over || good_bytes - bytes >= COMMIT_BYTES || since.elapsed() >= COMMIT_PERIOD {
            // Also of a stream that was cut: what has come need not come again.
            let synced = access.data.finish();
            synced.map_err(|source| access.failed(source))?;
            let next_block = reader.next_block();
            if let Some(part) = &mut head.state.receiving {
                part.next_block = part.next_block.max(next_block);
            }
            head.save()?;
            (bytes, since) = (good_bytes, Instant::now());
            if !is_over {
                reached(next_block)?;
            }
        }
        match piece {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(error) => return Err(bad(error)),
        }
    }
}
