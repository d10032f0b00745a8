//! Whether the committed pages still tell what the guests of a run said.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Result, bail};

use crate::{dist, matrix::Matrix};

use super::{ATTRIBUTION, RELEASE, SUPPORT, Said, VERIFIER, attribution, costs, most, support};

/// One result for each page. Where a kernel is not the release of which the pages tell, a difference
/// is said and no failure: a clean checkout does not fail because a distribution updates a kernel.
pub(crate) fn check(out: &Path) -> Result<Vec<(&'static str, Result<String>)>> {
    let kernels = super::read(out)?;
    let matrix = Matrix::load(out)?;
    let committed =
        |page: &str| fs::read_to_string(dist::workspace().join(page)).unwrap_or_default();
    let updated = updated(&committed(VERIFIER), &kernels);
    let (before, now) = (committed(ATTRIBUTION), attribution(&matrix));
    let differs = committed(SUPPORT) != support(&kernels);
    let pages = [
        (
            SUPPORT,
            differs.then(|| "the guests' probes say something else".to_owned()),
            String::new(),
        ),
        (
            VERIFIER,
            growth(&committed(VERIFIER), &kernels),
            most(&kernels),
        ),
        (
            ATTRIBUTION,
            other_row(&without_certainty(&before), &without_certainty(&now)),
            match other_row(&before, &now) {
                Some(other) => format!("{}; {other}", matrix.sum()),
                None => matrix.sum(),
            },
        ),
    ];
    Ok(pages
        .into_iter()
        .map(|(page, difference, sum)| (page, held(difference, &updated, sum)))
        .collect())
}

fn held(difference: Option<String>, updated: &[String], sum: String) -> Result<String> {
    match difference {
        None => Ok(sum),
        Some(difference) if updated.is_empty() => {
            bail!("{difference}: look why, and run `cargo xtask docs`")
        }
        Some(difference) => Ok(format!(
            "{difference}; it is of other kernels: {}",
            updated.join(", ")
        )),
    }
}

/// First cells of the rows of a page's table, with the others.
fn rows(page: &str) -> BTreeMap<String, Vec<String>> {
    page.lines()
        .filter_map(|line| {
            let cells = line.strip_prefix("| ")?.strip_suffix(" |")?;
            let mut cells = cells.split(" | ").map(str::to_owned);
            Some((cells.next()?, cells.collect()))
        })
        .collect()
}

/// Kernels whose release is not the recorded one.
fn updated(committed: &str, kernels: &[Said]) -> Vec<String> {
    let recorded = rows(committed).remove(RELEASE).unwrap_or_default();
    kernels
        .iter()
        .enumerate()
        .filter_map(|(at, said)| {
            let recorded = recorded.get(at).map_or("none", String::as_str);
            let now = said.release();
            (recorded != now).then(|| format!("{now} instead of {recorded}"))
        })
        .collect()
}

/// A program that is new, gone, or has grown by more than a tenth: less is the compiler's whim.
fn growth(committed: &str, kernels: &[Said]) -> Option<String> {
    let recorded = rows(committed);
    let costs = costs(kernels);
    let gone = recorded
        .keys()
        .filter_map(|name| name.strip_prefix('`')?.strip_suffix('`'))
        .find(|name| !costs.contains_key(*name));
    if let Some(gone) = gone {
        return Some(format!("{gone} is not loaded any more"));
    }
    costs.iter().find_map(|(program, now)| {
        let Some(before) = recorded.get(&format!("`{program}`")) else {
            return Some(format!("{program} is new"));
        };
        now.iter()
            .zip(before)
            .zip(kernels)
            .find_map(|((now, before), said)| {
                let (now, before): (u64, u64) = ((*now)?, before.parse().ok()?);
                (now > before + before / 10).then(|| {
                format!(
                    "on {} the verifier processes {now} instructions of {program}, not {before}",
                    said.kernel
                )
            })
            })
    })
}

/// The table with what does not depend on the moment: right, however sure, or not. Where a charge
/// fails, and with that how sure a verdict can be, may differ from run to run; the tests hold each
/// verdict to the certainty that its own evidence gives.
fn without_certainty(page: &str) -> String {
    let right = |cell: &str| {
        let mut certainties = cell.trim().split(", ");
        certainties.all(|it| ["observed", "deduced", "unknown"].contains(&it))
    };
    let line = |line: &str| {
        let cells = line
            .split('|')
            .map(|cell| if right(cell) { " right " } else { cell });
        cells.collect::<Vec<_>>().join("|")
    };
    page.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The first line of the table that is another one; how many verdicts there were does not count.
fn other_row(committed: &str, now: &str) -> Option<String> {
    let table = |page: &str| -> Vec<String> {
        let lines = page.lines().filter(|line| line.starts_with('|'));
        lines.map(str::to_owned).collect()
    };
    let (committed, now) = (table(committed), table(now));
    let missing =
        |of: &[String], in_: &[String]| of.iter().find(|line| !in_.contains(line)).cloned();
    missing(&now, &committed)
        .map(|line| format!("this run gives {line}"))
        .or_else(|| missing(&committed, &now).map(|line| format!("this run does not give {line}")))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::kernels, *};

    #[test]
    fn another_release_is_said_and_does_not_fail() {
        let kernels = kernels();
        let page = super::super::verifier(&kernels);
        assert_eq!(updated(&page, &kernels), [""; 0]);
        let older = page.replace("6.1.1-release", "6.1.0-release");
        let updated = updated(&older, &kernels);
        assert_eq!(updated, ["6.1.1-release instead of 6.1.0-release"]);
        let held = |updated: &[String]| held(Some("this".to_owned()), updated, String::new());
        assert!(held(&updated).unwrap().contains("other kernels: 6.1.1-"));
        assert!(held(&[]).is_err());
    }

    #[test]
    fn the_verifiers_work_may_grow_by_a_tenth() {
        let kernels = kernels();
        let page = super::super::verifier(&kernels);
        assert_eq!(growth(&page, &kernels), None);
        assert_eq!(growth(&page.replace("| 40 |", "| 37 |"), &kernels), None);
        let more = growth(&page.replace("| 40 |", "| 36 |"), &kernels).unwrap();
        assert!(more.contains("on 7.2") && more.contains("first_fexit"));
        let renamed = page.replace("first_fexit", "other_fexit");
        assert!(
            growth(&renamed, &kernels)
                .unwrap()
                .contains("other_fexit is not")
        );
        assert!(growth("", &kernels).unwrap().contains("first_fexit is new"));
    }

    #[test]
    fn rows_of_verdicts_are_compared_and_their_number_is_not() {
        let page = "attribution: 1 of 1\n| `a` | fexit | observed |\n";
        assert_eq!(other_row(page, &page.replace('1', "2")), None);
        let wrong = page.replace("observed", "WRONG");
        assert!(other_row(page, &wrong).unwrap().contains("WRONG"));
        assert!(other_row(page, "").unwrap().contains("does not give"));
        let less_sure = page.replace("observed", "deduced, observed");
        assert!(other_row(page, &less_sure).unwrap().contains("deduced"));
        let held = |now: &str| other_row(&without_certainty(page), &without_certainty(now));
        assert_eq!(held(&less_sure), None);
        assert!(held(&wrong).unwrap().contains("WRONG"));
        assert!(held(&page.replace("observed", "not visible")).is_some());
    }
}
