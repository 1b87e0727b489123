//! Damage behind a right checksum: an error that names the block, and nothing worse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use persistent_data::device::BLOCK_BYTES;
use persistent_data::node::{self, NODE};
use persistent_data::{Error, Result};

fn corrupt<T>(result: Result<T>) -> u64 {
    match result.map(|_| ()) {
        Err(Error::Corrupt { block, .. }) => block,
        other => panic!("{other:?}"),
    }
}

/// A node that could not be split in two parts with entries is refused when it is read.
#[test]
fn tiny_nodes_are_refused() {
    for (leaf, capacity) in [
        (true, 0),
        (true, 2),
        (false, 1),
        (false, 2),
        (true, 3),
        (false, 3),
    ] {
        let mut bytes = [0; BLOCK_BYTES];
        node::init(&mut bytes, leaf, 8);
        node::insert(&mut bytes, 0, 0, &[0; 8]);
        bytes[20] = capacity;
        bytes[16] = capacity.min(1);
        NODE.seal(&mut bytes, 5);
        match capacity {
            3 => NODE.verify(&bytes, 5).unwrap(),
            _ => assert_eq!(corrupt(NODE.verify(&bytes, 5)), 5),
        }
    }
}
