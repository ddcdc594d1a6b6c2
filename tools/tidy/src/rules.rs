//! The rules of the house. Each finding says where, what, and what to do instead.
//!
//! ```text
//!   arrows      who may import whom            banned     calls that a pure crate cannot make
//!   size        files that swallow a design    unfinished marks of work left lying
//!   machine     paths of one computer          opening    modules without a first sentence
//!   blob        big files                      dead       Rust files that nothing compiles
//!   mode        scripts that cannot run
//! ```

use crate::source::{Source, is_word};
use std::collections::BTreeSet;

/// One thing to change.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub rule: &'static str,
    pub path: String,
    /// 0 = the file as a whole.
    pub line: usize,
    pub what: String,
    pub cure: String,
    /// False: a warning.
    pub fatal: bool,
}

/// Modules of the server crate, and what each may import from it. A module that is not here has no place yet.
const ARROWS: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("plan", &["config"]),
    ("ring", &[]),
    ("observe", &["config", "plan"]),
    ("auth", &["config", "plan"]),
    ("wire", &["config", "plan"]),
    ("http", &["config", "plan"]),
    ("net", &["config", "plan", "ring"]),
    ("disk", &["config", "plan", "ring"]),
    ("reactor", &["config", "plan", "ring", "observe", "auth", "wire", "http", "net", "disk"]),
    ("shutdown", &["config", "plan", "ring", "observe", "auth", "wire", "http", "net", "disk", "reactor"]),
    ("boot", &["config", "plan", "ring", "observe", "auth", "wire", "http", "net", "disk", "reactor", "shutdown"]),
    (
        "cli",
        &["config", "plan", "ring", "observe", "auth", "wire", "http", "net", "disk", "reactor", "shutdown", "boot"],
    ),
];

/// The only module of the server crate that may load a server.
const LOAD_MODULE: &str = "cli";

/// What the pure crates may not name, and what they use instead.
const BANNED: &[(&str, &str)] = &[
    ("std::fs", "emit a DiskOp; the executor in src/disk does the file work"),
    ("std::net", "emit an Effect; sockets live in src/net"),
    ("std::os", "emit an Effect or a DiskOp; descriptors live in src"),
    ("std::env", "take the value as a parameter; src/config reads the environment"),
    ("std::process", "return an error; only main ends the process"),
    ("std::thread", "stay on the caller's thread; src/reactor owns the threads"),
    ("Instant", "take `now` as a parameter: the reactor reads the clock once a turn"),
    ("SystemTime", "take `now` as a parameter: the reactor reads the clock once a turn"),
    ("RandomState", "use hashbrown with a fixed hasher: iteration order must replay"),
    ("std::collections::HashMap", "use hashbrown with a fixed hasher: iteration order must replay"),
    ("std::collections::HashSet", "use hashbrown with a fixed hasher: iteration order must replay"),
    ("rand", "take random numbers as a parameter: the simulator chooses them"),
    ("tracing", "count it or return it; src/observe writes the log lines"),
    ("println!", "return it; src writes to the terminal"),
    ("eprintln!", "return it; src writes to the terminal"),
    ("async", "be a machine that is called: handle, then poll"),
    ("tokio", "be a machine that is called: handle, then poll"),
    ("glommio", "hand the job out as DiskOp::Background; src/disk runs it"),
];

const LINES_MAX: usize = 900;
const LINES_WARN: usize = 500;
const BLOB_BYTES_MAX: usize = 256 << 10;

/// Checks all files against all rules.
pub fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        arrows(source, &mut findings);
        banned(source, &mut findings);
        size(source, &mut findings);
        unfinished(source, &mut findings);
        machine(source, &mut findings);
        opening(source, &mut findings);
        blob(source, &mut findings);
        mode(source, &mut findings);
    }
    dead(sources, &mut findings);
    findings
}

fn finding(rule: &'static str, source: &Source, line: usize, what: String, cure: &str) -> Finding {
    Finding { rule, path: source.path.clone(), line, what, cure: cure.to_string(), fatal: true }
}

/// Whether `line` names `path` as whole words.
fn names(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = at.checked_sub(1).map(|i| line.as_bytes()[i]);
        let after = line.as_bytes().get(at + path.len()).copied();
        // A neighbour that is part of a word makes it another word, unless the name itself ends in punctuation there.
        let joins =
            |neighbour: Option<u8>, edge: Option<u8>| neighbour.is_some_and(is_word) && edge.is_some_and(is_word);
        !joins(before, path.bytes().next()) && !joins(after, path.bytes().last())
    })
}

