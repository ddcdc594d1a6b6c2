//! House lint: reads every file that git knows or would take, checks the rules, exits 1 on a fatal finding.

mod rules;
mod source;
#[cfg(test)]
mod tests;

use source::Source;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let sources = match read_all() {
        Ok(sources) => sources,
        Err(why) => {
            eprintln!("tidy: {why}");
            return ExitCode::from(2);
        }
    };
    let findings = rules::check(&sources);
    for f in &findings {
        let level = if f.fatal { "refused" } else { "warning" };
        println!("{}:{}: {level} [{}] {}; cure: {}", f.path, f.line, f.rule, f.what, f.cure);
    }
    let fatal = findings.iter().filter(|finding| finding.fatal).count();
    println!("tidy: {} files, {fatal} refused, {} warnings", sources.len(), findings.len() - fatal);
    if fatal == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tracked files and those that a commit would take.
fn read_all() -> Result<Vec<Source>, String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().map_err(|why| format!("git: {why}"))?;
        if !output.status.success() {
            return Err(format!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()));
        }
        String::from_utf8(output.stdout).map_err(|why| format!("git {}: {why}", arguments.join(" ")))
    };
    let root = git(&["rev-parse", "--show-toplevel"])?;
    let root = std::path::Path::new(root.trim_end());
    let at_root = root.to_str().ok_or("the repository's path is not UTF-8")?;
    let listed = git(&["-C", at_root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
    let mut sources = Vec::new();
    for path in listed.split('\0').filter(|path| !path.is_empty()) {
        let full = root.join(path);
        // Deleted but not yet committed, or a link: neither has content of its own.
        let Ok(about) = full.symlink_metadata() else { continue };
        if !about.is_file() {
            continue;
        }
        let content = std::fs::read(&full).map_err(|why| format!("{path}: {why}"))?;
        sources.push(Source::new(path, &content, about.permissions().mode() & 0o111 != 0));
    }
    Ok(sources)
}
