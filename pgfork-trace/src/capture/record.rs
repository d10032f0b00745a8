//! Records of the ring buffer, decoded.

use bytes::Buf as _;
use pgfork_trace_common::{
    Attempt, MAX_NPROC_LEVELS, MAX_PIDS_LEVELS, MAX_TRAIL, ProcessEvent, record,
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
}

impl Record {
    /// Decodes one record; `None` for a kind or size that this version does not send.
    #[must_use]
    pub fn decode(record: &[u8]) -> Option<Self> {
        let mut rest = record;
        match rest.try_get_u32_ne().ok()? {
            record::REFUSAL if record.len() == size_of::<Attempt>() => {
                // SAFETY: the length fits, every bit pattern is a valid Attempt, and the read is unaligned.
                let mut attempt = unsafe { record.as_ptr().cast::<Attempt>().read_unaligned() };
                attempt.trail_len = attempt.trail_len.min(MAX_TRAIL as u32);
                attempt.pids_levels = attempt.pids_levels.min(MAX_PIDS_LEVELS as u32);
                attempt.nproc_levels = attempt.nproc_levels.min(MAX_NPROC_LEVELS as u32);
                Some(Self::Refusal(Box::new(attempt)))
            }
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
    }
}
