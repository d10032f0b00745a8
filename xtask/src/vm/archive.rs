//! The Debian archive, by way of apt: which mirror this machine uses, and packages of any suite.
//!
//! apt itself fetches and verifies; it only gets a private state directory per suite, so that the
//! machine's own package lists stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::say;
use crate::{cache, process};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
// Suites older than oldstable are signed by keys that newer keyrings have moved here.
const OLD_KEYRING: &str = "/usr/share/keyrings/debian-archive-removed-keys.gpg";
const MIRROR_VARIABLE: &str = "PGFORK_TRACE_MIRROR";

/// Where this machine gets Debian from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// The main archive.
    pub(crate) main: String,
    /// The security archive, if one is configured.
    pub(crate) security: Option<String>,
}

/// One package of a suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// The `Depends` field as written.
    pub(crate) depends: String,
}

impl Mirror {
    /// Reads the mirror from the machine's apt configuration.
    pub(crate) fn of_this_machine() -> Result<Self> {
        if let Some(main) = std::env::var(MIRROR_VARIABLE)
            .ok()
            .filter(|uri| !uri.is_empty())
        {
            return Ok(Self {
                main,
                security: None,
            });
        }
        let mut sources = read_sources(Path::new("/etc/apt/sources.list"));
        let parts = fs::read_dir("/etc/apt/sources.list.d")
            .into_iter()
            .flatten()
            .flatten();
        let mut parts: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
        parts.sort();
        sources.extend(parts.iter().flat_map(|path| read_sources(path)));
        pick_mirror(&sources).with_context(|| {
            format!(
                "no Debian archive in /etc/apt/sources.list and sources.list.d; \
                 set {MIRROR_VARIABLE}=URI to name one"
            )
        })
    }

    /// The one-line apt sources of a suite, with its security updates where there are some.
    pub(crate) fn lines(&self, suite: &str) -> Vec<String> {
        let keys = if suite == "bullseye" && Path::new(OLD_KEYRING).exists() {
            format!("{KEYRING},{OLD_KEYRING}")
        } else {
            KEYRING.to_owned()
        };
        let line = |uri: &str, suite: &str| format!("deb [signed-by={keys}] {uri} {suite} main");
        let mut lines = vec![line(&self.main, suite)];
        if let Some(security) = &self.security
            && has_security(suite)
        {
            lines.push(line(security, &format!("{suite}-security")));
        }
        lines
    }
}

fn has_security(suite: &str) -> bool {
    ["bullseye", "bookworm", "trixie"].contains(&suite)
}

/// A source as apt's configuration names it: URI and suite.
type Source = (String, String);

fn read_sources(path: &Path) -> Vec<Source> {
    let text = fs::read_to_string(path).unwrap_or_default();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("list") => parse_one_line(&text),
        Some("sources") => parse_deb822(&text),
        _ => Vec::new(),
    }
}

fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_source_line).collect()
}

fn parse_source_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line
        .strip_prefix("deb")?
        .strip_prefix([' ', '\t'])?
        .trim_start();
    if rest.starts_with('[') {
        rest = rest.split_once(']')?.1;
    }
    let mut words = rest.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.to_owned()))
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in stanzas(text) {
        let words = |field: &str| -> Vec<&str> {
            let values = stanza
                .iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case(field));
            values
                .flat_map(|(_, value)| value.split_whitespace())
                .collect()
        };
        if words("Enabled").first().is_some_and(|value| *value == "no")
            || !words("Types").contains(&"deb")
        {
            continue;
        }
        for uri in words("URIs") {
            for suite in words("Suites") {
                sources.push((uri.to_owned(), suite.to_owned()));
            }
        }
    }
    sources
}

