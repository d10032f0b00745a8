//! Sockets of a server, as the kernel counts them: connections that no backend serves yet as well.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::read::{self, ReadError};
use super::{Pid, Root};

/// Connections to one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Established TCP connections, accepted by the server or not.
    pub established: u64,
    /// TCP connections whose client has closed its side, or that are being closed.
    pub closing: u64,
    /// TCP connections that wait to be accepted (`rx_queue` of a listening socket,
    /// net/ipv4/tcp_ipv4.c `get_tcp4_sock`, 5.10 to 7.2).
    pub to_accept: u64,
    /// Established and closing TCP connections by address of the client.
    pub by_address: HashMap<IpAddr, u64>,
    /// Connections to the server's Unix sockets, accepted or not.
    pub unix: u64,
    /// Of these: wait to be accepted. They have no file yet, which net/unix/af_unix.c
    /// `unix_seq_show` prints as `SS_CONNECTING` (5.10 to 7.2).
    pub unix_to_accept: u64,
}

/// Reads `/proc/PID/net`: the network namespace of the server. `Ok(None)` when nothing of it can
/// be read.
///
/// # Errors
/// When a file cannot be read for another reason than absence or permission.
pub fn sockets(root: &Root, pid: Pid, port: u16) -> Result<Option<Sockets>, ReadError> {
    let net = root.pid(pid).join("net");
    let mut found = Sockets::default();
    let mut any = false;
    for file in ["tcp", "tcp6"] {
        let read = read::lines(&net.join(file), |_, line| {
            // Lines that are not in the format are none of a connection: the first is the head.
            let _ = found.tcp(line, port);
            Ok(())
        })?;
        any |= read.is_some();
    }
    let name = format!("/.s.PGSQL.{port}");
    let read = read::lines(&net.join("unix"), |_, line| {
        const CONNECTING: &[u8] = b"02";
        const CONNECTED: &[u8] = b"03";
        let mut fields = read::fields(line);
        let state = fields.nth(5);
        let path = fields.next_back();
        if path.is_some_and(|it| it.ends_with(name.as_bytes())) {
            let waits = state == Some(CONNECTING);
            found.unix_to_accept += u64::from(waits);
            found.unix += u64::from(waits || state == Some(CONNECTED));
        }
        Ok(())
    })?;
    Ok((any || read.is_some()).then_some(found))
}

impl Sockets {
    /// `sl: LOCAL:PORT REMOTE:PORT STATE TX:RX ...`, all hexadecimal.
    fn tcp(&mut self, line: &[u8], port: u16) -> Option<()> {
        const ESTABLISHED: u64 = 1;
        const CLOSE_WAIT: u64 = 8;
        const LISTEN: u64 = 10;
        let mut fields = read::fields(line).skip(1);
        let (_, local_port) = address(fields.next()?)?;
        let (remote, _) = address(fields.next()?)?;
        let state = hexadecimal(fields.next()?)?;
        let queues = fields.next()?;
        if local_port != port {
            return None;
        }
        match state {
            ESTABLISHED => self.established += 1,
            LISTEN => {
                let colon = queues.iter().position(|&byte| byte == b':')?;
                self.to_accept += hexadecimal(&queues[colon + 1..])?;
                return None;
            }
            4..=5 | CLOSE_WAIT..=9 | 11 => self.closing += 1,
            _ => return None,
        }
        *self.by_address.entry(remote).or_default() += 1;
        Some(())
    }
}

fn hexadecimal(text: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
}

/// The kernel prints addresses as 32-bit words in its own byte order.
fn address(text: &[u8]) -> Option<(IpAddr, u16)> {
    let colon = text.iter().position(|&byte| byte == b':')?;
    let port = u16::try_from(hexadecimal(&text[colon + 1..])?).ok()?;
    let words: Vec<[u8; 4]> = text[..colon]
        .chunks(8)
        .map(|word| Some(u32::try_from(hexadecimal(word)?).ok()?.to_ne_bytes()))
        .collect::<Option<_>>()?;
    let address = match *words.as_slice() {
        [word] => IpAddr::V4(Ipv4Addr::from(word)),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            for (at, word) in [a, b, c, d].into_iter().enumerate() {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word);
            }
            // An IPv4 client of a socket for both.
            let address = Ipv6Addr::from(bytes);
            address
                .to_ipv4_mapped()
                .map_or(IpAddr::V6(address), IpAddr::V4)
        }
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeRoot;
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_of_both_families_and_unix() {
        let fake = FakeRoot::new();
        assert_eq!(sockets(fake.root(), 7, 5432).unwrap(), None);
        fake.write(
            "proc/7/net/tcp",
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n\
                0: 00000000:1538 00000000:0000 0A 00000000:00000003 00:00000000\n\
                1: 0100007F:1538 0203000A:CB92 01 00000000:00000000 00:00000000\n\
                2: 0100007F:1538 0203000A:CB93 08 00000000:00000000 00:00000000\n\
                3: 0100007F:1539 0203000A:CB93 01 00000000:00000000 00:00000000\n odd\n",
        );
        fake.write(
            "proc/7/net/tcp6",
            "   0: 0000000000000000FFFF00000100007F:1538 0000000000000000FFFF00000203000A:CB94 01 0:0\n",
        );
        fake.write(
            "proc/7/net/unix",
            "Num RefCount Protocol Flags Type St Inode Path\n\
             0: 00000002 00000000 00010000 0001 01 1 /run/.s.PGSQL.5432\n\
             0: 00000003 00000000 00000000 0001 03 2 /run/.s.PGSQL.5432\n\
             0: 00000003 00000000 00000000 0001 03 3\n\
             0: 00000002 00000000 00000000 0001 02 0 /run/.s.PGSQL.5432\n\
             0: 00000002 00000000 00000000 0001 02 0 /run/.s.PGSQL.5433\n",
        );
        let found = sockets(fake.root(), 7, 5432).unwrap().unwrap();
        assert_eq!(
            (
                found.established,
                found.closing,
                found.to_accept,
                found.unix
            ),
            (2, 1, 3, 2)
        );
        assert_eq!(found.unix_to_accept, 1);
        assert_eq!(found.by_address[&IpAddr::V4(Ipv4Addr::new(10, 0, 3, 2))], 3);
    }
}
