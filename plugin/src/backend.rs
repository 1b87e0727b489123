//! The RPC methods, carried out on the registry.

use crate::dump;
use crate::export::{ERA, POOL};
use crate::readers::Readers;
use crate::registry::{Registry, no_pool, registry};
use async_trait::async_trait;
use bdev::errno::Errno;
use bdev::ploop::messages::Message;
use bdev::thin::PoolError;
use rpc::RpcError;
use rpc::dispatch::{Answer, Backend, dispatch};
use rpc::params;
use rpc::params::{
    DmCreate, DmMessage, EraCreate, EraMetadataSnapExport, EraStatus, EraWrittenSince,
    LinearCreate, Name, NbdExportCreate, NbdExportDelete, NbdExportList, PloopAddDelta, PloopCheck,
    PloopCreate, PloopMerge, PloopNotifyMerged, PloopPushBackupForget, PloopPushBackupLeft,
    PloopPushBackupRead, PloopPushBackupStart, PloopPushBackupStop, PloopPushBackupWrite,
    PloopResize, PloopSetNoresume, PloopSnapshot, PloopStatusOf, PloopTrackingGetNext,
    PloopUpdateDeltaIndex, PoolName, SnapshotCreate, SnapshotMerge, SnapshotMergeResume,
    SnapshotOriginCreate, SnapshotStatus, ThinActivate, ThinCreate, ThinDeactivate, ThinDelete,
    ThinDelta, ThinDevice, ThinDump, ThinList, ThinMergeExternal, ThinMetadataSnapExport,
    ThinPoolCreate, ThinPoolStatus, ThinResume, ThinSetTransactionId, ThinSnapshot, ThinSuspend,
    ThinSwitch,
};
use serde_json::{Value, json};
use spdk::rpc::Request;
use std::rc::Rc;

/// Answers a request, in a task of its own.
pub fn serve(method: &'static str, params: String, request: Request) {
    let Some(registry) = registry() else {
        return request.error(-Errno::ENODEV.0, "spdk-dm is not running");
    };
    spdk::executor::spawn(async move {
        match dispatch(&Methods(registry), method, &params).await {
            Ok(json) => request.result(&json),
            Err(error) => request.error(error.code, &error.message),
        }
    });
}

/// The methods' way to the registry.
pub struct Methods(pub Rc<Registry>);

/// The refusal of a pool.
pub fn refuse(error: PoolError) -> RpcError {
    RpcError::new(error.errno(), error.to_string())
}

/// A pool's refusal, with the pool's name.
pub fn in_pool(pool: &str) -> impl Fn(PoolError) -> RpcError {
    move |error| match error {
        PoolError::Metadata(error) => {
            RpcError::new(error.errno(), format!("pool '{pool}': {error}"))
        }
        error => refuse(error),
    }
}

impl Methods {
    /// The active thin bdev of this name: pool, id, size in sectors.
    fn readers(&self, pool: &str) -> Result<Rc<Readers>, RpcError> {
        Ok(self.0.open_entry(pool)?.readers.clone())
    }
}

#[async_trait(?Send)]
impl Backend for Methods {
    async fn thin_pool_create(&self, params: ThinPoolCreate) -> Answer {
        let (name, wait) = (params.name.clone(), params.wait);
        let ready =
            spdk::base::exists(&params.metadata_bdev) && spdk::base::exists(&params.data_bdev);
        self.0.declare(params)?;
        if wait && !ready {
            return Ok(json!(name));
        }
        if let Err(error) = self.0.open_pool(&name).await {
            self.0.pools.borrow_mut().remove(&name);
            return Err(error);
        }
        Ok(json!(name))
    }

    async fn thin_pool_delete(&self, params: Name) -> Answer {
        self.0.delete_pool(&params.name).await?;
        Ok(json!(true))
    }

