//! A volume group: where its volumes are, and what its thin pools are made of.

use super::text::{Section, TextError, Value, parse};
use std::collections::BTreeMap;

/// Why metadata cannot be imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Not LVM's text.
    #[error("not the text of LVM's metadata: {0}; make it by vgcfgbackup -f FILE VG")]
    Text(#[from] TextError),
    /// No volume group in it.
    #[error("no volume group is described here; make the text by vgcfgbackup -f FILE VG")]
    NoGroup,
    /// Something is missing, or not of its kind.
    #[error("{section}: no usable {key}")]
    Missing {
        /// Where.
        section: String,
        /// What.
        key: &'static str,
    },
    /// A volume that is named and not there.
    #[error("logical volume {name}, which {by} needs, is not described")]
    NoVolume {
        /// The volume.
        name: String,
        /// Who needs it.
        by: String,
    },
    /// A volume that cannot be served.
    #[error(
        "logical volume {name} has a segment of type {kind}, and {by} needs it: only linear volumes can be imported; move it with lvconvert or pvmove first"
    )]
    Kind {
        /// The volume.
        name: String,
        /// What it is.
        kind: String,
        /// Who needs it.
        by: String,
    },
    /// Numbers that fit nowhere.
    #[error("{section}: numbers that are too large, or segments that leave a gap")]
    Numbers {
        /// Where.
        section: String,
    },
    /// Volumes that lead to themselves.
    #[error("logical volume {name} is its own external origin")]
    Circle {
        /// The volume.
        name: String,
    },
    /// No thin pool.
    #[error("volume group {group} has no thin pool{named}")]
    NoPool {
        /// The group.
        group: String,
        /// Of which name.
        named: String,
    },
}

/// A physical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Physical {
    /// Its name in the text: pv0, pv1.
    pub name: String,
    /// The path it had when the text was written.
    pub device: String,
    /// Its size in sectors, if that is said.
    pub nr_sectors: Option<u64>,
    first_sector: u64,
}

/// A part of a physical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Name of the physical volume in the text.
    pub physical: String,
    /// Where it begins there.
    pub first_sector: u64,
    /// How long it is.
    pub nr_sectors: u64,
}

/// A thin pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinPool {
    /// Its logical volume.
    pub name: String,
    /// The volume with the data.
    pub data: String,
    /// The volume with the metadata.
    pub metadata: String,
    /// Sectors per data block.
    pub chunk_sectors: u64,
    /// Of the pool's table: `skip_block_zeroing` and so on.
    pub features: Vec<&'static str>,
}

/// A thin volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinVolume {
    /// Its logical volume.
    pub name: String,
    /// The pool.
    pub pool: String,
    /// Its id there.
    pub id: u64,
    /// Its size.
    pub nr_sectors: u64,
    /// The volume that its holes show.
    pub external_origin: Option<String>,
    /// LVM activates it for reading only.
    pub read_only: bool,
}

/// A volume group.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// How often it was changed.
    pub seqno: u64,
    extent_sectors: u64,
    physical: BTreeMap<String, Physical>,
    volumes: BTreeMap<String, Section>,
}

/// The words of a device's name that the kernel's device-mapper would show: vg-lv, hyphens doubled.
pub fn mapper_name(group: &str, volume: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
}

impl Group {
    /// Reads what vgcfgbackup writes, or the metadata area of a physical volume, where texts of several
    /// ages are between other bytes: the youngest counts.
    pub fn read(bytes: &[u8]) -> Result<Group, GroupError> {
        let mut newest: Option<Group> = None;
        let mut error = GroupError::NoGroup;
        for piece in bytes
            .split(|byte| *byte == 0)
            .filter(|piece| !piece.is_empty())
        {
            match Group::of_text(&String::from_utf8_lossy(piece)) {
                Ok(group) if newest.as_ref().is_none_or(|n| n.seqno < group.seqno) => {
                    newest = Some(group);
                }
                Ok(_) => {}
                Err(why) => error = why,
            }
        }
        newest.ok_or(error)
    }

