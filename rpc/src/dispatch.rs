//! From a method's name and parameter text to a backend's function, and back to text.

use crate::RpcError;
use crate::error::INVALID_PARAMS;
use crate::params::{
    DmCreate, DmMessage, EraCreate, EraMetadataSnapExport, EraStatus, EraWrittenSince, Name,
    NbdExportCreate, NbdExportDelete, NbdExportList, PloopAddDelta, PloopCheck, PloopCreate,
    PloopMerge, PloopNotifyMerged, PloopPushBackupRead, PloopPushBackupStart, PloopPushBackupStop,
    PloopPushBackupWrite, PloopResize, PloopSetNoresume, PloopSnapshot, PloopStatusOf,
    PloopTrackingGetNext, PloopUpdateDeltaIndex, PoolName, SnapshotCreate, SnapshotMerge,
    SnapshotMergeResume, SnapshotOriginCreate, SnapshotStatus, ThinActivate, ThinCreate,
    ThinDeactivate, ThinDelete, ThinDelta, ThinDump, ThinList, ThinMetadataSnapExport,
    ThinPoolCreate, ThinPoolStatus, ThinSetTransactionId, ThinSnapshot, Validate,
};
use crate::schema::METHODS;
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The answer to a method: any JSON value.
pub type Answer = Result<Value, RpcError>;

/// Who carries the methods out.
#[async_trait(?Send)]
#[allow(missing_docs, reason = "schema::METHODS documents each method")]
pub trait Backend {
    async fn thin_pool_create(&self, params: ThinPoolCreate) -> Answer;
    async fn thin_pool_delete(&self, params: Name) -> Answer;
    async fn thin_pool_status(&self, params: ThinPoolStatus) -> Answer;
    async fn thin_create(&self, params: ThinCreate) -> Answer;
    async fn thin_snapshot(&self, params: ThinSnapshot) -> Answer;
    async fn thin_delete(&self, params: ThinDelete) -> Answer;
    async fn thin_activate(&self, params: ThinActivate) -> Answer;
    async fn thin_deactivate(&self, params: ThinDeactivate) -> Answer;
    async fn thin_list(&self, params: ThinList) -> Answer;
    async fn thin_set_transaction_id(&self, params: ThinSetTransactionId) -> Answer;
    async fn thin_reserve_metadata_snap(&self, params: PoolName) -> Answer;
    async fn thin_release_metadata_snap(&self, params: PoolName) -> Answer;
    async fn thin_metadata_snap_export(&self, params: ThinMetadataSnapExport) -> Answer;
    async fn thin_metadata_snap_unexport(&self, params: PoolName) -> Answer;
    async fn thin_dump(&self, params: ThinDump) -> Answer;
    async fn thin_delta(&self, params: ThinDelta) -> Answer;
    async fn era_create(&self, params: EraCreate) -> Answer;
    async fn era_delete(&self, params: Name) -> Answer;
    async fn era_checkpoint(&self, params: Name) -> Answer;
    async fn era_take_metadata_snap(&self, params: Name) -> Answer;
    async fn era_drop_metadata_snap(&self, params: Name) -> Answer;
    async fn era_status(&self, params: EraStatus) -> Answer;
    async fn era_written_since(&self, params: EraWrittenSince) -> Answer;
    async fn era_metadata_snap_export(&self, params: EraMetadataSnapExport) -> Answer;
    async fn era_metadata_snap_unexport(&self, params: Name) -> Answer;
    async fn snapshot_origin_create(&self, params: SnapshotOriginCreate) -> Answer;
    async fn snapshot_create(&self, params: SnapshotCreate) -> Answer;
    async fn snapshot_merge(&self, params: SnapshotMerge) -> Answer;
    async fn snapshot_merge_stop(&self, params: Name) -> Answer;
    async fn snapshot_merge_resume(&self, params: SnapshotMergeResume) -> Answer;
    async fn snapshot_status(&self, params: SnapshotStatus) -> Answer;
    async fn snapshot_delete(&self, params: Name) -> Answer;
    async fn nbd_export_create(&self, params: NbdExportCreate) -> Answer;
    async fn nbd_export_delete(&self, params: NbdExportDelete) -> Answer;
    async fn nbd_export_list(&self, params: NbdExportList) -> Answer;
    async fn ploop_create(&self, params: PloopCreate) -> Answer;
    async fn ploop_delete(&self, params: Name) -> Answer;
    async fn ploop_status(&self, params: PloopStatusOf) -> Answer;
    async fn ploop_check(&self, params: PloopCheck) -> Answer;
    async fn ploop_suspend(&self, params: Name) -> Answer;
    async fn ploop_resume(&self, params: Name) -> Answer;
    async fn ploop_add_delta(&self, params: PloopAddDelta) -> Answer;
    async fn ploop_resize(&self, params: PloopResize) -> Answer;
    async fn ploop_merge(&self, params: PloopMerge) -> Answer;
    async fn ploop_merge_cancel(&self, params: Name) -> Answer;
    async fn ploop_notify_merged(&self, params: PloopNotifyMerged) -> Answer;
    async fn ploop_snapshot(&self, params: PloopSnapshot) -> Answer;
    async fn ploop_tracking_start(&self, params: Name) -> Answer;
    async fn ploop_tracking_get_next(&self, params: PloopTrackingGetNext) -> Answer;
    async fn ploop_tracking_stop(&self, params: Name) -> Answer;
    async fn ploop_update_delta_index(&self, params: PloopUpdateDeltaIndex) -> Answer;
    async fn ploop_set_noresume(&self, params: PloopSetNoresume) -> Answer;
    async fn ploop_flip_upper_deltas(&self, params: Name) -> Answer;
    async fn ploop_push_backup_start(&self, params: PloopPushBackupStart) -> Answer;
    async fn ploop_push_backup_read(&self, params: PloopPushBackupRead) -> Answer;
    async fn ploop_push_backup_write(&self, params: PloopPushBackupWrite) -> Answer;
    async fn ploop_push_backup_get_uuid(&self, params: Name) -> Answer;
    async fn ploop_push_backup_stop(&self, params: PloopPushBackupStop) -> Answer;
    async fn dm_create(&self, params: DmCreate) -> Answer;
    async fn dm_remove(&self, params: Name) -> Answer;
    async fn dm_message(&self, params: DmMessage) -> Answer;
    async fn dm_status(&self, params: Name) -> Answer;
    async fn dm_table(&self, params: Name) -> Answer;
}

