//! Tracking and push backup, as those who use them see them.

use super::operator::Operator;
use super::world::World;
use crate::history::{History, Since};
use bdev::device::{ByteDevice, DataDevice};
use bdev::errno::Errno;
use bdev::ploop::image::survey::Survey;
use bdev::ploop::{Of, PloopError, Uuid};
use std::collections::BTreeMap;
use std::time::Duration;

/// A backup that is complete.
pub struct BackedUp {
    uuid: Uuid,
    /// How many there were.
    number: u64,
    /// What a restored disk holds, by cluster.
    contents: BTreeMap<u64, Vec<u64>>,
}

impl Operator {
    /// Copies the top image while it is written: at the end the copy is the image.
    pub async fn track(&self) {
        let world = &self.world;
        if self
            .judge("tracking_start", self.ploop.tracking_start())
            .is_none()
        {
            return;
        }
        if !matches!(self.ploop.tracking_start(), Err(PloopError::Exists { .. })) {
            world.fail("tracking was started twice".to_owned());
        }
        let mut copy = BTreeMap::new();
        if self.copy_image(&mut copy).await.is_some() {
            self.compare_copy(&copy).await;
        }
        self.judge("tracking_stop", self.ploop.tracking_stop());
    }

    /// Some of it while clients write, the rest while they pause. None: it cannot be read.
    async fn copy_image(&self, copy: &mut BTreeMap<u64, Vec<u8>>) -> Option<()> {
        let world = &self.world;
        for _ in 0..world.executor.below(20) {
            let max = 1 + world.executor.below(40) as usize;
            self.take_over(max, copy).await?;
            world.executor.delay().await;
        }
        if !world.pause().await {
            return None;
        }
        while self.take_over(usize::MAX, copy).await? {}
        Some(())
    }

    /// Copies what was written. False: nothing was. None: it cannot be read.
    async fn take_over(&self, max: usize, copy: &mut BTreeMap<u64, Vec<u8>>) -> Option<bool> {
        let written = match self.ploop.tracking_get_next(max).await {
            Err(PloopError::Nothing(Errno::EAGAIN)) => return Some(false),
            other => self.judge("tracking_get_next", other)?,
        };
        self.world
            .executor
            .trace(|| format!("written: {written:?}"));
        for cluster in written {
            let bytes = self.read_cluster(cluster).await?;
            copy.insert(cluster, bytes);
        }
        Some(true)
    }

    /// A cluster of the top image's file. None: it cannot be read.
    async fn read_cluster(&self, cluster: u64) -> Option<Vec<u8>> {
        let top = self.world.disk(self.world.chain.borrow().top);
        let sectors = self.world.shape.cluster_sectors();
        let first = cluster * sectors;
        let len = sectors.min(DataDevice::nr_sectors(&*top).saturating_sub(first));
        let mut bytes = vec![0; len as usize * 512];
        let read = top.read_bytes(first, &mut bytes).await;
        if read.is_err() && !self.world.faulty.get() {
            self.world
                .fail(format!("cluster {cluster} of the file cannot be read"));
        }
        read.ok().map(|()| bytes)
    }

    /// Header and BAT, and every cluster that is in use, are in the copy as they are in the image.
    async fn compare_copy(&self, copy: &BTreeMap<u64, Vec<u8>>) {
        let world = &self.world;
        let top = world.disk(world.chain.borrow().top);
        // What was copied before the disk lost it is not told again.
        if self.ploop.status().bat_unsure || world.losses.has_any() {
            return;
        }
        let Ok(survey) = Survey::of(&*top).await else {
            return;
        };
        let sectors = world.shape.cluster_sectors();
        let data = survey.header.data();
        let used = survey.space.used().flat_map(|place| {
            // In a v1 image it may be in two of the file.
            place / sectors..(place + sectors).div_ceil(sectors)
        });
        for cluster in (0..data.div_ceil(sectors)).chain(used) {
            let Some(now) = self.read_cluster(cluster).await else {
                return;
            };
            if copy.get(&cluster) != Some(&now) {
                return world.fail(format!("cluster {cluster} was written, and not told"));
            }
        }
        world.executor.count("copies by tracking");
    }

