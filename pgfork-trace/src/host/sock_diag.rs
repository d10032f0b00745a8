//! How long TCP connections have been silent: `NETLINK_SOCK_DIAG`, which also `ss -i` asks.
//!
//! `inet_diag_msg` (include/uapi/linux/inet_diag.h) and `tcp_info` (include/uapi/linux/tcp.h) only
//! grow at their ends, 5.10 to 7.2. Nothing is asked where the kernel would have to load a module
//! for the answer (net/core/sock_diag.c `__sock_diag_cmd` calls `request_module`): that starts a process.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::{Root, read};

/// Address and port of the client.
pub type Peer = (IpAddr, u16);

/// Time since data last went each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// Since the server last sent something (`tcpi_last_data_sent`).
    pub sent: Duration,
    /// Since something last came from the client (`tcpi_last_data_recv`).
    pub received: Duration,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Header of a netlink message.
const HEADER: usize = 16;
/// `inet_diag_msg`.
const MESSAGE: usize = 72;
const INET_DIAG_INFO: u16 = 2;
const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE_WAIT: u32 = 8;

/// Connections to `port` in the network namespace of this process. `Ok(None)` where the kernel
/// cannot be asked without changing something.
///
/// # Errors
/// When the kernel refuses.
pub fn silences(root: &Root, port: u16) -> io::Result<Option<HashMap<Peer, Silence>>> {
    if !is_there(root) {
        return Ok(None);
    }
    let mut found = HashMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(u8::try_from(family).unwrap_or(0), port, &mut found)?;
    }
    Ok(Some(found))
}

/// Whether the kernel has the code already: loaded, built in, or without any modules.
fn is_there(root: &Root) -> bool {
    if *root != Root::default() {
        return false;
    }
    let names = |path: &Path, is: fn(&[u8]) -> bool| {
        let mut any = false;
        let read = read::lines(path, |_, line| {
            any |= is(line);
            Ok(())
        });
        read.ok().flatten().map(|()| any)
    };
    let loaded = names(&root.proc().join("modules"), |line| {
        line.starts_with(b"tcp_diag ")
    });
    let Some(false) = loaded else { return true };
    let release = super::sysctl::read_sysctl(root, "kernel/osrelease");
    let Ok(Some(release)) = release else {
        return false;
    };
    let built_in = root.join(Path::new("/lib/modules")).join(release);
    names(&built_in.join("modules.builtin"), |line| {
        line.ends_with(b"/tcp_diag.ko")
    }) == Some(true)
}

fn dump(family: u8, port: u16, found: &mut HashMap<Peer, Silence>) -> io::Result<()> {
    // SAFETY: a new descriptor, owned below.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            libc::NETLINK_SOCK_DIAG,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // An answer is there at once; nothing may hang for want of one.
    let patience = libc::timeval {
        tv_sec: 1,
        tv_usec: 0,
    };
    let request = request(family, port);
    // SAFETY: both buffers are valid for the lengths given.
    let sent = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            size_of_val(&patience) as libc::socklen_t,
        );
        libc::send(
            socket.as_raw_fd(),
            request.as_ptr().cast(),
            request.len(),
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    // `netlink_dump` fills at most 32 KiB at a time (net/netlink/af_netlink.c).
    let mut buffer = vec![0; 32 << 10];
    loop {
        // SAFETY: the buffer is valid for its length.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        };
        if length == 0 || parse(&buffer[..length], found)? {
            return Ok(());
        }
    }
}

/// A netlink header and `inet_diag_req_v2`.
fn request(family: u8, port: u16) -> Vec<u8> {
    const LENGTH: u32 = 72;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or(0);
    let protocol = u8::try_from(libc::IPPROTO_TCP).unwrap_or(0);
    let extensions = 1_u8 << (INET_DIAG_INFO - 1);
    let states = 1_u32 << TCP_ESTABLISHED | 1 << TCP_CLOSE_WAIT;
    let mut out = Vec::with_capacity(LENGTH as usize);
    out.extend(LENGTH.to_ne_bytes());
    out.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend([0; 8]);
    out.extend([family, protocol, extensions, 0]);
    out.extend(states.to_ne_bytes());
    // The server's side of the connection; everything else is any.
    out.extend(port.to_be_bytes());
    out.resize(LENGTH as usize, 0);
    out
}

