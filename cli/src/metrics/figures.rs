//! What is measured of what: which field of which status is which metric.

/// Whether a figure goes up and down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does.
    Gauge,
    /// It only grows, until the target starts again.
    Counter,
}

/// A figure of an object.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Field of the status: a number, or true for 1; null: there is none.
    pub field: &'static str,
    /// The metric, behind `spdk_dm_` and the kind of object; a counter gets `_total` as well.
    pub name: &'static str,
    /// One line.
    pub help: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What the field is multiplied by.
    pub scale: f64,
}

/// A word of an object: 1 for the word it is, 0 for the others.
#[derive(Debug, Clone, Copy)]
pub struct Word {
    /// Field of the status, and name of the label.
    pub field: &'static str,
    /// One line.
    pub help: &'static str,
    /// The words it may be.
    pub words: &'static [&'static str],
}

/// What is measured of objects of a kind.
pub struct Group {
    /// The kind, as it stands in names.
    pub kind: &'static str,
    /// Figures.
    pub figures: &'static [Figure],
    /// Words.
    pub words: &'static [Word],
}

const BYTES_PER_SECTOR: f64 = 512.0;

const fn gauge(field: &'static str, help: &'static str) -> Figure {
    Figure {
        field,
        name: field,
        help,
        kind: Kind::Gauge,
        scale: 1.0,
    }
}

const fn sectors(field: &'static str, name: &'static str, help: &'static str) -> Figure {
    Figure {
        field,
        name,
        help,
        kind: Kind::Gauge,
        scale: BYTES_PER_SECTOR,
    }
}

const fn counter(field: &'static str, name: &'static str, help: &'static str) -> Figure {
    Figure {
        field,
        name,
        help,
        kind: Kind::Counter,
        scale: 1.0,
    }
}

const STATE: Word = Word {
    field: "state",
    help: "Whether it is open, or what keeps it from that",
    words: &["open", "waiting", "opening", "closing"],
};

/// Of a pool, from `thin_pool_status`.
pub const POOL: Group = Group {
    kind: "pool",
    figures: &[
        gauge("used_data_blocks", "Data blocks in use"),
        gauge("total_data_blocks", "Data blocks of the pool"),
        sectors(
            "data_block_size_sectors",
            "data_block_size_bytes",
            "Size of a data block",
        ),
        gauge(
            "used_metadata_blocks",
            "Metadata blocks of 4096 bytes in use",
        ),
        gauge("total_metadata_blocks", "Metadata blocks of 4096 bytes"),
        gauge("transaction_id", "Transaction id of the user"),
        gauge("active_devices", "Thin devices that are bdevs"),
        gauge(
            "needs_check",
            "1: the metadata must be checked before it can be written",
        ),
        gauge(
            "low_data",
            "1: not more free data blocks than the low water mark",
        ),
        gauge("low_metadata", "1: little free metadata"),
        gauge("metadata_cache_used_bytes", "Memory of the metadata cache"),
        gauge("metadata_cache_limit_bytes", "Limit of the metadata cache"),
        gauge("mapping_cache_used_bytes", "Memory of the mapping cache"),
        gauge("mapping_cache_limit_bytes", "Limit of the mapping cache"),
        counter(
            "mapping_cache_page_loads",
            "mapping_cache_page_loads",
            "Pages of mappings read from the metadata",
        ),
        counter(
            "mapping_cache_page_evictions",
            "mapping_cache_page_evictions",
            "Pages of mappings given up for others",
        ),
        counter("commits", "commits", "Commits of the metadata"),
        counter(
            "provisioned_blocks",
            "provisioned_blocks",
            "Data blocks given to first writes",
        ),
        counter(
            "shares_broken",
            "shares_broken",
            "Data blocks copied or replaced because they were shared",
        ),
        counter(
            "discarded_blocks",
            "discarded_blocks",
            "Mappings removed by discards",
        ),
        counter(
            "no_space_events",
            "no_space_events",
            "Times that a write found no free data block",
        ),
    ],
    words: &[
        Word {
            field: "mode",
            help: "What the pool can do",
            words: &["rw", "out_of_data_space", "ro", "Fail"],
        },
        STATE,
    ],
};

/// Of a thin device, from `thin_list`.
pub const THIN: Group = Group {
    kind: "thin",
    figures: &[
        gauge("mapped_blocks", "Data blocks it maps, shared ones too"),
        sectors("size_sectors", "size_bytes", "Size of its bdev"),
        gauge("transaction_id", "Transaction id when it was made"),
    ],
    words: &[],
};

