//! Arrays and bitsets against plain vectors, with shared copies, commits and every count checked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use futures::executor::block_on;
use persistent_data::array::{self, ARRAY};
use persistent_data::bitset;
use persistent_data::block::{Kind, get_u32, get_u64, no_rules};
use persistent_data::check::{Counts, check_space_map};
use persistent_data::device::BLOCK_BYTES;
use persistent_data::memory::MemoryDevice;
use persistent_data::space_map::SpaceMapRoot;
use persistent_data::tm::TransactionManager;
use proptest::prelude::*;
use std::ops::Range;
use std::rc::Rc;

static SUPER: Kind = Kind {
    name: "test superblock",
    xor: 77,
    blocknr_offset: 8,
    validate: no_rules,
};

#[derive(Debug, Clone)]
enum Step {
    Update {
        which: usize,
        places: Vec<u64>,
        value: u32,
    },
    Set {
        which: usize,
        begin: u64,
        len: u64,
    },
    ResizeArray {
        which: usize,
        nr: u64,
    },
    ResizeBits {
        which: usize,
        nr: u64,
    },
    Share {
        which: usize,
    },
    Delete {
        which: usize,
    },
    Commit,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..6usize;
    // Around block borders (1018 values, 32576 bits) and over several.
    let nr = prop_oneof![
        0..5000u64,
        1016..1021u64,
        2034..2040u64,
        200_000..270_000u64
    ];
    let bits = prop_oneof![0..3000u64, 32_570..32_580u64, 0..120_000u64];
    prop_oneof![
        5 => (which.clone(), prop::collection::vec(any::<u64>(), 1..40), any::<u32>())
            .prop_map(|(which, places, value)| Step::Update { which, places, value }),
        5 => (which.clone(), any::<u64>(), prop_oneof![0..3u64, 0..70_000u64])
            .prop_map(|(which, begin, len)| Step::Set { which, begin, len }),
        3 => (which.clone(), nr).prop_map(|(which, nr)| Step::ResizeArray { which, nr }),
        3 => (which.clone(), bits).prop_map(|(which, nr)| Step::ResizeBits { which, nr }),
        3 => which.clone().prop_map(|which| Step::Share { which }),
        2 => which.prop_map(|which| Step::Delete { which }),
        2 => Just(Step::Commit),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Clone)]
struct Pair {
    array: (u64, Vec<u32>),
    bits: (u64, Vec<bool>),
}

struct World {
    device: Rc<MemoryDevice>,
    tm: TransactionManager,
    pairs: Vec<Pair>,
}

impl World {
    async fn new() -> World {
        let device = Rc::new(MemoryDevice::new(6000));
        let tm = TransactionManager::create(device.clone(), 0).await.unwrap();
        let array = (array::create(&tm, 3, 9u32).await.unwrap(), vec![9; 3]);
        let bits = (bitset::create(&tm, 0).await.unwrap(), vec![]);
        let mut world = World {
            device,
            tm,
            pairs: vec![Pair { array, bits }],
        };
        world.commit().await;
        world
    }

    async fn commit(&mut self) -> SpaceMapRoot {
        let root = self.tm.pre_commit().await.unwrap();
        self.tm.commit(&SUPER, &mut [0; BLOCK_BYTES]).await.unwrap();
        root
    }