/// A JSON-RPC error object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonRpcError {
    /// A negative errno, or one of JSON-RPC's own codes.
    pub code: i32,
    /// Text.
    pub message: String,
}

fn parse<P: DeserializeOwned + Validate>(method: &str, params: &str) -> Result<P, JsonRpcError> {
    let text = if params.trim().is_empty() {
        "{}"
    } else {
        params
    };
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed: P = serde_path_to_error::deserialize(&mut json).map_err(|error| JsonRpcError {
        code: INVALID_PARAMS,
        message: format!("{method}: {}: {}", error.path(), error.inner()),
    })?;
    json.end().map_err(|error| JsonRpcError {
        code: INVALID_PARAMS,
        message: format!("{method}: after the parameters: {error}"),
    })?;
    parsed.validate().map_err(refuse)?;
    Ok(parsed)
}

fn refuse(error: RpcError) -> JsonRpcError {
    JsonRpcError {
        code: error.code(),
        message: error.message,
    }
}

/// Carries a call out. Returns the result as JSON text.
pub async fn dispatch(
    backend: &dyn Backend,
    method: &str,
    params: &str,
) -> Result<String, JsonRpcError> {
    macro_rules! call {
        ($function:ident) => {
            backend.$function(parse(method, params)?).await
        };
    }
    let answer = match method {
        "thin_pool_create" => call!(thin_pool_create),
        "thin_pool_delete" => call!(thin_pool_delete),
        "thin_pool_status" => call!(thin_pool_status),
        "thin_create" => call!(thin_create),
        "thin_snapshot" => call!(thin_snapshot),
        "thin_delete" => call!(thin_delete),
        "thin_activate" => call!(thin_activate),
        "thin_deactivate" => call!(thin_deactivate),
        "thin_list" => call!(thin_list),
        "thin_set_transaction_id" => call!(thin_set_transaction_id),
        "thin_reserve_metadata_snap" => call!(thin_reserve_metadata_snap),
        "thin_release_metadata_snap" => call!(thin_release_metadata_snap),
        "thin_metadata_snap_export" => call!(thin_metadata_snap_export),
        "thin_metadata_snap_unexport" => call!(thin_metadata_snap_unexport),
        "thin_dump" => call!(thin_dump),
        "thin_delta" => call!(thin_delta),
        "era_create" => call!(era_create),
        "era_delete" => call!(era_delete),
        "era_checkpoint" => call!(era_checkpoint),
        "era_take_metadata_snap" => call!(era_take_metadata_snap),
        "era_drop_metadata_snap" => call!(era_drop_metadata_snap),
        "era_status" => call!(era_status),
        "era_written_since" => call!(era_written_since),
        "era_metadata_snap_export" => call!(era_metadata_snap_export),
        "era_metadata_snap_unexport" => call!(era_metadata_snap_unexport),
        "snapshot_origin_create" => call!(snapshot_origin_create),
        "snapshot_create" => call!(snapshot_create),
        "snapshot_merge" => call!(snapshot_merge),
        "snapshot_merge_stop" => call!(snapshot_merge_stop),
        "snapshot_merge_resume" => call!(snapshot_merge_resume),
        "snapshot_status" => call!(snapshot_status),
        "snapshot_delete" => call!(snapshot_delete),
        "nbd_export_create" => call!(nbd_export_create),
        "nbd_export_delete" => call!(nbd_export_delete),
        "nbd_export_list" => call!(nbd_export_list),
        "ploop_create" => call!(ploop_create),
        "ploop_delete" => call!(ploop_delete),
        "ploop_status" => call!(ploop_status),
        "ploop_check" => call!(ploop_check),
        "ploop_suspend" => call!(ploop_suspend),
        "ploop_resume" => call!(ploop_resume),
        "ploop_add_delta" => call!(ploop_add_delta),
        "ploop_resize" => call!(ploop_resize),
        "ploop_merge" => call!(ploop_merge),
        "ploop_merge_cancel" => call!(ploop_merge_cancel),
        "ploop_notify_merged" => call!(ploop_notify_merged),
        "ploop_snapshot" => call!(ploop_snapshot),
        "ploop_tracking_start" => call!(ploop_tracking_start),
        "ploop_tracking_get_next" => call!(ploop_tracking_get_next),
        "ploop_tracking_stop" => call!(ploop_tracking_stop),
        "ploop_update_delta_index" => call!(ploop_update_delta_index),
        "ploop_set_noresume" => call!(ploop_set_noresume),
        "ploop_flip_upper_deltas" => call!(ploop_flip_upper_deltas),
        "ploop_push_backup_start" => call!(ploop_push_backup_start),
        "ploop_push_backup_read" => call!(ploop_push_backup_read),
        "ploop_push_backup_write" => call!(ploop_push_backup_write),
        "ploop_push_backup_get_uuid" => call!(ploop_push_backup_get_uuid),
        "ploop_push_backup_stop" => call!(ploop_push_backup_stop),
        "dm_create" => call!(dm_create),
        "dm_remove" => call!(dm_remove),
        "dm_message" => call!(dm_message),
        "dm_status" => call!(dm_status),
        "dm_table" => call!(dm_table),
        _ => {
            return Err(JsonRpcError {
                code: -32601,
                message: format!("there is no method '{method}'"),
            });
        }
    };
    answer.map(|value| value.to_string()).map_err(refuse)
}

/// The names of all methods.
pub fn method_names() -> Vec<&'static str> {
    METHODS.iter().map(|method| method.name).collect()
}
