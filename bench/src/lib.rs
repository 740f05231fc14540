//! Side-by-side measurements of Beaver: each round measures both sides, so that a noisy machine is noisy for both.

pub mod chaos;
pub mod density;
pub mod egress;
pub mod isolation;
pub mod spawn;
pub mod stats;
pub mod wake;
