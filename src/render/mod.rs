//! Reports for people and for programs.

pub mod comparison;
pub mod plan;
pub mod text;
