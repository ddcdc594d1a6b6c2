//! `tidegate pub`: one event in, its acknowledgement out.

use super::Failure;
use super::client::Client;
use super::line::LineArgs;
use clap::Args;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::io::Read as _;

/// Publish one event and print its acknowledgement.
#[derive(Args)]
pub(super) struct PubArgs {
    #[command(flatten)]
    line: LineArgs,
    /// Session to publish into; made by its first event.
    #[arg(long)]
    session: String,
    /// Topic, such as chat.message.
    #[arg(long)]
    topic: String,
    /// Who publishes: the same message id from the same client is one event. Random when absent.
    #[arg(long)]
    client: Option<String>,
    /// Makes a repeat safe: publishing it again answers with the first one's event id. Random when absent.
    #[arg(long)]
    message_id: Option<String>,
    /// Take DATA as text, not as JSON.
    #[arg(long)]
    text: bool,
    /// The event's data: a JSON value.
    data: String,
}

pub(super) fn run(args: &PubArgs) -> Result<(), Failure> {
    let data = if args.text {
        Value::String(args.data.clone()).to_string()
    } else {
        // Checked here for a better message; sent as written, byte for byte.
        let raw: &RawValue = serde_json::from_str(&args.data)
            .map_err(|why| Failure::wrong(format!("DATA is not JSON ({why}); use --text to send it as text")))?;
        raw.get().to_string()
    };
    let message_id = match &args.message_id {
        Some(id) => id.clone(),
        None => random_id()?,
    };
    let mut url = args.line.url.clone();
    if let Some(client) = &args.client {
        url = with_client(&url, &args.session, client);
    }
    let mut client = Client::connect(&args.line, &url, Some(&args.session))?;
    client.send(format!(
        r#"{{"type":"publish","id":1,"session":{},"topic":{},"message_id":{},"data":{data}}}"#,
        json!(args.session),
        json!(args.topic),
        json!(message_id),
    ))?;
    let reply = client.reply(|_| Ok(()))?;
    super::print_line(&reply.text)?;
    client.close();
    Ok(())
}

/// The URL with path and query written out, `client` among it.
fn with_client(url: &str, session: &str, client: &str) -> String {
    if url.contains('?') {
        return format!("{url}&client={client}");
    }
    let slash = url.find("://").and_then(|at| url[at + 3..].find('/').map(|slash| at + 3 + slash));
    let (base, path) = slash.map_or((url, ""), |at| url.split_at(at));
    let path = if path.len() <= 1 { "/v1/ws" } else { path };
    format!("{base}{path}?session={session}&client={client}")
}

fn random_id() -> Result<String, Failure> {
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|why| Failure::failed(format!("no random message id: {why}; give one with --message-id")))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_joins_the_query() {
        let cases = [
            ("ws://h:1", "ws://h:1/v1/ws?session=s&client=c"),
            ("ws://h:1/", "ws://h:1/v1/ws?session=s&client=c"),
            ("ws://h:1/x", "ws://h:1/x?session=s&client=c"),
            ("ws://h:1/x?y=1", "ws://h:1/x?y=1&client=c"),
        ];
        for (url, expected) in cases {
            assert_eq!(with_client(url, "s", "c"), expected);
        }
    }

    #[test]
    fn random_ids_are_names_and_differ() {
        let (a, b) = (random_id().unwrap_or_default(), random_id().unwrap_or_default());
        assert!(a.len() == 32 && a != b);
    }
}
