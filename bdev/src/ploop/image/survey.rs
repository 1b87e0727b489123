//! Looks at all of an image: what its file's clusters are used for, and everything that is wrong.
//!
//! Needs a bit of memory per cluster of the file, whatever the BAT says.

use super::extension::Extension;
use super::header::{Header, InUse};
use super::problem::Problem;
use super::space::Space;
use super::{page_entries, read_header, read_page};
use crate::device::{ByteDevice, SECTOR_BYTES};
use persistent_data::turn::yield_now;

/// Problems that are kept; others are only counted.
const MAX_PROBLEMS: usize = 1000;

/// Pages of the BAT between two chances for others.
const PAGES_PER_TURN: u64 = 64;

/// What was found.
pub struct Survey {
    /// The header.
    pub header: Header,
    /// Clusters in use: named by the BAT or the extension.
    pub space: Space,
    /// Guest clusters that have a cluster of the file.
    pub nr_mapped: u64,
    /// Of those, how many are not right behind that of the guest cluster before.
    pub nr_fragments: u64,
    /// First sector behind the last cluster in use.
    pub end_sectors: u64,
    /// The first ones that were found.
    pub problems: Vec<Problem>,
    /// All.
    pub nr_problems: u64,
    /// The format extension, if there is a sound one.
    pub extension: Option<Extension>,
    /// What is wrong with it.
    pub extension_problem: Option<Problem>,
}

impl Survey {
    /// Looks at an image. Errors: it has no header that can be used, or no memory is left.
    pub async fn of(device: &dyn ByteDevice) -> Result<Survey, Problem> {
        let header = read_header(device).await?;
        let mut survey = Survey {
            space: Space::new(&header, device.nr_sectors())?,
            header,
            nr_mapped: 0,
            nr_fragments: 0,
            end_sectors: header.data(),
            problems: Vec::new(),
            nr_problems: 0,
            extension: None,
            extension_problem: None,
        };
        survey.look_at_extension(device).await;
        let mut next = None;
        for page in 0..header.nr_pages() {
            if page % PAGES_PER_TURN == PAGES_PER_TURN - 1 {
                yield_now().await;
            }
            match read_page(device, &header, page).await {
                Err(problem) => survey.note(problem),
                Ok(bytes) => {
                    for (cluster, raw) in page_entries(&header, page, &bytes) {
                        next = survey.entry(cluster, raw, device.nr_sectors(), next);
                    }
                }
            }
        }
        Ok(survey)
    }

    fn note(&mut self, problem: Problem) {
        self.nr_problems += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// Where the next guest cluster would be without a fragment.
    fn entry(&mut self, cluster: u64, raw: u32, nr_sectors: u64, next: Option<u64>) -> Option<u64> {
        match self.header.place(cluster, raw, nr_sectors) {
            Ok(None) => next,
            Ok(Some(sector)) => {
                self.nr_mapped += 1;
                self.nr_fragments += u64::from(next.is_some_and(|next| next != sector));
                self.took(cluster, sector);
                Some(sector + self.header.cluster())
            }
            Err(problem) => {
                self.note(problem);
                next
            }
        }
    }

    fn took(&mut self, cluster: u64, sector: u64) {
        self.end_sectors = self.end_sectors.max(sector + self.header.cluster());
        if !self.space.take(sector) {
            self.note(Problem::Duplicate { cluster, sector });
        }
    }

    async fn look_at_extension(&mut self, device: &dyn ByteDevice) {
        if self.header.extension_sectors == 0 {
            return;
        }
        match read_extension(device, &self.header).await {
            Ok(extension) => {
                for place in extension.places(&self.header) {
                    self.end_sectors = self.end_sectors.max(place + self.header.cluster());
                    if !self.space.take(place) {
                        self.extension_problem = Some(Problem::Extension {
                            sector: place,
                            what: "shares a cluster",
                        });
                    }
                }
                self.extension = Some(extension);
            }
            Err(problem) => self.extension_problem = Some(problem),
        }
    }

    /// Clusters of the file before its last used one that nothing refers to. They cost room only.
    pub fn nr_holes(&self) -> u64 {
        let data = self.end_sectors - self.header.data();
        (data / self.header.cluster()).saturating_sub(self.space.nr_used())
    }

    /// Whether the image was not closed.
    pub fn is_in_use(&self) -> bool {
        self.header.in_use == InUse::Open
    }
}

async fn read_extension(device: &dyn ByteDevice, header: &Header) -> Result<Extension, Problem> {
    let sector = header.extension_sectors;
    let is_cluster = sector >= header.data()
        && sector.saturating_add(header.cluster()) <= device.nr_sectors()
        && (sector - header.data()).is_multiple_of(header.cluster());
    if !is_cluster {
        return Err(Problem::Extension {
            sector,
            what: "is no cluster of the data area",
        });
    }
    let mut cluster = vec![0; (header.cluster() * SECTOR_BYTES) as usize];
    let read = device.read_bytes(sector, &mut cluster).await;
    read.map_err(|errno| Problem::Unreadable { sector, errno })?;
    Extension::decode(&cluster, header, device.nr_sectors())
}
