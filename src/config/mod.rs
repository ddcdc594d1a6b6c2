//! Every value that an operator may set: its name, default, origin and unit.
//!
//! ```text
//!   default ──► file (TOML, flat keys) ──► environment (TIDEGATE_KEY) ──► flag (--key, --set key=value)
//!     weakest                                                              strongest
//!                         │ parse by unit │ check relations
//!                         ▼               ▼
//!                      Config (plain values, immutable) + an Origin for each
//! ```
//!
//! All layers hand over text and share one parser per type, so `"256KiB"` means the same wherever it is written.
//! Keys carry their unit: `…_bytes…` takes an integer or a number with `B KiB MiB GiB TiB`, `…_ms…` an integer of milliseconds
//! or a number with `ms s m h d`. An unknown key is refused with the nearest known one; see [`ConfigError`].

mod layers;
mod tenants;
mod value;

pub use layers::{ConfigError, Layers, Origin, Row};
pub use tenants::{TenantTables, set as set_bound};
pub use value::{LogFormat, OptionalAddress, Setting, Switch};

use shards::limits::{Limits, PresenceLimits, Quotas, WorkLimits};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use storage::log::LogConfig;

/// Declares [`Config`] once: field, type, default (as text, read by the same parser as every other layer), meaning.
macro_rules! settings {
    ($( $(#[doc = $doc:literal])+ $name:ident : $kind:ty = $default:literal; )+) => {
        /// The values that one process runs with. Built by [`Config::load`], never changed afterwards.
        #[derive(Debug, Clone)]
        pub struct Config {
            $( $(#[doc = $doc])+ pub $name: $kind, )+
            origins: Vec<Origin>,
            /// What each tenant may use: the tables `[tenants.NAME]` of the file.
            pub quotas: Arc<Quotas>,
        }

        /// Names of all settings, in the order of the table that `check-config` prints.
        pub const KEYS: &[&str] = &[$( stringify!($name) ),+];
        const DEFAULTS: &[&str] = &[$( $default ),+];
        const HELP: &[&[&str]] = &[$( &[$($doc),+] ),+];

        impl Config {
            fn parse(texts: &[layers::Layered]) -> Result<Config, ConfigError> {
                let mut at = texts.iter();
                $(
                    // `texts` has one entry per key, in the order of KEYS: `layers::merge` builds it so.
                    let layered = at.next().ok_or_else(ConfigError::incomplete)?;
                    let $name = <$kind as Setting>::read(stringify!($name), &layered.text)
                        .map_err(|why| ConfigError::bad_value(stringify!($name), layered, &why))?;
                )+
                let origins = texts.iter().map(|layered| layered.origin.clone()).collect();
                Ok(Config { $( $name, )+ origins, quotas: Arc::default() })
            }

            /// Each setting with its value and where it came from, for `check-config`.
            pub fn rows(&self) -> Vec<Row> {
                let values = [$( Setting::show(&self.$name, stringify!($name)) ),+];
                values.into_iter().enumerate().map(|(i, value)| Row {
                    key: KEYS[i],
                    value,
                    origin: self.origins[i].clone(),
                    help: HELP[i].iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "),
                }).collect()
            }
        }
    };
}

settings! {
    /// Address to listen on. Without `auth_keys_file` only loopback is accepted.
    listen: SocketAddr = "127.0.0.1:7777";
    /// Folder of the log. Made when absent; one process at a time.
    data: PathBuf = "./tidegate-data";
    /// Number of shards, one pinned core each; 0 = one for each core that this process may use.
    shards: u16 = "0";
    /// `on`: an acknowledgement means fdatasync has returned. `off`: it means the write has completed, and says `memory`.
    sync: Switch = "on";
    /// Keys that clients' tokens are held against: a JWK set or a PEM; read again on SIGHUP. Without it every client may do
    /// everything.
    auth_keys_file: Option<PathBuf> = "";
    /// Audience that a token must name (`aud`).
    auth_audience: String = "tidegate";
    /// Tokens that live longer are not accepted: a revocation is kept for as long.
    auth_token_life_ms_max: u64 = "1d";
    /// Pages that may connect, as `Origin` has them, with commas between; `*` = all. Empty: with keys all, without those of this
    /// machine.
    origins_allowed: String = "";
    /// Certificate chain of the server, PEM, its own first. With it the address speaks TLS and nothing else. Read again on SIGHUP.
    tls_certificate_file: Option<PathBuf> = "";
    /// Its private key, PEM.
    tls_key_file: Option<PathBuf> = "";
    /// Authorities, PEM, of one of which every client must show a certificate. It lets the client in and says nothing else.
    tls_client_authorities_file: Option<PathBuf> = "";
    /// Opens `/echo` for conformance suites. Refused unless listening on loopback.
    echo: bool = "false";
    /// Filter of log lines on stderr, as `tracing` reads it: `info`, `warn,tidegate=debug`.
    log: String = "info";
    /// Log lines are `text`, or `json`: one object each.
    log_format: LogFormat = "text";
    /// Address of the admin edge over TCP (`/metrics`), loopback only; `off`: only the socket in the data folder, for `tidegate top`
    /// and `tidegate why`.
    admin_listen: OptionalAddress = "off";
    /// A step of a shard's turn that takes longer than so many microseconds is a stall: counted, logged, shown by `tidegate top`.
    turn_step_us_max: u64 = "10000";
    /// Upper bound of the memory plan; 0 = three quarters of the memory this process may use.
    memory_budget_bytes: u64 = "0";

    /// Biggest `data` of an event.
    event_bytes_max: u32 = "64KiB";
    /// Biggest frame a client may send, and therefore the biggest batch.
    frame_bytes_max: u32 = "256KiB";
    /// Subscriptions a client holds at once.
    client_subscriptions_max: u32 = "256";
    /// Commands of one client that may await their reply; one more is refused.
    client_commands_in_flight_max: u32 = "1024";
    /// Connections a shard holds at once; one more gets `503` with `Retry-After`.
    connections_per_shard_max: u32 = "60000";
    /// Subscriptions a shard holds at once.
    subscriptions_per_shard_max: u32 = "1048576";
    /// Bytes waiting to be sent to one connection; above it deliveries fall back to catch-up from the log.
    connection_send_bytes_max: u32 = "512KiB";
    /// Bytes waiting to be sent to all connections of a shard.
    shard_send_bytes_max: u64 = "64MiB";
    /// Bytes of messages and requests that have come in part, of all connections of a shard.
    assembly_bytes_max: u64 = "16MiB";
    /// Bytes of commands that wait for room in a shard, of all its connections. A tenant may hold as much as is free; above it
    /// its sockets are not read, so that TCP slows their senders.
    held_bytes_max: u64 = "16MiB";
    /// Slots of each mailbox lane between two shards.
    mailbox_slots: u32 = "1024";
    /// Payload bytes of each mailbox lane between two shards.
    mailbox_bytes: u32 = "4MiB";
    /// Bytes of records that a page of history, or of catch-up for another shard, aims at.
    page_bytes: u32 = "128KiB";
    /// Mail taken from one peer in one turn.
    mail_per_peer_per_turn_max: u32 = "64";
    /// Effects of a shard that may wait for the reactor.
    effects_max: u32 = "4096";
    /// Bytes of commands parked while their partition is read from disk, for each shard.
    parked_bytes_max: u64 = "16MiB";
    /// A token stream whose producer has not been heard of for so long is closed as `partial`.
    stream_lease_ms: u64 = "60s";
    /// Most text of one token stream.
    stream_text_bytes_max: u32 = "1MiB";
    /// Token streams that are open at once, for each shard.
    streams_per_shard_max: u32 = "16384";
    /// Biggest `data` of a member's presence.
    presence_data_bytes_max: u32 = "1KiB";
    /// Members of one session, and clients with a receipt in it.
    session_members_max: u32 = "16384";
    /// Sessions that one connection is in, or has receipts of.
    client_presences_max: u32 = "64";
    /// What one connection says of itself in all of them; it is kept with the client.
    client_presence_bytes_max: u32 = "4KiB";
    /// Presence and receipts that one connection watches.
    client_watches_max: u32 = "64";
    /// Changes of presence and receipts that one connection may make in a second, on average; one more is refused.
    client_changes_per_second_max: u32 = "50";
    /// Presence and receipts that the connections of a shard watch.
    watches_per_shard_max: u32 = "65536";
    /// Members that a shard owns, and likewise what its connections hold.
    presence_bytes_per_shard_max: u64 = "8MiB";
    /// Changes of presence and receipts are told together, this often.
    presence_tick_ms: u64 = "100ms";
    /// How long a member stays whose connection is gone, where it does not say.
    presence_lease_ms: u64 = "30s";
    /// Shortest lease that a client may ask for.
    presence_lease_ms_min: u64 = "1s";
    /// Longest.
    presence_lease_ms_max: u64 = "10m";
    /// After a start members may not have come back yet: so long presence says that it is not complete.
    presence_unknown_ms: u64 = "2m";
    /// Biggest value of an entry.
    entry_bytes_max: u32 = "4KiB";
    /// Entries of one tenant, all shards together; each has its share.
    entries_bytes_per_tenant_max: u64 = "16MiB";
    /// Prefixes of entries that one connection watches.
    client_entry_watches_max: u32 = "64";
    /// Prefixes of entries that the connections of a shard watch.
    entry_watches_per_shard_max: u32 = "65536";
    /// Queues of one tenant.
    queues_per_tenant_max: u32 = "64";
    /// Biggest capacity of a queue.
    queue_capacity_max: u64 = "1048576";
    /// Longest deadline of a job.
    job_deadline_ms_max: u64 = "1h";
    /// Biggest partial result of a job.
    progress_bytes_max: u32 = "2KiB";
    /// Jobs that are open, for each shard.
    jobs_per_shard_max: u32 = "131072";
    /// Jobs that one connection may hold at once.
    client_jobs_max: u64 = "256";
    /// Groups that one tenant may declare, 16 at most.
    groups_per_tenant_max: u32 = "16";
    /// Members of one group among the connections of one shard.
    group_members_per_shard_max: u32 = "1024";
    /// A connection that has sent nothing for so long gets a ping.
    ping_interval_ms: u64 = "30s";
    /// A connection that has sent nothing for so long, not even a pong, is closed.
    idle_timeout_ms: u64 = "90s";
    /// A command that has found no room for so long is refused: `log_behind`, `mailbox_full` or `no_credit`.
    held_timeout_ms: u64 = "5s";
    /// A connection that has not finished its upgrade request after so long is closed.
    handshake_timeout_ms: u64 = "10s";
    /// Sockets of a shard that have been accepted and have not sent a whole request; for one more the oldest is closed, if it
    /// had a second for it.
    silent_newcomers_per_shard_max: u32 = "8192";
    /// A shard's turn that takes newcomers in aims to end within so many microseconds: what is above it waits for a later turn.
    turn_newcomers_us_max: u64 = "1000";
    /// Newcomers that would wait longer than this get `503` with `Retry-After` at once; those who show a resume token wait.
    newcomer_wait_ms: u64 = "2s";
    /// A resume token is believed for so long after it was given.
    resume_token_life_ms: u64 = "7d";
    /// On SIGTERM or a takeover every connection is gone after so long; what is left of them then is cut off.
    drain_ms_max: u64 = "10s";
    /// Connections of a shard that are told to go away in one wave; more where the waves would not end in time.
    drain_wave_connections: u32 = "1000";
    /// From one wave to the next.
    drain_wave_ms: u64 = "100ms";
    /// From being told to being closed: time to finish what is under way.
    drain_grace_ms: u64 = "500ms";
    /// Time for the last commits and the final checkpoint, when the connections are gone.
    stop_timeout_ms: u64 = "10s";

    /// Size of one log file. Kept by existing files; applies to new ones.
    segment_bytes: u64 = "64MiB";
    /// Most records of one log file; bounds the memory of its index until it is sealed.
    segment_records_max: u32 = "131072";
    /// Sealed files that may wait for their index, for each shard; then publishers wait too.
    segments_unindexed_max: u32 = "8";
    /// Memory ring in which commit groups are built, written from and read back, for each shard.
    hot_tail_bytes: u64 = "32MiB";
    /// Biggest commit group.
    commit_bytes_max: u32 = "1MiB";
    /// Commit groups on their way to disk at once, for each shard.
    groups_in_flight_max: u32 = "2";
    /// With a group on its way, the next one is closed at this size.
    group_close_bytes: u32 = "16KiB";
    /// With a group on its way, the next one is closed at this age, in microseconds.
    group_close_us: u64 = "200";
    /// A commit that found no space is tried again this often.
    no_space_retry_ms: u64 = "500ms";
    /// Reads from disk under way or lent to a reader at once, for each shard.
    read_buffers: u32 = "32";
    /// Memory of each of them: the biggest record and two blocks.
    read_buffer_bytes: u32 = "512KiB";
    /// What such a read asks for at first.
    read_ahead_bytes: u32 = "64KiB";
    /// Sessions that a shard holds in memory; cold ones live in the checkpoint.
    partitions_resident_max: u32 = "65536";
    /// Sessions that may be on their way from the checkpoint at once, for each shard.
    partition_loads_max: u32 = "1024";
    /// Bytes appended between two checkpoints, for each shard: about what a restart replays at most.
    checkpoint_bytes: u64 = "64MiB";
    /// Memory for recent message ids, for each shard; older ones are found in the log.
    dedupe_hot_bytes_max: u64 = "36MiB";
    /// Memory for the message id filters of sealed files, for each shard.
    dedupe_filter_bytes_max: u64 = "32MiB";
    /// Memory for loaded indexes of sealed files, for each shard.
    index_resident_bytes_max: u64 = "16MiB";
    /// Sealed files older than this are removed; 0 = never.
    retention_ms: u64 = "7d";
    /// Oldest sealed files are removed while the logs of all shards together are bigger than this; 0 = never.
    retention_bytes: u64 = "10GiB";
    /// Sealed files that are rewritten together in the order of their sessions, sum of their bytes; 0 = never.
    recluster_bytes_max: u64 = "128MiB";
}

impl Config {
    /// Merges the layers, reads every value and checks the relations between values.
    ///
    /// # Errors
    /// The first thing that is wrong, as one line that names the key, where it stood and the cure.
    pub fn load(layers: &Layers) -> Result<Config, ConfigError> {
        let mut config = Config::parse(&layers::merge(layers, KEYS, DEFAULTS)?)?;
        config.quotas = Arc::new(tenants::read(layers)?);
        config.check()?;
        Ok(config)
    }

    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        KEYS.iter().position(|known| *known == key).and_then(|i| self.origins.get(i))
    }

    /// Shards to start: the configured number, or one for each core that affinity and cgroup leave to this process.
    pub fn shard_count(&self) -> u16 {
        if self.shards > 0 {
            return self.shards;
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        u16::try_from(cores).unwrap_or(u16::MAX).clamp(1, SHARDS_MAX)
    }

    /// The bounds of the core.
    pub fn limits(&self) -> Limits {
        let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Limits {
            event_bytes_max: size(self.event_bytes_max),
            frame_bytes_max: size(self.frame_bytes_max),
            client_subscriptions_max: size(self.client_subscriptions_max),
            client_commands_in_flight_max: self.client_commands_in_flight_max,
            connections_per_shard_max: size(self.connections_per_shard_max),
            subscriptions_per_shard_max: size(self.subscriptions_per_shard_max),
            connection_send_bytes_max: size(self.connection_send_bytes_max),
            mailbox_slots: size(self.mailbox_slots),
            mailbox_bytes: size(self.mailbox_bytes),
            page_bytes: size(self.page_bytes),
            mail_per_peer_per_turn_max: size(self.mail_per_peer_per_turn_max),
            effects_max: size(self.effects_max),
            parked_bytes_max: usize::try_from(self.parked_bytes_max).unwrap_or(usize::MAX),
            stream_lease_ms: self.stream_lease_ms,
            stream_text_bytes_max: size(self.stream_text_bytes_max),
            streams_per_shard_max: size(self.streams_per_shard_max),
            presence: PresenceLimits {
                data_bytes_max: size(self.presence_data_bytes_max),
                session_members_max: size(self.session_members_max),
                client_presences_max: size(self.client_presences_max),
                client_presence_bytes_max: size(self.client_presence_bytes_max),
                client_watches_max: size(self.client_watches_max),
                client_changes_per_second_max: self.client_changes_per_second_max,
                watches_per_shard_max: size(self.watches_per_shard_max),
                shard_bytes_max: usize::try_from(self.presence_bytes_per_shard_max).unwrap_or(usize::MAX),
                tick_ms: self.presence_tick_ms,
                lease_ms: self.presence_lease_ms,
                lease_ms_min: self.presence_lease_ms_min,
                lease_ms_max: self.presence_lease_ms_max,
                unknown_ms: self.presence_unknown_ms,
            },
            quotas: self.quotas.clone(),
            work: WorkLimits {
                entry_bytes_max: size(self.entry_bytes_max),
                entries_bytes_per_tenant_max: usize::try_from(self.entries_bytes_per_tenant_max).unwrap_or(usize::MAX),
                client_watches_max: size(self.client_entry_watches_max),
                entry_watches_per_shard_max: size(self.entry_watches_per_shard_max),
                queues_per_tenant_max: size(self.queues_per_tenant_max),
                queue_capacity_max: self.queue_capacity_max,
                job_deadline_ms_max: self.job_deadline_ms_max,
                progress_bytes_max: size(self.progress_bytes_max),
                jobs_per_shard_max: size(self.jobs_per_shard_max),
                client_jobs_max: self.client_jobs_max,
                groups_per_tenant_max: size(self.groups_per_tenant_max),
                group_members_per_shard_max: size(self.group_members_per_shard_max),
            },
        }
    }

    /// The bounds of one shard's log.
    pub fn log_config(&self) -> LogConfig {
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        LogConfig {
            sync: self.sync == Switch::On,
            segment_bytes: self.segment_bytes,
            segment_records_max: self.segment_records_max,
            commit_bytes_max: size(self.commit_bytes_max.into()),
            groups_in_flight_max: size(self.groups_in_flight_max.into()),
            group_close_bytes: size(self.group_close_bytes.into()),
            group_close_us: self.group_close_us,
            no_space_retry_us: self.no_space_retry_ms.saturating_mul(1000),
            hot_tail_bytes: size(self.hot_tail_bytes),
            segments_unindexed_max: size(self.segments_unindexed_max.into()),
            read_buffers: size(self.read_buffers.into()),
            read_buffer_bytes: size(self.read_buffer_bytes.into()),
            read_ahead_bytes: size(self.read_ahead_bytes.into()),
            partitions_resident_max: size(self.partitions_resident_max.into()),
            partition_loads_max: size(self.partition_loads_max.into()),
            checkpoint_bytes: self.checkpoint_bytes,
            dedupe_hot_bytes_max: size(self.dedupe_hot_bytes_max),
            dedupe_filter_bytes_max: size(self.dedupe_filter_bytes_max),
            index_resident_bytes_max: size(self.index_resident_bytes_max),
            retention_ms: self.retention_ms,
            recluster_bytes_max: self.recluster_bytes_max,
            // A share each, and never 0 from rounding: 0 would keep everything.
            retention_bytes: match self.retention_bytes {
                0 => 0,
                bytes => (bytes / u64::from(self.shard_count())).max(1),
            },
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &'static str, why: String| Err(ConfigError::relation(key, self.origin(key), &why));
        if self.echo && !self.listen.ip().is_loopback() {
            return refuse(
                "echo",
                format!(
                    "the echo door opens on loopback only, and listen is {}; use --listen 127.0.0.1:7777",
                    self.listen
                ),
            );
        }
        if !self.listen.ip().is_loopback() && self.auth_keys_file.is_none() {
            let why = format!(
                "{} is not loopback, and without keys every client may do everything; give auth_keys_file, or listen on 127.0.0.1",
                self.listen
            );
            return refuse("listen", why);
        }
        if self.tls_certificate_file.is_some() != self.tls_key_file.is_some() {
            return refuse(
                "tls_key_file",
                "certificate and key belong together; give tls_certificate_file and tls_key_file".into(),
            );
        }
        if self.tls_client_authorities_file.is_some() && self.tls_certificate_file.is_none() {
            let why = "clients show certificates over TLS only; give tls_certificate_file and tls_key_file";
            return refuse("tls_client_authorities_file", why.into());
        }
        if let OptionalAddress(Some(address)) = self.admin_listen
            && !address.ip().is_loopback()
        {
            let why = format!(
                "{address} is not loopback, and who asks the admin edge is not asked who they are; use 127.0.0.1:PORT"
            );
            return refuse("admin_listen", why);
        }
        if self.shards > SHARDS_MAX {
            return refuse("shards", format!("{} is more than {SHARDS_MAX}", self.shards));
        }
        // An event, as base64, must fit the frame it comes in, and that the commit group it is stored in, each with its
        // envelope. A frame that comes in parts is gathered in memory that grows by doubling.
        let at_most = [
            (
                "event_bytes_max",
                u64::from(self.event_bytes_max).div_ceil(3) * 4 + ENVELOPE_BYTES,
                "frame_bytes_max",
                u64::from(self.frame_bytes_max),
            ),
            ("frame_bytes_max", 2 * u64::from(self.frame_bytes_max), "assembly_bytes_max", self.assembly_bytes_max),
            (
                "frame_bytes_max",
                2 * u64::from(self.frame_bytes_max),
                "commit_bytes_max",
                u64::from(self.commit_bytes_max),
            ),
            ("commit_bytes_max", 4 * u64::from(self.commit_bytes_max), "hot_tail_bytes", self.hot_tail_bytes),
            ("commit_bytes_max", 4 * u64::from(self.commit_bytes_max), "segment_bytes", self.segment_bytes),
            (
                "connection_send_bytes_max",
                u64::from(self.connection_send_bytes_max),
                "shard_send_bytes_max",
                self.shard_send_bytes_max,
            ),
            ("ping_interval_ms", self.ping_interval_ms + 1, "idle_timeout_ms", self.idle_timeout_ms),
        ];
        for (small, needs, big, has) in at_most {
            if needs > has {
                return refuse(
                    big,
                    format!("{has} is too small for {small}, which needs {needs}; raise {big} or lower {small}"),
                );
            }
        }
        if self.held_bytes_max < HELD_BYTES_MIN {
            let why =
                format!("{} is too small: the receive buffers of a shard need {HELD_BYTES_MIN}", self.held_bytes_max);
            return refuse("held_bytes_max", why);
        }
        if let Err(cure) = self.limits().check(self.log_config().record_bytes_max()) {
            let key = cure.split(' ').next().and_then(|word| KEYS.iter().copied().find(|key| *key == word));
            return refuse(key.unwrap_or("frame_bytes_max"), cure.into());
        }
        if let Err(fault) = self.log_config().check() {
            let key = fault.cure.split(' ').next().and_then(|word| KEYS.iter().copied().find(|key| *key == word));
            return refuse(key.unwrap_or("segment_bytes"), fault.cure.into());
        }
        for (key, value) in [
            ("connections_per_shard_max", u64::from(self.connections_per_shard_max)),
            ("client_subscriptions_max", u64::from(self.client_subscriptions_max)),
            ("client_commands_in_flight_max", u64::from(self.client_commands_in_flight_max)),
            ("mailbox_slots", u64::from(self.mailbox_slots)),
            ("effects_max", u64::from(self.effects_max)),
            ("mail_per_peer_per_turn_max", u64::from(self.mail_per_peer_per_turn_max)),
            ("event_bytes_max", u64::from(self.event_bytes_max)),
            ("ping_interval_ms", self.ping_interval_ms),
            ("no_space_retry_ms", self.no_space_retry_ms),
            ("checkpoint_bytes", self.checkpoint_bytes),
            ("handshake_timeout_ms", self.handshake_timeout_ms),
            ("drain_wave_connections", u64::from(self.drain_wave_connections)),
            ("silent_newcomers_per_shard_max", u64::from(self.silent_newcomers_per_shard_max)),
            ("turn_newcomers_us_max", self.turn_newcomers_us_max),
            ("auth_token_life_ms_max", self.auth_token_life_ms_max),
            ("turn_step_us_max", self.turn_step_us_max),
        ] {
            if value == 0 {
                return refuse(key, "0 would stop the server from working; give at least 1".into());
            }
        }
        Ok(())
    }
}

/// Most shards of one process: slices (1024) are dealt to shards, and lanes grow with the square.
pub const SHARDS_MAX: u16 = 256;

/// Input that may wait has to be more than what is in the receive buffers when reading stops.
pub const HELD_BYTES_MIN: u64 = 4 << 20;
/// What surrounds an event's data in its frame: type, ids, names.
const ENVELOPE_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let pair = |(k, v): &(&str, &str)| (k.to_string(), v.to_string());
        Config::load(&Layers {
            file: (!file.is_empty()).then(|| ("t.toml".into(), file.into())),
            env: env.iter().map(pair).collect(),
            flags: flags.iter().map(pair).collect(),
        })
    }

    #[test]
    fn defaults_parse_and_agree_with_each_other() {
        let config = load("", &[], &[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7777");
        assert_eq!(config.frame_bytes_max, 262_144);
        assert_eq!(config.retention_ms, 7 * 24 * 3_600_000);
        assert!(config.rows().iter().all(|row| row.origin == Origin::Default && !row.help.is_empty()));
        assert!(config.shard_count() >= 1);
        assert_eq!(config.limits(), Limits::default());
        let log = config.log_config();
        let deliberate = LogConfig {
            segments_unindexed_max: log.segments_unindexed_max,
            retention_bytes: log.retention_bytes,
            ..LogConfig::default()
        };
        assert_eq!(log, deliberate);
        assert_eq!(
            load("", &[], &[("shards", "4"), ("retention_bytes", "8MiB")]).unwrap().log_config().retention_bytes,
            2 << 20
        );
    }

    #[test]
    fn flag_beats_environment_beats_file_and_each_origin_is_kept() {
        let file = "event_bytes_max = 1024\nframe_bytes_max = '128KiB'\nsync = 'off'\nidle_timeout_ms = 60000\n";
        let env = [("TIDEGATE_FRAME_BYTES_MAX", "64KiB"), ("TIDEGATE_EVENT_BYTES_MAX", "2KiB"), ("PATH", "/bin")];
        let config = load(file, &env, &[("event_bytes_max", "4KiB")]).unwrap();
        assert_eq!(config.event_bytes_max, 4096);
        assert_eq!(config.frame_bytes_max, 65_536);
        assert_eq!(config.sync, Switch::Off);
        assert_eq!(config.origin("event_bytes_max"), Some(&Origin::Flag));
        assert_eq!(config.origin("frame_bytes_max"), Some(&Origin::Env("TIDEGATE_FRAME_BYTES_MAX".into())));
        assert_eq!(config.origin("sync"), Some(&Origin::File("t.toml".into())));
        assert_eq!(config.origin("listen"), Some(&Origin::Default));
    }

    #[test]
    fn each_refusal_is_one_line_that_names_the_key_and_the_cure() {
        let cases: &[(&str, &[&str])] = &[
            ("evnt_bytes_max = 3", &["evnt_bytes_max", "event_bytes_max", "t.toml"]),
            ("[limits]\nx = 1", &["limits"]),
            ("event_bytes_max = '3 parsecs'", &["event_bytes_max", "KiB"]),
            ("event_bytes_max = -1", &["event_bytes_max"]),
            ("event_bytes_max = 99999999999", &["event_bytes_max"]),
            ("event_bytes_max = true", &["event_bytes_max"]),
            ("event_bytes_max = '256KiB'", &["frame_bytes_max", "event_bytes_max"]),
            ("event_bytes_max = '190KiB'", &["frame_bytes_max", "event_bytes_max"]),
            ("assembly_bytes_max = '500KiB'", &["assembly_bytes_max", "frame_bytes_max"]),
            ("page_bytes = '300KiB'", &["page_bytes", "connection_send_bytes_max"]),
            ("connection_send_bytes_max = '200KiB'", &["connection_send_bytes_max", "event_bytes_max"]),
            ("page_bytes = 0", &["page_bytes"]),
            ("parked_bytes_max = 0", &["parked_bytes_max"]),
            ("subscriptions_per_shard_max = 10", &["client_subscriptions_max", "subscriptions_per_shard_max"]),
            ("sync = 'maybe'", &["sync", "on", "off"]),
            ("listen = 'localhost'", &["listen", "127.0.0.1:7777"]),
            ("listen = '0.0.0.0:1'", &["listen", "loopback", "auth_keys_file"]),
            ("tls_key_file = 'k.pem'", &["tls_key_file", "tls_certificate_file"]),
            ("tls_client_authorities_file = 'a.pem'", &["tls_client_authorities_file", "tls_certificate_file"]),
            ("auth_token_life_ms_max = 0", &["auth_token_life_ms_max"]),
            ("segment_bytes = 100000001", &["segment_bytes", "4096"]),
            ("groups_in_flight_max = 0", &["groups_in_flight_max"]),
            ("idle_timeout_ms = '5s'", &["idle_timeout_ms", "ping_interval_ms"]),
            ("shards = 300", &["shards", "256"]),
            ("= 3", &["t.toml"]),
            ("shards = 1\nshards = 2", &["t.toml"]),
        ];
        for (file, names) in cases {
            let line = load(file, &[], &[]).unwrap_err().to_string();
            assert!(!line.contains('\n'), "{line}");
            for name in *names {
                assert!(line.contains(name), "{file}: {line}");
            }
        }
        let line = load("", &[], &[("echo", "true"), ("listen", "10.0.0.1:80")]).unwrap_err().to_string();
        assert!(line.contains("echo") && line.contains("loopback"), "{line}");
        let line = load("", &[("TIDEGATE_SHARDS", "many")], &[]).unwrap_err().to_string();
        assert!(line.contains("TIDEGATE_SHARDS"), "{line}");
    }
}
