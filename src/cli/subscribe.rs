//! `tidegate sub`: the events of a session or of a pattern, one JSON object a line.

use super::Failure;
use super::client::{Client, Frame};
use super::line::LineArgs;
use clap::{ArgGroup, Args};
use serde_json::{Value, json};

/// Print events as they come, one JSON object a line; explicit gaps go to stderr.
#[derive(Args)]
#[command(group(ArgGroup::new("what").required(true).args(["session", "pattern"])))]
pub(super) struct SubArgs {
    #[command(flatten)]
    line: LineArgs,
    /// One session.
    #[arg(long)]
    session: Option<String>,
    /// All sessions, events whose topic matches: `chat.*`, `chat.>`.
    #[arg(long)]
    pattern: Option<String>,
    /// `earliest`, `latest`, an offset (session) or a position (pattern), such as `12.9931,40.17`.
    #[arg(long, default_value = "latest")]
    from: String,
    /// Stop after so many events.
    #[arg(long)]
    count: Option<u64>,
}

pub(super) fn run(args: &SubArgs) -> Result<(), Failure> {
    let from = from(&args.from, args.pattern.is_some())?;
    let command = match (&args.session, &args.pattern) {
        (Some(session), _) => json!({"type": "subscribe", "id": 1, "session": session, "from": from}),
        (None, pattern) => json!({"type": "subscribe", "id": 1, "patterns": [pattern], "from": from}),
    };
    let mut left = args.count.unwrap_or(u64::MAX);
    if left == 0 {
        return Ok(());
    }
    let mut client = Client::connect(&args.line, &args.line.url, args.session.as_deref())?;
    client.send(command.to_string())?;
    client.reply(|frame| print(&frame, &mut left))?;
    client.wait_forever()?;
    while left > 0 {
        let frame = client.next()?;
        print(&frame, &mut left)?;
    }
    client.close();
    Ok(())
}

fn print(frame: &Frame, left: &mut u64) -> Result<(), Failure> {
    match frame.kind() {
        "event" | "volatile" if *left > 0 => {
            super::print_line(&frame.text)?;
            *left -= 1;
        }
        "gap" | "goaway" => eprintln!("{}", frame.text),
        _ => {}
    }
    Ok(())
}

fn from(text: &str, pattern: bool) -> Result<Value, Failure> {
    match text {
        "earliest" | "latest" => Ok(json!(text)),
        _ if pattern => {
            let part = |part: &str| part.split_once('.').is_some_and(|(slice, seq)| digits(slice) && digits(seq));
            if text.split(',').all(part) {
                Ok(json!({ "position": text }))
            } else {
                Err(Failure::wrong(format!(
                    "--from {text:?}: expected earliest, latest or a position such as 12.9931,40.17"
                )))
            }
        }
        _ => match text.parse::<u64>() {
            Ok(offset) => Ok(json!({ "offset": offset })),
            Err(_) => Err(Failure::wrong(format!("--from {text:?}: expected earliest, latest or an offset"))),
        },
    }
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_is_read_by_what_is_subscribed() {
        assert_eq!(from("earliest", false).ok(), Some(json!("earliest")));
        assert_eq!(from("41", false).ok(), Some(json!({"offset": 41})));
        assert_eq!(from("12.9931,40.17", true).ok(), Some(json!({"position": "12.9931,40.17"})));
        for (text, pattern) in [("41", true), ("12.1", false), ("12.,3.4", true), ("-1", false), ("", true)] {
            assert!(from(text, pattern).is_err(), "{text}");
        }
    }
}
