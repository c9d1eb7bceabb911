//! What a transformer is: structure and names. No numbers, no files, no arrays.

pub mod linear;
