//! Walks trees for a check: each block once however often it is shared, every rule of
//! persistent-data.md 2, and a count of every reference.

use super::image::{Image, Leaf, MAX_DEPTH, node_fault};
use super::problem::{Owner, Problem, Problems};
use super::tally::Tally;
use persistent_data::Error;
use persistent_data::btree::Value;
use persistent_data::device::BlockBytes;
use persistent_data::node::{self, NODE};
use rustc_hash::FxHashMap;

/// What is below a node.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Summary {
    pub entries: u64,
    keys: Option<(u64, u64)>,
    height: usize,
    value_size: usize,
    /// Everything could be read.
    pub complete: bool,
}

/// References to metadata blocks, and what is known of the nodes among them.
#[derive(Default)]
pub(super) struct Survey {
    pub counts: Tally,
    seen: FxHashMap<u64, Summary>,
    /// Something could not be entered, so counts are too low.
    pub incomplete: bool,
}

struct Frame {
    block: u64,
    bytes: Box<BlockBytes>,
    next: usize,
    high: Option<u64>,
    summary: Summary,
}

/// A node that is referred to, and the keys it may have.
struct Visit {
    block: u64,
    low: Option<u64>,
    high: Option<u64>,
}

impl Survey {
    /// Walks a tree; `on_leaf` sees the leaves nobody has come to before.
    pub async fn walk<V: Value>(
        &mut self,
        image: &Image,
        root: u64,
        owner: Owner,
        problems: &mut Problems,
        mut on_leaf: impl FnMut(&Leaf),
    ) -> Summary {
        let mut stack: Vec<Frame> = Vec::new();
        let mut visit = Visit {
            block: root,
            low: None,
            high: None,
        };
        loop {
            let entered = self
                .enter::<V>(image, &visit, stack.len(), owner, problems, &mut on_leaf)
                .await;
            let mut done = match entered {
                Entered::Inner(frame) => {
                    stack.push(frame);
                    None
                }
                Entered::Done(summary) => Some(summary),
            };
            // Up to the next child that is to be entered.
            visit = loop {
                let Some(frame) = stack.last_mut() else {
                    return done.unwrap_or_default();
                };
                if let Some(below) = done.take()
                    && !frame.summary.add(&below)
                {
                    problems.push(Problem::Rule {
                        block: frame.block,
                        what: "leaves at different depths",
                        harmless: false,
                    });
                }
                let (i, nr) = (frame.next, node::nr_entries(&frame.bytes));
                if i < nr {
                    frame.next += 1;
                    let high = match i + 1 < nr {
                        true => Some(node::key(&frame.bytes, i + 1)),
                        false => frame.high,
                    };
                    break Visit {
                        block: node::child(&frame.bytes, i),
                        low: Some(node::key(&frame.bytes, i)),
                        high,
                    };
                }
                self.seen.insert(frame.block, frame.summary);
                done = Some(frame.summary);
                stack.pop();
            };
        }
    }

    /// What is below a node that was walked.
    pub fn summary(&self, block: u64) -> Summary {
        self.seen.get(&block).copied().unwrap_or_default()
    }

    async fn enter<V: Value>(
        &mut self,
        image: &Image,
        visit: &Visit,
        depth: usize,
        owner: Owner,
        problems: &mut Problems,
        on_leaf: &mut impl FnMut(&Leaf),
    ) -> Entered {
        let &Visit { block, low, high } = visit;
        // Before it is counted: what lies outside the device is no reference to a block.
        let first = block >= image.nr_blocks() || self.counts.add(block) == 1;
        let checked = match (first, self.seen.get(&block)) {
            (false, Some(known)) => {
                let fault = known.fault(V::SIZE, low, high);
                match fault {
                    None => return Entered::Done(*known),
                    Some(what) => Err(Error::Corrupt { block, what }),
                }
            }
            (false, None) => Err(Error::Corrupt {
                block,
                what: "used twice, as a node and as something else or in a circle",
            }),
            (true, _) => match image.block(block, &NODE).await {
                Err(error) => Err(error),
                Ok(bytes) => match node_fault(&bytes, V::SIZE, low, high) {
                    Some(what) => Err(Error::Corrupt { block, what }),
                    None if depth >= MAX_DEPTH => Err(Error::Corrupt {
                        block,
                        what: "tree is too deep, or goes in circles",
                    }),
                    None => Ok(bytes),
                },
            },
        };
        let bytes = match checked {
            Ok(bytes) => bytes,
            Err(error) => {
                problems.push(Problem::Unusable {
                    error,
                    owner,
                    begin: low.unwrap_or_default(),
                    end: high,
                });
                self.incomplete = true;
                let lost = Summary {
                    value_size: V::SIZE,
                    ..Summary::default()
                };
                self.seen.entry(block).or_insert(lost);
                return Entered::Done(lost);
            }
        };
        let leaf = node::is_leaf(&bytes);
        let mut rule = |what, harmless| {
            problems.push(Problem::Rule {
                block,
                what,
                harmless,
            });
        };
        let (nr, max) = (node::nr_entries(&bytes), node::max_entries(&bytes));
        if depth > 0 && nr < max / 3 {
            let harmless = leaf && matches!(owner, Owner::Mappings(_));
            rule("node is less than a third full", harmless);
        }
        if !max.is_multiple_of(3) {
            rule("capacity is not divisible by 3", false);
        }
        if depth > 0 && nr == 1 && !leaf {
            rule("inner node with one child", false);
        }
        let mut summary = Summary {
            value_size: V::SIZE,
            complete: true,
            ..Summary::default()
        };
        if !leaf {
            return Entered::Inner(Frame {
                block,
                bytes,
                next: 0,
                high,
                summary,
            });
        }
        summary.entries = nr as u64;
        summary.keys = nr
            .checked_sub(1)
            .map(|last| (node::key(&bytes, 0), node::key(&bytes, last)));
        self.seen.insert(block, summary);
        on_leaf(&Leaf { block, bytes });
        Entered::Done(summary)
    }
}

enum Entered {
    Inner(Frame),
    Done(Summary),
}

impl Summary {
    /// Adds a child's; false if it is not as high as those before.
    fn add(&mut self, child: &Summary) -> bool {
        self.entries += child.entries;
        self.complete &= child.complete;
        self.keys = match (self.keys, child.keys) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (keys, None) | (None, keys) => keys,
        };
        if !child.complete {
            return true;
        }
        let even = self.height == 0 || self.height == child.height + 1;
        self.height = child.height + 1;
        even
    }

    /// Why a node that was entered before cannot be what another parent says.
    fn fault(
        &self,
        value_size: usize,
        low: Option<u64>,
        high: Option<u64>,
    ) -> Option<&'static str> {
        if self.value_size != value_size {
            return Some("used by trees of different values");
        }
        let (first, last) = self.keys?;
        (low.is_some_and(|low| first < low) || high.is_some_and(|high| last >= high))
            .then_some("keys outside what the parent says")
    }
}
