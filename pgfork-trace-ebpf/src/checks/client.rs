//! Whose connection a postmaster's fork was for.
//!
//! A postmaster accepts a connection, forks, and closes its own copy of the
//! socket (PostgreSQL 10 to 18, src/backend/postmaster/postmaster.c): while it
//! forks, the only connected stream socket among its open files is the client's.
//! Standard input, output and error may be sockets too (a journal's), and are
//! passed over.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::generated::bpf_probe_read_kernel, macros::map, maps::LruHashMap,
};
use pgfork_trace_common::{Attempt, ClientKey, valid};

use crate::{
    attempt,
    kernel::{self, offset, read, read_at},
};

/// Connections by client. The rarest give way when it is full.
#[map]
static CLIENTS: LruHashMap<ClientKey, u64> = LruHashMap::with_max_entries(1024, 0);

/// Files looked through: those in the first word of the open files' bitmap.
const FILES: u32 = 64;
const AFTER_STANDARD_ERROR: u32 = 3;
/// Files passed over at once when none of them is open.
const GROUP: u32 = 16;
const GROUP_MASK: u64 = (1 << GROUP) - 1;
/// `S_IFMT`, `S_IFSOCK` (include/uapi/linux/stat.h).
const FILE_TYPE: u16 = 0o170_000;
const SOCKET: u16 = 0o140_000;
/// `SOCK_STREAM` (include/linux/net.h).
const STREAM: u16 = 1;
/// `TCP_LISTEN` (include/net/tcp_states.h), used by Unix sockets as well.
const LISTEN: u8 = 10;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Looks for the client among the open files of the current process.
#[inline(never)]
pub fn find(attempt: &mut Attempt) {
    let Some(files) = read_at::<u64>(kernel::current(), offset!(task_files)) else {
        return;
    };
    let Some(table) = read_at::<u64>(files, offset!(files_fdt)) else {
        return;
    };
    let Some(bitmap) = read_at::<u64>(table, offset!(fdt_open_fds)) else {
        return;
    };
    let Some(open) = read::<u64>(bitmap) else {
        return;
    };
    let Some(array) = read_at::<u64>(table, offset!(fdt_fd)) else {
        return;
    };
    let Some(room) = read_at::<u32>(table, offset!(fdt_max_fds)) else {
        return;
    };
    attempt.valid |= valid::CLIENT;
    if room > FILES && read::<u64>(bitmap + 8).unwrap_or(0) != 0 {
        attempt.valid |= valid::CLIENT_TRUNCATED;
    }
    attempt.stash = [
        open >> AFTER_STANDARD_ERROR << AFTER_STANDARD_ERROR,
        array,
        0,
    ];
    attempt.client_sock = 0;
    // The last one accepted has the highest number of those that a server opens in a row.
    // The number is part of every round: the verifier of 5.10 takes a loop whose counter is not
    // for one without an end.
    'found: for group in (0..FILES / GROUP).rev() {
        if (stashed(attempt, OPEN) >> (group * GROUP)) & GROUP_MASK == 0 {
            continue;
        }
        for bit in (0..GROUP).rev() {
            let number = group * GROUP + bit;
            if stashed(attempt, OPEN) >> number & 1 == 0 {
                continue;
            }
            let at = stashed(attempt, ARRAY).wrapping_add(8 * number as u64);
            if let Some(file) = fetch::<u64>(attempt, at, Some(0)) {
                look_at(attempt, file);
            }
            if attempt.client_sock != 0 {
                break 'found;
            }
        }
    }
    let sock = attempt.client_sock;
    if sock != 0 {
        peer(attempt, sock);
    }
}

// All readings of the loop go through the attempt's own memory. What the verifier knows
// of registers and stack slots differs from path to path, and the number of states it
// keeps apart then grows with each round, past its limit.
const OPEN: usize = 0;
const ARRAY: usize = 1;
const VALUE: usize = 2;

