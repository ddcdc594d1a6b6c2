//! The subprotocol `tidegate.v1.json`, defined in `PROTOCOL.md`: text frames to commands, answers and events to text
//! frames. It knows no sockets and no WebSocket frame heads.
pub mod codes;
pub mod decode;
mod digits;
pub mod encode;
pub mod json;
pub mod lives;
mod scan;
pub mod token;
