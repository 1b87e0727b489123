//! A strict check of a pool's metadata (thin.md 12): structure, details against mappings, and every
//! reference count of the metadata and data devices.

use super::refs::{Details, TIME_BITS};
use super::superblock::{SUPERBLOCK, Superblock};
use super::{ThinError, ThinMetadata};
use persistent_data::btree::{self, Value};
use persistent_data::check::{Counts, Finding, check_space_map, check_tree, note};
use persistent_data::space_map::IndexEntry;
use persistent_data::tm::TransactionManager;
use std::collections::BTreeMap;

impl ThinMetadata {
    /// Checks the committed state. Nothing may be uncommitted. An error means that something could
    /// not even be read.
    pub async fn check(&self) -> Result<Vec<Finding>, ThinError> {
        let mut findings = Vec::new();
        let mut counts = Counts::default();
        let mut data = Counts::default();
        counts.add(0);
        counts.add(self.tm.index_block());
        let (mapping_root, details_root) = (self.sb.mapping_root, self.sb.details_root);
        self.check_devices(
            mapping_root,
            details_root,
            &mut counts,
            &mut data,
            &mut findings,
        )
        .await?;
        if let Some(block) = self.held_root() {
            counts.add(block);
            let held = {
                let copy = self.tm.read(block, &SUPERBLOCK).await?;
                let bytes = copy.bytes();
                Superblock::read(&bytes, block)?.ok_or(ThinError::NotAPool)?
            };
            let (mapping_root, details_root) = (held.mapping_root, held.details_root);
            self.check_devices(
                mapping_root,
                details_root,
                &mut counts,
                &mut data,
                &mut findings,
            )
            .await?;
        }
        let tm = &self.tm;
        check_tree::<IndexEntry>(
            tm,
            self.sb.data_map.bitmap_root,
            &mut counts,
            &mut findings,
            |_, _| {},
        )
        .await?;
        check_space_map(tm, self.data.map(), &mut counts, &mut findings).await?;
        check_space_map(tm, tm.map(), &mut counts, &mut findings).await?;
        counts
            .compare(tm, tm.map(), "metadata", &mut findings)
            .await?;
        data.compare(tm, self.data.map(), "data", &mut findings)
            .await?;
        Ok(findings)
    }

    async fn check_devices(
        &self,
        mapping_root: u64,
        details_root: u64,
        counts: &mut Counts,
        data: &mut Counts,
        findings: &mut Vec<Finding>,
    ) -> Result<(), ThinError> {
        let tm = &self.tm;
        let mut details = BTreeMap::new();
        let mut roots = BTreeMap::new();
        // Also where the trees have been entered before, as by a metadata snapshot.
        walk(tm, details_root, findings, |id, d: Details| {
            details.insert(id, d);
        })
        .await?;
        walk(tm, mapping_root, findings, |id, root: u64| {
            roots.insert(id, root);
        })
        .await?;
        check_tree::<Details>(tm, details_root, counts, findings, |_, _| {}).await?;
        let mut entered = Vec::new();
        check_tree::<u64>(tm, mapping_root, counts, findings, |_, root| {
            entered.push(root)
        })
        .await?;
        for root in entered {
            check_tree::<u64>(tm, root, counts, findings, |_, value| {
                data.add(value >> TIME_BITS);
            })
            .await?;
        }
        if !details.keys().eq(roots.keys()) {
            note(findings, details_root, || {
                "details and mappings are of different devices".to_owned()
            });
        }
        for (id, root) in roots {
            let mut mapped = 0;
            walk(tm, root, findings, |_, _: u64| mapped += 1).await?;
            let said = details.get(&id).map_or(0, |d| d.mapped_blocks);
            if mapped != said {
                note(findings, root, || {
                    format!("device {id} has {mapped} mappings, its details say {said}")
                });
            }
        }
        Ok(())
    }
}

/// Visits the entries of a tree as far as it can be walked; where it cannot is a finding.
async fn walk<V: Value>(
    tm: &TransactionManager,
    root: u64,
    findings: &mut Vec<Finding>,
    visit: impl FnMut(u64, V),
) -> Result<(), ThinError> {
    match btree::walk(tm, root, 0, u64::MAX, visit).await {
        Err(persistent_data::Error::Corrupt { block, what }) => {
            note(findings, block, || what.to_owned());
            Ok(())
        }
        other => Ok(other?),
    }
}