/// Of an era target, from `era_status`.
pub const ERA: Group = Group {
    kind: "era",
    figures: &[
        gauge("current_era", "The current era"),
        gauge(
            "metadata_snap",
            "Metadata block of the metadata snapshot, while there is one",
        ),
        gauge(
            "used_metadata_blocks",
            "Metadata blocks of 4096 bytes in use",
        ),
        gauge("total_metadata_blocks", "Metadata blocks of 4096 bytes"),
        gauge("nr_blocks", "Data blocks of the origin"),
        sectors(
            "block_size_sectors",
            "block_size_bytes",
            "Size of a data block",
        ),
        gauge("marks_used_bytes", "Memory of the marks of written blocks"),
        gauge("metadata_cache_used_bytes", "Memory of the metadata cache"),
        gauge("metadata_cache_limit_bytes", "Limit of the metadata cache"),
        counter("commits", "commits", "Commits of the metadata"),
        counter(
            "first_writes",
            "first_writes",
            "Writes that were the first to a block in an era",
        ),
        counter(
            "first_write_commits",
            "first_write_commits",
            "Commits for first writes",
        ),
        counter(
            "digested_eras",
            "digested_eras",
            "Eras whose writes were put into the era array",
        ),
        counter("failures", "failures", "Operations given up"),
    ],
    words: &[STATE],
};

/// Of an origin, from `snapshot_status`.
pub const ORIGIN: Group = Group {
    kind: "origin",
    figures: &[
        counter(
            "copied_chunks",
            "copied_chunks",
            "Chunks copied to snapshots before they were written",
        ),
        counter(
            "full_writes",
            "full_writes",
            "Chunks of snapshots written as a whole, without a copy",
        ),
        counter("commits", "commits", "Commits of exceptions"),
        counter("exceptions", "exceptions", "Exceptions made"),
        counter(
            "merged_chunks",
            "merged_chunks",
            "Chunks merged into the origin",
        ),
        counter(
            "exceptions_cache_page_loads",
            "exceptions_cache_page_loads",
            "Pages of exceptions read from COW bdevs",
        ),
        counter(
            "exceptions_cache_page_evictions",
            "exceptions_cache_page_evictions",
            "Pages of exceptions given up for others",
        ),
        gauge(
            "exceptions_cache_used_bytes",
            "Memory of the cache of exceptions",
        ),
        gauge(
            "exceptions_cache_limit_bytes",
            "Limit of the cache of exceptions",
        ),
    ],
    words: &[STATE],
};

/// Of a snapshot, or of what is being merged, from `snapshot_status`.
pub const SNAPSHOT: Group = Group {
    kind: "snapshot",
    figures: &[
        sectors(
            "allocated_sectors",
            "allocated_bytes",
            "Space in use on its COW bdev",
        ),
        sectors("total_sectors", "total_bytes", "Size of its COW bdev"),
        sectors(
            "metadata_sectors",
            "metadata_bytes",
            "Space on its COW bdev in use for metadata",
        ),
        sectors("chunk_size_sectors", "chunk_size_bytes", "Size of a chunk"),
        gauge(
            "exceptions_used_bytes",
            "Memory of what is known of its exceptions",
        ),
        gauge("cow_bdev_missing", "1: its COW bdev has gone"),
    ],
    words: &[
        Word {
            field: "condition",
            help: "Whether it can be used",
            words: &["good", "invalid", "overflow", "merge_failed", "waiting"],
        },
        Word {
            field: "merge",
            help: "How far its merge into the origin is",
            words: &["running", "stopped", "failed", "finished", "invalid"],
        },
    ],
};

/// Of a replication, from what `spdk-dm replicate` says of itself.
pub const REPLICATION: Group = Group {
    kind: "replication",
    figures: &[
        gauge(
            "behind_seconds",
            "Age of the newest snapshot that both sides have",
        ),
        gauge(
            "to_go_bytes",
            "What is still to be sent of the snapshot that is being sent, before compression",
        ),
        Figure {
            name: "last_success_timestamp_seconds",
            ..gauge(
                "last_success_unix_s",
                "When both sides had the newest snapshot, in seconds since 1970",
            )
        },
        counter("sent_bytes", "sent_bytes", "Bytes sent"),
        counter("transfers", "transfers", "Snapshots sent or received"),
        counter("failures", "failures", "Attempts that failed"),
    ],
    words: &[
        Word {
            field: "role",
            help: "Which way",
            words: &["source", "replica"],
        },
        Word {
            field: "activity",
            help: "What is going on",
            words: &["idle", "sending", "receiving", "retrying", "stopped"],
        },
    ],
};

/// Of any bdev, from `bdev_get_iostat`.
pub const BDEV: Group = Group {
    kind: "bdev",
    figures: &[
        counter("bytes_read", "read_bytes", "Bytes read"),
        counter("num_read_ops", "reads", "Reads"),
        counter("bytes_written", "written_bytes", "Bytes written"),
        counter("num_write_ops", "writes", "Writes"),
        counter("bytes_unmapped", "unmapped_bytes", "Bytes unmapped"),
        counter("num_unmap_ops", "unmaps", "Unmaps"),
        counter("read_seconds", "read_seconds", "Time of all reads together"),
        counter(
            "write_seconds",
            "write_seconds",
            "Time of all writes together",
        ),
        counter(
            "unmap_seconds",
            "unmap_seconds",
            "Time of all unmaps together",
        ),
    ],
    words: &[],
};
