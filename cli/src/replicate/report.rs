//! What a process that replicates says of itself: a file beside the RPC socket, which `replicate status` and
//! `metrics` read. Nothing depends on it.

use super::head::beside;
use super::state::{Role, Snapshot, State};
use crate::backup::now_unix_s;
use crate::error::CliError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// At most so often is the file written while changes are sent.
const PERIOD: Duration = Duration::from_secs(1);

/// A report is short.
const MAX_BYTES: u64 = 64 << 10;

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// Nothing, now.
    #[default]
    Idle,
    /// Changes go out.
    Sending,
    /// Changes come in.
    Receiving,
    /// The last attempt has failed; there will be another.
    Retrying,
    /// It has failed, and will not be tried again.
    Stopped,
}

/// What is known of one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Names the replication on both sides.
    pub chain: String,
    /// The pool here.
    pub pool: String,
    /// Which way.
    pub role: Role,
    /// At the source: the thin device.
    pub device: Option<u64>,
    /// At the source: to whom.
    pub peer: Option<String>,
    /// What is going on.
    pub activity: Activity,
    /// The newest snapshot that both sides have.
    pub newest: Option<Snapshot>,
    /// When that was so.
    pub last_success_unix_s: Option<u64>,
    /// Bytes of changes that are still to be sent of the snapshot that is being sent; compressed they are fewer.
    pub to_go_bytes: u64,
    /// Bytes sent since the process began.
    pub sent_bytes: u64,
    /// Snapshots sent or received since the process began.
    pub transfers: u64,
    /// Attempts that failed since the process began.
    pub failures: u64,
    /// What the last one failed with, until one succeeds.
    pub last_error: Option<String>,
}

impl Report {
    /// What a state says.
    pub fn of(pool: &str, state: &State) -> Self {
        let mut report = Report {
            chain: state.chain.clone(),
            pool: pool.to_owned(),
            role: state.role,
            device: None,
            peer: None,
            activity: Activity::Idle,
            newest: None,
            last_success_unix_s: None,
            to_go_bytes: 0,
            sent_bytes: 0,
            transfers: 0,
            failures: 0,
            last_error: None,
        };
        report.know(state);
        report
    }

    /// Takes over what a state says.
    pub fn know(&mut self, state: &State) {
        self.role = state.role;
        self.device = state.device;
        self.newest = state.newest_common().cloned();
        self.last_success_unix_s = state.last_success_unix_s;
    }

    /// How old the newest snapshot is that both sides have. None: there is none.
    pub fn behind_s(&self) -> Option<u64> {
        let newest = self.newest.as_ref()?;
        Some(now_unix_s().saturating_sub(newest.taken_unix_s))
    }

    /// As JSON, with what depends on the time.
    pub fn fields(&self) -> Map<String, Value> {
        let mut fields = match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        fields.insert("behind_seconds".into(), json!(self.behind_s()));
        fields
    }
}

fn path_of(socket: &Path, chain: &str) -> PathBuf {
    let chain = chain.get(..12).unwrap_or(chain);
    beside(socket, &format!("replicate-{chain}.json"))
}

/// Writes reports. That one cannot be written is a remark only.
pub struct Reporter {
    /// To be changed and then written.
    pub report: Report,
    socket: PathBuf,
    written: Option<Instant>,
}

impl Reporter {
    /// One for this target.
    pub fn new(socket: &Path, report: Report) -> Self {
        Reporter {
            report,
            socket: socket.to_owned(),
            written: None,
        }
    }

    /// Writes it.
    pub fn write(&mut self) {
        self.written = Some(Instant::now());
        let path = path_of(&self.socket, &self.report.chain);
        let new = path.with_extension("json.new");
        let written = (|| {
            let _ = fs::remove_file(&new);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(&new)?;
            file.write_all(&serde_json::to_vec(&self.report)?)?;
            fs::rename(&new, &path)
        })();
        if let Err(error) = written {
            log::warn!("{}: {error}", path.display());
        }
    }

    /// Writes it, unless that was done a moment ago.
    pub fn write_sometimes(&mut self) {
        if self.written.is_none_or(|at| at.elapsed() >= PERIOD) {
            self.write();
        }
    }
}

/// Removes what is said of a replication that is forgotten.
pub fn remove(socket: &Path, chain: &str) {
    let _ = fs::remove_file(path_of(socket, chain));
}

/// All reports of a target. What cannot be read is passed over: anybody may have put it there.
pub fn all(socket: &Path) -> Result<Vec<Report>, CliError> {
    let prefix = beside(socket, "replicate-");
    let folder = prefix.parent().unwrap_or(Path::new("/var/tmp"));
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let prefix = prefix.file_name().unwrap_or_default().to_string_lossy();
    let mut reports = Vec::new();
    for entry in fs::read_dir(folder).map_err(CliError::io(folder))? {
        let entry = entry.map_err(CliError::io(folder))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let short = entry
            .metadata()
            .is_ok_and(|found| found.is_file() && found.len() <= MAX_BYTES);
        if short && name.starts_with(&*prefix) && name.ends_with(".json") {
            let report = fs::read(entry.path()).ok();
            let report = report.and_then(|text| serde_json::from_slice(&text).ok());
            reports.extend(report);
        }
    }
    reports.sort_by(|a: &Report, b: &Report| (&a.pool, &a.chain).cmp(&(&b.pool, &b.chain)));
    Ok(reports)
}