fn arrows(source: &Source, findings: &mut Vec<Finding>) {
    for (krate, upper) in [("storage", &["shards", "tidegate"][..]), ("shards", &["tidegate"][..])] {
        if !source.path.starts_with(&format!("{krate}/src/")) {
            continue;
        }
        for (line, code) in source.code_lines() {
            for name in upper {
                if names(code, &format!("{name}::")) {
                    let what = format!("{krate} imports {name}, which lies above it");
                    findings.push(finding(
                        "arrows",
                        source,
                        line,
                        what,
                        "turn it round: return a value that the upper layer acts on",
                    ));
                }
            }
        }
    }
    let Some(inside) = source.path.strip_prefix("src/") else { return };
    let module = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    if matches!(module, "lib" | "main") {
        return;
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
        let what = format!("module {module} is not in the table of arrows");
        findings.push(finding("arrows", source, 0, what, "say in tools/tidy/src/rules.rs which modules it may import"));
        return;
    };
    for (line, code) in source.code_lines() {
        if module != LOAD_MODULE && names(code, "loadgen::") {
            let cure = "put it into src/cli/bench, or turn it round: the server knows nothing of its load";
            findings.push(finding("arrows", source, line, format!("{module} imports the load generator"), cure));
        }
        for target in crate_targets(code) {
            let known = ARROWS.iter().any(|(name, _)| *name == target);
            if known && target != module && !allowed.contains(&target) {
                let what = format!("{module} imports {target}");
                let cure = format!("{module} may import {}; let the reactor pass it in", list(allowed));
                findings.push(finding("arrows", source, line, what, &cure));
            }
        }
    }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing of this crate".into() } else { names.join(", ") }
}

/// First path segments after `crate::`, braces included: `crate::{net, wire::x}` gives net and wire.
fn crate_targets(code: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        let word = |text: &str| text.bytes().take_while(|b| is_word(*b)).count();
        if let Some(inner) = rest.strip_prefix('{') {
            let mut depth = 0;
            for part in inner.split_inclusive([',', '{', '}']) {
                let name = part.trim_start();
                if depth == 0 && word(name) > 0 {
                    targets.push(&name[..word(name)]);
                }
                match part.bytes().last() {
                    Some(b'{') => depth += 1,
                    Some(b'}') => depth -= 1,
                    _ => {}
                }
            }
        } else {
            targets.push(&rest[..word(rest)]);
        }
    }
    targets
}

fn banned(source: &Source, findings: &mut Vec<Finding>) {
    if !source.path.starts_with("storage/src/") && !source.path.starts_with("shards/src/") {
        return;
    }
    for (line, code) in source.code_lines() {
        for (name, cure) in BANNED {
            if names(code, name) {
                findings.push(finding("banned", source, line, format!("`{name}` in a pure crate"), cure));
            }
        }
    }
}

fn size(source: &Source, findings: &mut Vec<Finding>) {
    let counted = [".rs", ".py", ".sh"].iter().any(|end| source.path.ends_with(end));
    let lines = source.lines().count();
    if counted && lines > LINES_WARN {
        let what = format!("{lines} lines");
        let cure = format!("split it by concept; more than {LINES_MAX} are refused");
        let fatal = lines > LINES_MAX;
        findings.push(Finding { fatal, ..finding("size", source, 0, what, &cure) });
    }
}

fn unfinished(source: &Source, findings: &mut Vec<Finding>) {
    // Written apart, so that this file does not find itself.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("to", "do!"),
        concat!("unimple", "mented!"),
    ];
    if source.path == "LICENSE" {
        return;
    }
    for (line, text) in source.lines() {
        for mark in marks {
            if names(text, mark) {
                findings.push(finding(
                    "unfinished",
                    source,
                    line,
                    mark.to_string(),
                    "do it now, or file an issue and say what holds today",
                ));
            }
        }
    }
}

fn machine(source: &Source, findings: &mut Vec<Finding>) {
    let roots = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/t", "mp/"), concat!("/ho", "me/")];
    for (line, text) in source.lines() {
        for root in roots {
            let absolute = text.match_indices(root).any(|(at, _)| {
                let before = at.checked_sub(1).map(|i| text.as_bytes()[i]);
                !before.is_some_and(|byte| is_word(byte) || b".-}~/*".contains(&byte))
            });
            if absolute {
                let cure =
                    "make the path relative to the file, or take it from the caller (tempfile, std::env::temp_dir)";
                findings.push(finding("machine", source, line, format!("a path of one machine: {root}…"), cure));
            }
        }
    }
}

