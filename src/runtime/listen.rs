//! Where to listen, and where others find what listens.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use socket2::SockRef;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that the system takes before we do; as many as tokio allows for.
const BACKLOG: u32 = 1_024;

/// Where to listen: `ADDRESS:PORT`, or `:PORT` for all addresses of the machine, of IPv4 and IPv6 alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At this address.
    At(SocketAddr),
    /// At this port of each.
    Everywhere(u16),
}

/// Neither `ADDRESS:PORT` nor `:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected ADDRESS:PORT, as in 127.0.0.1:8081 or [::1]:8081, or :PORT for all addresses")]
pub struct NoListen;

impl FromStr for Listen {
    type Err = NoListen;

    fn from_str(text: &str) -> Result<Self, NoListen> {
        match text.strip_prefix(':') {
            // A sign would be taken for a part of a number.
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().map(Self::Everywhere),
            _ => return text.parse().map(Self::At).map_err(|_| NoListen),
        }
        .map_err(|_| NoListen)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Everywhere(port) => write!(f, ":{port}"),
        }
    }
}

impl Listen {
    /// Whether this stands for more addresses than one, so that nobody can be told to connect there.
    pub fn is_everywhere(&self) -> bool {
        match self {
            Self::At(address) => address.ip().is_unspecified(),
            Self::Everywhere(_) => true,
        }
    }

    /// Listens there. Port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// What the system says: the address is taken, not the machine's, or not allowed.
    pub async fn bind(self) -> io::Result<TcpListener> {
        match self {
            Self::At(address) => TcpListener::bind(address).await,
            Self::Everywhere(port) => match both(port) {
                // A machine may have no IPv6 at all.
                Err(error) if !matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
                }
                bound => bound,
            },
        }
    }
}

/// One socket for IPv6 and IPv4, whatever the system's default is.
fn both(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    SockRef::from(&socket).set_only_v6(false)?;
    listen(socket, (Ipv6Addr::UNSPECIFIED, port).into(), BACKLOG)
}

/// Listens with this socket. The system takes up to `backlog` connections before we do.
///
/// # Errors
///
/// What the system says, as in [`Listen::bind`].
pub fn listen(socket: TcpSocket, address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    // A restart must not wait for the connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// The address of who connects, as people know it: a socket for both families shows those of IPv4 as addresses of IPv6.
pub fn from(peer: SocketAddr) -> SocketAddr {
    (peer.ip().to_canonical(), peer.port()).into()
}

/// Where others reach what listens: `ADDRESS:PORT`, or `ADDRESS` for the port that is listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    address: IpAddr,
    port: Option<u16>,
}

/// Neither `ADDRESS:PORT` nor `ADDRESS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "expected ADDRESS:PORT, or ADDRESS if the port is that of --listen, as in 10.0.0.7, 10.0.0.7:7070, fd00::7 or [fd00::7]:7070"
)]
pub struct NoAdvertise;

impl FromStr for Advertise {
    type Err = NoAdvertise;

    fn from_str(text: &str) -> Result<Self, NoAdvertise> {
        let whole = text.parse().map(|at: SocketAddr| Self { address: at.ip(), port: Some(at.port()) });
        whole.or_else(|_| text.parse().map(|address| Self { address, port: None })).map_err(|_| NoAdvertise)
    }
}

impl Advertise {
    /// The whole address, for one who listens on that port.
    pub fn with_port(self, port: u16) -> SocketAddr {
        (self.address, self.port.unwrap_or(port)).into()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn an_address_or_all_of_them() {
        for text in ["127.0.0.1:8081", "[::1]:8081", "0.0.0.0:0", ":8081", ":0"] {
            assert_eq!(text.parse::<Listen>().map(|listen| listen.to_string()), Ok(text.to_owned()));
        }
        for text in ["", ":", "8081", ":+80", ":65536", "::1:8081", "localhost:8081", "*:80", "127.0.0.1"] {
            assert_eq!(text.parse::<Listen>(), Err(NoListen), "{text}");
        }
        let everywhere = |text: &str| text.parse::<Listen>().unwrap().is_everywhere();
        assert!(everywhere(":80") && everywhere("0.0.0.0:80") && everywhere("[::]:80") && !everywhere("[::1]:80"));
    }

    #[test]
    fn a_pod_says_its_address_and_perhaps_a_port() {
        for (text, expected) in [
            ("10.0.0.7", "10.0.0.7:7070"),
            ("fd00::7", "[fd00::7]:7070"),
            ("10.0.0.7:1", "10.0.0.7:1"),
            ("[fd00::7]:1", "[fd00::7]:1"),
        ] {
            assert_eq!(text.parse::<Advertise>().map(|at| at.with_port(7070).to_string()), Ok(expected.to_owned()));
        }
        for text in ["", "pod-7", "fd00::7:70707", ":7070"] {
            assert_eq!(text.parse::<Advertise>(), Err(NoAdvertise), "{text}");
        }
    }

    /// Addresses of both families that this machine has.
    fn addresses() -> Vec<IpAddr> {
        let all = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        all.into_iter().filter(|address| std::net::UdpSocket::bind((*address, 0)).is_ok()).collect()
    }

    #[tokio::test]
    async fn everywhere_is_each_address_of_both_families() {
        let listener = Listen::Everywhere(0).bind().await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in addresses() {
            TcpStream::connect((address, port)).await.unwrap_or_else(|error| panic!("{address}: {error}"));
            assert_eq!(from(listener.accept().await.unwrap().1).ip(), address);
        }
        let error = Listen::Everywhere(port).bind().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
