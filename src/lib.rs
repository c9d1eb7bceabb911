//! quantc
