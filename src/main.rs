//! Tidegate binary.
fn main() {}
