//! What ploop targets say of themselves, in JSON and in a line.

use super::no_ploop;
use crate::registry::Registry;
use rpc::dispatch::Answer;
use rpc::{status, table};
use serde_json::{Value, json};

impl Registry {
    /// `ploop_status` of one target, in any state.
    pub fn ploop_status(&self, name: &str) -> Answer {
        let ploops = self.ploops.borrow();
        let entry = ploops.get(name).ok_or_else(|| no_ploop(name))?;
        let mut answer = json!({
            "name": name,
            "state": entry.life.word(),
            "top_bdev": entry.params.top_bdev,
            "lower_bdevs": entry.params.lower_bdevs,
            "missing_bdevs": entry.missing(),
            "failure": entry.life.failure(),
        });
        if let Some(open) = entry.life.open() {
            let found = status::ploop_json(&open.ploop.status());
            if let (Some(answer), Value::Object(found)) = (answer.as_object_mut(), found) {
                answer.remove("failure");
                answer.extend(found);
            }
        }
        Ok(answer)
    }

    /// `ploop_status` of all targets.
    pub fn ploop_statuses(&self) -> Answer {
        let names: Vec<String> = self.ploops.borrow().keys().cloned().collect();
        names.iter().map(|name| self.ploop_status(name)).collect()
    }

    /// Whether there is a target of this name.
    pub fn has_ploop(&self, name: &str) -> bool {
        self.ploops.borrow().contains_key(name)
    }

    /// `dm_status`.
    pub fn ploop_dm_status(&self, name: &str) -> Answer {
        let line = self.use_ploop(name)?.ploop.status().line();
        Ok(json!({
            "name": name,
            "target": "ploop",
            "line": line,
            "status": self.ploop_status(name)?,
        }))
    }

    /// `dm_table`. While the target is not open its sizes are not known.
    pub fn ploop_dm_table(&self, name: &str) -> Answer {
        let ploops = self.ploops.borrow();
        let entry = ploops.get(name).ok_or_else(|| no_ploop(name))?;
        let found = entry.life.open().map(|open| open.ploop.status());
        let (length, cluster) =
            found.map_or((0, 0), |found| (found.nr_sectors, found.cluster_sectors));
        Ok(json!(table::ploop_line(length, cluster, &entry.params)))
    }
}
