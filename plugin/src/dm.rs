//! Device-mapper's own calls: devices of all targets by name, in the kernel's words.

use crate::backend::{Methods, in_pool, refuse};
use bdev::errno::Errno;
use rpc::RpcError;
use rpc::dispatch::{Answer, Backend};
use rpc::message::PoolMessage;
use rpc::params::{DmCreate, DmMessage, Name};
use rpc::status;
use rpc::table::{self, Table};
use serde_json::json;

impl Methods {
    fn thin(&self, bdev_name: &str) -> Option<(String, u32, u64)> {
        let thins = self.0.thins.borrow();
        let thin = thins.get(bdev_name)?;
        let sectors = thin.params.nr_sectors().ok()?;
        Some((thin.params.pool.clone(), thin.params.id, sectors))
    }

    fn has_pool(&self, name: &str) -> bool {
        self.0.pools.borrow().contains_key(name)
    }

    fn has_era(&self, name: &str) -> bool {
        self.0.eras.borrow().contains_key(name)
    }

    fn no_device(name: &str) -> RpcError {
        RpcError::new(
            Errno::ENODEV,
            format!(
                "there is no device '{name}'; see thin_pool_status, thin_list, era_status, snapshot_status and ploop_status"
            ),
        )
    }

    /// Whether it is an origin or a snapshot.
    fn has_snapshot(&self, name: &str) -> bool {
        self.0.has_origin(name) || self.0.origin_of(name).is_some()
    }

    /// Makes a device from a table line.
    pub async fn create_from_table(&self, params: DmCreate) -> Answer {
        match table::parse(&params.name, &params.table)? {
            Table::ThinPool(_, pool) => self.thin_pool_create(pool).await,
            Table::Thin(thin) => self.thin_activate(thin).await,
            Table::Era(era) => self.era_create(era).await,
            Table::SnapshotOrigin(length, origin) => {
                let registry = &self.0;
                registry
                    .dm_snapshot_origin(params.name, length, origin)
                    .await
            }
            Table::Snapshot(length, found) => self.0.dm_snapshot(params.name, length, found).await,
            Table::SnapshotMerge(length, found) => {
                self.0.dm_snapshot_merge(params.name, length, found).await
            }
            Table::Ploop(ploop) => self.ploop_create(ploop).await,
        }
    }

    /// Removes a device.
    pub async fn remove_device(&self, params: Name) -> Answer {
        match self.has_pool(&params.name) {
            true => self.thin_pool_delete(params).await,
            false if self.has_era(&params.name) => self.era_delete(params).await,
            false if self.has_snapshot(&params.name) => self.snapshot_delete(params).await,
            false if self.0.has_ploop(&params.name) => self.ploop_delete(params).await,
            false if self.thin(&params.name).is_some() => {
                self.0.deactivate(&params.name, false).await?;
                Ok(json!(true))
            }
            false => Err(Self::no_device(&params.name)),
        }
    }

    /// Carries a message out.
    pub async fn message_to_device(&self, params: DmMessage) -> Answer {
        let name = params.name;
        if self.has_era(&name) {
            self.0.era_message(&name, &params.message).await?;
            return Ok(json!(true));
        }
        if self.0.has_ploop(&name) {
            return self.0.ploop_dm_message(&name, &params.message).await;
        }
        if !self.has_pool(&name) {
            return Err(match self.thin(&name) {
                _ if self.has_snapshot(&name) => {
                    RpcError::invalid(format!("snapshot target '{name}' takes no messages"))
                }
                Some(_) => RpcError::invalid(format!("thin device '{name}' takes no messages")),
                None => Self::no_device(&name),
            });
        }
        let message = PoolMessage::parse(&params.message)?;
        let open = self.0.open_entry(&name)?;
        let pool = &open.pool;
        match message {
            PoolMessage::CreateThin(id) => pool.create_thin(id).await,
            PoolMessage::CreateSnap(id, origin) => pool.create_snap(id, origin).await,
            PoolMessage::Delete(id) => pool.delete(id).await,
            PoolMessage::SetTransactionId(current, new) => {
                pool.set_transaction_id(current, new).await
            }
            PoolMessage::ReserveMetadataSnap => {
                open.readers.reserve().await?;
                return Ok(json!(true));
            }
            PoolMessage::ReleaseMetadataSnap => {
                self.0.release_metadata_snap(&name).await?;
                return Ok(json!(true));
            }
        }
        .map_err(in_pool(&name))?;
        Ok(json!(true))
    }

    /// The kernel's status line.
    pub async fn device_status(&self, params: Name) -> Answer {
        let name = params.name;
        if self.has_pool(&name) {
            let open = self.0.open_entry(&name)?;
            let found = open.pool.status().await.map_err(refuse)?;
            return Ok(json!({
                "name": name,
                "target": "thin-pool",
                "line": status::pool_line(&found),
                "status": status::pool_json(&name, &found),
            }));
        }
        if self.has_era(&name) {
            let found = self.0.use_era(&name)?.status().await?;
            return Ok(json!({
                "name": name,
                "target": "era",
                "line": found.to_string(),
                "status": status::era_json(&name, &found),
            }));
        }
        if self.has_snapshot(&name) {
            return self.0.snapshot_dm_status(&name);
        }
        if self.0.has_ploop(&name) {
            return self.0.ploop_dm_status(&name);
        }
        let (pool, id, _) = self.thin(&name).ok_or_else(|| Self::no_device(&name))?;
        let open = self.0.open_entry(&pool)?;
        let found = open.pool.thin_status(id).await.map_err(refuse)?;
        Ok(json!({
            "name": name,
            "target": "thin",
            "line": status::thin_line(&found),
            "status": status::thin_json(&found),
        }))
    }

    /// The kernel's table line.
    pub fn device_table(&self, params: Name) -> Answer {
        let name = params.name;
        if let Some(entry) = self.0.pools.borrow().get(&name) {
            let open = entry.life.target();
            let length = open.map_or(0, |open| open.nr_data_sectors());
            return Ok(json!(table::pool_line(length, &entry.params)));
        }
        if let Some(entry) = self.0.eras.borrow().get(&name) {
            return Ok(json!(table::era_line(entry.nr_sectors(), &entry.params)));
        }
        if self.has_snapshot(&name) {
            return self.0.snapshot_dm_table(&name);
        }
        if self.0.has_ploop(&name) {
            return self.0.ploop_dm_table(&name);
        }
        let (_, _, sectors) = self.thin(&name).ok_or_else(|| Self::no_device(&name))?;
        let thins = self.0.thins.borrow();
        let thin = thins.get(&name).ok_or_else(|| Self::no_device(&name))?;
        Ok(json!(table::thin_line(sectors, &thin.params)))
    }
}
