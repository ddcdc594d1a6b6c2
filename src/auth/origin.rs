//! Pages that may connect from a browser. A browser says from which page a request comes; other clients say nothing and are not
//! asked.
//!
//! ```text
//!   origins_allowed   "https://app.example.com,https://admin.example.com"   these, letter by letter · "*": all
//!                     ""   with keys all: a page without a token gets nowhere
//!                          without keys those of this machine: else any page that is open in a browser here could connect
//! ```

/// Which pages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Origins {
    /// Those of this machine.
    #[default]
    Local,
    /// All.
    All,
    /// These.
    These(Vec<String>),
}

impl Origins {
    /// From the setting. `keys`: there are some.
    pub fn read(text: &str, keys: bool) -> Origins {
        let these: Vec<String> = text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(Into::into).collect();
        match these.as_slice() {
            [] if keys => Origins::All,
            [] => Origins::Local,
            these if these.iter().any(|one| one == "*") => Origins::All,
            _ => Origins::These(these),
        }
    }

    /// May a page of this origin connect?
    pub fn allow(&self, origin: &str) -> bool {
        match self {
            Origins::All => true,
            // Scheme and host are written in lower case by browsers; others may not.
            Origins::These(these) => these.iter().any(|one| one.eq_ignore_ascii_case(origin)),
            Origins::Local => host_of(origin).is_some_and(is_local),
        }
    }
}

/// Host of `scheme://host[:port]`. A page without an origin of its own says `null`.
fn host_of(origin: &str) -> Option<&str> {
    let (_, authority) = origin.split_once("://")?;
    match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(host, _)| host),
        None => authority.split(':').next(),
    }
}

fn is_local(host: &str) -> bool {
    let named = host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
    named || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_keys_only_pages_of_this_machine() {
        let local = Origins::read("", false);
        for good in [
            "http://localhost",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "http://[::1]:80",
            "http://app.localhost",
        ] {
            assert!(local.allow(good), "{good}");
        }
        for bad in [
            "https://example.com",
            "null",
            "",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://example.com:80@localhost",
        ] {
            assert!(!local.allow(bad), "{bad}");
        }
    }

    #[test]
    fn a_list_is_meant_letter_by_letter() {
        let these = Origins::read(" https://a.example , https://b.example:8443", true);
        assert!(these.allow("https://a.example") && these.allow("https://B.example:8443"));
        assert!(
            !these.allow("https://a.example.org")
                && !these.allow("http://a.example")
                && !these.allow("https://b.example")
        );
        assert_eq!(Origins::read("", true), Origins::All);
        assert_eq!(Origins::read("https://a.example,*", false), Origins::All);
    }
}