    fn of_text(text: &str) -> Result<Group, GroupError> {
        let all = parse(text)?;
        let mut groups = all
            .sections
            .into_iter()
            .filter(|(_, section)| section.sections.contains_key("physical_volumes"));
        let (name, mut section) = groups.next().ok_or(GroupError::NoGroup)?;
        let physical = section
            .sections
            .remove("physical_volumes")
            .unwrap_or_default();
        let volumes = section
            .sections
            .remove("logical_volumes")
            .unwrap_or_default();
        Ok(Group {
            seqno: number(&section, &name, "seqno")?,
            extent_sectors: number(&section, &name, "extent_size")?,
            physical: physical
                .sections
                .into_iter()
                .map(|(name, section)| Ok((name.clone(), Physical::of(name, &section)?)))
                .collect::<Result<_, GroupError>>()?,
            volumes: volumes.sections,
            name,
        })
    }

    /// The physical volumes, by their names in the text.
    pub fn physical(&self) -> impl Iterator<Item = &Physical> {
        self.physical.values()
    }

    fn volume(&self, name: &str, by: &str) -> Result<&Section, GroupError> {
        self.volumes.get(name).ok_or_else(|| GroupError::NoVolume {
            name: name.to_owned(),
            by: by.to_owned(),
        })
    }

    /// The segments of a volume, in order.
    fn segments(&self, name: &str, by: &str) -> Result<Vec<&Section>, GroupError> {
        let volume = self.volume(name, by)?;
        let count = number(volume, name, "segment_count")?;
        if count != volume.sections.len() as u64 {
            return Err(self.odd_numbers(name));
        }
        (1..=count)
            .map(|index| {
                let found = volume.sections.get(&format!("segment{index}"));
                found.ok_or_else(|| self.odd_numbers(name))
            })
            .collect()
    }

    fn odd_numbers(&self, section: &str) -> GroupError {
        GroupError::Numbers {
            section: format!("{}/{section}", self.name),
        }
    }

    fn extents(&self, extents: u64, section: &str) -> Result<u64, GroupError> {
        extents
            .checked_mul(self.extent_sectors)
            .filter(|sectors| *sectors <= i64::MAX as u64)
            .ok_or_else(|| self.odd_numbers(section))
    }

    /// Where a linear volume is.
    pub fn parts(&self, name: &str, by: &str) -> Result<Vec<Part>, GroupError> {
        let (mut parts, mut begin) = (Vec::new(), 0);
        for segment in self.segments(name, by)? {
            let kind = text(segment, name, "type")?;
            let stripes = list(segment, name, "stripes").unwrap_or_default();
            let one = number(segment, name, "stripe_count").is_ok_and(|count| count == 1);
            if kind != "striped" || !one || stripes.len() != 2 {
                let kind = match kind {
                    "striped" => "striped over several physical volumes",
                    kind => kind,
                };
                return Err(GroupError::Kind {
                    name: name.to_owned(),
                    kind: kind.to_owned(),
                    by: by.to_owned(),
                });
            }
            if number(segment, name, "start_extent")? != begin {
                return Err(self.odd_numbers(name));
            }
            let nr_extents = number(segment, name, "extent_count")?;
            let physical = stripes.first().and_then(Value::text).unwrap_or_default();
            let found = self.physical.get(physical).ok_or(GroupError::Missing {
                section: format!("logical volume {name}"),
                key: "physical volume",
            })?;
            let first = stripes.get(1).and_then(Value::number);
            let first = self.extents(first.unwrap_or(u64::MAX), name)?;
            let nr_sectors = self.extents(nr_extents, name)?;
            let first_sector = first
                .checked_add(found.first_sector)
                .filter(|first| first.checked_add(nr_sectors).is_some())
                .ok_or_else(|| self.odd_numbers(name))?;
            parts.push(Part {
                physical: physical.to_owned(),
                first_sector,
                nr_sectors,
            });
            begin = begin
                .checked_add(nr_extents)
                .filter(|_| nr_extents > 0)
                .ok_or_else(|| self.odd_numbers(name))?;
        }
        Ok(parts)
    }

    /// The thin pools, or the one of a name.
    pub fn thin_pools(&self, wanted: Option<&str>) -> Result<Vec<ThinPool>, GroupError> {
        let mut pools = Vec::new();
        for name in self.of_kind("thin-pool")? {
            if wanted.is_none_or(|wanted| wanted == name) {
                let segments = self.segments(name, name)?;
                let Some(segment) = segments.first() else {
                    continue;
                };
                pools.push(ThinPool {
                    name: name.to_owned(),
                    data: text(segment, name, "pool")?.to_owned(),
                    metadata: text(segment, name, "metadata")?.to_owned(),
                    chunk_sectors: number(segment, name, "chunk_size")?,
                    features: features(segment, self.volume(name, name)?),
                });
            }
        }
        match pools.is_empty() {
            true => Err(GroupError::NoPool {
                group: self.name.clone(),
                named: wanted.map_or_else(String::new, |wanted| format!(" {wanted}")),
            }),
            false => Ok(pools),
        }
    }

