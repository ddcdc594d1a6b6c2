//! Why the server closes a connection: one table. The ranges say what a client is to do, as those of refusals do.
//!
//! ```text
//!   1000–1015  RFC 6455        see each
//!   4000–4099  reconnect now
//!   4100–4199  reconnect later, with jitter
//!   4200–4299  do not reconnect before the cause is mended
//! ```
//! Codes of violations of RFC 6455 itself come from `net::websocket::Violation::close_code`; they are in this table
//! too, and a conformance test holds the two together.

/// What a client does about a close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Nothing: the close was asked for.
    None,
    /// Connect again at once.
    ReconnectNow,
    /// Connect again after a pause with jitter.
    ReconnectLater,
    /// Mend the client first.
    DoNotReconnect,
}

macro_rules! closes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal $name:literal $reason:literal;)*) => {
        /// Reasons to close a connection.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum Close { $($(#[$doc])* #[doc = $reason] $variant = $code,)* }

        impl Close {
            /// All of them, for tables and tests.
            pub const ALL: &'static [Close] = &[$(Close::$variant),*];

            /// Name in documents and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Close::$variant => $name,)* }
            }

            /// What the close frame says.
            pub const fn reason(self) -> &'static str {
                match self { $(Close::$variant => $reason,)* }
            }
        }
    };
}

closes! {
    Normal = 1000 "normal" "closed as asked";
    GoingAway = 1001 "going_away" "the server is going down: reconnect, everything durable is kept";
    Protocol = 1002 "protocol" "a frame breaks RFC 6455: mend the WebSocket client";
    UnsupportedData = 1003 "unsupported_data" "tidegate.v1.json is text: send text frames";
    InvalidUtf8 = 1007 "invalid_utf8" "text is not UTF-8: send UTF-8";
    TooLarge = 1009 "too_large" "message larger than frame_bytes_max: send less at once";
    Idle = 4000 "idle" "no sign of life within the idle timeout: answer pings";
    TooSlow = 4100 "too_slow" "output was not read within the stall timeout: read faster or subscribe to less";
    Overloaded = 4101 "overloaded" "too many connections: reconnect later";
    Unavailable = 4102 "unavailable" "the server cannot serve this now: reconnect later";
    OverQuota = 4103 "over_quota" "the tenant has as many connections as it may: reconnect later";
    Replaced = 4200 "replaced" "a newer connection took this client id: use one connection per client";
    Expired = 4201 "expired" "the client's token has expired: connect again with a new one";
    Revoked = 4202 "revoked" "the client's token was revoked: connect again with a new one";
    Unauthenticated = 4203 "unauthenticated" "no token came, or none that is accepted here: send one with the upgrade or as auth, first of all";
}

impl Close {
    /// Number in the close frame.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// What the client is to do.
    pub const fn advice(self) -> Advice {
        match self.code() {
            1000 => Advice::None,
            1001 | 4000..=4099 => Advice::ReconnectNow,
            4100..=4199 => Advice::ReconnectLater,
            _ => Advice::DoNotReconnect,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_may_be_sent_and_fit_a_close_frame() {
        for (i, close) in Close::ALL.iter().enumerate() {
            assert!(matches!(close.code(), 1000..=1003 | 1007..=1011 | 4000..=4299));
            assert!(close.reason().len() <= 123);
            assert!(
                Close::ALL[i + 1..].iter().all(|other| other.code() != close.code() && other.name() != close.name())
            );
        }
    }
}
