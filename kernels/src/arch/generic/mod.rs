//! The portable definitions.

pub(crate) mod int8;
pub(crate) mod lanes;
pub(crate) mod packed;
