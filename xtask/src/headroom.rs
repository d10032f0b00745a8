//! What `check` predicted against what then happened: by limit and guest.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

/// File of the predictions of the last run.
const FILE: &str = "headroom.txt";
/// The table in the documentation stands between these.
const BEGIN: &str = "<!-- headroom: written by cargo xtask docs -->\n";
const END: &str = "<!-- headroom: end -->\n";

/// One prediction, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cell {
    guest: String,
    limit: String,
    /// `12 / 12`, or why there is none.
    text: String,
    right: bool,
}

/// All predictions, as they were taken.
#[derive(Debug, Default)]
pub(crate) struct Headroom {
    cells: Vec<Cell>,
}

impl Headroom {
    /// Takes "KERNEL LIMIT predicted N, real M ok (WHY)" of a guest.
    pub(crate) fn take(&mut self, guest: &str, line: &str) {
        let mut words = line.split_whitespace().skip(1);
        let Some(limit) = words.next() else { return };
        let number = |key: &str| {
            let rest = &line[line.find(key)? + key.len()..];
            let number = rest.trim_start();
            let end = number.find(|c: char| !c.is_ascii_digit())?;
            Some(number[..end].to_owned())
        };
        let text = match number("predicted ").zip(number("real ")) {
            Some((predicted, real)) => format!("{predicted} / {real}"),
            None => "failed".to_owned(),
        };
        self.cells.push(Cell {
            guest: guest.to_owned(),
            limit: limit.to_owned(),
            text,
            right: !line.contains("FAILED"),
        });
    }

    /// Keeps it for `cargo xtask docs`.
    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        let lines: Vec<String> = self
            .cells
            .iter()
            .map(|it| format!("{}\t{}\t{}\t{}", it.guest, it.limit, it.text, it.right))
            .collect();
        fs::write(directory.join(FILE), lines.join("\n") + "\n")
            .with_context(|| format!("cannot write {FILE}"))
    }

    /// That of the last run.
    pub(crate) fn load(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: run `cargo xtask test` first", path.display()))?;
        let cells = text.lines().filter_map(|line| {
            let mut fields = line.split('\t').map(str::to_owned);
            Some(Cell {
                guest: fields.next()?,
                limit: fields.next()?,
                text: fields.next()?,
                right: fields.next()? == "true",
            })
        });
        Ok(Self {
            cells: cells.collect(),
        })
    }

    /// The table for people who run the tests.
    pub(crate) fn text(&self) -> String {
        if self.cells.is_empty() {
            return String::new();
        }
        let mut out = String::from(
            "--- prediction against reality: backends that check predicts / that fit\n",
        );
        let guests = self.names(|it| &it.guest);
        let width = guests.iter().map(String::len).max().unwrap_or(0);
        for (limit, cells) in self.rows(&guests) {
            for (guest, cell) in guests.iter().zip(cells) {
                if let Some(cell) = cell {
                    let wrong = if cell.right { "" } else { "  WRONG" };
                    let _ = writeln!(out, "{limit:<22} {guest:<width$} {:>9}{wrong}", cell.text);
                }
            }
        }
        let right = self.cells.iter().filter(|it| it.right).count();
        let _ = writeln!(
            out,
            "headroom: {right} of {} predictions right",
            self.cells.len()
        );
        out
    }

    /// The table for the documentation.
    fn markdown(&self) -> String {
        let guests = self.names(|it| &it.guest);
        let mut out = String::from("| limit |");
        for guest in &guests {
            let _ = write!(out, " {guest} |");
        }
        out += "\n|---|";
        out += &"---|".repeat(guests.len());
        out.push('\n');
        for (limit, cells) in self.rows(&guests) {
            let _ = write!(out, "| {limit} |");
            for cell in cells {
                let _ = write!(out, " {} |", cell.map_or("-", |cell| cell.text.as_str()));
            }
            out.push('\n');
        }
        out
    }

    /// The page with this table in its place.
    pub(crate) fn page(&self, page: &str) -> Result<String> {
        let (head, rest) = page.split_once(BEGIN).context("no place for the table")?;
        let (_, tail) = rest.split_once(END).context("the table has no end")?;
        Ok(format!("{head}{BEGIN}{}{END}{tail}", self.markdown()))
    }

    /// In the order of their first appearance.
    fn names(&self, of: fn(&Cell) -> &String) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for cell in &self.cells {
            if !names.contains(of(cell)) {
                names.push(of(cell).clone());
            }
        }
        names.sort_by_key(|name| name.contains("cgroup v1"));
        names
    }

    fn rows(&self, guests: &[String]) -> Vec<(String, Vec<Option<&Cell>>)> {
        let limits = self.names(|it| &it.limit).into_iter();
        limits
            .map(|limit| {
                let of = |guest: &String| {
                    let mut cells = self.cells.iter();
                    cells.find(|it| it.guest == *guest && it.limit == limit)
                };
                let cells = guests.iter().map(of).collect();
                (limit, cells)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_become_a_table_in_the_page() {
        let mut headroom = Headroom::default();
        headroom.take(
            "6.1, PG 15, cgroup v1",
            "6.1.0-50 pids_leaf  predicted  12, real  12 ok (x)",
        );
        headroom.take(
            "6.1, PG 15",
            "6.1.0-50 pids_leaf  predicted  12, real  13 FAILED (x)",
        );
        headroom.take("6.1, PG 15", "6.1.0-50 memory_max FAILED: no answer");
        let page = headroom
            .page(&format!("before\n{BEGIN}old\n{END}after\n"))
            .unwrap();
        assert_eq!(
            page,
            format!(
                "before\n{BEGIN}| limit | 6.1, PG 15 | 6.1, PG 15, cgroup v1 |\n|---|---|---|\n\
                 | pids_leaf | 12 / 13 | 12 / 12 |\n| memory_max | failed | - |\n{END}after\n"
            )
        );
        let text = headroom.text();
        assert!(text.contains("12 / 13  WRONG"), "{text}");
        assert!(
            text.ends_with("headroom: 1 of 3 predictions right\n"),
            "{text}"
        );
        assert!(headroom.page("no marker").is_err());
    }
}
