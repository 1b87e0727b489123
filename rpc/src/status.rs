//! Status as the kernel's lines and as JSON (thin.md 11.5, 11.6; era.md 4; snapshot.md 4).

use bdev::era::EraStatus;
use bdev::ploop::PloopStatus;
use bdev::ploop::image::{InUse, Version};
use bdev::ploop::status::DeltaStatus;
use bdev::snapshot::{Condition, MergeState, OriginStatus, SnapshotStatus};
use bdev::thin::status::{PoolStatus, ThinStatus};
use bdev::thin::{ExternalMerge, ExternalMergeState, PoolMode};
use serde_json::{Value, json};

/// A mode in the kernel's word.
pub fn mode_word(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Write => "rw",
        PoolMode::OutOfDataSpace => "out_of_data_space",
        PoolMode::OutOfMetadataSpace | PoolMode::ReadOnly => "ro",
        PoolMode::Fail => "Fail",
    }
}

fn discard_word(status: &PoolStatus) -> &'static str {
    match (status.ignore_discard, status.discard_passdown) {
        (true, _) => "ignore_discard",
        (false, true) => "discard_passdown",
        (false, false) => "no_discard_passdown",
    }
}

fn no_space_word(status: &PoolStatus) -> &'static str {
    match status.error_if_no_space {
        true => "error_if_no_space",
        false => "queue_if_no_space",
    }
}

/// A pool's status line, with the kernel's trailing space.
pub fn pool_line(status: &PoolStatus) -> String {
    if status.mode == PoolMode::Fail {
        return "Fail".to_owned();
    }
    format!(
        "{} {}/{} {}/{} {} {} {} {} {} {} ",
        status.transaction_id,
        status.used_metadata_blocks,
        status.total_metadata_blocks,
        status.used_data_blocks,
        status.total_data_blocks,
        status
            .held_root
            .map_or_else(|| "-".to_owned(), |root| root.to_string()),
        mode_word(status.mode),
        discard_word(status),
        no_space_word(status),
        if status.needs_check {
            "needs_check"
        } else {
            "-"
        },
        status.metadata_low_water_blocks
    )
}

/// A pool's status, field by field.
pub fn pool_json(name: &str, status: &PoolStatus) -> Value {
    let counters = status.counters;
    json!({
        "name": name,
        "state": "open",
        "mode": mode_word(status.mode),
        "transaction_id": status.transaction_id,
        "used_metadata_blocks": status.used_metadata_blocks,
        "total_metadata_blocks": status.total_metadata_blocks,
        "used_data_blocks": status.used_data_blocks,
        "total_data_blocks": status.total_data_blocks,
        "data_block_size_sectors": status.data_block_size_sectors,
        "held_root": status.held_root,
        "discard": discard_word(status),
        "no_space": no_space_word(status),
        "needs_check": status.needs_check,
        "metadata_low_water_blocks": status.metadata_low_water_blocks,
        "low_data": status.low_data,
        "low_metadata": status.low_metadata,
        "active_devices": status.active_devices,
        "deletions": status.deletions.iter().map(|deletion| json!({
            "id": deletion.id,
            "mapped_blocks": deletion.mapped_blocks,
            "unmapped_blocks": deletion.unmapped_blocks,
        })).collect::<Vec<_>>(),
        "commits": counters.commits,
        "provisioned_blocks": counters.provisioned,
        "shares_broken": counters.shares_broken,
        "discarded_blocks": counters.discarded,
        "no_space_events": counters.no_space,
        "metadata_cache_used_bytes": status.metadata_cache_used_bytes,
        "metadata_cache_limit_bytes": status.metadata_cache_limit_bytes,
        "mapping_cache_used_bytes": status.mapping_cache.used_bytes,
        "mapping_cache_limit_bytes": status.mapping_cache.limit_bytes,
        "mapping_cache_page_loads": status.mapping_cache.loads,
        "mapping_cache_page_evictions": status.mapping_cache.evictions,
    })
}

// Both numbers come from the disk, where a damaged device may record any: they saturate.
fn mapped_sectors(status: &ThinStatus) -> u64 {
    status
        .mapped_blocks
        .saturating_mul(status.block_sectors.into())
}

fn highest_mapped_sector(status: &ThinStatus) -> Option<u64> {
    let block = status.highest_mapped_block?;
    let end = block
        .saturating_add(1)
        .saturating_mul(status.block_sectors.into());
    Some(end.saturating_sub(1))
}

/// A thin device's status line.
pub fn thin_line(status: &ThinStatus) -> String {
    let highest =
        highest_mapped_sector(status).map_or_else(|| "-".to_owned(), |sector| sector.to_string());
    format!("{} {highest}", mapped_sectors(status))
}

/// A thin device's status, field by field.
pub fn thin_json(status: &ThinStatus) -> Value {
    json!({
        "mapped_sectors": mapped_sectors(status),
        "highest_mapped_sector": highest_mapped_sector(status),
    })
}

/// A merge of a thin device into its external origin, field by field.
pub fn external_merge_json(pool: &str, merge: &ExternalMerge) -> Value {
    let (state, failure) = match &merge.state {
        ExternalMergeState::Running => ("running", None),
        ExternalMergeState::Stopped => ("stopped", None),
        ExternalMergeState::Failed(reason) => ("failed", Some(reason.as_str())),
        ExternalMergeState::Finished => ("finished", None),
    };
    json!({
        "pool": pool,
        "id": merge.id,
        "state": state,
        "failure": failure,
        "merged_blocks": merge.merged_blocks,
        "mapped_blocks": merge.mapped_blocks,
        "block_size_sectors": merge.block_sectors,
        "mib_per_second": merge.bytes_per_second >> 20,
    })
}

