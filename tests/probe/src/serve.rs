//! The side that answers: TCP says the address of its peer, then echoes; UDP echoes and appends the address.

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
};

/// Serves until killed, at one address or at all.
pub(crate) fn run(address: Ipv4Addr, port: u16) -> io::Result<ExitCode> {
    let udp = UdpSocket::bind((address, port))?;
    let tcp = TcpListener::bind((address, port))?;
    println!("listening on {address}:{port}");
    thread::spawn(move || datagrams(&udp));
    for connection in tcp.incoming() {
        // One that is gone before it is accepted is nobody's loss.
        let Ok(connection) = connection else { continue };
        thread::spawn(move || echo(&connection));
    }
    Ok(ExitCode::SUCCESS)
}

fn echo(mut connection: &TcpStream) {
    let mut answer = || {
        connection.set_nodelay(true)?;
        writeln!(connection, "{}", connection.peer_addr()?)?;
        let mut reader = connection;
        io::copy(&mut reader, &mut connection)
    };
    if let Err(error) = answer() {
        eprintln!("probe: serve TCP: {error}");
    }
}

fn datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // An error that an ICMP message has left on the socket is not one of the next packet.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let mut answer = buffer[..length].to_vec();
        answer.extend_from_slice(from.to_string().as_bytes());
        let _ = socket.send_to(&answer, from);
    }
}
