//! The kernel's side of many connections: queues before the server accepts, ports, tables that count connections.

use super::Wanted;
use super::finding::Findings;
use super::host::Host;

/// What most systems have.
const BACKLOG_MIN: u64 = 4096;
/// What the server asks for.
const BACKLOG_WANTED: u64 = 65_535;

pub fn check(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    backlog(host, out);
    half_open(host, out);
    overflow(host, out);
    ports(host, wanted, out);
    conntrack(host, wanted, out);
}

fn backlog(host: &Host, out: &mut Findings) {
    let Some(most) = host.number("proc/sys/net/core/somaxconn") else { return };
    let what = format!("net.core.somaxconn {most}: so many wait for each shard until they are accepted");
    let why = "who comes beyond is dropped, and tries again after 1, 3, 7 … seconds";
    let mend = format!("sysctl -w net.core.somaxconn={BACKLOG_WANTED}");
    match most {
        ..BACKLOG_MIN => out.warning("backlog", what, why, mend),
        BACKLOG_MIN..BACKLOG_WANTED => out.note("backlog", what, why, mend),
        _ => out.ok("backlog", what),
    }
}

fn half_open(host: &Host, out: &mut Findings) {
    let Some(most) = host.number("proc/sys/net/ipv4/tcp_max_syn_backlog") else { return };
    let cookies = host.number("proc/sys/net/ipv4/tcp_syncookies").unwrap_or(1) > 0;
    let what = format!("net.ipv4.tcp_max_syn_backlog {most}, tcp_syncookies {}", if cookies { "on" } else { "off" });
    let mend = format!("sysctl -w net.ipv4.tcp_max_syn_backlog={BACKLOG_WANTED} net.ipv4.tcp_syncookies=1");
    let why = "a storm of clients, or a flood, fills the queue of half-open connections: the rest is dropped";
    match (cookies, most) {
        (false, _) => out.warning("half-open", what, why, mend),
        (true, ..BACKLOG_MIN) => {
            out.note(
                "half-open",
                what,
                "beyond it cookies go on, without window scaling and the like for old clients",
                mend,
            );
        }
        _ => out.ok("half-open", what),
    }
}

fn overflow(host: &Host, out: &mut Findings) {
    if host.number("proc/sys/net/ipv4/tcp_abort_on_overflow") == Some(1) {
        let why = "clients that could wait for a second are reset: during a restart all of them";
        out.warning("overflow", "net.ipv4.tcp_abort_on_overflow 1", why, "sysctl -w net.ipv4.tcp_abort_on_overflow=0");
    }
}

fn ports(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let range = host.text("proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = range.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let (Some(low), Some(high)) = (ends.next(), ends.next()) else { return };
    let port = u64::from(wanted.config.listen.port());
    let reserved = host.text("proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let is_reserved = super::host::cores_of(&reserved).is_some_and(|ports| ports.contains(&(port as usize)));
    if (low..=high).contains(&port) && !is_reserved {
        out.warning(
            "ports",
            format!("port {port} of --listen lies in net.ipv4.ip_local_port_range {low} to {high}"),
            "an outgoing connection of any program may have it when the server starts",
            format!("sysctl -w net.ipv4.ip_local_reserved_ports={port}"),
        );
    }
    let count = (high + 1).saturating_sub(low);
    if count < 10_000 || (count < wanted.connections() && wanted.config.listen.ip().is_loopback()) {
        out.note(
            "ports",
            format!("net.ipv4.ip_local_port_range has {count} ports, {} connections are configured", wanted.connections()),
            "a proxy on this host needs a port for each connection that it brings to one address",
            "sysctl -w net.ipv4.ip_local_port_range='10240 65535', or let the proxy use several addresses of 127.0.0.0/8",
        );
    } else {
        out.ok("ports", format!("net.ipv4.ip_local_port_range has {count} ports"));
    }
}

fn conntrack(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let Some(most) = host.number("proc/sys/net/netfilter/nf_conntrack_max") else {
        return out.ok("conntrack", "connections are not tracked");
    };
    let (used, wants) = (host.number("proc/sys/net/netfilter/nf_conntrack_count").unwrap_or(0), wanted.connections());
    let what = format!("nf_conntrack_max {most}, {used} in use, {wants} connections are configured");
    if most.saturating_sub(used) < wants {
        let why = "when the table is full the firewall drops packets of every new connection";
        let mend = format!(
            "sysctl -w net.netfilter.nf_conntrack_max={}, or a `notrack` rule for the server's port",
            2 * wants + used
        );
        out.warning("conntrack", what, why, mend);
    } else {
        out.ok("conntrack", what);
    }
}
