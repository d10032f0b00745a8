//! Throw-away children: each prepares itself, forks when told to, and says how that went.
//!
//! A child is a copy of this program, which has one thread. It allocates nothing, touches no file
//! but its two pipes, and dies with its parent, or when the parent is done with it.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use super::filter;

/// A child that does not answer for this long is given up.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How a child prepares to be refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Setup {
    /// As it is.
    Nothing,
    /// Another user, who may have one process.
    OneProcess {
        /// The user.
        uid: libc::uid_t,
    },
    /// Its children would go to a pid namespace that has lost its first process.
    DyingPidNamespace,
    /// Under `SCHED_DEADLINE`.
    Deadline,
    /// Behind a filter.
    Filter,
}

/// What preparing may fail at; a number to send through a pipe.
const STEPS: [&str; 7] = [
    "",
    "setrlimit",
    "setgroups, setresgid or setresuid",
    "unshare(CLONE_NEWPID)",
    "fork into the pid namespace",
    "sched_setattr(SCHED_DEADLINE)",
    "seccomp",
];

type Answer = [i32; 2];

/// A child that waits for its parent; killed and reaped when dropped.
#[derive(Debug)]
pub(super) struct Child {
    pid: libc::pid_t,
    orders: OwnedFd,
    answers: OwnedFd,
}

