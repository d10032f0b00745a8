//! Pressure stall information: how long tasks waited for memory.

use super::Root;
use super::read::{self, ReadError};

/// Shares of time in hundredths of a percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Some task waited, over the last 10 s.
    pub some_10: u64,
    /// Some task waited, over the last 300 s.
    pub some_300: u64,
    /// All tasks waited, over the last 10 s.
    pub full_10: u64,
}

/// Reads `/proc/pressure/memory`. `Ok(None)` without PSI (`psi=0`, CONFIG_PSI off).
///
/// # Errors
/// When a line is not `some|full avg10=N.NN avg60=N.NN avg300=N.NN total=N`.
pub fn memory_pressure(root: &Root) -> Result<Option<Pressure>, ReadError> {
    let path = root.proc().join("pressure/memory");
    let mut found = Pressure::default();
    let read = read::lines(&path, |number, line| {
        let mut fields = read::fields(line);
        let kind = fields.next().unwrap_or_default();
        for field in fields {
            let field = String::from_utf8_lossy(field);
            let target = match (kind, field.split_once('=')) {
                (b"some", Some(("avg10", value))) => (&mut found.some_10, value),
                (b"some", Some(("avg300", value))) => (&mut found.some_300, value),
                (b"full", Some(("avg10", value))) => (&mut found.full_10, value),
                _ => continue,
            };
            *target.0 = hundredths(target.1)
                .ok_or_else(|| ReadError::parse(&path, number, "a share of time", line))?;
        }
        Ok(())
    })?;
    Ok(read.map(|()| found))
}

fn hundredths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.')?;
    let part: u64 = (part.len() == 2).then(|| part.parse().ok())??;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(100)?
        .checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeRoot;
    use super::*;

    #[test]
    fn shares_of_time() {
        let fake = FakeRoot::new();
        assert_eq!(memory_pressure(fake.root()).unwrap(), None);
        fake.write(
            "proc/pressure/memory",
            "some avg10=1.53 avg60=0.87 avg300=0.20 total=1\nfull avg10=0.05 avg60=0.00 avg300=0.00 total=2\n",
        );
        assert_eq!(
            memory_pressure(fake.root()).unwrap(),
            Some(Pressure {
                some_10: 153,
                some_300: 20,
                full_10: 5
            })
        );
        fake.write("proc/pressure/memory", "some avg10=x\n");
        assert!(memory_pressure(fake.root()).is_err());
    }
}