    async fn thin_pool_status(&self, params: ThinPoolStatus) -> Answer {
        if let Some(name) = params.name {
            return self.0.pool_status(&name).await;
        }
        let names: Vec<String> = self.0.pools.borrow().keys().cloned().collect();
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            all.push(self.0.pool_status(&name).await?);
        }
        Ok(Value::Array(all))
    }

    async fn thin_create(&self, params: ThinCreate) -> Answer {
        let open = self.0.open_entry(&params.pool)?;
        if let Some(name) = &params.bdev_name
            && spdk::base::exists(name)
        {
            return Err(RpcError::new(
                Errno::EEXIST,
                format!("there is a bdev '{name}' already; choose another bdev_name"),
            ));
        }
        open.pool
            .create_thin(params.id)
            .await
            .map_err(in_pool(&params.pool))?;
        drop(open);
        let mut answer = json!({ "pool": params.pool, "id": params.id });
        if params.size_mib.is_some() {
            let activate = ThinActivate {
                pool: params.pool,
                id: params.id,
                bdev_name: params.bdev_name,
                size_mib: params.size_mib,
                size_sectors: None,
                origin_bdev: params.origin_bdev,
                create: false,
                wait: false,
            };
            params::Validate::validate(&activate)?;
            self.0.activate(&activate).await?;
            answer["bdev_name"] = json!(activate.bdev_name());
        }
        Ok(answer)
    }

    async fn thin_snapshot(&self, params: ThinSnapshot) -> Answer {
        let open = self.0.open_entry(&params.pool)?;
        open.pool
            .create_snap(params.id, params.origin_id)
            .await
            .map_err(in_pool(&params.pool))?;
        Ok(json!({ "pool": params.pool, "id": params.id }))
    }

    async fn thin_delete(&self, params: ThinDelete) -> Answer {
        let open = self.0.open_entry(&params.pool)?;
        open.pool
            .delete(params.id)
            .await
            .map_err(in_pool(&params.pool))?;
        Ok(json!(true))
    }

    async fn thin_activate(&self, params: ThinActivate) -> Answer {
        let name = params.bdev_name();
        if params.wait {
            self.0.wait_opening(&params.pool).await;
            let pools = self.0.pools.borrow();
            let entry = pools
                .get(&params.pool)
                .ok_or_else(|| no_pool(&params.pool))?;
            if entry.life.is_waiting() {
                self.0.declare_thin(params);
                return Ok(json!(name));
            }
        }
        let missing = params
            .origin_bdev
            .as_deref()
            .is_some_and(|origin| !spdk::base::exists(origin));
        if params.wait && missing {
            self.0.declare_thin(params);
            return Ok(json!(name));
        }
        self.0.activate(&params).await?;
        Ok(json!(name))
    }

    async fn thin_deactivate(&self, params: ThinDeactivate) -> Answer {
        let name = &params.bdev_name;
        if let Some(suspension) = params.suspension {
            self.0.check_suspended(name, suspension)?;
        }
        self.0.deactivate(name, false).await?;
        Ok(json!(true))
    }

    async fn thin_list(&self, params: ThinList) -> Answer {
        self.0.list_thins(&params.pool).await
    }

    async fn thin_set_transaction_id(&self, params: ThinSetTransactionId) -> Answer {
        let open = self.0.open_entry(&params.pool)?;
        open.pool
            .set_transaction_id(params.current, params.new)
            .await
            .map_err(in_pool(&params.pool))?;
        Ok(json!(true))
    }

    async fn thin_reserve_metadata_snap(&self, params: PoolName) -> Answer {
        self.readers(&params.pool)?.reserve().await?;
        Ok(json!(true))
    }

    async fn thin_release_metadata_snap(&self, params: PoolName) -> Answer {
        self.0.release_metadata_snap(&params.pool).await?;
        Ok(json!(true))
    }

    async fn thin_metadata_snap_export(&self, params: ThinMetadataSnapExport) -> Answer {
        Ok(json!(self.0.export(&params).await?))
    }

    async fn thin_metadata_snap_unexport(&self, params: PoolName) -> Answer {
        self.0.open_entry(&params.pool)?;
        self.0.unexport_or_refuse(&POOL, &params.pool).await?;
        Ok(json!(true))
    }

    async fn thin_dump(&self, params: ThinDump) -> Answer {
        let readers = self.readers(&params.pool)?;
        let work = async |snapshot| dump::thin_dump(snapshot, &params).await;
        readers.read("thin_dump", work).await
    }

    async fn thin_delta(&self, params: ThinDelta) -> Answer {
        let readers = self.readers(&params.pool)?;
        let work = async |snapshot| dump::thin_delta(snapshot, &params).await;
        readers.read("thin_delta", work).await
    }

    async fn thin_merge_external(&self, params: ThinMergeExternal) -> Answer {
        self.0.merge_external(&params).await
    }

    async fn thin_merge_external_stop(&self, params: ThinDevice) -> Answer {
        self.0.stop_external_merge(&params).await
    }

    async fn thin_merge_external_status(&self, params: ThinDevice) -> Answer {
        self.0.external_merge_status(&params).await
    }

    async fn linear_create(&self, params: LinearCreate) -> Answer {
        let name = params.name.clone();
        self.0.create_linear(params)?;
        Ok(json!(name))
    }

    async fn linear_delete(&self, params: Name) -> Answer {
        self.0.remove_linear(&params.name, false).await?;
        Ok(json!(true))
    }

    async fn thin_suspend(&self, params: ThinSuspend) -> Answer {
        self.0.suspend_thin(params).await
    }

    async fn thin_resume(&self, params: ThinResume) -> Answer {
        self.0.resume_thin(params).await
    }

    async fn thin_switch(&self, params: ThinSwitch) -> Answer {
        self.0.switch_thin(params).await
    }

    async fn era_create(&self, params: EraCreate) -> Answer {
        self.0.create_era(params).await
    }

    async fn era_delete(&self, params: Name) -> Answer {
        self.0.delete_era(&params.name).await?;
        Ok(json!(true))
    }

    async fn era_checkpoint(&self, params: Name) -> Answer {
        let era = self.0.checkpoint(&params.name).await?;
        Ok(json!({ "name": params.name, "era": era }))
    }

    async fn era_take_metadata_snap(&self, params: Name) -> Answer {
        let (block, era) = self.0.take_metadata_snap(&params.name).await?;
        Ok(json!({ "name": params.name, "era": era, "metadata_snap": block }))
    }

    async fn era_drop_metadata_snap(&self, params: Name) -> Answer {
        self.0.drop_metadata_snap(&params.name).await?;
        Ok(json!(true))
    }

    async fn era_status(&self, params: EraStatus) -> Answer {
        if let Some(name) = params.name {
            return self.0.era_status(&name).await;
        }
        let names: Vec<String> = self.0.eras.borrow().keys().cloned().collect();
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            all.push(self.0.era_status(&name).await?);
        }
        Ok(Value::Array(all))
    }

    async fn era_written_since(&self, params: EraWrittenSince) -> Answer {
        self.0.written_since(&params).await
    }

    async fn era_metadata_snap_export(&self, params: EraMetadataSnapExport) -> Answer {
        Ok(json!(self.0.export_era(&params).await?))
    }

    async fn era_metadata_snap_unexport(&self, params: Name) -> Answer {
        self.0.use_era(&params.name)?;
        self.0.unexport_or_refuse(&ERA, &params.name).await?;
        Ok(json!(true))
    }

    async fn snapshot_origin_create(&self, params: SnapshotOriginCreate) -> Answer {
        self.0.create_origin(params).await
    }

    async fn snapshot_create(&self, params: SnapshotCreate) -> Answer {
        self.0.create_snapshot(params).await
    }

    async fn snapshot_merge(&self, params: SnapshotMerge) -> Answer {
        self.0.merge(params).await
    }

    async fn snapshot_merge_stop(&self, params: Name) -> Answer {
        self.0.stop_merge(&params.name).await?;
        Ok(json!(true))
    }

    async fn snapshot_merge_resume(&self, params: SnapshotMergeResume) -> Answer {
        self.0.resume_merge(&params)?;
        Ok(json!(true))
    }

    async fn snapshot_status(&self, params: SnapshotStatus) -> Answer {
        if params.wait {
            self.0.open_ready_origins().await;
        }
        self.0.snapshot_status(params.name.as_deref())
    }

    async fn snapshot_delete(&self, params: Name) -> Answer {
        self.0.delete_snapshot_or_origin(&params.name).await?;
        Ok(json!(true))
    }

    async fn nbd_export_create(&self, params: NbdExportCreate) -> Answer {
        self.0.create_nbd_export(&params)
    }

    async fn nbd_export_delete(&self, params: NbdExportDelete) -> Answer {
        self.0.delete_nbd_export(&params)
    }

    async fn nbd_export_list(&self, _: NbdExportList) -> Answer {
        Ok(self.0.list_nbd_exports())
    }

    async fn ploop_create(&self, params: PloopCreate) -> Answer {
        self.0.create_ploop(params).await
    }

    async fn ploop_delete(&self, params: Name) -> Answer {
        self.0.delete_ploop(&params.name).await?;
        Ok(json!(true))
    }

    async fn ploop_status(&self, params: PloopStatusOf) -> Answer {
        if params.wait {
            self.0.open_ready_ploops().await;
        }
        match &params.name {
            Some(name) => self.0.ploop_status(name),
            None => self.0.ploop_statuses(),
        }
    }

    async fn ploop_check(&self, params: PloopCheck) -> Answer {
        self.0.check_image(&params).await
    }

    async fn ploop_suspend(&self, params: Name) -> Answer {
        self.0.suspend_ploop(&params.name).await
    }

    async fn ploop_resume(&self, params: Name) -> Answer {
        self.0.resume_ploop(&params.name)
    }

    async fn ploop_merge(&self, params: PloopMerge) -> Answer {
        self.0.ploop_merge(&params).await
    }

    async fn ploop_merge_cancel(&self, params: Name) -> Answer {
        self.0.cancel_ploop_merge(&params.name)
    }

    async fn ploop_tracking_get_next(&self, params: PloopTrackingGetNext) -> Answer {
        self.0.ploop_tracked(&params).await
    }

    async fn ploop_push_backup_read(&self, params: PloopPushBackupRead) -> Answer {
        self.0.ploop_wanted(&params)
    }

    async fn ploop_push_backup_write(&self, params: PloopPushBackupWrite) -> Answer {
        self.0.ploop_saved(&params)
    }

    async fn ploop_add_delta(&self, params: PloopAddDelta) -> Answer {
        self.0.ploop_call(&params).await
    }

    async fn ploop_resize(&self, params: PloopResize) -> Answer {
        self.0.ploop_call(&params).await
    }

    async fn ploop_notify_merged(&self, params: PloopNotifyMerged) -> Answer {
        self.0.ploop_call(&params).await
    }

    async fn ploop_snapshot(&self, params: PloopSnapshot) -> Answer {
        self.0.ploop_call(&params).await
    }

    async fn ploop_update_delta_index(&self, params: PloopUpdateDeltaIndex) -> Answer {
        self.0.ploop_call(&params).await
    }

    async fn ploop_set_noresume(&self, params: PloopSetNoresume) -> Answer {
        self.0.ploop_call(&params).await
    }

    async fn ploop_push_backup_start(&self, params: PloopPushBackupStart) -> Answer {
        self.0.start_ploop_backup(&params).await
    }

    async fn ploop_push_backup_left(&self, params: PloopPushBackupLeft) -> Answer {
        self.0.ploop_backup_left(&params).await
    }

    async fn ploop_push_backup_stop(&self, params: PloopPushBackupStop) -> Answer {
        self.0.stop_ploop_backup(&params)
    }

    async fn ploop_push_backup_forget(&self, params: PloopPushBackupForget) -> Answer {
        self.0.forget_ploop_backup(&params)
    }

    async fn ploop_tracking_start(&self, params: Name) -> Answer {
        self.0
            .ploop_message(&params.name, Message::TrackingStart)
            .await
    }

    async fn ploop_tracking_stop(&self, params: Name) -> Answer {
        self.0
            .ploop_message(&params.name, Message::TrackingStop)
            .await
    }

    async fn ploop_flip_upper_deltas(&self, params: Name) -> Answer {
        self.0
            .ploop_message(&params.name, Message::FlipUpperDeltas)
            .await
    }

    async fn ploop_push_backup_get_uuid(&self, params: Name) -> Answer {
        self.0
            .ploop_message(&params.name, Message::PushBackupGetUuid)
            .await
    }

    async fn dm_create(&self, params: DmCreate) -> Answer {
        self.create_from_table(params).await
    }

    async fn dm_remove(&self, params: Name) -> Answer {
        self.remove_device(params).await
    }

    async fn dm_message(&self, params: DmMessage) -> Answer {
        self.message_to_device(params).await
    }

    async fn dm_status(&self, params: Name) -> Answer {
        self.device_status(params).await
    }

    async fn dm_table(&self, params: Name) -> Answer {
        self.device_table(params)
    }
}