impl Child {
    /// Starts one.
    pub(super) fn start(setup: Setup) -> Result<Self, String> {
        let said = |what: &str| format!("{what}: {}", io::Error::last_os_error());
        let (their_orders, orders) = pipe().ok_or_else(|| said("pipe"))?;
        let (answers, their_answers) = pipe().ok_or_else(|| said("pipe"))?;
        // SAFETY: reads only.
        let parent = unsafe { libc::getpid() };
        // SAFETY: this program has one thread; the child allocates nothing and never returns.
        match unsafe { libc::fork() } {
            -1 => Err(said("a child could not be started")),
            0 => live(
                setup,
                parent,
                their_orders.as_raw_fd(),
                their_answers.as_raw_fd(),
            ),
            pid => Ok(Self {
                pid,
                orders,
                answers,
            }),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Waits until it is prepared.
    pub(super) fn prepared(&mut self) -> Result<(), String> {
        match self.answer()? {
            [0, _] => Ok(()),
            [step, errno] => {
                let step = usize::try_from(step).unwrap_or(0);
                Err(format!(
                    "{}: {}",
                    STEPS.get(step).copied().unwrap_or_default(),
                    io::Error::from_raw_os_error(errno)
                ))
            }
        }
    }

    /// Has it fork; its errno, 0 when it was not refused.
    pub(super) fn fork(&mut self) -> Result<i32, String> {
        let order = [0u8];
        // SAFETY: one byte of a live array.
        if unsafe { libc::write(self.orders.as_raw_fd(), order.as_ptr().cast(), 1) } != 1 {
            return Err("the child does not take its order".to_owned());
        }
        self.answer().map(|[_, errno]| errno)
    }

    fn answer(&mut self) -> Result<Answer, String> {
        let mut answer: Answer = [0; 2];
        let size = size_of::<Answer>();
        if !wait_readable(&self.answers, ANSWER_WITHIN) {
            return Err("the child does not answer".to_owned());
        }
        // SAFETY: writes at most as many bytes as the array has.
        let got = unsafe { libc::read(self.answers.as_raw_fd(), answer.as_mut_ptr().cast(), size) };
        if usize::try_from(got) == Ok(size) {
            Ok(answer)
        } else {
            Err("the child ended".to_owned())
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of this process that was not waited for yet, so the pid is still its.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            while libc::waitpid(self.pid, std::ptr::null_mut(), 0) == -1
                && *libc::__errno_location() == libc::EINTR
            {}
        }
    }
}

/// Whether something can be read within this time.
pub(super) fn wait_readable(from: &impl AsFd, time: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: from.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let time = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one valid element.
    unsafe { libc::poll(&raw mut poll, 1, time) > 0 }
}

/// Reading end, writing end.
fn pipe() -> Option<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors, which nobody else owns.
    unsafe {
        (libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) == 0)
            .then(|| (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Keeps signals that end this program waiting while it lives.
#[derive(Debug)]
pub(super) struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    pub(super) fn block() -> Self {
        let mut blocked = MaybeUninit::<libc::sigset_t>::zeroed();
        let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both are valid sets, filled in by these calls.
        unsafe {
            libc::sigemptyset(blocked.as_mut_ptr());
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
                libc::sigaddset(blocked.as_mut_ptr(), signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, blocked.as_ptr(), before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set that was in force.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// The child's whole life.
fn live(setup: Setup, parent: libc::pid_t, orders: i32, answers: i32) -> ! {
    if !dies_with(parent) {
        exit();
    }
    let prepared = match prepare(setup, parent) {
        Ok(()) => [0, 0],
        Err(step) => [step, errno()],
    };
    tell(answers, prepared);
    if prepared[0] != 0 || !told(orders) {
        exit();
    }
    tell(answers, [0, fork_once()]);
    // Until the parent has read what there is to read of this process.
    while told(orders) {}
    exit();
}

fn exit() -> ! {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(0) }
}

fn errno() -> i32 {
    // SAFETY: reads this thread's errno.
    unsafe { *libc::__errno_location() }
}

fn tell(answers: i32, answer: Answer) {
    // SAFETY: as many bytes as the array has.
    unsafe { libc::write(answers, answer.as_ptr().cast(), size_of::<Answer>()) };
}

/// Waits for an order; false when there is none to come.
fn told(orders: i32) -> bool {
    let mut order = 0u8;
    // SAFETY: writes one byte.
    unsafe { libc::read(orders, (&raw mut order).cast(), 1) == 1 }
}

/// Ends with the parent, also when the parent is killed.
fn dies_with(parent: libc::pid_t) -> bool {
    // SAFETY: numbers only.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) == 0
            && libc::getppid() == parent
    }
}

/// errno of a fork, 0 when it was not refused.
fn fork_once() -> i32 {
    // SAFETY: the grandchild ends at once.
    unsafe {
        match libc::fork() {
            -1 => errno(),
            0 => exit(),
            pid => {
                libc::waitpid(pid, std::ptr::null_mut(), 0);
                0
            }
        }
    }
}

/// Prepares; else the number of the step that failed.
fn prepare(setup: Setup, parent: libc::pid_t) -> Result<(), i32> {
    let ensure = |step: i32, done: bool| if done { Ok(()) } else { Err(step) };
    match setup {
        Setup::Nothing => Ok(()),
        Setup::OneProcess { uid } => {
            let one = libc::rlimit {
                rlim_cur: 1,
                rlim_max: 1,
            };
            // SAFETY: a valid limit, of this process only.
            ensure(1, unsafe {
                libc::setrlimit(libc::RLIMIT_NPROC, &raw const one) == 0
            })?;
            // SAFETY: numbers only; no group is left.
            let other = unsafe {
                libc::setgroups(0, std::ptr::null()) == 0
                    && libc::setresgid(uid, uid, uid) == 0
                    && libc::setresuid(uid, uid, uid) == 0
            };
            // Another user's process forgets the signal that it asked for.
            ensure(2, other && dies_with(parent))
        }
        Setup::DyingPidNamespace => {
            // SAFETY: concerns only children to come.
            ensure(3, unsafe { libc::unshare(libc::CLONE_NEWPID) == 0 })?;
            // The first process of the namespace: with its end, nobody can be born there.
            ensure(4, fork_once() == 0)
        }
        Setup::Deadline => ensure(5, deadline()),
        Setup::Filter => ensure(6, filter::set()),
    }
}

/// One part in a hundred of one processor, for the moment that the child lives.
fn deadline() -> bool {
    const SCHED_DEADLINE: u32 = 6;
    const MILLISECOND: u64 = 1_000_000;
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: SCHED_DEADLINE,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: MILLISECOND,
        sched_deadline: 100 * MILLISECOND,
        sched_period: 100 * MILLISECOND,
    };
    // SAFETY: reads a valid struct of the size that it names.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
}
