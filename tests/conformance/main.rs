//! The protocol, proved three ways from one set of transcripts.
//!
//! ```text
//!   golden/*.jsonl ──┬─► codec      every command is taken or refused as written, every frame is encoded byte for byte
//!                    ├─► document   every example of PROTOCOL.md is a line of a transcript; every name has an example
//!                    └─► live       the transcript is played against a running server
//! ```
//! A line of a transcript is one of
//!
//! ```text
//!   {"transcript":"what it is about","live":true}     first line; live: a running server can be brought to answer so
//!   {"about":"…"}                                     a remark
//!   {"connect":"a","query":"session=demo"}            connection a opens
//!   {"from":"a","send":{…}}                           a sends this text, byte for byte; <x*7> stands for xxxxxxx
//!   {"from":"a","text":"{…"}                          the same for text that is no JSON
//!   {"from":"a","raw":"81 00"}                        a sends these bytes, no frame made
//!   {"to":"a","expect":{…}}                           a gets this text, byte for byte
//!   {"to":"a","close":1002,"reason":"…"}              a is closed
//!   {"drop":"a"}                                      a's socket goes
//! ```

mod codec;
mod document;
mod live;
mod transcript;
