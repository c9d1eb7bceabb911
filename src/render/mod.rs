//! Reports for people and for programs.

pub mod comparison;
pub mod html;
pub mod overview;
pub mod plan;
pub mod text;
