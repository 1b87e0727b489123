//! The messages of ploop targets, as typed methods and in device-mapper's words.

use super::opening::is_blank;
use super::{OpenPloop, refuse, whose};
use crate::registry::Registry;
use bdev::errno::Errno;
use bdev::ploop::create::create;
use bdev::ploop::messages::Message;
use bdev::ploop::{Direction, Lower, Of, PloopError};
use futures::channel::oneshot;
use futures::future::{Either, select};
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::{AsMessage, PloopMerge, PloopTrackingGetNext};
use serde_json::json;
use spdk::executor::{sleep, spawn};
use std::rc::Rc;
use std::time::Duration;

/// Between two looks at whether a merge has begun.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl Registry {
    /// A typed method that is a message.
    pub async fn ploop_call(self: &Rc<Self>, params: &impl AsMessage) -> Answer {
        let (name, message) = params.message()?;
        self.ploop_message(name, message).await
    }

    /// `dm_message`.
    pub async fn ploop_dm_message(self: &Rc<Self>, name: &str, text: &str) -> Answer {
        let message: Message = text
            .parse()
            .map_err(|why| RpcError::invalid(format!("{}: {why}", whose(name))))?;
        self.ploop_message(name, message).await
    }

    /// Carries a message out.
    pub async fn ploop_message(self: &Rc<Self>, name: &str, message: Message) -> Answer {
        let refused = refuse(name);
        let done = |result: Result<(), PloopError>| match result {
            Ok(()) => Ok(json!(true)),
            Err(error) => Err(refuse(name)(error)),
        };
        let open = self.use_ploop(name)?;
        let ploop = &open.ploop;
        match message {
            Message::AddDelta(delta) => {
                let added = self.change(name, async |open| {
                    let source = self.attach_delta(open, name, &delta.bdev).await?;
                    let raw = delta.raw;
                    done(open.ploop.add_delta(Lower { source, raw }).await)
                });
                added.await
            }
            Message::Snapshot(new_top) => {
                let made =
                    self.change(name, async |open| self.snapshot(open, name, &new_top).await);
                made.await
            }
            Message::FlipUpperDeltas => {
                let flipped = self.change(name, async |open| {
                    done(open.ploop.flip_upper_deltas().await)
                });
                flipped.await
            }
            Message::NotifyMerged(level, direction) => {
                let noted = self.change(name, async |open| {
                    done(open.ploop.notify_merged(level, direction).await)
                });
                noted.await
            }
            Message::Resize(nr_sectors) => {
                let resized =
                    self.change(name, async |open| self.resize(open, name, nr_sectors).await);
                resized.await
            }
            Message::Merge => self.merge_deltas(name, None, true).await,
            Message::UpdateDeltaIndex(level, moved) => {
                let noted = self.change(name, async |open| {
                    done(open.ploop.update_delta_index(level, &moved).await)
                });
                noted.await
            }
            Message::TrackingStart => done(ploop.tracking_start()),
            Message::TrackingStop => done(ploop.tracking_stop()),
            Message::TrackingGetNext => {
                let found = ploop.tracking_get_next(1).await.map_err(refused)?;
                Ok(json!(found.first()))
            }
            Message::SetNoresume(noresume) => done(ploop.set_noresume(noresume)),
            Message::GetDeltaName(level) => {
                let status = ploop.status();
                let delta = status.lower.get(level).ok_or_else(|| {
                    let name = name.to_owned();
                    refused(PloopError::NoLevel { name, level })
                })?;
                Ok(json!(delta.name))
            }
            Message::PushBackupStart(uuid, clusters, timeout) => {
                let of = clusters.as_deref().map_or(Of::All, Of::Clusters);
                done(ploop.push_backup_start(uuid, of, timeout).await)
            }
            Message::PushBackupRead(uuid) => {
                let found = ploop.push_backup_read(&uuid, 1).map_err(refused)?;
                Ok(json!(found.first()))
            }
            Message::PushBackupWrite(uuid, cluster) => {
                let safe = cluster..cluster.saturating_add(1);
                done(ploop.push_backup_write(&uuid, safe))
            }
            Message::PushBackupGetUuid => {
                let uuid = ploop.push_backup_get_uuid().map_err(refused)?;
                Ok(json!(uuid.to_string()))
            }
            Message::PushBackupStop(uuid) => done(ploop.push_backup_stop(&uuid)),
        }
    }

    /// The present top image becomes a lower delta, the image on another bdev the top one; a bdev of zeroes
    /// is formatted.
    async fn snapshot(self: &Rc<Self>, open: &OpenPloop, name: &str, new_top: &str) -> Answer {
        let source = self.attach_delta(open, name, new_top).await?;
        let device = {
            let deltas = open.deltas.borrow();
            deltas.get(&source.base.0).map(|delta| delta.device.clone())
        };
        let unreadable = |errno: Errno| {
            RpcError::new(
                errno,
                format!("{}: bdev '{new_top}' cannot be read: {errno}", whose(name)),
            )
        };
        if let Some(device) = device
            && is_blank(&*device).await.map_err(unreadable)?
        {
            let status = open.ploop.status();
            let cluster = u32::try_from(status.cluster_sectors).unwrap_or(u32::MAX);
            let made = create(&*device, status.nr_sectors, cluster).await;
            made.map_err(|problem| {
                refuse(name)(PloopError::Image {
                    image: new_top.to_owned(),
                    problem,
                })
            })?;
        }
        let taken = open.ploop.snapshot(source).await;
        taken.map_err(refuse(name))?;
        Ok(json!(true))
    }

    async fn resize(&self, open: &OpenPloop, name: &str, nr_sectors: u64) -> Answer {
        let resized = open.ploop.resize(nr_sectors).await;
        resized.map_err(refuse(name))?;
        let ploops = self.ploops.borrow();
        let vbdev = ploops.get(name).and_then(|entry| entry.vbdev.as_ref());
        if let Some(vbdev) = vbdev
            && let Err(errno) = vbdev.resize(open.ploop.dev().nr_logical_blocks())
        {
            log::error!("bdev '{name}' keeps its size: {}", Errno(errno));
        }
        Ok(json!(true))
    }

    /// `ploop_merge`.
    pub async fn ploop_merge(self: &Rc<Self>, params: &PloopMerge) -> Answer {
        let lower = params.of_lower()?;
        self.merge_deltas(&params.name, lower, params.wait).await
    }

    /// Merges the newest lower delta up into the top one, or another into a neighbour. With `wait` this ends
    /// when the merge does, else when it has begun.
    async fn merge_deltas(
        self: &Rc<Self>,
        name: &str,
        lower: Option<(usize, Direction)>,
        wait: bool,
    ) -> Answer {
        let open = self.use_ploop(name)?;
        let (tx, mut ended) = oneshot::channel();
        let (registry, target) = (self.clone(), name.to_owned());
        spawn(async move {
            let merged = registry.change(&target, async |open| {
                let merged = match lower {
                    None => open.ploop.merge().await,
                    Some((level, direction)) => open.ploop.merge_lower(level, direction).await,
                };
                merged.map_err(refuse(&target))
            });
            // Nobody may be waiting any more; it has been notified all the same.
            let _ = tx.send(merged.await);
        });
        let result = loop {
            let timer = match wait {
                true => Either::Left(futures::future::pending()),
                false => Either::Right(sleep(LOOK_AGAIN)),
            };
            match select(&mut ended, timer).await {
                Either::Left((Ok(result), _)) => break result,
                Either::Left((Err(_), _)) => break Err(crate::life::busy(&whose(name))),
                Either::Right(_) if open.ploop.status().merge.is_some() => {
                    return Ok(json!({ "name": name, "ended": false }));
                }
                Either::Right(_) => {}
            }
        };
        result?;
        Ok(json!({ "name": name, "ended": true }))
    }

    /// `ploop_merge_cancel`.
    pub fn cancel_ploop_merge(&self, name: &str) -> Answer {
        match self.use_ploop(name)?.ploop.cancel_merge() {
            true => Ok(json!(true)),
            false => Err(RpcError::new(
                Errno::ENOENT,
                format!("{}: no merge is under way", whose(name)),
            )),
        }
    }

    /// `ploop_suspend`.
    pub async fn suspend_ploop(&self, name: &str) -> Answer {
        let open = self.use_ploop(name)?;
        open.ploop.suspend().await.map_err(refuse(name))?;
        Ok(json!(true))
    }

    /// `ploop_resume`.
    pub fn resume_ploop(&self, name: &str) -> Answer {
        self.use_ploop(name)?.ploop.resume().map_err(refuse(name))?;
        Ok(json!(true))
    }

    /// `ploop_tracking_get_next`.
    pub async fn ploop_tracked(&self, params: &PloopTrackingGetNext) -> Answer {
        let open = self.use_ploop(&params.name)?;
        let found = open.ploop.tracking_get_next(params.max()?).await;
        let found = found.map_err(refuse(&params.name))?;
        Ok(json!({ "clusters": found, "cluster_bytes": open.ploop.cluster_bytes() }))
    }
}
