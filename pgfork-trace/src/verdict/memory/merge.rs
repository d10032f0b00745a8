//! Several failing checks, one request.
//!
//! The kernel side sends a record for every check that refuses, inner functions before the
//! outer ones that pass their error on. And one `malloc` asks several times: glibc's `sysmalloc`
//! (malloc/malloc.c, 2.31 to 2.41) tries mmap, brk and mmap again for a large request, brk and
//! mmap for a small one, before it gives up. Pure: fed with records, it reads no clock.

use pgfork_trace_common::{Check, MemoryRefusal, memory_valid};

/// Records of one thread within this time belong together. A C library asks again within
/// microseconds, but may lose the processor in between; the next malloc begins anew anyway.
pub const WINDOW_NS: u64 = 50_000_000;
/// A call whose refusing check was seen is still running; for how long the processor may be taken
/// from it until its own function returns, which is what tells how the memory was asked for.
pub const OPEN_NS: u64 = 1_000_000_000;
/// Most calls put together; more of one thread in that time are a new request.
const MOST_CALLS: usize = 16;
/// Most threads with a request in the making; the oldest is let go.
const MOST_THREADS: usize = 1_024;

/// What one system call, or one growth of the stack, was refused by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Checks inside of it, deepest first.
    pub inner: Vec<MemoryRefusal>,
    /// The function that ended it; absent where it is not hooked, or has none of its own.
    pub outer: Option<MemoryRefusal>,
}

impl Call {
    /// All records, deepest first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &MemoryRefusal> {
        self.inner.iter().chain(&self.outer)
    }

    /// The same system call with the same arguments.
    fn repeats(&self, other: &Self) -> bool {
        match (&self.outer, &other.outer) {
            (Some(one), Some(two)) => {
                one.valid & two.valid & memory_valid::BYTES != 0
                    && (one.check, one.bytes, one.flags) == (two.check, two.bytes, two.flags)
            }
            _ => false,
        }
    }
}

/// One request of a process for memory, with all that refused it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// In the order in which they were made; never empty.
    pub calls: Vec<Call>,
}

impl Request {
    /// All records, in the order in which they were made.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &MemoryRefusal> {
        self.calls.iter().flat_map(Call::records)
    }

    /// Any record: all of them are of one thread.
    #[must_use]
    pub fn first(&self) -> Option<&MemoryRefusal> {
        self.records().next()
    }
}

/// Whether a function passes on the error of others: what the process asked for.
#[must_use]
pub(super) fn is_outer(check: u32) -> bool {
    matches!(
        Check::from_number(check),
        Some(
            Check::VmMmapPgoff
                | Check::DoBrkFlags
                | Check::Mremap
                | Check::Mprotect
                | Check::ExpandDownwards
                | Check::ShmemFallocate
        )
    )
}

#[derive(Debug)]
struct Group {
    tid: u32,
    first_ns: u64,
    request: Request,
}

impl Group {
    fn new(record: &MemoryRefusal) -> Self {
        Self {
            tid: record.tid,
            first_ns: record.time_ns,
            request: Request::default(),
        }
    }

    /// The last check of the last call, where the function around it has not returned yet.
    fn open(&self) -> Option<&MemoryRefusal> {
        let call = self.request.calls.last()?;
        call.inner.last().filter(|_| call.outer.is_none())
    }

    /// Whether a record that comes after the window is of the call that is running all the same.
    fn continues(&self, record: &MemoryRefusal) -> bool {
        let pages = |it: &MemoryRefusal| it.bytes.div_ceil(1 << 12);
        self.open().is_some_and(|inner| {
            let known = inner.valid & record.valid & memory_valid::BYTES != 0;
            (is_outer(record.check) || inner.check == record.check)
                && (!known || pages(inner) == pages(record))
        })
    }

    /// Whether nothing more can come: of a call that is running, its own function may.
    fn is_over(&self, now_ns: u64) -> bool {
        let window = match self.open() {
            Some(_) => OPEN_NS,
            None => WINDOW_NS,
        };
        now_ns >= self.first_ns.saturating_add(window)
    }

    fn add(&mut self, record: MemoryRefusal) {
        let calls = &mut self.request.calls;
        let open = calls.last_mut().filter(|call| call.outer.is_none());
        if is_outer(record.check) {
            match open {
                Some(call) => call.outer = Some(record),
                None => calls.push(Call {
                    inner: Vec::new(),
                    outer: Some(record),
                }),
            }
        } else {
            match open {
                Some(call) => call.inner.push(record),
                None => calls.push(Call {
                    inner: vec![record],
                    outer: None,
                }),
            }
        }
    }

    /// The last call, where the next request began with it.
    fn split(&mut self) -> Option<Self> {
        let calls = &mut self.request.calls;
        let again = match calls.as_slice() {
            [first, .., last] => last.repeats(first) || calls.len() > MOST_CALLS,
            // Checks without a function around them.
            [only] => only.inner.len() > MOST_CALLS,
            [] => false,
        };
        if !again {
            return None;
        }
        let call = match calls.len() {
            // Its last check begins anew.
            1 => Call {
                inner: vec![calls[0].inner.pop()?],
                outer: calls[0].outer.take(),
            },
            _ => calls.pop()?,
        };
        let first = call.records().next()?;
        Some(Self {
            tid: self.tid,
            first_ns: first.time_ns,
            request: Request { calls: vec![call] },
        })
    }
}

/// Requests in the making.
#[derive(Debug, Default)]
pub struct Merger {
    groups: Vec<Group>,
}

impl Merger {
    /// Takes a record; gives the requests that are complete by it.
    pub fn push(&mut self, record: MemoryRefusal) -> Vec<Request> {
        let over = |group: &mut Group| {
            let ended = record.time_ns >= group.first_ns.saturating_add(WINDOW_NS)
                && group.tid == record.tid
                && !group.continues(&record);
            ended || group.is_over(record.time_ns)
        };
        let mut done = self.take(over);
        let at = match self.groups.iter().position(|it| it.tid == record.tid) {
            Some(at) => at,
            None => {
                if self.groups.len() >= MOST_THREADS {
                    done.push(self.groups.remove(0).request);
                }
                self.groups.push(Group::new(&record));
                self.groups.len() - 1
            }
        };
        let group = &mut self.groups[at];
        group.add(record);
        if let Some(next) = group.split() {
            done.push(std::mem::replace(group, next).request);
        }
        done
    }

    /// Requests to which nothing can be added any more at this time of the kernel's monotonic clock.
    pub fn expire(&mut self, now_ns: u64) -> Vec<Request> {
        self.take(|group| group.is_over(now_ns))
    }

    fn take(&mut self, over: impl FnMut(&mut Group) -> bool) -> Vec<Request> {
        self.groups
            .extract_if(.., over)
            .map(|group| group.request)
            .collect()
    }

    /// All that is left.
    pub fn drain(&mut self) -> Vec<Request> {
        self.groups.drain(..).map(|group| group.request).collect()
    }
}
