//! Request heads on the admin edge: whole or not whole, what follows changes nothing, no foreign page is heard over TCP, and a
//! parameter means what was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::http::{Asked, Unheard, question};

/// Every byte that is no letter as an escape.
fn escaped(text: &str) -> String {
    let one =
        |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02x}") };
    text.bytes().map(one).collect()
}

/// The names that a head may have asked for, wherever in it. There are many ways to write ::1.
fn names_this_host(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.contains("localhost") || head.contains("127.") || (head.contains('[') && head.contains('1'))
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    let (asked, by_tcp) = (question(bytes, false), question(bytes, true));
    match &by_tcp {
        Err(Unheard::ForeignHost) => assert!(matches!(asked, Ok(Some(_)))),
        Ok(Some(_)) => assert!(names_this_host(bytes), "heard a foreign page"),
        _ => {}
    }
    if by_tcp != Err(Unheard::ForeignHost) {
        assert_eq!(asked, by_tcp);
    }
    if let Ok(Some(asked)) = &asked {
        assert!(!asked.path.contains('?'));
        let more = [bytes, b"x\r\n\r\n"].concat();
        assert_eq!(question(&more, false).as_ref(), Ok(&Some(asked.clone())), "what follows the head changes it");
        let prefix = &bytes[..bytes.len() * usize::from(*cut) / 256];
        assert!(question(prefix, false).is_ok_and(|before| before.is_none_or(|before| before == *asked)));
        for name in ["event", "tenant", "seconds"] {
            let _ = asked.value(name);
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let head = format!("GET /v1/why?event={}&tenant=t HTTP/1.1\r\nHost: localhost\r\n\r\n", escaped(text));
        let heard = question(head.as_bytes(), true).ok().flatten();
        let value = |asked: Asked| (asked.value("event"), asked.value("tenant"));
        assert_eq!(heard.map(value), Some((Some(text.to_owned()), Some("t".to_owned()))));
    }
});