/// The stanzas of a control file as lists of (field, value); continuation lines are joined.
fn stanzas(text: &str) -> Vec<Vec<(String, String)>> {
    let mut all = vec![Vec::<(String, String)>::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            all.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = all.last_mut().and_then(|stanza| stanza.last_mut()) {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let (Some((name, value)), Some(stanza)) = (line.split_once(':'), all.last_mut()) {
            stanza.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    all.retain(|stanza| !stanza.is_empty());
    all
}

const SUITES: &[&str] = &[
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

fn pick_mirror(sources: &[Source]) -> Option<Mirror> {
    let usable = |uri: &str| !uri.starts_with("cdrom:");
    let main = sources
        .iter()
        .find(|(uri, suite)| usable(uri) && SUITES.contains(&suite.as_str()))?;
    let security = sources.iter().find(|(uri, suite)| {
        usable(uri)
            && suite
                .strip_suffix("-security")
                .is_some_and(|base| SUITES.contains(&base))
    });
    Some(Mirror {
        main: main.0.clone(),
        security: security.map(|(uri, _)| uri.clone()),
    })
}

/// apt with a private view of one suite.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    _lock: fs::File,
}

impl Apt {
    /// Fetches the package lists of `suite`.
    pub(crate) fn update(mirror: &Mirror, suite: &str) -> Result<Self> {
        let dir = cache::dir()?.join("apt").join(suite);
        let lock = cache::lock(&dir)?;
        for part in ["state/lists/partial", "cache/archives/partial"] {
            cache::create_dir(&dir.join(part))?;
        }
        let apt = Self { dir, _lock: lock };
        let lines = mirror.lines(suite);
        let mut result = apt.fetch_lists(&lines);
        if result.is_err() && lines.len() > 1 {
            process::check_interrupt()?;
            say(format_args!("{suite}: trying without its security updates"));
            result = apt.fetch_lists(&lines[..1]);
        }
        result.with_context(|| {
            format!(
                "cannot read the package lists of {suite} from {}",
                mirror.main
            )
        })?;
        Ok(apt)
    }

    fn fetch_lists(&self, lines: &[String]) -> Result<()> {
        let path = self.dir.join("sources.list");
        fs::write(&path, lines.join("\n") + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        process::capture(self.command("apt-get").arg("update"))?;
        Ok(())
    }

    /// All packages whose name matches a regular expression.
    pub(crate) fn search(&self, names: &str) -> Result<Vec<Package>> {
        let text = process::capture(self.command("apt-cache").args([
            "search",
            "--full",
            "--names-only",
            names,
        ]))?;
        Ok(stanzas(&text)
            .iter()
            .filter_map(|stanza| package(stanza))
            .collect())
    }

    /// Downloads packages into `dir`; apt checks them against the signed lists.
    pub(crate) fn download(&self, packages: &[Package], dir: &Path) -> Result<()> {
        let names = packages
            .iter()
            .map(|package| format!("{}={}", package.name, package.version));
        process::capture(
            self.command("apt-get")
                .arg("download")
                .args(names)
                .current_dir(dir),
        )?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let dir = self.dir.display();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::State={dir}/state"),
            format!("Dir::Cache={dir}/cache"),
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Dir::Etc::preferencesparts=-".to_owned(),
            "Dir::Etc::preferences=/dev/null".to_owned(),
            "Dir::State::status=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            // The user apt drops to cannot read a cache in somebody's home.
            "APT::Sandbox::User=root".to_owned(),
            // Releases that are no longer updated stay usable; signatures are still checked.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "APT::Update::Error-Mode=any".to_owned(),
            // Whatever the machine's own configuration allows.
            "Acquire::AllowInsecureRepositories=false".to_owned(),
            "Acquire::AllowWeakRepositories=false".to_owned(),
            "Acquire::AllowDowngradeToInsecureRepositories=false".to_owned(),
            "APT::Get::AllowUnauthenticated=false".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}

fn package(stanza: &[(String, String)]) -> Option<Package> {
    let field = |name: &str| {
        stanza
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.clone())
    };
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        depends: field("Depends").unwrap_or_default(),
    })
}

/// The machine's own apt settings that a bootstrap has to share: proxies.
pub(crate) fn proxy_options() -> Result<Vec<String>> {
    let dump = process::capture(Command::new("apt-config").arg("dump"))?;
    let options = dump.lines().filter(|line| {
        let key = line
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        key.starts_with("acquire::http") && key.contains("proxy") && !line.ends_with(" \"\";")
    });
    Ok(options.map(str::to_owned).collect())
}

/// Fails early where the archive's keys are missing.
pub(crate) fn check_keyring() -> Result<()> {
    if !Path::new(KEYRING).exists() {
        bail!("{KEYRING} is missing: install debian-archive-keyring (`cargo xtask setup`)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str, suite: &str) -> Source {
        (uri.to_owned(), suite.to_owned())
    }

    #[test]
    fn one_line_sources() {
        let text = "# deb http://old.example/debian sid main\n\
            deb http://m.example/debian bookworm main contrib # mine\n\
            deb [arch=amd64 signed-by=/k.gpg] http://m.example/security bookworm-security main\n\
            deb-src http://m.example/debian bookworm main\n\
            deb\thttp://n.example/debian\tsid\tmain\n";
        assert_eq!(
            parse_one_line(text),
            [
                source("http://m.example/debian", "bookworm"),
                source("http://m.example/security", "bookworm-security"),
                source("http://n.example/debian", "sid"),
            ]
        );
    }

    #[test]
    fn deb822_sources() {
        let text = "Types: deb deb-src\n# a comment\nURIs: http://m.example/debian\n\
            Suites: trixie\n trixie-updates\nComponents: main\n\n\
            Types: deb\nURIs: http://off.example\nSuites: sid\nEnabled: no\n\n\
            Types: deb-src\nURIs: http://src.example\nSuites: sid\n";
        assert_eq!(
            parse_deb822(text),
            [
                source("http://m.example/debian", "trixie"),
                source("http://m.example/debian", "trixie-updates"),
            ]
        );
    }

    #[test]
    fn the_debian_archive_is_told_from_others() {
        let sources = [
            source("cdrom:[Debian]/", "trixie"),
            source("http://tool.example/apt", "nodistro"),
            source("http://m.example/debian", "trixie-updates"),
            source("http://m.example/debian", "trixie"),
            source("http://m.example/sec", "trixie-security"),
        ];
        let mirror = pick_mirror(&sources).expect("a mirror");
        assert_eq!(mirror.main, "http://m.example/debian");
        assert_eq!(mirror.security.as_deref(), Some("http://m.example/sec"));
        assert_eq!(pick_mirror(&sources[..2]), None);
    }

    #[test]
    fn security_updates_belong_to_released_suites() {
        let mirror = Mirror {
            main: "http://m".into(),
            security: Some("http://s".into()),
        };
        assert_eq!(mirror.lines("bookworm").len(), 2);
        assert!(mirror.lines("bookworm")[1].ends_with("http://s bookworm-security main"));
        assert_eq!(mirror.lines("trixie-backports").len(), 1);
        assert_eq!(mirror.lines("sid").len(), 1);
    }
}
