//! `pgfork-trace causes`: the catalogue of causes, and docs/causes.md from it.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use anyhow::{Result, bail};

use crate::verdict::{CauseEntry, catalogue};

/// Width of a line of text.
const WIDTH: usize = 96;
/// Column in which the text of an entry starts.
const INDENT: usize = 10;

/// Prints the whole catalogue, or one entry of it.
///
/// # Errors
/// When there is no such cause, or the output is gone.
pub fn run(id: Option<&str>, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    match id {
        Some(id) => {
            let entry = find(id)?;
            if json {
                serde_json::to_writer(&mut out, entry)?;
                writeln!(out)?;
            } else {
                out.write_all(one(entry).as_bytes())?;
            }
        }
        None if json => {
            serde_json::to_writer(&mut out, &catalogue().collect::<Vec<_>>())?;
            writeln!(out)?;
        }
        None => out.write_all(list().as_bytes())?,
    }
    Ok(())
}

fn find(id: &str) -> Result<&'static CauseEntry> {
    if let Some(entry) = catalogue().find(|entry| entry.id == id) {
        return Ok(entry);
    }
    let near = near(id);
    if near.is_empty() {
        bail!("there is no cause {id:?}; pgfork-trace causes lists all");
    }
    bail!(
        "there is no cause {id:?}; did you mean {}?",
        near.join(", ")
    )
}

/// Ids that contain what was asked for, or differ in few letters.
fn near(id: &str) -> Vec<&'static str> {
    let id = id.to_ascii_lowercase().replace('-', "_");
    let mut found: Vec<(usize, &str)> = catalogue()
        .filter_map(|entry| {
            let distance = distance(&id, entry.id);
            let part = id.len() >= 3 && (entry.id.contains(&id) || id.contains(entry.id));
            (part || distance <= 1 + entry.id.len() / 4).then_some((distance, entry.id))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, id)| id).take(5).collect()
}

/// How many letters to change, insert or leave out (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, a) in one.chars().enumerate() {
        let mut above_left = row[0];
        row[0] = line + 1;
        for (column, b) in other.iter().enumerate() {
            let replaced = above_left + usize::from(a != *b);
            above_left = row[column + 1];
            row[column + 1] = replaced.min(above_left + 1).min(row[column] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

fn list() -> String {
    let width = catalogue().map(|entry| entry.id.len()).max().unwrap_or(0);
    let mut out = String::new();
    for entry in catalogue() {
        let errno = entry.errno;
        let _ = writeln!(out, "{:<width$}  {}  [{errno}]", entry.id, entry.title);
    }
    out.push_str("\nOne of them: pgfork-trace causes ID\n");
    out
}

fn one(entry: &CauseEntry) -> String {
    let mut out = format!("{}: {}\n", entry.id, entry.title);
    let mut row = |label: &str, text: &str| {
        let mut label = label;
        for line in wrapped(text, WIDTH - INDENT) {
            let _ = writeln!(out, "  {label:<INDENT$}{line}");
            label = "";
        }
    };
    row("errno", entry.errno);
    if !entry.function.is_empty() {
        row("check", entry.function);
    }
    row("meaning", entry.meaning);
    row("evidence", entry.evidence);
    row("remedy", entry.remedy);
    row("verify", entry.verify);
    out
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// docs/causes.md.
#[must_use]
pub fn markdown() -> String {
    let mut out = "# Causes\n\n\
        <!-- Made from the catalogue (pgfork-trace/src/verdict/causes): \
        PGFORK_TRACE_BLESS=1 cargo test -p pgfork-trace --lib causes -->\n\n\
        What can refuse a fork, or memory to a process of PostgreSQL. `pgfork-trace causes ID` prints the same. \
        Ids are never renamed.\n\n\
        | id | errno | what it is |\n|---|---|---|\n"
        .to_owned();
    for entry in catalogue() {
        let CauseEntry {
            id, errno, title, ..
        } = entry;
        let _ = writeln!(out, "| [`{id}`](#{id}) | {errno} | {title} |");
    }
    for entry in catalogue() {
        let _ = write!(
            out,
            "\n## {}\n\n{}. errno: {}",
            entry.id,
            capitalized(entry.title),
            entry.errno
        );
        if !entry.function.is_empty() {
            let _ = write!(out, "; kernel function: `{}`", entry.function);
        }
        let _ = write!(
            out,
            "\n\n{}\n\n* **Evidence.** {}\n* **Remedy.** {}\n* **Verify.** `{}`\n",
            escaped(entry.meaning),
            escaped(entry.evidence),
            escaped(entry.remedy),
            entry.verify
        );
    }
    out
}

/// Characters that Markdown would take for its own.
fn escaped(text: &str) -> String {
    text.replace('*', "\\*").replace('_', "\\_")
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        // Names of the kernel keep their case.
        Some(first) if !text.contains(": ") => first.to_uppercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_the_committed_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/causes.md");
        if std::env::var_os("PGFORK_TRACE_BLESS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            markdown() == committed,
            "run the tests with PGFORK_TRACE_BLESS=1 and look at the difference"
        );
    }

    #[test]
    fn an_unknown_id_names_near_ones() {
        let told = |id: &str| find(id).unwrap_err().to_string();
        assert!(told("comit_limit").ends_with("did you mean commit_limit?"));
        assert!(told("pid-namespace-dying").contains("pid_namespace_dying, "));
        assert!(told("NPROC").contains("rlimit_nproc"));
        assert!(told("xyz").contains("pgfork-trace causes lists all"));
        assert!(told("\u{1b}[2J").contains("\\u{1b}"), "escaped");
        assert_eq!(find("unknown").unwrap().id, "unknown");
    }

    #[test]
    fn text_has_every_field_and_fits() {
        for entry in catalogue() {
            let text = one(entry);
            for label in ["errno", "meaning", "evidence", "remedy", "verify"] {
                assert!(text.contains(&format!("\n  {label} ")), "{}", entry.id);
            }
            for line in text.lines().skip(1) {
                assert!(line.chars().count() <= WIDTH + 2, "{line}");
            }
            assert!(list().contains(entry.title));
        }
    }
}