    /// The thin volumes of a pool, by name.
    pub fn thin_volumes(&self, pool: &str) -> Result<Vec<ThinVolume>, GroupError> {
        let mut volumes = Vec::new();
        for name in self.of_kind("thin")? {
            let volume = self.thin_volume(name)?;
            if volume.pool == pool {
                volumes.push(volume);
            }
        }
        Ok(volumes)
    }

    /// A thin volume.
    pub fn thin_volume(&self, name: &str) -> Result<ThinVolume, GroupError> {
        let segments = self.segments(name, name)?;
        let [segment] = segments[..] else {
            return Err(self.odd_numbers(name));
        };
        let origin = segment.values.get("external_origin").and_then(Value::text);
        let status = list(self.volume(name, name)?, name, "status").unwrap_or_default();
        let nr_extents = number(segment, name, "extent_count")?;
        Ok(ThinVolume {
            name: name.to_owned(),
            pool: text(segment, name, "thin_pool")?.to_owned(),
            id: number(segment, name, "device_id")?,
            nr_sectors: self.extents(nr_extents, name)?,
            external_origin: origin.map(str::to_owned),
            read_only: !status.iter().any(|word| word.text() == Some("WRITE")),
        })
    }

    /// Whether a volume is a thin one.
    pub fn is_thin(&self, name: &str) -> bool {
        self.kind(name).is_ok_and(|kind| kind == Some("thin"))
    }

    fn kind(&self, name: &str) -> Result<Option<&str>, GroupError> {
        let segments = self.segments(name, name)?;
        let first = segments.first();
        first.map(|segment| text(segment, name, "type")).transpose()
    }

    fn of_kind(&self, kind: &str) -> Result<Vec<&str>, GroupError> {
        let mut found = Vec::new();
        for name in self.volumes.keys() {
            if self.kind(name)? == Some(kind) {
                found.push(name.as_str());
            }
        }
        Ok(found)
    }
}

impl Physical {
    fn of(name: String, section: &Section) -> Result<Self, GroupError> {
        let first_sector = number(section, &name, "pe_start")?;
        Ok(Physical {
            device: text(section, &name, "device")
                .unwrap_or_default()
                .to_owned(),
            nr_sectors: number(section, &name, "dev_size").ok(),
            first_sector,
            name,
        })
    }
}

/// A pool's features in the kernel's words.
fn features(segment: &Section, volume: &Section) -> Vec<&'static str> {
    let flags = volume
        .values
        .get("flags")
        .and_then(Value::list)
        .unwrap_or_default();
    let fails = flags
        .iter()
        .any(|flag| flag.text() == Some("ERROR_WHEN_FULL"));
    let is = |key: &str, number: i64| segment.values.get(key) == Some(&Value::Number(number));
    let discards = segment.values.get("discards").and_then(Value::text);
    let all = [
        // Zeroing is on only where the text says so.
        (!is("zero_new_blocks", 1), "skip_block_zeroing"),
        (discards == Some("ignore"), "ignore_discard"),
        (discards == Some("nopassdown"), "no_discard_passdown"),
        (fails, "error_if_no_space"),
    ];
    let set = all.into_iter().filter(|(is_set, _)| *is_set);
    set.map(|(_, feature)| feature).collect()
}

fn missing(section: &str, key: &'static str) -> GroupError {
    GroupError::Missing {
        section: section.to_owned(),
        key,
    }
}

fn number(section: &Section, name: &str, key: &'static str) -> Result<u64, GroupError> {
    let value = section.values.get(key).and_then(Value::number);
    value.ok_or_else(|| missing(name, key))
}

fn text<'a>(section: &'a Section, name: &str, key: &'static str) -> Result<&'a str, GroupError> {
    let value = section.values.get(key).and_then(Value::text);
    value.ok_or_else(|| missing(name, key))
}

fn list<'a>(
    section: &'a Section,
    name: &str,
    key: &'static str,
) -> Result<&'a [Value], GroupError> {
    let value = section.values.get(key).and_then(Value::list);
    value.ok_or_else(|| missing(name, key))
}
