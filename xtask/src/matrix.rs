//! Which causes were named right: by cause, kernel and method.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::vm::Series;

/// File of the verdicts of the last run.
const FILE: &str = "verdicts.txt";

/// Kernels of the matrix, oldest first.
pub(crate) const KERNELS: [Series; 5] = [
    Series::V5_10,
    Series::V6_1,
    Series::V6_12,
    Series::V6_18,
    Series::V7_2,
];
/// The tracepoint method with `--syscalls`, as the guests call it.
pub(crate) const SYSCALLS: &str = "syscalls";
pub(crate) const METHODS: [&str; 4] = ["fexit", "kprobe", "tracepoint", SYSCALLS];

/// As people call it.
fn shown(method: &str) -> &str {
    match method {
        SYSCALLS => "tracepoint --syscalls",
        method => method,
    }
}

/// Verdicts of one cause on one kernel by one method.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cell {
    right: usize,
    all: usize,
    /// Runs in which this method could not have seen it.
    not_visible: usize,
    /// Said to be unknown.
    open: usize,
    wrong: usize,
    wrong_observed: usize,
    /// How sure the right ones are: o, d, or both.
    certainties: Vec<String>,
}

/// All verdicts.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    cells: BTreeMap<(String, usize, String), Cell>,
    /// As they were taken, with the kernel.
    lines: Vec<String>,
}

impl Matrix {
    /// Takes "CAUSE METHOD OUTCOME CERTAINTY".
    pub(crate) fn take(&mut self, kernel: Series, line: &str) {
        let mut words = line.split(' ');
        let (Some(cause), Some(method), Some(outcome)) = (words.next(), words.next(), words.next())
        else {
            return;
        };
        let certainty = words.next().unwrap_or("-");
        let column = KERNELS.iter().position(|it| *it == kernel).unwrap_or(0);
        self.lines.push(format!("{} {line}", kernel.name()));
        let cell = self
            .cells
            .entry((cause.to_owned(), column, method.to_owned()))
            .or_default();
        if outcome == "not_visible" {
            cell.not_visible += 1;
            return;
        }
        cell.all += 1;
        match outcome {
            "right" => {
                cell.right += 1;
                if !cell.certainties.iter().any(|it| it == certainty) {
                    cell.certainties.push(certainty.to_owned());
                    cell.certainties.sort_unstable();
                }
            }
            "open" => cell.open += 1,
            "WRONG" => {
                cell.wrong += 1;
                cell.wrong_observed += usize::from(certainty == "observed");
            }
            _ => {}
        }
    }

    /// Keeps it for `cargo xtask docs`.
    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        fs::write(directory.join(FILE), self.lines.join("\n") + "\n")
            .with_context(|| format!("cannot write {FILE}"))
    }

    /// That of the last run.
    pub(crate) fn load(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: run `cargo xtask test` first", path.display()))?;
        let mut matrix = Self::default();
        for line in text.lines() {
            let Some((kernel, verdict)) = line.split_once(' ') else {
                continue;
            };
            if let Some(kernel) = KERNELS.into_iter().find(|it| it.name() == kernel) {
                matrix.take(kernel, verdict);
            }
        }
        Ok(matrix)
    }

    /// Whether nothing was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The sum in one line.
    pub(crate) fn sum(&self) -> String {
        let of = |what: fn(&Cell) -> usize| self.cells.values().map(what).sum::<usize>();
        let combinations = self.cells.values().filter(|cell| cell.all > 0).count();
        let right = self
            .cells
            .values()
            .filter(|cell| cell.all > 0 && cell.right == cell.all)
            .count();
        format!(
            "attribution: {right} of {combinations} combinations of cause, kernel and method right \
             ({} of {} verdicts), {} wrong, {} wrong at certainty observed; {} not visible to their method",
            of(|cell| cell.right),
            of(|cell| cell.all),
            of(|cell| cell.wrong),
            of(|cell| cell.wrong_observed),
            self.cells.values().filter(|cell| cell.all == 0).count(),
        )
    }

    /// The matrix for the documentation.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("| cause | method |");
        for kernel in KERNELS {
            let _ = write!(text, " {} |", kernel.name());
        }
        text.push_str("\n|---|---|---|---|---|---|---|\n");
        for (cause, method, cells) in self.rows() {
            let _ = writeln!(
                text,
                "| `{cause}` | {} | {} |",
                shown(method),
                cells.join(" | ")
            );
        }
        text
    }

    /// The matrix and its sum for people who run the tests.
    pub(crate) fn text(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let mut text = format!("--- {:<26} {:<21}", "cause", "method");
        for kernel in KERNELS {
            let _ = write!(text, " {:<20}", kernel.name());
        }
        text.push('\n');
        for (cause, method, cells) in self.rows() {
            let _ = write!(text, "{cause:<30} {:<21}", shown(method));
            for cell in cells {
                let _ = write!(text, " {cell:<20}");
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text + &self.sum() + "\n"
    }

    fn rows(&self) -> Vec<(String, &'static str, Vec<String>)> {
        let mut causes: Vec<&String> = self.cells.keys().map(|(cause, ..)| cause).collect();
        causes.dedup();
        let mut rows = Vec::new();
        for cause in causes {
            for method in METHODS {
                let cells: Vec<String> = (0..KERNELS.len())
                    .map(|column| {
                        self.cells
                            .get(&(cause.clone(), column, method.to_owned()))
                            .map_or_else(|| "-".to_owned(), Cell::text)
                    })
                    .collect();
                if cells.iter().any(|cell| cell != "-") {
                    rows.push((cause.clone(), method, cells));
                }
            }
        }
        rows
    }
}

impl Cell {
    fn text(&self) -> String {
        match (self.right, self.all) {
            (_, 0) => "not visible".to_owned(),
            (right, all) if right == all => self.certainties.join(", "),
            (0, all) if self.open == all => "left open".to_owned(),
            (right, all) if right + self.open == all => {
                format!("{right} right, {} left open", self.open)
            }
            (right, all) => format!("{right} of {all} right"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_by_cause_kernel_and_method() {
        let mut matrix = Matrix::default();
        for line in [
            "pids_cgroup_max fexit right observed",
            "pids_cgroup_max fexit right observed",
            "pids_cgroup_max tracepoint right deduced",
            "seccomp_denied fexit WRONG observed",
            "rlimit_as tracepoint not_visible -",
        ] {
            matrix.take(Series::V6_1, line);
        }
        matrix.take(Series::V7_2, "pids_cgroup_max fexit open unknown");
        for line in [
            "memcg right deduced",
            "memcg open unknown",
            "memcg MISSED -",
        ] {
            let (cause, rest) = line.split_once(' ').unwrap();
            matrix.take(Series::V5_10, &format!("{cause} fexit {rest}"));
            if rest != "MISSED -" {
                matrix.take(Series::V6_1, &format!("{cause} fexit {rest}"));
            }
        }
        assert_eq!(
            matrix.sum(),
            "attribution: 2 of 6 combinations of cause, kernel and method right (5 of 10 verdicts), \
             1 wrong, 1 wrong at certainty observed; 1 not visible to their method"
        );
        let markdown = matrix.markdown();
        assert!(
            markdown.contains("| `pids_cgroup_max` | fexit | - | observed | - | - | left open |"),
            "{markdown}"
        );
        assert!(
            markdown.contains("| `memcg` | fexit | 1 of 3 right | 1 right, 1 left open | - |"),
            "{markdown}"
        );
        assert!(
            markdown.contains("| `rlimit_as` | tracepoint | - | not visible | - | - | - |"),
            "{markdown}"
        );
    }
}