    /// Reads the device, or a part of it, as of one moment, while it is written.
    pub async fn back_up(&self) {
        let world = &self.world;
        let dice = &world.executor;
        let Ok(uuid) = "backup".parse::<Uuid>() else {
            return;
        };
        let nr = self.ploop.nr_clusters();
        let chosen = match dice.one_in(2) {
            true => None,
            false => {
                let first = dice.below(nr);
                Some(first..first + 1 + dice.below((nr - first).min(9)))
            }
        };
        let timeout = Duration::from_secs(1 + dice.below(3));
        let of = match &chosen {
            None => Of::All,
            Some(chosen) => Of::Clusters(std::slice::from_ref(chosen)),
        };
        let Some(picture) = self.begin_backup(&uuid, of, timeout).await else {
            return;
        };
        let part = chosen.clone().unwrap_or(0..nr);
        let read = self.read_backup(&uuid, part.collect()).await;
        if let Some(read) = read {
            check_picture(world, picture, &read, chosen.is_none());
        }
        self.judge("push_backup_stop", self.ploop.push_backup_stop(&uuid));
    }

    /// Begins a push backup. Some: what the device may hold at its moment.
    async fn begin_backup(&self, uuid: &Uuid, of: Of<'_>, timeout: Duration) -> Option<History> {
        let world = &self.world;
        let began = world.tick();
        world.history.borrow_mut().begin_read(began);
        let start = self
            .ploop
            .push_backup_start(uuid.clone(), of, Some(timeout));
        let started = start.await;
        let now = world.tick();
        let picture = world.history.borrow().snapshot(Since::Read(began), now);
        world.history.borrow_mut().end_read(began);
        self.judge("push_backup_start", started).map(|()| picture)
    }

    /// Backs up what was written since the last backup that was completed, if there was one: with what was backed
    /// up before, that is the device of one moment, whatever became of backups in between.
    pub async fn back_up_changes(&self) {
        let world = &self.world;
        let dice = &world.executor;
        let (number, since, mut contents) = match &*self.backed_up.borrow() {
            Some(last) => (
                last.number + 1,
                Some(last.uuid.clone()),
                last.contents.clone(),
            ),
            None => (1, None, BTreeMap::new()),
        };
        let attempt = world.tick();
        let Ok(uuid) = format!("{number}-{attempt}").parse::<Uuid>() else {
            return;
        };
        let timeout = Duration::from_secs(1 + dice.below(3));
        let of = Of::Recorded {
            since: since.as_ref(),
        };
        let Some(picture) = self.begin_backup(&uuid, of, timeout).await else {
            return;
        };
        let read = self.read_changes(&uuid).await;
        let is_whole = read.is_some();
        if let Some(read) = read {
            contents.extend(read);
            check_picture(world, picture, &contents, true);
        }
        // Somebody may not get to say that it is safe.
        if !is_whole || dice.one_in(4) {
            self.judge("push_backup_stop", self.ploop.push_backup_stop(&uuid));
            return;
        }
        match self.ploop.push_backup_complete(&uuid, dice.one_in(3)) {
            Ok(()) => {
                dice.count(match since {
                    Some(_) => "incremental backups",
                    None => "recorded full backups",
                });
                *self.backed_up.borrow_mut() = Some(BackedUp {
                    uuid,
                    number,
                    contents,
                });
            }
            Err(PloopError::Expired(_)) => {
                self.judge("push_backup_stop", self.ploop.push_backup_stop(&uuid));
            }
            Err(error) => world.fail(format!("push_backup_complete: {error}")),
        }
        if dice.one_in(8)
            && let Some(last) = self.backed_up.take()
            && let Err(error) = self.ploop.push_backup_forget(&last.uuid)
        {
            world.fail(format!("push_backup_forget: {error}"));
        }
    }

