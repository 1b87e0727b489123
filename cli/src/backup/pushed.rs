//! A push backup as its reader sees it: what is left, what the guest waits for, and what has been read.

use super::ranges::Ranges;
use super::source::Access;
use crate::dm::odd;
use crate::error::CliError;
use crate::rpc_client::{RpcClient, RpcError};
use nbd::Kind;
use nbd::client::MAX_DEPTH;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io;

/// Longest request to the disk.
const PIECE_BYTES: u64 = 256 << 10;

/// Runs of clusters of a page.
const PAGE: u64 = 16_384;

/// A push backup of a target.
pub struct Guest {
    name: String,
    uuid: String,
    hold_s: u64,
}

impl Guest {
    /// One that has yet to be started.
    pub fn new(name: &str, uuid: &str, hold_s: u64) -> Self {
        Guest {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            hold_s,
        }
    }

    fn call(
        &self,
        client: &mut RpcClient,
        method: &str,
        mut params: Value,
    ) -> Result<Value, RpcError> {
        params["name"] = json!(self.name);
        params["uuid"] = json!(self.uuid);
        client.call(method, params)
    }

    /// What a refusal means.
    fn explain(&self, error: RpcError) -> CliError {
        match error {
            RpcError::Refused { code, .. } if code == -i64::from(libc::ESTALE) => {
                CliError::Usage(format!(
                    "ploop '{}': a write of the guest has waited for {} s, so the backup has ended and the guest goes \
                     on; nothing is lost for the next one. Try again with a longer --hold-s, or when less is written",
                    self.name, self.hold_s
                ))
            }
            error => error.into(),
        }
    }

    /// Begins: with what was written since a backup, or all.
    pub fn start(&self, client: &mut RpcClient, since: Option<&str>) -> Result<(), CliError> {
        let mut params = json!({ "record": true, "timeout_s": self.hold_s });
        if let Some(since) = since {
            params["since"] = json!(since);
        }
        self.call(client, "ploop_push_backup_start", params)?;
        Ok(())
    }

    /// What is to be read, and what are holes. Of the latter nothing is to be read, so they are reported at once.
    pub fn left(&self, client: &mut RpcClient) -> Result<(Ranges, Ranges), CliError> {
        let method = "ploop_push_backup_left";
        let (mut to_read, mut holes) = (Vec::new(), Vec::new());
        let mut begin = json!(0);
        loop {
            let params = json!({ "begin_cluster": begin, "max": PAGE });
            let page = self.call(client, method, params);
            let page = page.map_err(|error| self.explain(error))?;
            for run in page["left"].as_array().ok_or_else(|| odd(method))? {
                let found = run["begin"].as_u64().zip(run["length"].as_u64());
                let (first, count) = found.ok_or_else(|| odd(method))?;
                match run["holes"].as_bool() {
                    Some(true) => holes.push(first..first + count),
                    Some(false) => to_read.push(first..first + count),
                    None => return Err(odd(method)),
                }
            }
            match &page["next_cluster"] {
                Value::Null => break,
                next => begin = next.clone(),
            }
        }
        let holes = Ranges::of(holes);
        self.saved(client, &holes)?;
        Ok((Ranges::of(to_read), holes))
    }

    /// Clusters that the guest waits for.
    pub fn wanted(&self, client: &mut RpcClient, most: u64) -> Result<Vec<u64>, CliError> {
        let method = "ploop_push_backup_read";
        let params = json!({ "max": most.min(65_536) });
        match self.call(client, method, params) {
            Ok(answer) => {
                let found = answer["clusters"].as_array().ok_or_else(|| odd(method))?;
                found
                    .iter()
                    .map(|cluster| cluster.as_u64().ok_or_else(|| odd(method)))
                    .collect()
            }
            Err(RpcError::Refused { code, .. }) if code == -i64::from(libc::ENOENT) => {
                Ok(Vec::new())
            }
            Err(error) => Err(self.explain(error)),
        }
    }

    /// These have been read: what waits for them goes on.
    pub fn saved(&self, client: &mut RpcClient, clusters: &Ranges) -> Result<(), CliError> {
        for run in clusters.iter() {
            let params = json!({ "cluster": run.start, "count": run.end - run.start });
            let noted = self.call(client, "ploop_push_backup_write", params);
            noted.map_err(|error| self.explain(error))?;
        }
        Ok(())
    }

    /// Ends it: what was read is safe.
    pub fn complete(&self, client: &mut RpcClient, keep: bool) -> Result<(), CliError> {
        let params = json!({ "complete": true, "keep": keep });
        self.call(client, "ploop_push_backup_stop", params)?;
        Ok(())
    }

    /// Ends it: what was read is of no use.
    pub fn stop(&self, client: &mut RpcClient) -> Result<(), CliError> {
        self.call(client, "ploop_push_backup_stop", json!({}))?;
        Ok(())
    }
}

/// Reads clusters of a disk, with many requests under way.
pub struct Reader<'a> {
    access: &'a mut Access,
    cluster_bytes: u64,
    size_bytes: u64,
}

impl<'a> Reader<'a> {
    /// Of a disk of this size.
    pub fn new(access: &'a mut Access, cluster_bytes: u64, size_bytes: u64) -> Self {
        Reader {
            access,
            cluster_bytes,
            size_bytes,
        }
    }

    /// The contents of clusters, as far as the disk goes.
    pub fn read(&mut self, clusters: &Ranges) -> Result<BTreeMap<u64, Vec<u8>>, CliError> {
        let read = self.read_pieces(clusters);
        read.map_err(|source| self.access.failed(source))
    }

    fn read_pieces(&mut self, clusters: &Ranges) -> io::Result<BTreeMap<u64, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut pieces = Vec::new();
        for cluster in clusters.iter().flatten() {
            let offset = cluster * self.cluster_bytes;
            let length = self
                .cluster_bytes
                .min(self.size_bytes.saturating_sub(offset));
            found.insert(cluster, vec![0; length as usize]);
            let starts = (0..length).step_by(PIECE_BYTES as usize);
            pieces.extend(starts.map(|at| (cluster, at, PIECE_BYTES.min(length - at))));
        }
        let data = &mut self.access.data;
        let mut pieces = pieces.into_iter().peekable();
        let mut asked = HashMap::new();
        while pieces.peek().is_some() || data.under_way() > 0 {
            while data.under_way() < MAX_DEPTH
                && let Some((cluster, at, bytes)) = pieces.next()
            {
                let offset = cluster * self.cluster_bytes + at;
                let cookie = data.send(Kind::Read, offset, bytes as u32, &[])?;
                asked.insert(cookie, (cluster, at as usize));
            }
            let answer = data.receive()?;
            let bytes = answer.result.map_err(io::Error::other)?;
            let place = asked.remove(&answer.cookie).and_then(|(cluster, at)| {
                let contents = found.get_mut(&cluster)?;
                contents.get_mut(at..at + bytes.len())
            });
            match place {
                Some(place) => place.copy_from_slice(&bytes),
                None => return Err(io::Error::other("an answer to nothing")),
            }
        }
        Ok(found)
    }
}
