//! What all servers of a host share, read once.

use crate::{
    gather,
    host::{
        Pid, Root,
        census::{self, Census},
        cgroup::{self, Controller},
        memory::{self, MemInfo},
        process, sysctl,
    },
    verdict::{MemoryFacts, OvercommitSettings},
};

/// This program, whose own share in what is counted ends with it.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) pid: Option<Pid>,
    pub(super) uid: Option<u32>,
    pub(super) user_ns: Option<u64>,
    pub(super) pid_ns: Option<u64>,
    pub(super) net_ns: Option<u64>,
    pub(super) commit_bytes: u64,
    pub(super) pids_path: Option<std::path::PathBuf>,
}

/// The host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) release: String,
    pub(super) kernel: (u32, u32),
    pub(super) page_size: u64,
    pub(super) cpus: u64,
    pub(super) info: Option<MemInfo>,
    pub(super) memory: Option<MemoryFacts>,
    pub(super) overcommit: Option<OvercommitSettings>,
    pub(super) threads: Option<(u64, u64)>,
    pub(super) pid_max: Option<u64>,
    pub(super) census: Census,
    pub(super) own: Own,
    /// What could not be read.
    pub(super) not_seen: Vec<String>,
}

impl Host {
    /// Reads it. What is absent or odd is named in `not_seen`.
    pub(super) fn read(root: &Root) -> anyhow::Result<Self> {
        let mut not_seen = Vec::new();
        let (sysctls, unread) = sysctl::sysctls(root);
        not_seen.extend(unread.iter().map(|it| odd(it)));
        let (info, unread) = memory::meminfo(root);
        not_seen.extend(unread.iter().map(|it| odd(it)));
        let release = noted(sysctl::read_sysctl(root, "kernel/osrelease"), &mut not_seen)
            .flatten()
            .unwrap_or_default();
        let own = own(root);
        let mut memory = gather::memory_facts(root);
        if let Some(memory) = &mut memory {
            memory.committed_as = memory.committed_as.saturating_sub(own.commit_bytes);
        }
        let own_task = u64::from(own.pid.is_some());
        let mut census = census::census(root)?;
        not_seen.extend(census.unread.iter().map(|it| odd(it)));
        census.numbers.retain(|number| Some(*number) != own.pid);
        Ok(Self {
            kernel: version(&release),
            release,
            page_size: gather::system_value(libc::_SC_PAGESIZE).unwrap_or(4096),
            cpus: gather::system_value(libc::_SC_NPROCESSORS_ONLN).unwrap_or(1),
            info,
            memory,
            overcommit: gather::overcommit_settings(&sysctls),
            threads: sysctls
                .nr_threads
                .map(|tasks| tasks.saturating_sub(own_task))
                .zip(sysctls.threads_max),
            pid_max: sysctls.pid_max,
            census,
            own,
            not_seen,
        })
    }
}

/// The value, or a note on why there is none.
pub(super) fn noted<T>(
    result: Result<T, crate::host::ReadError>,
    notes: &mut Vec<String>,
) -> Option<T> {
    result
        .map_err(|error| notes.push(odd(&error.to_string())))
        .ok()
}

/// What stands where something else was expected.
pub(super) fn odd(error: &str) -> String {
    format!("not in its format: {error}")
}

fn own(root: &Root) -> Own {
    let dir = root.proc().join("self");
    let Some(status) = process::status_at(&dir.join("status")).ok().flatten() else {
        return Own::default();
    };
    let accounted = status
        .tgid
        .and_then(|pid| process::accounted(root, pid).ok().flatten());
    let namespaces = process::namespaces(&dir);
    Own {
        pid: status.tgid,
        uid: Some(status.uids.real),
        user_ns: namespaces.user,
        pid_ns: namespaces.pid,
        net_ns: namespaces.net,
        commit_bytes: accounted.map_or(0, |it| it.total_bytes),
        pids_path: status
            .tgid
            .and_then(|pid| cgroup::chain(root, pid, Controller::Pids).ok().flatten())
            .map(|chain| chain.path),
    }
}

/// `6.1` of `6.1.0-50-cloud-amd64`; `(0, 0)` when it is not so.
fn version(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || parts.next().and_then(|part| part.parse().ok());
    next().zip(next()).unwrap_or((0, 0))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn releases() {
        assert_eq!(version("6.1.0-50-cloud-amd64"), (6, 1));
        assert_eq!(version("7.2-rc1"), (7, 2));
        assert_eq!(version(""), (0, 0));
        assert_eq!(version("odd"), (0, 0));
    }
}