    /// What is left of a backup, holes without being read. None: not all could be.
    async fn read_changes(&self, uuid: &Uuid) -> Option<BTreeMap<u64, Vec<u64>>> {
        let (mut to_read, mut found) = (Vec::new(), BTreeMap::new());
        let mut next = Some(0);
        while let Some(first) = next {
            let max = 1 + self.world.executor.below(20) as usize;
            let page = match self.ploop.push_backup_left(uuid, first, max).await {
                Err(PloopError::Expired(_)) => return None,
                other => self.judge("push_backup_left", other)?,
            };
            next = page.1;
            for left in page.0 {
                match left.holes {
                    false => to_read.extend(left.clusters),
                    true => {
                        let zeroes = vec![0; self.world.shape.per_cluster as usize];
                        found.extend(
                            left.clusters
                                .clone()
                                .map(|cluster| (cluster, zeroes.clone())),
                        );
                        match self.ploop.push_backup_write(uuid, left.clusters) {
                            Err(PloopError::Expired(_)) => return None,
                            other => self.judge("push_backup_write", other)?,
                        }
                    }
                }
            }
        }
        found.extend(self.read_backup(uuid, to_read).await?);
        Some(found)
    }

    /// What was read, by cluster. None: not all could be.
    async fn read_backup(
        &self,
        uuid: &Uuid,
        mut left: Vec<u64>,
    ) -> Option<BTreeMap<u64, Vec<u64>>> {
        let world = &self.world;
        let dice = &world.executor;
        let per = world.shape.per_cluster;
        let mut read = BTreeMap::new();
        while !left.is_empty() && !world.stopping.get() {
            let wanted = match self
                .ploop
                .push_backup_read(uuid, 1 + dice.below(4) as usize)
            {
                Ok(wanted) => wanted,
                Err(PloopError::Nothing(_)) => {
                    vec![left.swap_remove(dice.below(left.len() as u64) as usize)]
                }
                Err(PloopError::Expired(_)) => {
                    dice.count("backups expired");
                    return None;
                }
                Err(error) => {
                    world.fail(format!("push_backup_read: {error}"));
                    return None;
                }
            };
            for cluster in wanted {
                left.retain(|other| *other != cluster);
                // A reader that is too slow.
                if dice.one_in(60) {
                    dice.pass(Duration::from_millis(dice.below(6000))).await;
                }
                let answer =
                    self.client
                        .submit(bdev::target::IoKind::Read, cluster * per, per, Vec::new());
                let (result, found) = answer.await;
                if result.is_err() {
                    if !world.faulty.get() {
                        world.fail(format!("cluster {cluster} cannot be backed up"));
                    }
                    return None;
                }
                match self.ploop.push_backup_write(uuid, cluster..cluster + 1) {
                    Ok(()) => {}
                    Err(PloopError::Expired(_)) => {
                        dice.count("backups expired");
                        return None;
                    }
                    Err(error) => {
                        world.fail(format!("push_backup_write: {error}"));
                        return None;
                    }
                }
                if read.insert(cluster, found).is_some() {
                    world.fail(format!("cluster {cluster} was asked for twice"));
                }
            }
        }
        left.is_empty().then_some(read)
    }
}

/// The backup is the device of one moment.
fn check_picture(
    world: &World,
    mut picture: History,
    read: &BTreeMap<u64, Vec<u64>>,
    is_whole: bool,
) {
    // What was answered before the backup began may be lost since; and what was lost since an earlier backup
    // was not written to be in this one.
    if world.losses.has_any() {
        return;
    }
    let now = world.tick();
    let per = world.shape.per_cluster;
    for (cluster, found) in read {
        if let Err(wrong) = picture.check(cluster * per, found, Since::Read(now), now) {
            return world.fail(format!("backup: {wrong}"));
        }
    }
    if is_whole {
        let all: Vec<u64> = read.values().flatten().copied().collect();
        if let Err(wrong) = picture.check_moment(&all) {
            return world.fail(format!("backup: {wrong}"));
        }
        world.executor.count("whole backups");
    } else {
        world.executor.count("partial backups");
    }
}
