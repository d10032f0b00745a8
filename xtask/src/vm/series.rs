//! Which of Debian's cloud kernels is meant by a series.

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::archive::{Apt, Mirror, Package, check_keyring};

/// Packages that hold an image, or a part of one.
const NAMES: &str = "^linux-(image|binary|modules|base)-[0-9].*-cloud-amd64$";

/// A series of kernels in Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Series {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    #[value(name = "6.18")]
    V6_18,
    #[value(name = "7.2")]
    V7_2,
}

impl Series {
    /// Its name: `6.1`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V6_18 => "6.18",
            Self::V7_2 => "7.2",
        }
    }

    /// Where to look for it, most likely place first.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::V5_10 => &["bullseye"],
            Self::V6_1 => &["bookworm"],
            Self::V6_12 => &["trixie"],
            Self::V6_18 => &["trixie-backports"],
            Self::V7_2 => &["forky", "sid"],
        }
    }
}

/// Whether a package version belongs to a series.
pub(crate) fn is_of_series(version: &str, series: &str) -> bool {
    version
        .strip_prefix(series)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The numbers of a version, which order the kernels of a suite.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// An image package and the packages that hold its parts; none if the archive has lost one.
fn with_parts(image: &Package, all: &[Package]) -> Option<Vec<Package>> {
    let mut packages = vec![image.clone()];
    for dependency in image.depends.split(',') {
        let name = dependency.split_whitespace().next().unwrap_or_default();
        if !name.ends_with("-cloud-amd64") {
            continue;
        }
        match all
            .iter()
            .find(|package| package.name == name && package.version == image.version)
        {
            Some(package) => packages.push(package.clone()),
            // It held nothing but documentation until the kernel was split up.
            None if name.starts_with("linux-base-") => {}
            None => return None,
        }
    }
    Some(packages)
}

/// The newest complete kernel of a series; of any, if `series` is none.
fn newest(all: &[Package], series: Option<&str>) -> Option<Vec<Package>> {
    let mut images: Vec<&Package> = all
        .iter()
        .filter(|package| package.name.starts_with("linux-image-"))
        .filter(|package| series.is_none_or(|series| is_of_series(&package.version, series)))
        // Names such as linux-image-6.1-cloud-amd64 only point to the real one.
        .filter(|package| !package.depends.trim_start().starts_with("linux-image-"))
        .collect();
    images.sort_by_key(|package| numbers(&package.version));
    images.iter().rev().find_map(|image| with_parts(image, all))
}

/// The packages to take for a series, and where they are: the newest of the series, or else of
/// the suite.
pub(crate) fn select(series: Series) -> Result<(Apt, &'static str, Vec<Package>)> {
    let mirror = Mirror::of_this_machine()?;
    check_keyring()?;
    let mut substitute = None;
    for suite in series.suites() {
        let apt = Apt::update(&mirror, suite)?;
        let all = apt.search(NAMES)?;
        if let Some(packages) = newest(&all, Some(series.name())) {
            return Ok((apt, suite, packages));
        }
        if substitute.is_none() {
            substitute = newest(&all, None).map(|packages| (apt, *suite, packages));
        }
    }
    substitute.with_context(|| {
        format!(
            "{} has no cloud kernel at all",
            series.suites().join(" and ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, depends: &str) -> Package {
        let full = format!("linux-{name}-cloud-amd64");
        Package {
            name: full,
            version: version.to_owned(),
            depends: depends.to_owned(),
        }
    }

    #[test]
    fn a_series_is_not_a_prefix() {
        assert!(is_of_series("6.1.192-2", "6.1"));
        assert!(!is_of_series("6.12.117-1", "6.1"));
        assert!(!is_of_series("5.10.1-1", "6.1"));
    }

    #[test]
    fn the_newest_of_the_series_is_taken() {
        let all = [
            package("image-6.1.0-9", "6.1.99-1", "kmod"),
            package("image-6.1.0-56", "6.1.192-2", "kmod"),
            package(
                "image-6.1",
                "6.1.200-1",
                "linux-image-6.1.0-57-cloud-amd64 (= 6.1.200-1)",
            ),
            package("image-6.12.5", "6.12.5-1", "kmod"),
        ];
        let chosen = newest(&all, Some("6.1")).expect("a kernel");
        assert_eq!(chosen, [all[1].clone()]);
        assert_eq!(newest(&all, None).expect("a kernel")[0].version, "6.12.5-1");
        assert_eq!(newest(&all, Some("7.2")), None);
    }

    #[test]
    fn a_kernel_whose_parts_are_gone_is_passed_over() {
        let needs = |version: &str| {
            format!(
                "dracut | initramfs-tools, linux-base-{version}-cloud-amd64 (= {version}-1), \
                 linux-modules-{version}-cloud-amd64 (= {version}-1)"
            )
        };
        let all = [
            package("image-6.19.14", "6.19.14-1", &needs("6.19.14")),
            package("image-6.19.2", "6.19.2-1", &needs("6.19.2")),
            package("modules-6.19.2", "6.19.2-1", ""),
        ];
        let chosen = newest(&all, Some("6.19")).expect("a kernel");
        assert_eq!(chosen, [all[1].clone(), all[2].clone()]);
    }
}
