//! From a method's name and parameter text to a backend's function, and back to text.

use crate::RpcError;
use crate::error::INVALID_PARAMS;
use crate::params::*;
use crate::schema::METHODS;
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The answer to a method: any JSON value.
pub type Answer = Result<Value, RpcError>;

/// Calls a macro with all methods, in the order they are documented in, and what each takes:
/// `thin_pool_create: ThinPoolCreate, …`. The types are those of [`crate::params`].
#[macro_export]
macro_rules! for_each_method {
    ($then:ident) => {
        $then! {
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
            thin_merge_external: ThinMergeExternal,
            thin_merge_external_stop: ThinDevice,
            thin_merge_external_status: ThinDevice,
            linear_create: LinearCreate,
            linear_delete: Name,
            thin_suspend: ThinSuspend,
            thin_resume: ThinResume,
            thin_switch: ThinSwitch,
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
            ploop_push_backup_left: PloopPushBackupLeft,
            ploop_push_backup_read: PloopPushBackupRead,
            ploop_push_backup_write: PloopPushBackupWrite,
            ploop_push_backup_get_uuid: Name,
            ploop_push_backup_stop: PloopPushBackupStop,
            ploop_push_backup_forget: PloopPushBackupForget,
            dm_create: DmCreate,
            dm_remove: Name,
            dm_message: DmMessage,
            dm_status: Name,
            dm_table: Name,
        }
    };
}

macro_rules! backend {
    ($($method:ident: $params:ident),* $(,)?) => {
        /// Who carries the methods out.
        #[async_trait(?Send)]
        #[allow(missing_docs, reason = "schema::METHODS documents each method")]
        pub trait Backend {
            $(async fn $method(&self, params: $params) -> Answer;)*
        }

        async fn call(backend: &dyn Backend, method: &str, params: &str) -> Result<Answer, JsonRpcError> {
            match method {
                $(stringify!($method) => Ok(backend.$method(parse(method, params)?).await),)*
                _ => Err(JsonRpcError {
                    code: -32601,
                    message: format!("there is no method '{method}'"),
                }),
            }
        }
    };
}
for_each_method!(backend);

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
    let answer = call(backend, method, params).await?;
    answer.map(|value| value.to_string()).map_err(refuse)
}

/// The names of all methods.
pub fn method_names() -> Vec<&'static str> {
    METHODS.iter().map(|method| method.name).collect()
}
