//! Push backups of ploop targets, with what their messages do not have: since which backup, and what is left.

use super::refuse;
use crate::registry::Registry;
use bdev::ploop::Of;
use rpc::dispatch::Answer;
use rpc::params::{
    PloopPushBackupForget, PloopPushBackupLeft, PloopPushBackupRead, PloopPushBackupStart,
    PloopPushBackupStop, PloopPushBackupWrite,
};
use serde_json::{Value, json};

impl Registry {
    /// `ploop_push_backup_start`.
    pub async fn start_ploop_backup(&self, params: &PloopPushBackupStart) -> Answer {
        let open = self.use_ploop(&params.name)?;
        let wanted = params.understood()?;
        let of = match (&wanted.clusters, &wanted.recorded) {
            (Some(clusters), _) => Of::Clusters(clusters),
            (None, Some(since)) => Of::Recorded {
                since: since.as_ref(),
            },
            (None, None) => Of::All,
        };
        let started = open
            .ploop
            .push_backup_start(wanted.uuid, of, wanted.timeout);
        started.await.map_err(refuse(&params.name))?;
        Ok(json!(true))
    }

    /// `ploop_push_backup_left`.
    pub async fn ploop_backup_left(&self, params: &PloopPushBackupLeft) -> Answer {
        let open = self.use_ploop(&params.name)?;
        let first = params.begin_cluster.unwrap_or(0);
        let uuid = params.uuid()?;
        let left = open.ploop.push_backup_left(&uuid, first, params.max()?);
        let (left, next) = left.await.map_err(refuse(&params.name))?;
        let run = |left: &bdev::ploop::Left| {
            json!({
                "begin": left.clusters.start,
                "length": left.clusters.end - left.clusters.start,
                "holes": left.holes,
            })
        };
        Ok(json!({
            "left": left.iter().map(run).collect::<Value>(),
            "cluster_bytes": open.ploop.cluster_bytes(),
            "next_cluster": next,
        }))
    }

    /// `ploop_push_backup_read`.
    pub fn ploop_wanted(&self, params: &PloopPushBackupRead) -> Answer {
        let open = self.use_ploop(&params.name)?;
        let found = open.ploop.push_backup_read(&params.uuid()?, params.max()?);
        let found = found.map_err(refuse(&params.name))?;
        Ok(json!({ "clusters": found, "cluster_bytes": open.ploop.cluster_bytes() }))
    }

    /// `ploop_push_backup_write`.
    pub fn ploop_saved(&self, params: &PloopPushBackupWrite) -> Answer {
        let open = self.use_ploop(&params.name)?;
        let noted = open
            .ploop
            .push_backup_write(&params.uuid()?, params.clusters());
        noted.map_err(refuse(&params.name))?;
        Ok(json!(true))
    }

    /// `ploop_push_backup_stop`.
    pub fn stop_ploop_backup(&self, params: &PloopPushBackupStop) -> Answer {
        let open = self.use_ploop(&params.name)?;
        let uuid = params.uuid()?;
        let stopped = match params.complete {
            true => open.ploop.push_backup_complete(&uuid, params.keep),
            false => open.ploop.push_backup_stop(&uuid),
        };
        stopped.map_err(refuse(&params.name))?;
        Ok(json!(true))
    }

    /// `ploop_push_backup_forget`.
    pub fn forget_ploop_backup(&self, params: &PloopPushBackupForget) -> Answer {
        let open = self.use_ploop(&params.name)?;
        let forgotten = open.ploop.push_backup_forget(&params.uuid()?);
        forgotten.map_err(refuse(&params.name))?;
        Ok(json!(true))
    }
}
