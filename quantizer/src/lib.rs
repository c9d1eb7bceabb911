//! What quantizing a matrix is: grids, Hessians, solvers.

#![warn(clippy::unwrap_used)]

pub mod scheme;
pub mod tensor;
