//! The portable definitions.

pub(crate) mod packed;
