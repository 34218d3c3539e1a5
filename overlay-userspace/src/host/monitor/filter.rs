//! What nftables report: messages of `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nf_tables.h), Linux 3.13.

use netlink_packet_core::{DecodeError, parse_string};

use super::{Change, attribute};
use crate::host::netlink::RawMessage;

/// The multicast group of `NETLINK_NETFILTER` that reports every committed transaction.
pub(super) const GROUP: u32 = libc::NFNLGRP_NFTABLES as u32;

/// `struct nfgenmsg` (linux/netfilter/nfnetlink.h), before the attributes.
const HEADER: usize = 4;

/// The table's name has this number in the messages of all objects (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, …).
const TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// Only base chains have a hook.
const CHAIN_HOOK: u16 = 4;
const RULE_CHAIN: u16 = 2;

/// The reader of nftables' messages, see [`super::Reader`].
pub(super) fn read(message: &RawMessage<'_>) -> Result<Option<Change>, DecodeError> {
    let payload = message.payload;
    let [kind, subsystem] = message.header.message_type.to_le_bytes().map(i32::from);
    if subsystem != libc::NFNL_SUBSYS_NFTABLES {
        return Ok(None);
    }
    let text = |kind| attribute(payload, HEADER, kind).map(parse_string).transpose();
    let chain = match kind {
        libc::NFT_MSG_NEWCHAIN | libc::NFT_MSG_DELCHAIN => text(CHAIN_NAME)?,
        libc::NFT_MSG_NEWRULE | libc::NFT_MSG_DELRULE => text(RULE_CHAIN)?,
        libc::NFT_MSG_NEWTABLE
        | libc::NFT_MSG_DELTABLE
        | libc::NFT_MSG_NEWSET
        | libc::NFT_MSG_DELSET
        | libc::NFT_MSG_NEWSETELEM
        | libc::NFT_MSG_DELSETELEM => None,
        // The end of a transaction, counters and quotas, flow tables.
        _ => return Ok(None),
    };
    let base = kind == libc::NFT_MSG_NEWCHAIN && attribute(payload, HEADER, CHAIN_HOOK).is_some();
    Ok(Some(Change::Filter { table: text(TABLE)?.unwrap_or_default(), chain, base }))
}
