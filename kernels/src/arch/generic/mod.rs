//! The portable definitions.

pub(crate) mod lanes;
pub(crate) mod packed;
