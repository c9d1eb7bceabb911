//! One portable definition of every result, and faster ones that are picked at run time.

pub(crate) mod generic;
pub(crate) mod lanes;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
