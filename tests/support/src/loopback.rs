//! Addresses in 127.0.0.0/8 that nobody else uses.

use crate::{Error, Result};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    process,
    sync::atomic::{AtomicU16, AtomicU32, Ordering},
};

/// The UDP port that is bound to claim an address; above the range that Linux gives to outgoing connections.
const CLAIM_PORT: u16 = 61_998;
/// Addresses 127.0.1.1 to 127.0.255.254.
const HOSTS: u32 = 254;
const COUNT: u32 = 255 * HOSTS;

/// The first port that is given out; below the range from which Linux takes ports for who wants any, on all addresses perhaps.
const FIRST_PORT: u16 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A loopback address that belongs to one holder on this machine while the value lives.
///
/// The claim is a bound UDP port, so that the kernel keeps two processes apart and frees the address of a process that
/// was killed. As connections to any loopback address go out from 127.0.0.1, a port of this address is never taken by
/// somebody's outgoing connection: a server that is restarted finds its port free.
#[derive(Debug)]
pub struct LoopbackAddr {
    ip: Ipv4Addr,
    /// No port is given out twice, as one that was may not be in use yet.
    next_port: AtomicU16,
    _claim: UdpSocket,
}

impl LoopbackAddr {
    /// Claims an address that no other test process has.
    pub fn claim() -> Result<Self> {
        // Processes that run side by side start their search far from each other.
        let start = process::id().wrapping_mul(1_009);
        for _ in 0..COUNT {
            let slot = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
            let [.., high, low] = (((slot / HOSTS + 1) << 8) | (slot % HOSTS + 1)).to_be_bytes();
            let ip = Ipv4Addr::new(127, 0, high, low);
            match UdpSocket::bind((ip, CLAIM_PORT)) {
                Ok(claim) => return Ok(Self { ip, next_port: AtomicU16::new(FIRST_PORT), _claim: claim }),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                Err(e) => return Err(Error::io(format!("claiming {ip}"))(e)),
            }
        }
        Err(Error::io("claiming a loopback address")(io::ErrorKind::AddrInUse.into()))
    }

    /// The address.
    pub fn ip(&self) -> IpAddr {
        self.ip.into()
    }

    /// A port that is free on this address.
    pub fn free_port(&self) -> Result<u16> {
        loop {
            let port = self.next_port.fetch_add(1, Ordering::Relaxed);
            match TcpListener::bind((self.ip, port)) {
                Ok(_) => return Ok(port),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && port < CLAIM_PORT => {}
                Err(e) => return Err(Error::io(format!("looking for a free port on {}", self.ip))(e)),
            }
        }
    }

    /// This address with a port that is free on it.
    pub fn free_socket(&self) -> Result<SocketAddr> {
        Ok((self.ip(), self.free_port()?).into())
    }
}

/// A TCP port that is free on `ip` right now. Only on a claimed address does it stay free until it is used.
pub fn free_port(ip: IpAddr) -> Result<u16> {
    let bound = TcpListener::bind((ip, 0)).and_then(|l| l.local_addr());
    Ok(bound.map_err(Error::io(format!("looking for a free port on {ip}")))?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_holds_for_every_process_and_ends_with_the_value() {
        let address = LoopbackAddr::claim().unwrap();
        let ip = address.ip;
        UdpSocket::bind((ip, CLAIM_PORT)).unwrap_err();
        // Another process may come to the same address first.
        NEXT.fetch_sub(1, Ordering::Relaxed);
        let (one, other) = (address.free_port().unwrap(), address.free_port().unwrap());
        assert_ne!(one, other, "nobody has bound the first one yet");
        let _taken = TcpListener::bind((ip, other + 1)).unwrap();
        assert_eq!(address.free_port().unwrap(), other + 2);
        assert_ne!(LoopbackAddr::claim().unwrap().ip, ip);
        drop(address);
        UdpSocket::bind((ip, CLAIM_PORT)).unwrap();
    }
}
