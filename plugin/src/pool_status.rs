//! What pools say of themselves.

use crate::backend::refuse;
use crate::registry::{Registry, no_pool};
use rpc::dispatch::Answer;
use rpc::status;
use serde_json::json;

impl Registry {
    /// `thin_pool_status` of one pool, in any state.
    pub async fn pool_status(&self, name: &str) -> Answer {
        let waiting = {
            let pools = self.pools.borrow();
            let entry = pools.get(name).ok_or_else(|| no_pool(name))?;
            json!({
                "name": name,
                "state": entry.life.word(),
                "metadata_bdev": entry.params.metadata_bdev,
                "data_bdev": entry.params.data_bdev,
                "failure": entry.life.failure(),
            })
        };
        let Ok(open) = self.open_entry(name) else {
            return Ok(waiting);
        };
        let found = open.pool.status().await.map_err(refuse)?;
        let mut answer = status::pool_json(name, &found);
        for field in ["metadata_bdev", "data_bdev"] {
            answer[field] = waiting[field].clone();
        }
        Ok(answer)
    }
}