/// One answer, which holds several messages. Whether it was the last.
fn parse(answer: &[u8], found: &mut HashMap<Peer, Silence>) -> io::Result<bool> {
    let mut rest = answer;
    while rest.len() >= HEADER {
        let length = number(rest, 0).map_or(0, |it| it as usize);
        let Some(message) = rest.get(HEADER..length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match i32::from(half(rest, 4).unwrap_or(0)) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let errno = number(message, 0).map_or(0, u32::cast_signed);
                return Err(io::Error::from_raw_os_error(-errno));
            }
            _ => found.extend(connection(message)),
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

fn connection(message: &[u8]) -> Option<(Peer, Silence)> {
    const LAST_DATA_SENT: usize = 44;
    const LAST_DATA_RECEIVED: usize = 52;
    let port = u16::from_be_bytes(message.get(6..8)?.try_into().ok()?);
    let address = match i32::from(*message.first()?) {
        libc::AF_INET => {
            let bytes: [u8; 4] = message.get(24..28)?.try_into().ok()?;
            IpAddr::V4(Ipv4Addr::from(bytes))
        }
        libc::AF_INET6 => {
            let bytes: [u8; 16] = message.get(24..40)?.try_into().ok()?;
            let address = Ipv6Addr::from(bytes);
            // An IPv4 client of a socket for both.
            address
                .to_ipv4_mapped()
                .map_or(IpAddr::V6(address), IpAddr::V4)
        }
        _ => return None,
    };
    let mut attributes = message.get(MESSAGE..)?;
    loop {
        let length = usize::from(half(attributes, 0)?);
        let content = attributes.get(4..length)?;
        if half(attributes, 2)? == INET_DIAG_INFO {
            let since = |at| Some(Duration::from_millis(u64::from(number(content, at)?)));
            let silence = Silence {
                sent: since(LAST_DATA_SENT)?,
                received: since(LAST_DATA_RECEIVED)?,
            };
            return Some(((address, port), silence));
        }
        attributes = attributes.get(aligned(length)..)?;
    }
}

const fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// One connection on 6.18: a query 2.2 s ago, its answer 0.6 s ago.
    const RECORDED: &[u8] = include_bytes!("testdata/tcp_diag.bin");

    #[test]
    fn a_recorded_answer() {
        let mut found = HashMap::new();
        assert!(!parse(RECORDED, &mut found).unwrap());
        let peer = (IpAddr::V4(Ipv4Addr::LOCALHOST), 52500);
        let silence = found[&peer];
        assert_eq!(
            (silence.sent.as_millis(), silence.received.as_millis()),
            (604, 2216)
        );
        assert_eq!(found.len(), 1);
        let done = [20, 0, 0, 0, 3, 0, 2, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        assert!(parse(&done, &mut found).unwrap());
    }

    #[test]
    fn refused_and_broken_answers_end_quietly() {
        let mut found = HashMap::new();
        let mut refused = [36, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0].to_vec();
        refused.extend((-libc::EPERM).to_ne_bytes());
        refused.resize(36, 0);
        let error = parse(&refused, &mut found).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        for length in 0..RECORDED.len() {
            let _ = parse(&RECORDED[..length], &mut found);
            // Cut inside, with a length that fits.
            let mut cut = RECORDED[..length.max(HEADER)].to_vec();
            let length = u32::try_from(cut.len()).unwrap();
            cut[..4].copy_from_slice(&length.to_ne_bytes());
            let _ = parse(&cut, &mut found);
        }
        assert!(parse(&[0; 64], &mut found).is_err());
    }

    /// Where this kernel answers, it is of the connection that was made.
    #[test]
    fn the_running_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        client.write_all(b"q").unwrap();
        server.read_exact(&mut [0]).unwrap();
        let Ok(Some(found)) = silences(&Root::default(), port) else {
            return eprintln!("skipped: this kernel does not tell");
        };
        assert!(found.contains_key(&(peer.ip(), peer.port())), "{found:?}");
        assert_eq!(found.len(), 1);
    }
}