/// An era target's status, field by field; its line is how it is displayed.
pub fn era_json(name: &str, status: &EraStatus) -> Value {
    let counters = status.counters;
    json!({
        "name": name,
        "state": "open",
        "current_era": status.current_era,
        "metadata_snap": status.metadata_snap,
        "used_metadata_blocks": status.used_metadata_blocks,
        "total_metadata_blocks": status.total_metadata_blocks,
        "nr_blocks": status.nr_blocks,
        "block_size_sectors": status.block_size_sectors,
        "error": status.error.as_ref().map(ToString::to_string),
        "commits": counters.commits,
        "first_writes": counters.first_writes,
        "first_write_commits": counters.mark_commits,
        "digested_eras": counters.digested,
        "failures": counters.failures,
        "marks_used_bytes": status.marks_used_bytes,
        "metadata_cache_used_bytes": status.metadata_cache_used_bytes,
        "metadata_cache_limit_bytes": status.metadata_cache_limit_bytes,
    })
}

/// A snapshot's or merge's status, field by field; its line is how it is displayed.
pub fn snapshot_json(status: &SnapshotStatus) -> Value {
    let (condition, failure) = match &status.condition {
        Condition::Good => ("good", None),
        Condition::Invalid => ("invalid", None),
        Condition::Overflow => ("overflow", None),
        Condition::MergeFailed(reason) => ("merge_failed", Some(reason.as_str())),
    };
    let merge = status.merge.as_ref().map(|merge| match merge {
        MergeState::Running => "running",
        MergeState::Stopped => "stopped",
        MergeState::Failed(_) => "failed",
        MergeState::Finished => "finished",
        MergeState::Invalid => "invalid",
    });
    json!({
        "name": status.name,
        "condition": condition,
        "failure": failure,
        "merge": merge,
        "line": status.to_string(),
        "allocated_sectors": status.allocated_sectors,
        "total_sectors": status.total_sectors,
        "metadata_sectors": status.metadata_sectors,
        "chunk_size_sectors": status.chunk_sectors,
        "store": status.store.to_string(),
        "header_may_say_valid": status.header_unsure,
        "exceptions_used_bytes": status.used_bytes,
    })
}

/// What an origin does and has done.
pub fn origin_json(status: &OriginStatus) -> Value {
    let counters = status.counters;
    json!({
        "copied_chunks": counters.copies,
        "full_writes": counters.full_writes,
        "commits": counters.commits,
        "exceptions": counters.exceptions,
        "merged_chunks": counters.merged,
        "exceptions_cache_page_loads": counters.page_loads,
        "exceptions_cache_page_evictions": status.cache.evictions,
        "exceptions_cache_used_bytes": status.cache.used_bytes,
        "exceptions_cache_limit_bytes": status.cache.limit_bytes,
    })
}

fn in_use_word(in_use: InUse) -> &'static str {
    match in_use {
        InUse::Open => "open",
        InUse::Closed => "closed",
        InUse::ClosedByOld => "closed_by_old_software",
    }
}

fn delta_json(delta: &DeltaStatus) -> Value {
    json!({
        "bdev": delta.name,
        "format": match delta.version {
            None => "raw",
            Some(Version::V1) => "ploop1_v1",
            Some(Version::V2) => "ploop1_v2",
        },
        "bdev_bytes": delta.device_bytes,
        "has_extension": delta.has_extension,
        "in_use": delta.in_use.map(in_use_word),
    })
}

/// A ploop target's status, field by field.
pub fn ploop_json(status: &PloopStatus) -> Value {
    let counters = status.counters;
    json!({
        "state": "open",
        "size_sectors": status.nr_sectors,
        "cluster_size_sectors": status.cluster_sectors,
        "nr_clusters": status.nr_clusters,
        "used_clusters": status.used_clusters,
        "room_clusters": status.room_clusters,
        "top": delta_json(&status.top),
        "lower": status.lower.iter().map(delta_json).collect::<Value>(),
        "suspended": status.suspended,
        "noresume": status.noresume,
        "tracking_clusters": status.tracking_clusters,
        "merge": status.merge.map(|merge| json!({
            "level": merge.level,
            "into": merge.into,
            "looked_at_clusters": merge.looked_at,
            "total_clusters": merge.total,
            "copied_clusters": merge.copied,
        })),
        "push_backup": status.backup.as_ref().map(|backup| json!({
            "uuid": backup.uuid.to_string(),
            "state": if backup.expired { "expired" } else { "active" },
            "remaining_clusters": backup.remaining_clusters,
            "held_writes": backup.held_writes,
            "seconds_left": backup.left.map(|left| left.as_secs()),
        })),
        "recorded_since": status.records.iter().map(|record| json!({
            "uuid": record.since.to_string(),
            "complete": record.complete,
            "changed_clusters": record.changed_clusters,
        })).collect::<Value>(),
        "bat_unsure": status.bat_unsure,
        "allocated_clusters": counters.allocated,
        "copied_clusters": counters.copied,
        "freed_clusters": counters.freed,
        "moved_clusters": counters.moved,
        "merged_clusters": counters.merged,
        "bat_writes": counters.bat_writes,
        "bat_changes": counters.bat_changes,
        "bat_failures": counters.bat_failures,
        "bat_cache_page_loads": counters.page_loads,
        "bat_cache_page_evictions": status.cache.evictions,
        "bat_cache_used_bytes": status.cache.used_bytes,
        "bat_cache_limit_bytes": status.cache.limit_bytes,
    })
}