#[inline(always)]
fn stashed(attempt: &Attempt, number: usize) -> u64 {
    // SAFETY: a valid, aligned element.
    unsafe { core::ptr::read_volatile(&raw const attempt.stash[number]) }
}

/// Reads a field of the struct at `base`.
#[inline(always)]
fn fetch<T: Copy>(attempt: &mut Attempt, base: u64, offset: Option<u64>) -> Option<T> {
    const { assert!(size_of::<T>() <= 8) };
    let offset = offset?;
    if base == 0 {
        return None;
    }
    let value = (&raw mut attempt.stash[VALUE]).cast::<T>();
    // SAFETY: the helper checks the address; there is room for eight bytes.
    let result = unsafe {
        bpf_probe_read_kernel(
            value.cast(),
            size_of::<T>() as u32,
            base.wrapping_add(offset) as *const c_void,
        )
    };
    // SAFETY: written by the helper, which zeroes it when it fails.
    (result == 0).then(|| unsafe { core::ptr::read_volatile(value) })
}

#[inline(always)]
fn look_at(attempt: &mut Attempt, file: u64) {
    let Some(inode) = fetch::<u64>(attempt, file, offset!(file_inode)) else {
        return;
    };
    let Some(mode) = fetch::<u16>(attempt, inode, offset!(inode_mode)) else {
        return;
    };
    if mode & FILE_TYPE != SOCKET {
        return;
    }
    let Some(socket) = fetch::<u64>(attempt, file, offset!(file_private_data)) else {
        return;
    };
    let Some(kind) = fetch::<u16>(attempt, socket, offset!(socket_type)) else {
        return;
    };
    let Some(sock) = fetch::<u64>(attempt, socket, offset!(socket_sk)) else {
        return;
    };
    let Some(state) = fetch::<u8>(attempt, sock, offset!(sk_state)) else {
        return;
    };
    if kind == STREAM && state != LISTEN {
        attempt.client_sock = sock;
    }
}

#[inline(always)]
fn peer(attempt: &mut Attempt, sock: u64) {
    let Some(family) = read_at::<u16>(sock, offset!(sk_family)) else {
        return;
    };
    let client = &mut attempt.client;
    client.peer_uid = u32::MAX;
    match family {
        AF_UNIX => {
            if let Some(cred) = read_at::<u64>(sock, offset!(sk_peer_cred))
                && let Some(uid) = read_at(cred, offset!(cred_euid))
            {
                client.peer_uid = uid;
            }
            if let Some(pid) = read_at::<u64>(sock, offset!(sk_peer_pid))
                && let Some(number) = read_at(pid, offset!(pid_numbers))
            {
                client.peer_pid = number;
            }
        }
        AF_INET => {
            if let Some(address) = read_at::<[u8; 4]>(sock, offset!(sk_daddr)) {
                client.address[0] = address[0];
                client.address[1] = address[1];
                client.address[2] = address[2];
                client.address[3] = address[3];
            }
        }
        AF_INET6 => {
            if let Some(address) = read_at(sock, offset!(sk_v6_daddr)) {
                client.address = address;
            }
        }
        _ => return,
    }
    if family != AF_UNIX
        && let Some(port) = read_at::<u16>(sock, offset!(sk_dport))
    {
        client.port = u16::from_be(port);
    }
    client.family = family;
}

/// Counts a connection of this client.
#[inline(always)]
pub fn count(attempt: &Attempt) {
    if attempt.valid & valid::CLIENT == 0 {
        return;
    }
    let client = &attempt.client;
    let key = ClientKey {
        tgid: attempt.tgid,
        family: client.family as u32,
        uid: if client.family == AF_UNIX {
            client.peer_uid
        } else {
            0
        },
        address: client.address,
    };
    if let Some(count) = CLIENTS.get_ptr_mut(&key) {
        // SAFETY: map values outlive the program; changed atomically.
        attempt::add(unsafe { &mut *count });
    } else {
        // A postmaster has one thread: nobody else adds this key now.
        let _ = CLIENTS.insert(&key, &1, BPF_NOEXIST as u64);
    }
}
