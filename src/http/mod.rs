//! The first bytes of a connection: one HTTP/1.1 request head, parsed and answered. No sockets.
//!
//! ```text
//!   GET /v1/ws?session=S&client=C   upgrade     → Request::Upgrade     101, or 400, 426
//!   GET /echo                       upgrade     → Request::Echo        101 where the echo door is open, else 404
//!   GET /readyz  /healthz                       → Ready, Health        200 or 503
//!   anything else                               → NotFound, Bad        404, or 400, 405, 426, 431
//! ```
//! What operators ask comes on sockets of its own: [`question`]. A connection serves one request: it becomes a WebSocket or is closed after the answer.

mod question;
mod request;
mod response;

pub use question::{Asked, Unheard, question};
pub use request::{Bad, Head, Request, Route, Upgrade, parse};
pub use response::{
    append_answer, append_bad, append_forbidden, append_health, append_not_found, append_not_secure, append_switching,
    append_unauthorized, append_unavailable,
};

/// Longest request head, bytes.
pub const HEAD_BYTES_MAX: usize = 8192;

/// The subprotocol spoken here: one JSON object, or an array of them, per text frame.
pub const SUBPROTOCOL_JSON: &str = "tidegate.v1.json";

/// Beginning of a name in the list of subprotocols that is none: a resume token follows. A browser can send nothing else with an
/// upgrade, and what stands in the URL ends up in logs.
pub const RESUME_PREFIX: &str = "tidegate.resume.";

/// Likewise: a token that says who the client is follows. Other clients send it as `Authorization: Bearer`.
pub const AUTH_PREFIX: &str = "tidegate.auth.";

/// Subprotocols spoken, best first.
pub const SUBPROTOCOLS: &[&str] = &[SUBPROTOCOL_JSON];
