//! Tidegate server.
