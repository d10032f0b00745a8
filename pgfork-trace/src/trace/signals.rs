//! Signals that end the watching in good order.

use std::future::pending;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Caught from now on, acted upon when asked for.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` where it was ignored from the start: `nohup` means it.
    hangup: Option<Signal>,
}

impl Signals {
    /// Catches them. What comes before [`Signals::any`] is asked is not lost.
    pub(super) fn catch() -> Result<Self> {
        let hangup = if is_ignored(libc::SIGHUP) {
            None
        } else {
            Some(signal(SignalKind::hangup()).context("cannot handle SIGHUP")?)
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
            hangup,
        })
    }

    /// Returns when one of them has come.
    pub(super) async fn any(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

fn is_ignored(number: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only, and writes a whole sigaction, for which all zeroes is valid too.
    let action = unsafe {
        if libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) != 0 {
            return false;
        }
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}
