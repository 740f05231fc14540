//! Addresses, asked for directly.

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::{linux::net::SocketAddrExt, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use crate::verdict::{Verdict, reason};

/// How long somebody may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A question for the address of `beaver.test`, which is nobody's.
const QUESTION: &[u8] = b"\x42\x17\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06beaver\x04test\x00\x00\x01\x00\x01";

pub fn tcp(to: SocketAddr) -> Verdict {
    Verdict::of(TcpStream::connect_timeout(&to, PATIENCE), "connected")
}

pub fn dns(to: SocketAddr) -> Verdict {
    let local = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let asked = || {
        let socket = UdpSocket::bind(local)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(QUESTION)?;
        socket.recv(&mut [0; 512])
    };
    Verdict::of(asked(), "answered")
}

pub fn abstract_socket(name: &str) -> Verdict {
    let address = match std::os::unix::net::SocketAddr::from_abstract_name(name) {
        Ok(address) => address,
        Err(error) => return Verdict::broken(error),
    };
    Verdict::of(UnixStream::connect_addr(&address), "connected")
}

pub fn raw_socket() -> Verdict {
    Verdict::of(socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)), "opened")
}

pub fn packet_socket() -> Verdict {
    Verdict::of(socket(AddressFamily::PACKET, SocketType::RAW, None), "opened")
}

pub fn interface() -> Verdict {
    let mut list = String::new();
    if let Err(error) = fs::File::open("/proc/net/dev").and_then(|mut file| file.read_to_string(&mut list)) {
        return Verdict::broken(reason(&error));
    }
    match others(&list).as_slice() {
        [] => Verdict::refused("only lo"),
        others => Verdict::done(others.join(" ")),
    }
}

/// The interfaces in the kernel's list that could lead anywhere. Tunnels that every new name space is born with, and that
/// are down, do not.
fn others(list: &str) -> Vec<&str> {
    let names = list.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    names.filter(|name| *name != "lo" && !INBORN.contains(name)).collect()
}

/// What modules of the kernel put into every name space.
const INBORN: [&str; 9] = ["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"];

pub fn unix(path: &Path) -> Verdict {
    Verdict::of(UnixStream::connect(path), "connected")
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::net::UnixListener};

    use attack::Outcome;

    use super::*;

    #[test]
    fn what_listens_is_told_from_what_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(tcp(address), Verdict::done("connected"));
        // A port that nobody is given: one that was just let go may be somebody's already.
        assert_eq!(tcp(([127, 0, 0, 1], 1).into()), Verdict::refused("Connection refused"));

        let name = format!("beaver-attack-test-{}", std::process::id());
        assert_eq!(abstract_socket(&name).outcome, Outcome::Refused);
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let _listener = UnixListener::bind_addr(&address).unwrap();
        assert_eq!(abstract_socket(&name).outcome, Outcome::Done);
    }

    #[test]
    fn a_name_server_is_one_that_answers() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let answering = std::thread::spawn(move || {
            let mut question = [0; 512];
            let (length, from) = server.recv_from(&mut question).unwrap();
            server.send_to(&question[..length], from).unwrap();
        });
        assert_eq!(dns(address), Verdict::done("answered"));
        answering.join().unwrap();
        assert_eq!(dns(address).outcome, Outcome::Refused);
    }

    #[test]
    fn interfaces_are_read_from_the_kernels_list() {
        let list = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  eth0: 3 4\n  sit0: 0 0\n";
        assert_eq!(others(list), ["eth0"]);
        assert!(others("a\nb\n lo: 1\n tunl0: 0\n").is_empty());
    }
}
