//! Merging thin devices into their external origins: who may, and the origin's bdev while it is written to.

use crate::backend::in_pool;
use crate::bases;
use crate::devices::DataBdev;
use crate::registry::Registry;
use bdev::errno::Errno;
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::{ThinActivate, ThinDevice, ThinMergeExternal};
use rpc::status::external_merge_json;
use serde_json::{Value, json};
use std::rc::Rc;

impl Registry {
    /// `thin_merge_external`.
    pub async fn merge_external(&self, params: &ThinMergeExternal) -> Answer {
        let (pool, id) = (&params.pool, params.id);
        let open = self.open_entry(pool)?;
        let owner = format!("merging thin device {id} of pool '{pool}' into its external origin");
        let origin = {
            let thins = self.thins.borrow();
            let mut of_device = thins
                .values()
                .filter(|thin| thin.params.pool == *pool && thin.params.id == id);
            let thin = of_device.find(|thin| thin.registered).ok_or_else(|| {
                RpcError::new(
                    Errno::ENODEV,
                    format!("{owner}: the device is not active; thin_activate it with origin_bdev"),
                )
            })?;
            thin.params.origin_bdev.clone().ok_or_else(|| {
                RpcError::invalid(format!(
                    "{owner}: the device is active without an external origin; thin_deactivate it, and thin_activate it with origin_bdev"
                ))
            })?
        };
        let others = self.others_on(&origin, pool, id);
        if !others.is_empty() {
            return Err(RpcError::new(
                Errno::EBUSY,
                format!(
                    "{owner}: bdev '{origin}' is the external origin of {} too, which would see it change; thin_deactivate that first",
                    others.join(", ")
                ),
            ));
        }
        open.pool
            .check_no_external_merge(id)
            .map_err(in_pool(pool))?;
        // When the bdev goes, so does the thin bdev, and with it the merge.
        let base = bases::take(&owner, &origin, 0, |_| {})?;
        let target = Rc::new(DataBdev::new(base.channel));
        let bytes_per_second = params.mib_per_second << 20;
        open.pool
            .merge_external(id, target, bytes_per_second)
            .await
            .map_err(in_pool(pool))?;
        Ok(json!({ "pool": pool, "id": id, "origin_bdev": origin }))
    }

    /// `thin_merge_external_stop`.
    pub async fn stop_external_merge(&self, params: &ThinDevice) -> Answer {
        let open = self.open_entry(&params.pool)?;
        let stopped = open.pool.stop_external_merge(params.id).await;
        stopped.map_err(in_pool(&params.pool))?;
        Ok(json!(true))
    }

    /// `thin_merge_external_status`.
    pub async fn external_merge_status(&self, params: &ThinDevice) -> Answer {
        let open = self.open_entry(&params.pool)?;
        let found = open.pool.external_merge(params.id).await;
        let found = found.map_err(in_pool(&params.pool))?;
        Ok(found.map_or(Value::Null, |merge| {
            external_merge_json(&params.pool, &merge)
        }))
    }

    /// Other thin bdevs, there or declared, that have this external origin.
    fn others_on(&self, origin: &str, pool: &str, id: u32) -> Vec<String> {
        let thins = self.thins.borrow();
        let others = thins.iter().filter(|(_, thin)| {
            thin.params.origin_bdev.as_deref() == Some(origin)
                && !(thin.params.pool == pool && thin.params.id == id)
        });
        others
            .map(|(name, _)| format!("thin bdev '{name}'"))
            .collect()
    }

    /// Refuses a thin bdev whose external origin another one is being merged into.
    pub fn check_origin_is_still(&self, params: &ThinActivate) -> Result<(), RpcError> {
        let thins = self.thins.borrow();
        let merging = thins.iter().find(|(_, thin)| {
            params.origin_bdev.is_some()
                && thin.params.origin_bdev == params.origin_bdev
                && self
                    .open_entry(&thin.params.pool)
                    .is_ok_and(|open| open.pool.check_no_external_merge(thin.params.id).is_err())
        });
        match merging {
            None => Ok(()),
            Some((name, _)) => Err(RpcError::new(
                Errno::EBUSY,
                format!(
                    "bdev '{}': thin bdev '{name}' is being merged into its external origin '{}'; wait until that has ended",
                    params.bdev_name(),
                    params.origin_bdev.as_deref().unwrap_or_default()
                ),
            )),
        }
    }
}
