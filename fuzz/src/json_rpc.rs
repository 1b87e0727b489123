//! JSON-RPC calls: any method with any text for parameters.

use async_trait::async_trait;
use futures::executor::block_on;
use rpc::dispatch::{Answer, Backend, dispatch, method_names};
use rpc::params::*;
use serde_json::to_value;

/// Answers each call with its own parameters.
struct Echo;

macro_rules! echo {
    ($($function:ident: $params:ty),* $(,)?) => {
        #[async_trait(?Send)]
        impl Backend for Echo {
            $(async fn $function(&self, params: $params) -> Answer {
                Ok(to_value(params).expect("parameters can be written"))
            })*
        }
    };
}

echo! {
    thin_pool_create: ThinPoolCreate,
    thin_pool_delete: Name,
    thin_pool_status: ThinPoolStatus,
    thin_create: ThinCreate,
    thin_snapshot: ThinSnapshot,
    thin_delete: ThinDelete,
    thin_activate: ThinActivate,
    thin_deactivate: ThinDeactivate,
    thin_list: ThinList,
    thin_set_transaction_id: ThinSetTransactionId,
    thin_reserve_metadata_snap: PoolName,
    thin_release_metadata_snap: PoolName,
    thin_metadata_snap_export: ThinMetadataSnapExport,
    thin_metadata_snap_unexport: PoolName,
    thin_dump: ThinDump,
    thin_delta: ThinDelta,
    era_create: EraCreate,
    era_delete: Name,
    era_checkpoint: Name,
    era_take_metadata_snap: Name,
    era_drop_metadata_snap: Name,
    era_status: EraStatus,
    era_written_since: EraWrittenSince,
    era_metadata_snap_export: EraMetadataSnapExport,
    era_metadata_snap_unexport: Name,
    snapshot_origin_create: SnapshotOriginCreate,
    snapshot_create: SnapshotCreate,
    snapshot_merge: SnapshotMerge,
    snapshot_merge_stop: Name,
    snapshot_merge_resume: SnapshotMergeResume,
    snapshot_status: SnapshotStatus,
    snapshot_delete: Name,
    nbd_export_create: NbdExportCreate,
    nbd_export_delete: NbdExportDelete,
    nbd_export_list: NbdExportList,
    ploop_create: PloopCreate,
    ploop_delete: Name,
    ploop_status: PloopStatusOf,
    ploop_check: PloopCheck,
    ploop_suspend: Name,
    ploop_resume: Name,
    ploop_add_delta: PloopAddDelta,
    ploop_resize: PloopResize,
    ploop_merge: PloopMerge,
    ploop_merge_cancel: Name,
    ploop_notify_merged: PloopNotifyMerged,
    ploop_snapshot: PloopSnapshot,
    ploop_tracking_start: Name,
    ploop_tracking_get_next: PloopTrackingGetNext,
    ploop_tracking_stop: Name,
    ploop_update_delta_index: PloopUpdateDeltaIndex,
    ploop_set_noresume: PloopSetNoresume,
    ploop_flip_upper_deltas: Name,
    ploop_push_backup_start: PloopPushBackupStart,
    ploop_push_backup_read: PloopPushBackupRead,
    ploop_push_backup_write: PloopPushBackupWrite,
    ploop_push_backup_get_uuid: Name,
    ploop_push_backup_stop: PloopPushBackupStop,
    dm_create: DmCreate,
    dm_remove: Name,
    dm_message: DmMessage,
    dm_status: Name,
    dm_table: Name,
}

/// Runs one input: the first byte chooses the method. What is accepted is accepted again as it was
/// understood, with the same meaning.
pub fn run(data: &[u8]) {
    let Some((which, params)) = data.split_first() else {
        return;
    };
    let names = method_names();
    let method = names
        .get(usize::from(*which))
        .copied()
        .unwrap_or("no_such_method");
    let params = String::from_utf8_lossy(params);
    match block_on(dispatch(&Echo, method, &params)) {
        Ok(answer) => {
            let again = block_on(dispatch(&Echo, method, &answer));
            assert_eq!(again.as_ref(), Ok(&answer));
        }
        Err(error) => {
            assert!([-32602, -32601, -22].contains(&error.code), "{error:?}");
            assert!(!error.message.is_empty());
        }
    }
}
