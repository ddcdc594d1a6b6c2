//! Connections: everything between the ring and the wire.
pub mod websocket;
