//! `replicate run`: the source's side.

use super::Failure;
use super::head::{Head, bdev_name};
use super::link::{Known, Link};
use super::report::{Activity, Report, Reporter};
use super::state::{Purpose, Role, Snapshot};
use super::wire::{Message, Secret};
use crate::Global;
use crate::backup::copy::{CopyError, Limit, What, copy};
use crate::backup::header::{Header, Source, Thin};
use crate::backup::source::{BLOCK_BYTES, Extent, Open, Pool};
use crate::backup::stream::Writer;
use crate::backup::{new_uuid, now_unix_s};
use crate::dm::Server;
use crate::error::CliError;
use crate::progress::Progress;
use clap::Args;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// After a failure the next attempt is made after this time, then twice that, and so on.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Arguments of `replicate run`.
#[derive(Args)]
pub struct RunArgs {
    /// The pool
    pool: String,
    /// Id of the thin device
    id: u32,
    /// Where spdk-dm replicate receive listens: HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// From the beginning of one snapshot to that of the next: seconds, or with s, m or h
    #[arg(long, default_value = "60s", value_parser = interval)]
    interval: Duration,
    /// Replicate once; do not try again when it fails
    #[arg(long)]
    once: bool,
    /// Send all of it if there is no snapshot any more that both sides have
    #[arg(long)]
    full: bool,
    /// A file with a secret that both sides know
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Read at most so many MiB per second
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    limit_mib: Option<u64>,
    /// Size of the device, if it is not active
    #[arg(long, value_name = "MIB")]
    size_mib: Option<u64>,
    #[command(flatten)]
    server: Server,
}

fn interval(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(digits) => (digits, text.chars().last()),
        None => (text, None),
    };
    let per = match unit {
        Some('m') => 60,
        Some('h') => 3600,
        _ => 1,
    };
    let seconds = digits.parse::<u64>().ok();
    let seconds = seconds.and_then(|number| number.checked_mul(per));
    let seconds = seconds.filter(|seconds| (1..=365 * 86_400).contains(seconds));
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| "a time from 1s to a year, e.g. 30s, 5m, 1h".into())
}

/// What is to be sent.
struct Job {
    snapshot: Snapshot,
    parent: Option<Snapshot>,
    next_block: u64,
}

