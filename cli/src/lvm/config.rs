//! The configuration that serves thin pools of a volume group: physical volumes as bdevs, linear volumes of
//! parts of them, pools, thin volumes.

use super::group::{Group, GroupError, Physical, ThinVolume, mapper_name};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// How physical volumes become bdevs.
pub struct Bdevs {
    /// Bdevs that are there already, by the name of a physical volume in the text, or by its path.
    pub existing: BTreeMap<String, String>,
    /// Logical block size of AIO bdevs.
    pub block_bytes: u32,
}

impl Bdevs {
    /// The bdev of a physical volume, and whether it is there already.
    fn name<'a>(&'a self, physical: &'a Physical) -> (&'a str, bool) {
        let names = [&physical.name, &physical.device];
        match names.into_iter().find_map(|name| self.existing.get(name)) {
            Some(bdev) => (bdev, true),
            None => (&physical.name, false),
        }
    }
}

/// The calls, in the order they are to be made in.
struct Calls<'a> {
    group: &'a Group,
    bdevs: &'a Bdevs,
    /// Physical volumes that are needed.
    physical: BTreeSet<String>,
    linear: Vec<Value>,
    pools: Vec<Value>,
    thins: Vec<Value>,
    /// Logical volumes there are calls for.
    made: BTreeSet<String>,
}

fn call(method: &str, params: Value) -> Value {
    json!({ "method": method, "params": params })
}

/// The configuration for all thin pools of a group, or for one.
pub fn config(group: &Group, pool: Option<&str>, bdevs: &Bdevs) -> Result<Value, GroupError> {
    let mut calls = Calls {
        group,
        bdevs,
        physical: BTreeSet::new(),
        linear: Vec::new(),
        pools: Vec::new(),
        thins: Vec::new(),
        made: BTreeSet::new(),
    };
    for pool in group.thin_pools(pool)? {
        calls.pool(&pool.name)?;
        for volume in group.thin_volumes(&pool.name)? {
            calls.thin(&volume, &mut Vec::new())?;
        }
    }
    let mut all = Vec::new();
    for physical in group.physical() {
        let (name, exists) = bdevs.name(physical);
        if calls.physical.contains(&physical.name) && !exists {
            let params = json!({
                "name": name,
                "filename": physical.device,
                "block_size": bdevs.block_bytes,
            });
            all.push(call("bdev_aio_create", params));
        }
    }
    for part in [calls.linear, calls.pools, calls.thins] {
        all.extend(part);
    }
    Ok(json!({ "subsystems": [{ "subsystem": "bdev", "config": all }] }))
}

impl Calls<'_> {
    fn bdev_name(&self, volume: &str) -> String {
        mapper_name(&self.group.name, volume)
    }

    fn linear(&mut self, name: &str, by: &str) -> Result<(), GroupError> {
        if !self.made.insert(name.to_owned()) {
            return Ok(());
        }
        let mut segments = Vec::new();
        for part in self.group.parts(name, by)? {
            let mut all = self.group.physical();
            let physical = all.find(|physical| physical.name == part.physical);
            let bdev = physical.map_or(&*part.physical, |physical| self.bdevs.name(physical).0);
            segments.push(format!("{bdev}:{}:{}", part.first_sector, part.nr_sectors));
            self.physical.insert(part.physical);
        }
        let params = json!({ "name": self.bdev_name(name), "segments": segments, "wait": true });
        self.linear.push(call("linear_create", params));
        Ok(())
    }

    fn pool(&mut self, name: &str) -> Result<(), GroupError> {
        if !self.made.insert(name.to_owned()) {
            return Ok(());
        }
        for pool in self.group.thin_pools(Some(name))? {
            self.linear(&pool.metadata, name)?;
            self.linear(&pool.data, name)?;
            let params = json!({
                "name": self.bdev_name(name),
                "metadata_bdev": self.bdev_name(&pool.metadata),
                "data_bdev": self.bdev_name(&pool.data),
                "data_block_size_sectors": pool.chunk_sectors,
                "features": pool.features,
                "wait": true,
            });
            self.pools.push(call("thin_pool_create", params));
        }
        Ok(())
    }

    /// A thin volume, after the one it shows. `on_the_way`: the volumes that show this one.
    fn thin(
        &mut self,
        volume: &ThinVolume,
        on_the_way: &mut Vec<String>,
    ) -> Result<(), GroupError> {
        if on_the_way.contains(&volume.name) {
            return Err(GroupError::Circle {
                name: volume.name.clone(),
            });
        }
        if !self.made.insert(volume.name.clone()) {
            return Ok(());
        }
        self.pool(&volume.pool)?;
        let mut params = json!({
            "pool": self.bdev_name(&volume.pool),
            "id": volume.id,
            "bdev_name": self.bdev_name(&volume.name),
            "size_sectors": volume.nr_sectors,
            "wait": true,
        });
        if let Some(origin) = &volume.external_origin {
            match self.group.is_thin(origin) {
                true => {
                    on_the_way.push(volume.name.clone());
                    let shown = self.group.thin_volume(origin)?;
                    self.thin(&shown, on_the_way)?;
                    on_the_way.pop();
                }
                false => self.linear(origin, &volume.name)?,
            }
            params["origin_bdev"] = json!(self.bdev_name(origin));
        }
        self.thins.push(call("thin_activate", params));
        Ok(())
    }
}
