//! formats

#![warn(clippy::unwrap_used)]