impl RunArgs {
    /// Replicates; ends only after an error that will not go by itself, or with --once.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        let secret = self.token_file.as_deref().map(Secret::read).transpose()?;
        let mut reporter = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let failure = match self.replicate(secret.as_ref(), &mut reporter, global) {
                Ok(()) if self.once => return Ok(true),
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    std::thread::sleep(self.interval.saturating_sub(began.elapsed()));
                    continue;
                }
                Err(failure) => failure,
            };
            let ends = failure.is_final || self.once;
            if let Some(reporter) = &mut reporter {
                let report = &mut reporter.report;
                report.failures += 1;
                report.last_error = Some(failure.error.to_string());
                report.activity = match ends {
                    true => Activity::Stopped,
                    false => Activity::Retrying,
                };
                reporter.write();
            }
            if ends {
                return Err(failure.error);
            }
            if !global.quiet {
                let seconds = pause.as_secs();
                eprintln!("spdk-dm: {}; again in {seconds} s", failure.error);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Has the replica be the device as it is now, or finishes what was begun.
    fn replicate(
        &self,
        secret: Option<&Secret>,
        reporter: &mut Option<Reporter>,
        global: Global,
    ) -> Result<(), Failure> {
        let mut client = self.server.connect()?;
        let mut pool = Pool::new(&mut client, &self.pool);
        let device = pool.device(u64::from(self.id))?;
        let wanted = |state: &super::state::State| {
            (state.role, state.device) == (Role::Source, Some(u64::from(self.id)))
        };
        let socket = self.server.socket();
        let mut head = match Head::find(&mut pool, socket, wanted)? {
            Some(head) => head,
            None => Head::create(&mut pool, socket, None, Role::Source, Some(device.id))?,
        };
        let report = Report::of(&self.pool, &head.state);
        let reporter = reporter.get_or_insert_with(|| Reporter::new(socket, report));
        reporter.report.chain = head.state.chain.clone();
        reporter.report.peer = Some(self.to.clone());
        reporter.report.know(&head.state);
        let done = self.with_head(&mut head, &mut pool, secret, reporter, global);
        reporter.report.know(&head.state);
        let closed = head.close(&mut pool);
        done?;
        closed?;
        reporter.report.activity = Activity::Idle;
        reporter.report.to_go_bytes = 0;
        reporter.report.transfers += 1;
        reporter.report.last_error = None;
        reporter.write();
        Ok(())
    }

    fn with_head(
        &self,
        head: &mut Head,
        pool: &mut Pool<'_>,
        secret: Option<&Secret>,
        reporter: &mut Reporter,
        global: Global,
    ) -> Result<(), Failure> {
        let before = reporter.report.sent_bytes;
        let sent_bytes = Arc::new(AtomicU64::new(before));
        let mut link = Link::connect(&self.to, secret, &sent_bytes)?;
        let known = link.query(&head.state.chain)?;
        let job = self.decide(head, pool, &known)?;
        let parent = job.parent.as_ref().map(|parent| parent.id);
        let extents = pool.extents(job.snapshot.id, parent, job.snapshot.size_bytes)?;
        reporter.report.activity = Activity::Sending;
        let sent = self.send(link, head, pool, &job, &extents, reporter, global);
        reporter.report.sent_bytes = sent_bytes.load(Ordering::Relaxed);
        sent?;
        // From now on this is what the next changes are counted from.
        for snapshot in &mut head.state.snapshots {
            snapshot.common |= snapshot.uuid == job.snapshot.uuid;
        }
        head.state.last_success_unix_s = Some(now_unix_s());
        head.save()?;
        head.delete_snapshots(pool, |snapshot| snapshot.uuid == job.snapshot.uuid)?;
        Ok(())
    }

    /// What to send, given what the receiver has. Takes a snapshot, unless one has partly been sent.
    fn decide(&self, head: &mut Head, pool: &mut Pool<'_>, known: &Known) -> Result<Job, Failure> {
        if known.role == Some(Role::Source) {
            return Err(Failure::last(format!(
                "{}: the replica was promoted, so it takes no changes; to have this side follow it, see spdk-dm \
                 replicate demote",
                self.to
            )));
        }
        for snapshot in &mut head.state.snapshots {
            snapshot.common |= known.snapshots.contains(&snapshot.uuid);
        }
        if let Some(part) = &known.receiving {
            let parent = part.parent.as_ref().map(|uuid| head.state.snapshot(uuid));
            if let (Some(snapshot), None | Some(Some(_))) =
                (head.state.snapshot(&part.uuid), parent)
            {
                return Ok(Job {
                    snapshot: snapshot.clone(),
                    parent: parent.flatten().cloned(),
                    next_block: part.next_block,
                });
            }
        }
        let known = |snapshot: &Snapshot| known.snapshots.contains(&snapshot.uuid);
        let parent = head
            .state
            .snapshots
            .iter()
            .rev()
            .find(|s| known(s))
            .cloned();
        if parent.is_none() && !self.full && head.state.newest_common().is_some() {
            return Err(Failure::last(format!(
                "{}: there is no snapshot any more that both sides have; --full sends all of the device again",
                self.to
            )));
        }
        // Nobody has any use for one that was not sent.
        let keep = parent.as_ref().map(|parent| parent.uuid.clone());
        head.delete_snapshots(pool, |snapshot| {
            snapshot.common || Some(&snapshot.uuid) == keep.as_ref()
        })?;
        let device = pool.device(u64::from(self.id))?;
        let given = self.size_mib.map(|mib| mib * 2048);
        let last = parent.as_ref().map(|parent| parent.size_bytes / 512);
        let size_sectors = device.size_sectors.or(given).or(last).ok_or_else(|| {
            Failure::last(format!(
                "thin device {} of pool '{}' is not active, so its size is not known: give --size-mib",
                self.id, self.pool
            ))
        })?;
        let like = Snapshot {
            uuid: new_uuid()?,
            number: head.state.next_number(),
            taken_unix_s: now_unix_s(),
            size_bytes: size_sectors * 512,
            id: 0,
            creation_time: 0,
            common: false,
        };
        let taking = Head::taking(pool, Purpose::Replicate, None, like)?;
        let snapshot = head.take(pool, device.id, taking)?;
        Ok(Job {
            snapshot,
            parent,
            next_block: 0,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "all that a transfer is made of")]
    fn send(
        &self,
        mut link: Link,
        head: &Head,
        pool: &mut Pool<'_>,
        job: &Job,
        extents: &[Extent],
        reporter: &mut Reporter,
        global: Global,
    ) -> Result<(), Failure> {
        let snapshot = &job.snapshot;
        let open = Open {
            id: snapshot.id,
            size_sectors: snapshot.size_bytes / 512,
            ..Open::default()
        };
        let bdev = bdev_name(&self.pool, snapshot.id);
        link.say(&Message::Begin {
            chain: head.state.chain.clone(),
            from_block: job.next_block,
            number: snapshot.number,
        })?;
        let header = Header {
            uuid: snapshot.uuid.clone(),
            parent: job.parent.as_ref().map(|parent| parent.uuid.clone()),
            source: Source::Thin(Thin {
                pool: self.pool.clone(),
                device_id: self.id,
                snapshot_id: snapshot.id as u32,
                snapshot_time: snapshot.creation_time,
            }),
            size_bytes: snapshot.size_bytes,
            block_bytes: BLOCK_BYTES,
            began_unix_s: snapshot.taken_unix_s,
        };
        let what = What {
            extents,
            block_bytes: BLOCK_BYTES,
            next_block: job.next_block,
            size_bytes: snapshot.size_bytes,
        };
        let mut to_go = what.blocks();
        let mut access = pool.open(open, &bdev, self.server.socket())?;
        let (out, listener) = link.split();
        let progress = Progress::new(global.quiet, "replicating");
        progress.expect(to_go);
        let limit = Limit::new(self.limit_mib);
        let copied = Writer::begin(out, &header)
            .map_err(CopyError::Write)
            .and_then(|writer| {
                copy(&mut access.data, writer, &what, &limit, &mut |blocks| {
                    progress.advance(blocks);
                    to_go = to_go.saturating_sub(blocks);
                    reporter.report.to_go_bytes = to_go * BLOCK_BYTES;
                    reporter.write_sometimes();
                    match listener.has_ended() {
                        true => Err(io::ErrorKind::ConnectionAborted.into()),
                        false => Ok(()),
                    }
                })
            });
        progress.finish();
        let heard = listener.end(copied.is_ok());
        let sent = match (copied, heard) {
            (Ok(_), Ok(uuid)) if uuid == snapshot.uuid => Ok(()),
            (Ok(_), Ok(_)) => Err(Failure::again(format!(
                "{}: has finished something else than it was sent",
                self.to
            ))),
            (Err(CopyError::Read(source)), _) => Err(access.failed(source).into()),
            // What the receiver says of it tells more.
            (_, Err(failure)) => Err(failure),
            (Err(CopyError::Write(source)), Ok(_)) => {
                Err(Failure::again(format!("{}: {source}", self.to)))
            }
        };
        let closed = pool.close(access);
        sent?;
        Ok(closed?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times are taken as people write them, and nothing else is.
    #[test]
    fn intervals() {
        let seconds = |text| interval(text).ok().map(|time| time.as_secs());
        assert_eq!(seconds("90"), Some(90));
        assert_eq!(seconds("30s"), Some(30));
        assert_eq!(seconds("5m"), Some(300));
        assert_eq!(seconds("2h"), Some(7200));
        for wrong in [
            "",
            "0",
            "s",
            "1d",
            "-1s",
            "99999999h",
            "18446744073709551615m",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
