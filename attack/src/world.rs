//! A control's world: a network name space in which every address is this very one, so that whoever asks for an address
//! of the host, of the LAN or of a cloud's metadata there is answered, and nobody outside ever hears of it.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::{linux::net::SocketAddrExt, unix::net::UnixListener},
    time::Duration,
};

use attack::{READY, World};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink::SocketAddrNetlink, recv, sendto, socket};

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\nConnection: close\r\n\r\n{}\n";
/// How long somebody may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the world, says so, and is it until the end.
pub fn be(world: &World) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("{what}: {error}");
    all_addresses(AddressFamily::INET).map_err(|error| failed("every IPv4 address", error))?;
    // A host may have none of these.
    let ipv6 = all_addresses(AddressFamily::INET6).is_ok();
    let any = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    for port in &world.ports {
        let listener = TcpListener::bind(SocketAddr::new(any, *port)).map_err(|error| failed("listening", error))?;
        std::thread::spawn(move || answer(&listener));
    }
    let server = UdpSocket::bind(SocketAddr::new(any, 53)).map_err(|error| failed("the name server", error))?;
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = server.recv_from(&mut question) {
            let _ = server.send_to(&question[..length], from);
        }
    });
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&world.abstract_name);
    let listener = address.and_then(|address| UnixListener::bind_addr(&address));
    let listener = listener.map_err(|error| failed("the abstract socket", error))?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    println!("{READY}");
    std::thread::sleep(crate::WAIT);
    Ok(())
}

fn answer(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let mut heard = Vec::new();
            let mut piece = [0; 4096];
            while !heard.windows(4).any(|window| window == b"\r\n\r\n") && heard.len() < 1 << 16 {
                match stream.read(&mut piece) {
                    Ok(length) if length > 0 => heard.extend_from_slice(&piece[..length]),
                    _ => return,
                }
            }
            let _ = stream.write_all(ANSWER);
        });
    }
}

/// Makes every address of a family lead to the loopback: `ip route add local default dev lo table local`.
fn all_addresses(family: AddressFamily) -> io::Result<()> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    sendto(&socket, &message(family), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut told = [0_u8; 512];
    let (_, length) = recv(&socket, &mut told, RecvFlags::empty())?;
    // What is acknowledged is an error of 0, after a header of 16 bytes.
    let code = told.get(16..20).filter(|_| length >= 20).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The message for it: rtnetlink(7).
fn message(family: AddressFamily) -> Vec<u8> {
    const NEW_ROUTE: u16 = 24;
    const REQUEST_CREATE_ACK: u16 = 0x1 | 0x400 | 0x4;
    const LOCAL_TABLE: u8 = 255;
    const STATIC: u8 = 4;
    const THIS_HOST: u8 = 254;
    const LOCAL: u8 = 2;
    const OUTPUT_INTERFACE: u16 = 4;
    const LOOPBACK: u32 = 1;
    let mut body = vec![family.as_raw() as u8, 0, 0, 0, LOCAL_TABLE, STATIC, THIS_HOST, LOCAL, 0, 0, 0, 0];
    body.extend(8_u16.to_ne_bytes());
    body.extend(OUTPUT_INTERFACE.to_ne_bytes());
    body.extend(LOOPBACK.to_ne_bytes());
    let mut message = Vec::new();
    message.extend(u32::try_from(body.len() + 16).unwrap_or_default().to_ne_bytes());
    message.extend(NEW_ROUTE.to_ne_bytes());
    message.extend(REQUEST_CREATE_ACK.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_as_long_as_it_says() {
        let message = message(AddressFamily::INET);
        assert_eq!(message.len(), 16 + 12 + 8);
        assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
        assert_eq!(message[16], 2, "AF_INET");
    }
}
