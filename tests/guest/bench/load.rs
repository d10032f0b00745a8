//! Work whose rate is measured with and without the tool.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Target, settle, spread, tool::Tool};

const SECONDS: &str = "5";
const MAPPING: usize = 1 << 20;
const MAP_FOR: Duration = Duration::from_secs(2);
const SLICE: Duration = Duration::from_millis(10);

/// Rates without and with the tool, by pair.
pub(super) struct Paired {
    /// Without, with.
    pub(super) pairs: Vec<(f64, f64)>,
}

/// Runs `rate` with and without the tool, in the order ABBA, so that neither drift nor
/// who comes first counts.
pub(super) fn paired(
    pairs: usize,
    rate: impl Fn() -> Result<f64>,
    start: impl Fn() -> Result<Tool>,
) -> Result<Paired> {
    ensure!(pairs > 0, "no pairs");
    let without = || {
        settle();
        rate()
    };
    let with = || -> Result<f64> {
        let tool = start()?;
        settle();
        let rate = rate()?;
        tool.stop()?;
        Ok(rate)
    };
    let mut measured = Vec::new();
    for number in 0..pairs {
        measured.push(if number % 2 == 0 {
            let first = without()?;
            (first, with()?)
        } else {
            let first = with()?;
            (without()?, first)
        });
    }
    Ok(Paired { pairs: measured })
}

/// One connection for each transaction.
pub(super) struct Pgbench<'a> {
    target: &'a Target,
    script: PathBuf,
}

impl<'a> Pgbench<'a> {
    /// Writes the script.
    pub(super) fn new(target: &'a Target, directory: &Path) -> Result<Self> {
        let script = directory.join("select1.sql");
        fs::write(&script, "select 1;\n")?;
        Ok(Self { target, script })
    }

    /// Transactions per second, over some seconds.
    pub(super) fn rate(&self) -> Result<f64> {
        self.run(&["-T", SECONDS])
    }

    /// A number of transactions by one client after the other.
    pub(super) fn transactions(&self, number: u32) -> Result<()> {
        self.run(&["-t", &(number / 2).to_string()]).map(|_| ())
    }

    fn run(&self, arguments: &[&str]) -> Result<f64> {
        let output = Command::new(&self.target.pgbench)
            .args(["-n", "-C", "-c", "2", "-U", "postgres", "-h"])
            .arg(&self.target.socket_dir)
            .args(["-p", &self.target.port.to_string()])
            .args(arguments)
            .arg("-f")
            .arg(&self.script)
            .arg("postgres")
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.target.pgbench.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("pgbench: {}", String::from_utf8_lossy(&output.stderr));
        }
        // The first one includes the connections; versions before 14 print another one.
        text.lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
            .with_context(|| format!("pgbench said no rate: {text}"))
    }
}

/// Mappings made and removed per second, none of them touched: the median of short slices,
/// because whatever else runs hits only some of them.
pub(super) fn map_and_unmap() -> Result<f64> {
    const BETWEEN_LOOKS: u32 = 64;
    let started = Instant::now();
    let mut rates = Vec::new();
    while started.elapsed() < MAP_FOR {
        let slice = Instant::now();
        let mut count = 0;
        while slice.elapsed() < SLICE {
            for _ in 0..BETWEEN_LOOKS {
                map_once()?;
            }
            count += BETWEEN_LOOKS;
        }
        rates.push(f64::from(count) / slice.elapsed().as_secs_f64());
    }
    let (_, median, _) = spread(&mut rates);
    Ok(median)
}

fn map_once() -> Result<()> {
    // SAFETY: a new anonymous mapping, which nothing refers to.
    let gone = unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            MAPPING,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        address != libc::MAP_FAILED && libc::munmap(address, MAPPING) == 0
    };
    ensure!(gone, "mmap: {}", std::io::Error::last_os_error());
    Ok(())
}
