//! Tidegate server: every edge of the process. The binary is `main.rs`; tests and tools use this library.
#![cfg(target_os = "linux")]
pub mod auth;
pub mod boot;
pub mod cli;
pub mod config;
pub mod disk;
pub mod http;
pub mod net;
pub mod observe;
pub mod plan;
pub mod reactor;
pub mod ring;
pub mod shutdown;
pub mod wire;