    async fn apply(&mut self, step: &Step) {
        let len = self.pairs.len();
        match step {
            Step::Update {
                which,
                places,
                value,
            } => {
                let (root, model) = &mut self.pairs[which % len].array;
                if model.is_empty() {
                    return;
                }
                let mut places: Vec<u64> =
                    places.iter().map(|at| at % model.len() as u64).collect();
                places.sort_unstable();
                places.dedup();
                *root = array::update(
                    &self.tm,
                    *root,
                    &places,
                    |at| *at,
                    |old: u32, at| {
                        assert_eq!(old, model[*at as usize]);
                        *value
                    },
                )
                .await
                .unwrap();
                for at in places {
                    model[at as usize] = *value;
                }
            }
            Step::Set {
                which,
                begin,
                len: run,
            } => {
                let (root, model) = &mut self.pairs[which % len].bits;
                let nr = model.len() as u64;
                let begin = begin % (nr + 1);
                let end = nr.min(begin + run);
                // Two ranges that may share a word.
                let middle = begin + (end - begin) / 3;
                let ranges: [Range<u64>; 2] = [begin..middle, (middle + 1).min(end)..end];
                *root = bitset::set(&self.tm, *root, &ranges).await.unwrap();
                for bit in ranges.into_iter().flatten() {
                    model[bit as usize] = true;
                }
            }
            Step::ResizeArray { which, nr } => {
                let (root, model) = &mut self.pairs[which % len].array;
                *root = array::resize(&self.tm, *root, model.len() as u64, *nr, 7u32)
                    .await
                    .unwrap();
                model.resize(*nr as usize, 7);
            }
            Step::ResizeBits { which, nr } => {
                let (root, model) = &mut self.pairs[which % len].bits;
                // Bits past the end inside the last word stay (persistent-data.md 6): the model has
                // whole words.
                let nr = nr.next_multiple_of(64);
                *root = bitset::resize(&self.tm, *root, model.len() as u64, nr)
                    .await
                    .unwrap();
                model.resize(nr as usize, false);
            }
            Step::Share { which } => {
                if len < 5 {
                    // As a metadata snapshot does it: what is shared is committed.
                    self.commit().await;
                    let copy = self.pairs[which % len].clone();
                    self.tm.inc(copy.array.0).unwrap();
                    self.tm.inc(copy.bits.0).unwrap();
                    self.pairs.push(copy);
                }
            }
            Step::Delete { which } => {
                if len > 1 {
                    let pair = self.pairs.remove(which % len);
                    array::delete(&self.tm, pair.array.0).await.unwrap();
                    array::delete(&self.tm, pair.bits.0).await.unwrap();
                }
            }
            Step::Commit => {
                self.commit().await;
            }
            Step::Reopen => {
                let root = self.commit().await;
                self.tm = TransactionManager::open(self.device.clone(), 0, &root)
                    .await
                    .unwrap();
            }
        }
    }

