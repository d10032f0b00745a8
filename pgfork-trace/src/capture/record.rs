//! Records of the ring buffer, decoded.

use bytes::Buf as _;
use pgfork_trace_common::{
    Attempt, MAX_NPROC_LEVELS, MAX_PIDNS_LEVELS, MAX_PIDS_LEVELS, MAX_TRAIL, MemoryRefusal,
    OomKill, ProcessEvent, Sigkill, record,
};

/// What the kernel side sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A refused fork.
    Refusal(Box<Attempt>),
    /// A program named like a postmaster was executed by this process.
    Exec(u32),
    /// A watched process ended.
    Exit(u32),
    /// A check refused memory to a watched process or a descendant of one.
    Memory(Box<MemoryRefusal>),
    /// The OOM killer chose a process.
    OomKill(OomKill),
    /// SIGKILL was sent to a watched process or a child of one.
    Sigkill(Sigkill),
}

/// One record of this type, if the size fits.
fn plain<T: Copy>(record: &[u8]) -> Option<T> {
    // SAFETY: the length fits, the types asked for are made of integers only, and the read is unaligned.
    (record.len() == size_of::<T>())
        .then(|| unsafe { record.as_ptr().cast::<T>().read_unaligned() })
}

impl Record {
    /// Decodes one record; `None` for a kind or size that this version does not send.
    #[must_use]
    pub fn decode(record: &[u8]) -> Option<Self> {
        let mut rest = record;
        match rest.try_get_u32_ne().ok()? {
            record::REFUSAL => {
                let mut attempt: Attempt = plain(record)?;
                attempt.trail_len = attempt.trail_len.min(MAX_TRAIL as u32);
                attempt.pids_levels = attempt.pids_levels.min(MAX_PIDS_LEVELS as u32);
                attempt.nproc_levels = attempt.nproc_levels.min(MAX_NPROC_LEVELS as u32);
                attempt.pidns_levels = attempt.pidns_levels.min(MAX_PIDNS_LEVELS as u32);
                Some(Self::Refusal(Box::new(attempt)))
            }
            record::MEMORY => Some(Self::Memory(Box::new(plain(record)?))),
            record::OOM_KILL => Some(Self::OomKill(plain(record)?)),
            record::SIGKILL => Some(Self::Sigkill(plain(record)?)),
            kind @ (record::EXEC | record::EXIT) if record.len() == size_of::<ProcessEvent>() => {
                let tgid = rest.try_get_u32_ne().ok()?;
                Some(if kind == record::EXEC {
                    Self::Exec(tgid)
                } else {
                    Self::Exit(tgid)
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_long_and_unknown_records_are_passed_over() {
        assert_eq!(Record::decode(&[]), None);
        assert_eq!(Record::decode(&record::REFUSAL.to_ne_bytes()), None);
        assert_eq!(Record::decode(&[9, 0, 0, 0, 1, 0, 0, 0]), None);
        let mut exec = record::EXEC.to_ne_bytes().to_vec();
        exec.extend(77u32.to_ne_bytes());
        assert_eq!(Record::decode(&exec), Some(Record::Exec(77)));
        exec.push(0);
        assert_eq!(Record::decode(&exec), None);
    }

    #[test]
    fn lengths_are_kept_within_their_arrays() {
        let mut bytes = vec![0xff; size_of::<Attempt>()];
        bytes[..4].copy_from_slice(&record::REFUSAL.to_ne_bytes());
        let Some(Record::Refusal(attempt)) = Record::decode(&bytes) else {
            panic!("a refusal")
        };
        assert_eq!(attempt.trail_len as usize, MAX_TRAIL);
        assert_eq!(attempt.pids_levels as usize, MAX_PIDS_LEVELS);
        assert_eq!(attempt.nproc_levels as usize, MAX_NPROC_LEVELS);
        assert_eq!(attempt.pidns_levels as usize, MAX_PIDNS_LEVELS);
    }
}
