//! What quantizing a matrix is: grids, Hessians, solvers.

pub mod scheme;
pub mod tensor;
