//! quantc
fn main() {}