    async fn check(&mut self) {
        self.commit().await;
        let mut counts = Counts::default();
        let mut findings = Vec::new();
        for pair in &self.pairs {
            let (root, model) = &pair.array;
            let mut found = Vec::new();
            array::walk(&self.tm, *root, 0..model.len() as u64, |at, value: u32| {
                assert_eq!(at, found.len() as u64);
                found.push(value);
                true
            })
            .await
            .unwrap();
            assert!(found == *model);
            if let Some(last) = model.last() {
                let at = model.len() as u64 - 1;
                assert_eq!(array::get::<u32>(&self.tm, *root, at).await.unwrap(), *last);
            }
            assert!(
                array::get::<u32>(&self.tm, *root, model.len() as u64)
                    .await
                    .is_err()
            );
            let nr = model.len() as u64;
            array::check::<u32>(
                &self.tm,
                *root,
                nr,
                &mut counts,
                &mut findings,
                |at, value| {
                    assert_eq!(model[at as usize], value);
                },
            )
            .await
            .unwrap();
            let (root, model) = &pair.bits;
            let nr = model.len() as u64;
            for range in [0..nr, nr / 3..nr / 2] {
                let mut found = Vec::new();
                bitset::walk(&self.tm, *root, range.clone(), |bit| {
                    found.push(bit);
                    true
                })
                .await
                .unwrap();
                let expected: Vec<u64> = range.filter(|bit| model[*bit as usize]).collect();
                assert!(found == expected);
            }
            if nr > 0 {
                let got = bitset::get(&self.tm, *root, nr / 2).await.unwrap();
                assert_eq!(got, model[nr as usize / 2]);
            }
            let words = bitset::nr_words(nr);
            array::check::<u64>(
                &self.tm,
                *root,
                words,
                &mut counts,
                &mut findings,
                |_, _| {},
            )
            .await
            .unwrap();
        }
        check_space_map(&self.tm, self.tm.map(), &mut counts, &mut findings)
            .await
            .unwrap();
        counts.add(0);
        counts.add(self.tm.index_block());
        let map = self.tm.map();
        counts
            .compare(&self.tm, map, "metadata", &mut findings)
            .await
            .unwrap();
        assert_eq!(findings, []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Arrays and bitsets that share blocks behave like separate vectors; no count is ever wrong.
    #[test]
    fn arrays_are_vectors(steps in prop::collection::vec(step(), 1..24)) {
        block_on(async {
            let mut world = World::new().await;
            for step in &steps {
                world.apply(step).await;
            }
            world.check().await;
        });
    }

    /// Whatever an array's blocks hold, using it gives an error or an answer.
    #[test]
    fn corruption_is_an_error(
        at in prop::collection::vec((0usize..12, 0usize..40, any::<u8>()), 1..8),
        nr in 0..9000u64,
    ) {
        block_on(async {
            let device = Rc::new(MemoryDevice::new(300));
            let tm = TransactionManager::create(device.clone(), 1 << 20).await.unwrap();
            let root = array::create(&tm, 4000, 1u32).await.unwrap();
            let map = tm.pre_commit().await.unwrap();
            tm.commit(&SUPER, &mut [0; BLOCK_BYTES]).await.unwrap();
            let mut blocks = device.blocks();
            for (block, offset, byte) in at {
                let mut changed = blocks[block];
                changed[offset] = byte;
                for kind in [&ARRAY, &persistent_data::node::NODE] {
                    if kind.verify(&blocks[block], block as u64).is_ok() {
                        kind.seal(&mut changed, block as u64);
                        blocks[block] = changed;
                        break;
                    }
                }
            }
            let damaged = Rc::new(MemoryDevice::from_blocks(blocks));
            let tm = TransactionManager::open(damaged, 1 << 20, &map).await.unwrap();
            let _ = array::walk(&tm, root, 0..4000, |_, _: u32| true).await;
            let _ = array::check::<u32>(
                &tm, root, nr, &mut Counts::default(), &mut Vec::new(), |_, _| {},
            ).await;
            let _ = array::update(&tm, root, &[5, 1017, 1018, 3999], |at| *at, |v: u32, _| v).await;
            let _ = array::resize(&tm, root, 4000, nr, 3u32).await;
            let _ = array::delete(&tm, root).await;
        });
    }
}

/// The header of an array block, field by field (persistent-data.md 5).
#[test]
fn array_block_layout() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(100));
        let tm = TransactionManager::create(device.clone(), 0).await.unwrap();
        let root = array::create(&tm, 1020, 5u32).await.unwrap();
        tm.pre_commit().await.unwrap();
        let blocks = device.blocks();
        let of: Vec<u64> = (0..2)
            .map(|i| get_u64(&blocks[root as usize], 32 + 252 * 8 + 8 * i))
            .collect();
        for (block, nr) in of.into_iter().zip([1018, 2]) {
            let bytes = &blocks[block as usize];
            assert_eq!(get_u32(bytes, 4), 1018);
            assert_eq!(get_u32(bytes, 8), nr);
            assert_eq!(get_u32(bytes, 12), 4);
            assert_eq!(get_u64(bytes, 16), block);
            assert_eq!(get_u32(bytes, 24), 5);
            ARRAY.verify(bytes, block).unwrap();
        }
        assert_eq!(array::capacity::<u64>(), 509);
        assert_eq!(bitset::BITS_PER_BLOCK, 32_576);
    });
}
