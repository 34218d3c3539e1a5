//! What is asked for: a pod, a destination and a kind of packet.

use std::net::IpAddr;

/// A transport protocol to ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// A TCP SYN.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// An ICMP echo request.
    Icmp,
}

impl Protocol {
    /// As people and packet filters write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// A question.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The pod: its address, the beginning of its container's id, or namespace/name.
    pub pod: String,
    /// Destination address.
    pub destination: IpAddr,
    /// Kind of packet.
    pub protocol: Protocol,
    /// Destination port; no meaning for ICMP.
    pub port: u16,
    /// Source port, or the identifier of the echo.
    pub source_port: u16,
    /// Length from the IP header on, in bytes.
    pub size: u16,
    /// Time to live.
    pub ttl: u8,
    /// Source address, where that is not the pod's.
    pub from_address: Option<IpAddr>,
}

/// A packet that comes in by the wire.
#[derive(Clone, Debug)]
pub struct Traced(pub(super) Vec<u8>);

impl Traced {
    /// Of the report of the first half, or of a packet in hexadecimal.
    ///
    /// # Errors
    ///
    /// [`super::TraceError::Received`] where it is neither, or the packet of the report never gets on the wire.
    pub fn parse(text: &str) -> Result<Self, super::TraceError> {
        let failed = |why: String| super::TraceError::Received(why);
        let text = text.trim();
        let hex = if text.starts_with('{') {
            let report: super::Report =
                serde_json::from_str(text).map_err(|e| failed(format!("not the report of a trace: {e}")))?;
            let wire = report.wire.ok_or_else(|| {
                failed(format!(
                    "the packet does not get on the wire on {}: {}",
                    report.node, report.verdict.text
                ))
            })?;
            wire.hex
        } else {
            text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect()
        };
        let byte =
            |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Option<Vec<u8>> =
            hex.as_bytes().chunks(2).map(|pair| byte(pair).filter(|_| pair.len() == 2)).collect();
        let bytes = bytes
            .ok_or_else(|| failed("give the packet in hexadecimal, or the JSON of `overlay trace`".into()))?;
        if bytes.len() < overlay_common::wire::ETH_LEN + 20 {
            return Err(failed(format!("{} bytes are less than an Ethernet and an IP header", bytes.len())));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::Traced;

    #[test]
    fn packets_are_read_in_hexadecimal_whatever_stands_between() {
        let text = format!("0a:6F 00\n{}", "00".repeat(40));
        let Traced(bytes) = Traced::parse(&text).unwrap();
        assert_eq!((bytes.len(), &bytes[..3]), (43, &[0x0a, 0x6f, 0][..]));
    }

    #[test]
    fn what_is_no_packet_is_refused_with_what_is_wanted() {
        for (text, wanted) in [
            ("", "less than"),
            ("zz", "hexadecimal"),
            ("0", "hexadecimal"),
            ("{}", "report"),
            ("0a6f", "less than"),
        ] {
            let error = Traced::parse(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
    }
}
