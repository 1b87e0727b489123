//! The on-disk state of a thin pool (thin.md 1 to 5).