fn opening(source: &Source, findings: &mut Vec<Finding>) {
    if source.code.is_none() {
        return;
    }
    let first = source.lines().map(|(_, line)| line.trim()).find(|line| !line.is_empty() && !line.starts_with("#!["));
    if !first.is_some_and(|line| line.starts_with("//!")) {
        let cure = "open with `//!`: one sentence on what this module is, then its picture";
        findings.push(finding("opening", source, 1, "the module does not say what it is".into(), cure));
    }
}

fn blob(source: &Source, findings: &mut Vec<Finding>) {
    if source.bytes > BLOB_BYTES_MAX && source.path != "Cargo.lock" {
        let what = format!("{} KiB", source.bytes >> 10);
        findings.push(finding("blob", source, 0, what, "generate it where it is used, or keep a digest of it"));
    }
}

fn mode(source: &Source, findings: &mut Vec<Finding>) {
    let script = source.text.as_deref().is_some_and(|text| text.starts_with("#!/"));
    if script != source.executable {
        let (what, cure) = if script {
            ("has an interpreter line but may not be executed", "chmod +x")
        } else {
            ("may be executed but names no interpreter", "chmod -x")
        };
        findings.push(finding("mode", source, 0, what.into(), cure));
    }
}

/// Rust files under a `src` folder or `tests` or `benches` that no target reaches by `mod`.
fn dead(sources: &[Source], findings: &mut Vec<Finding>) {
    let mut alive: BTreeSet<&str> = BTreeSet::new();
    let find = |path: &str| sources.iter().find(|source| source.path == path);
    let mut open: Vec<&Source> = Vec::new();
    for source in sources.iter().filter(|source| source.code.is_some()) {
        let parts: Vec<&str> = source.path.split('/').collect();
        let n = parts.len();
        let folder = n.checked_sub(2).map_or("", |i| parts[i]);
        let target = match parts[n - 1] {
            "lib.rs" | "main.rs" => folder == "src" || n.checked_sub(3).is_some_and(|i| is_target_folder(parts[i])),
            "build.rs" => true,
            _ => is_target_folder(folder),
        };
        let named = sources.iter().any(|toml| {
            let package = toml.path.strip_suffix("Cargo.toml");
            let relative = package.and_then(|package| source.path.strip_prefix(package));
            let line = relative.map(|relative| format!("path = \"{relative}\""));
            line.is_some_and(|line| toml.text.as_deref().is_some_and(|text| text.contains(&line)))
        });
        if target || named {
            open.push(source);
        }
    }
    while let Some(source) = open.pop() {
        if !alive.insert(&source.path) {
            continue;
        }
        for path in children(source) {
            open.extend(path.iter().filter_map(|path| find(path)));
        }
    }
    for source in sources.iter().filter(|source| source.code.is_some() && !alive.contains(source.path.as_str())) {
        let cure = "name it with `mod` where it belongs, or delete it";
        findings.push(finding("dead", source, 0, "nothing compiles this file".into(), cure));
    }
}

fn is_target_folder(name: &str) -> bool {
    matches!(name, "tests" | "benches" | "examples" | "bin")
}

/// For each `mod x;` the paths at which its file may stand.
fn children(source: &Source) -> Vec<Vec<String>> {
    let (folder, file) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    let stem = file.trim_end_matches(".rs");
    let beside = [folder.to_string(), format!("{folder}/{stem}")];
    let mut found = Vec::new();
    let mut renamed: Option<String> = None;
    for (code, text) in source.code.as_deref().unwrap_or_default().lines().zip(source.lines()) {
        if code.trim_start().starts_with("#[path") {
            renamed = text.1.split('"').nth(1).map(|path| normal(&format!("{folder}/{path}")));
            continue;
        }
        let declared = code.split_whitespace().collect::<Vec<_>>();
        let Some(at) = declared.iter().position(|word| *word == "mod") else { continue };
        let Some(name) = declared.get(at + 1).and_then(|name| name.strip_suffix(';')) else { continue };
        found.push(match renamed.take() {
            Some(path) => vec![path],
            None => beside.iter().flat_map(|at| [format!("{at}/{name}.rs"), format!("{at}/{name}/mod.rs")]).collect(),
        });
    }
    found
}

/// `a/b/../c` → `a/c`
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            ".." => {
                parts.pop();
            }
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}
